"""Lists: what is written is what is read, in every format, for any name that a file system allows."""

import csv
import json
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smalti.data import ImagesConfig, VideosConfig, bundled, magicmaster_images, magicmaster_videos, mindone_images
from smalti.data.files import list_files
from smalti.data.list_formats import Listing, read_list
from smalti.data.source import Classes, number_classes
from smalti.errors import InputError
from smalti.text import printable

ODD = [
    "a,b",
    "'",
    '"',
    '"q" ',
    " a",
    "b ",
    "-rf",
    "é",
    "e\u0301",
    "名",
    "\t",
    "\\n",
    "%s",
    "\udcff",
    "a\u2028b",
    "\x85",
]
LETTERS = st.characters(exclude_categories=["Cs"], exclude_characters="/\0\r\n\ufeff")
NAMES = st.sampled_from(ODD) | st.text(LETTERS, min_size=1, max_size=12)
FILES = st.lists(NAMES.map("{}.jpg".format), min_size=1, max_size=6, unique=True)
CLASSES = st.text(LETTERS, min_size=1, max_size=6).filter(lambda name: name == name.strip() and "," not in name)


def read(text: str, files: list[str], name: str = "list.csv", **options: str) -> Listing:
    """What `read_list` makes of a list with this text, in a folder that has these files."""
    with TemporaryDirectory() as folder:
        root = Path(folder)
        for file in files:
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).touch()
        (root / name).write_text(text, encoding="utf-8", errors="surrogateescape", newline="")
        return read_list(root / name, **options)


def as_csv(rows: list[list[str]], end: str, delimiter: str = ",") -> str:
    text = StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator=end, delimiter=delimiter).writerows(rows)
    return text.getvalue()


def said(labels: list[str]) -> Classes:
    return number_classes(labels, where="here")


@given(FILES, st.data(), st.sampled_from(["\n", "\r\n", "\r"]), st.sampled_from([",", "\t"]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_any_name_goes_through_a_plain_list(
    files: list[str], data: st.DataObject, end: str, delimiter: str, header: bool
) -> None:
    top = [["path", "label"]] if header else []
    labels = [data.draw(CLASSES) for _ in files]
    assert read(as_csv([*top[:], *([f] for f in files)], end).replace(',"label"', ""), files).files == tuple(files)
    rows = [*top, *([file, label] for file, label in zip(files, labels, strict=True))]
    listing = read(as_csv(rows, end, delimiter), files)
    assert listing.files == tuple(files)
    assert listing.classes == said(labels)


@given(FILES, st.data())
@settings(max_examples=60, deadline=None)
def test_any_name_goes_through_magicmasters_json(files: list[str], data: st.DataObject) -> None:
    folders = [data.draw(st.sampled_from(["", "train/n01", "val"])) for _ in files]
    labels = [data.draw(st.integers(0, 999)) for _ in files]
    entries = [
        {"filename": file, "prefix": folder, "label": label, "more": None}
        for file, folder, label in zip(files, folders, labels, strict=True)
    ]
    paths = [str(Path(folder) / file) for file, folder in zip(files, folders, strict=True)]
    listing = read(json.dumps(entries), paths, "ImageNet_val.json")
    assert listing.files == tuple(paths)
    assert listing.classes == Classes(tuple(labels), tuple(map(str, range(max(labels) + 1))))


@given(FILES, st.data())
@settings(max_examples=60, deadline=None)
def test_any_name_with_commas_goes_through_k600(files: list[str], data: st.DataObject) -> None:
    files = [file for file in files if file == file.strip()] or ["a, b, c.jpg"]
    labels = [data.draw(CLASSES) for _ in files]
    text = "".join(f"{file},{label}\n" for file, label in zip(files, labels, strict=True))
    listing = read(text, files, "train_new.txt", format="k600")
    assert (listing.files, listing.classes) == (tuple(files), said(labels))


def test_a_name_of_k600_without_suffix_is_an_mp4() -> None:
    listing = read("a, b_000001,playing, chess\nc.avi,x\n", ["a, b_000001,playing.mp4", "c.avi"], format="k600")
    assert listing.files == ("a, b_000001,playing.mp4", "c.avi")
    assert listing.classes.names == ("chess", "x")


@given(FILES, st.integers(0, 3), st.sampled_from(["path", "video", "image_path"]))
@settings(max_examples=60, deadline=None)
def test_any_name_goes_through_mindones_csv(files: list[str], more: int, header: str) -> None:
    rows = [[header, *map(str, range(more))], *([file, *["a caption, with a comma"] * more] for file in files)]
    listing = read(as_csv(rows, "\n"), files, format="mindone-csv")
    assert (listing.files, listing.classes) == (tuple(files), Classes(None, ()))


UCF = {"ApplyEyeMakeup": 1, "HandstandPushups": 2, "YoYo": 3}


def ucf(moved: str | None = None) -> tuple[dict[str, int], list[str]]:
    """(path in the list -> class, where the files are). HandstandPushups' files are called otherwise, as there."""
    listed = {}
    for name, number in UCF.items():
        for clip in (1, 2):
            listed[f"{name}/v_{name.replace('stand', 'Stand')}_g08_c{clip:02d}.avi"] = number
    return listed, [path if moved is None else str(Path(moved) / Path(path).name) for path in listed]


@pytest.mark.parametrize("moved", [None, "", "rec_train", "rec_test"])
@pytest.mark.parametrize("numbers", [True, False])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_ucf101s_splits_are_read_wherever_the_files_were_moved(moved: str | None, numbers: bool, end: str) -> None:
    listed, files = ucf(moved)
    text = end.join(f"{path} {number}" if numbers else path for path, number in listed.items()) + end
    without = read(text, files, "trainlist01.txt")
    assert without.files == tuple(files)
    labels = tuple(number - 1 for number in listed.values())
    assert without.classes == (Classes(labels, tuple(UCF)) if numbers else Classes(None, ()))
    with TemporaryDirectory() as folder:
        root, lists = Path(folder) / "videos", Path(folder) / "ucfTrainTestlist"
        lists.mkdir()
        for file in files:
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).touch()
        (lists / "testlist01.txt").write_text(text, newline="")
        (lists / "classInd.txt").write_text("".join(f"{n} {name}{end}" for name, n in UCF.items()), newline="")
        listing = read_list(lists / "testlist01.txt", root)
        assert (listing.root, listing.files) == (root, tuple(files))
        assert listing.classes == Classes(labels, tuple(UCF))


def test_class_folders_are_the_classes_of_a_list_that_has_none() -> None:
    files = ["n02/a.JPEG", "n01/b.JPEG"]
    with TemporaryDirectory() as folder:
        root = Path(folder)
        for file in files:
            (root / file).parent.mkdir()
            (root / file).touch()
        (root / "list.txt").write_text("\n".join(files))
        assert list_files(root, (".jpeg",), class_folders=True).classes == Classes((0, 1), ("n01", "n02"))
        assert list_files(root / "list.txt", (".jpeg",), class_folders=True).classes == Classes((1, 0), ("n01", "n02"))


def test_the_configs_of_the_two_projects_read_their_own_lists(tmp_path: Path) -> None:
    for name in ("owl.jpg", "astronaut.jpg"):
        (tmp_path / name).write_bytes((bundled.photos("heldout") / name).read_bytes())
    entry = {"prefix": "", "label": 7}
    (tmp_path / "ImageNet_val.json").write_text(json.dumps([{"filename": "owl.jpg", **entry}]))
    (tmp_path / "list.csv").write_text("path,caption\nastronaut.jpg,a woman, smiling\n")
    (tmp_path / "val_new.txt").write_text("march,walking\n")
    sources = [
        magicmaster_images(tmp_path / "ImageNet_val.json", 16).build(),
        mindone_images(tmp_path / "list.csv", 16).build(),
        magicmaster_videos(tmp_path / "val_new.txt", 16, train=False, root=bundled.videos("heldout")).build(),
    ]
    assert [(s.key(0), s.label(0), len(s)) for s in sources] == [
        ("owl.jpg", 7, 1),
        ("astronaut.jpg", None, 1),
        ("march.mp4", 0, 1),
    ]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8))
def test_whole_numbers_keep_their_value_and_names_are_numbered_in_byte_order(numbers: list[int]) -> None:
    assert said([str(n) for n in numbers]) == Classes(tuple(numbers), tuple(map(str, range(max(numbers) + 1))))
    names = [f"c{n}" for n in numbers]
    labels, classes = said(names)
    assert list(classes) == sorted(set(names))
    assert said(["b", "é", "a", "Z", "\udcff"]).names == ("Z", "a", "b", "é", "\udcff")  # 5a 61 62 c3a9 ff
    assert labels is not None
    assert [classes[label] for label in labels] == names


@pytest.mark.parametrize("wrong", ["-1", "1000001", "9" * 5000])
def test_no_class_number_is_below_0_or_beyond_a_million(wrong: str) -> None:
    with pytest.raises(InputError, match=r"here: class .* is no class number") as caught:
        said(["3", wrong])
    assert len(str(caught.value)) < 200


@given(st.text(max_size=20), st.text(max_size=20))
def test_what_is_printed_is_one_line_and_tells_names_apart(one: str, other: str) -> None:
    assert printable(one).isprintable()
    assert (printable(one) == printable(other)) == (one == other)
    assert printable("\n") == r"\x0a" != printable(r"\x0a")


@pytest.mark.parametrize("name", ["list.txt", "list.json"])
def test_lists_of_images_and_videos_build_their_sources(name: str, tmp_path: Path) -> None:
    for config, folder in ((ImagesConfig, bundled.photos("heldout")), (VideosConfig, bundled.videos("heldout"))):
        files = sorted(path.name for path in folder.iterdir())
        entries = [{"filename": file, "prefix": "", "label": i} for i, file in enumerate(files)]
        text = json.dumps(entries) if name.endswith("json") else "\n".join(files)
        (tmp_path / name).write_text(text)
        source = config(path=tmp_path / name, root=folder, size=16).build()
        assert [source.key(i) for i in range(len(source))] == files
