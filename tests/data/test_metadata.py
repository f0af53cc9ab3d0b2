"""Metadata beside images, as Hugging Face's ImageFolder reads it: classes, captions, and what is left out."""

import csv
import json
import sys
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import smalti
from smalti.data import ImagesConfig, VideosConfig, bundled
from smalti.data.files import FileStore, list_files
from smalti.data.metadata import MetadataColumns, read_metadata
from smalti.errors import InputError
from smalti.tokens.reader import TokenSet
from tests.packing import ppm
from tests.token_sets import save_tokenizer

UNREADABLE = "\0" if sys.version_info < (3, 11) else ""
"""The csv module of Python 3.10 neither writes nor reads it."""
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=UNREADABLE), max_size=20).map(str.strip)
NAMES = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=8),
    min_size=1,
    max_size=6,
    unique=True,
).map(lambda names: [f"{name}.ppm" for name in names])


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    """The same rows as CSV or as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path
    text = StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(text.getvalue(), encoding="utf-8", newline="")
    return path


def images(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(ppm(name))
    return folder


def facts(path: Path, **options: str) -> dict[str, tuple[str | None, str | None]]:
    """(class, caption) of every image."""
    store = FileStore(list_files(path, (".ppm",), columns=MetadataColumns(**options)))
    names = [None if store.label(i) is None else store.classes[store.label(i)] for i in range(len(store))]
    return {store.key(i): (names[i], store.caption(i)) for i in range(len(store))}


@given(NAMES, st.data())
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_any_name_class_and_caption_goes_through(suffix: str, names: list[str], data: st.DataObject) -> None:
    labels = [data.draw(TEXT.filter(lambda text: text not in ("", "-1"))) for _ in names]
    texts = [data.draw(TEXT) for _ in names]
    rows = [{"file_name": n, "label": k, "text": t} for n, k, t in zip(names, labels, texts, strict=True)]
    text = StringIO(newline="")
    if suffix == ".csv":
        csv.writer(text).writerows([["file_name", "label", "text"], *(list(row.values()) for row in rows)])
    else:
        text.write("".join(json.dumps(row) + "\n" for row in rows))
    read = read_metadata(Path(f"metadata{suffix}"), text.getvalue())
    assert read is not None
    assert [(row.name, row.label, row.caption, row.fault) for row in read] == [
        (name, label, caption or None, "") for name, label, caption in zip(names, labels, texts, strict=True)
    ]


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_a_folder_has_the_classes_and_captions_of_its_metadata(name: str, tmp_path: Path) -> None:
    images(tmp_path, "a.ppm", "b.ppm", "sub/c.ppm", "d.ppm")
    rows = [("b.ppm", "cat", "a cat,\nasleep"), ("a.ppm", "dog", ""), ("./sub/c.ppm", "cat", "ein Käfer")]
    write(tmp_path / name, [{"file_name": n, "label": k, "text": t} for n, k, t in rows])
    (tmp_path / "a.txt").write_text("from the text beside it")
    assert facts(tmp_path) == {
        "a.ppm": ("dog", "from the text beside it"),
        "b.ppm": ("cat", "a cat,\nasleep"),
        "sub/c.ppm": ("cat", "ein Käfer"),
    }
    left_out = ImagesConfig(path=tmp_path).build().store.left_out
    assert left_out == {"files of other kinds": 1, "files that no row of the metadata names": 1}


def test_each_split_has_its_own_metadata(tmp_path: Path) -> None:
    for part, label in (("train", 3), ("test", 1)):
        images(tmp_path / part, "0.ppm")
        write(tmp_path / part / "metadata.jsonl", [{"file_name": "0.ppm", "label": label}])
    assert facts(tmp_path) == {"test/0.ppm": ("1", None), "train/0.ppm": ("3", None)}
    images(tmp_path, "other/1.ppm")
    with pytest.raises(InputError, match=r"1 of 3 samples have no class, the first is other/1.ppm"):
        list_files(tmp_path, (".ppm",))


def test_the_file_itself_may_be_the_path_and_columns_may_be_named(tmp_path: Path) -> None:
    images(tmp_path / "images", "a.ppm", "b.ppm")
    rows = [{"file_name": f"{n}.ppm", "kind": n, "prompt": f"an {n}", "text": "no"} for n in "ab"]
    for name in ("captions.csv", "captions.jsonl"):
        write(tmp_path / name, rows)
        config = ImagesConfig(path=tmp_path / name, root=tmp_path / "images", label="kind")
        source = config.build()
        assert [source.classes[source.label(i) or 0] for i in range(2)] == ["a", "b"]
        assert source.store.caption(1) == "no"
        write(tmp_path / "images" / f"metadata{Path(name).suffix}", rows)
        assert facts(tmp_path / "images", label="kind", caption="prompt")["a.ppm"] == ("a", "an a")
        (tmp_path / "images" / f"metadata{Path(name).suffix}").unlink()
        with pytest.raises(InputError, match=r"no column 'kynd' \(there are: file_name, kind, prompt, text\)"):
            config.replace({"label": "kynd"}).build()


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("metadata.csv", "file_name,label\na.ppm,1\nb.ppm\n", r"row 3 has 1 fields, the header 2"),
        ("metadata.csv", 'file_name\na.ppm\n"b.ppm', "row 3 is no row of CSV"),
        ("metadata.csv", "file_name\na.ppm\na.ppm\n", r"row 3 repeats a.ppm, which row 2 names"),
        ("metadata.csv", "file_name\nnone.ppm\n", r"row 2: no such file none.ppm"),
        ("metadata.csv", "file_name\n../a.ppm\n", r"row 2 names ../a.ppm, which leads out of its folder"),
        ("metadata.csv", "file_name\n/etc/passwd\n", r"row 2 names /etc/passwd, which leads out"),
        ("metadata.csv", "file_name,label\na.ppm,1\nb.ppm,\n", r"1 of 2 samples have no class, the first is b.ppm"),
        ("metadata.csv", "file_name,label,label\na.ppm,1,2\n", r"row 1 names the column label twice; rename one"),
        ("metadata.csv", "file_name, file_name\na.ppm,b.ppm\n", r"row 1 names the column file_name twice"),
        ("metadata.csv", "file_name,text,text\na.ppm,1,2\n", r"row 1 names the column text twice"),
        ("metadata.jsonl", '{"file_name": "a.ppm", "label": 1, "label": 2}\n', "row 1 is not valid JSON .*twice"),
        ("metadata.jsonl", '{"file_name": "a.ppm"}\n{"file_name"\n', "row 2 is not valid JSON"),
        ("metadata.jsonl", '{"file_name": "a.ppm"}\n[1]\n', "row 2 is no JSON object"),
        ("metadata.jsonl", '{"file_name": "a.ppm"}\n{"label": 1}\n', "row 2 has no file_name"),
        ("metadata.jsonl", '{"file_name": "a.ppm", "label": 1.5}\n', "row 1 has no whole number or name as label"),
        ("metadata.jsonl", '{"file_name": "a.ppm", "text": ["a"]}\n', "row 1 has no text in UTF-8 as text"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(name: str, text: str, fault: str, tmp_path: Path) -> None:
    images(tmp_path, "a.ppm", "b.ppm")
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=fault) as caught:
        list_files(tmp_path, (".ppm",))
    assert "\n" not in str(caught.value)


def test_other_tables_of_that_name_describe_nothing_and_are_counted(tmp_path: Path) -> None:
    images(tmp_path, "a.ppm")
    (tmp_path / "metadata.csv").write_text('id,"a note"\n1,2,3,"\n')
    (tmp_path / "metadata.jsonl").write_text('{"id": 1}\n{"id": 2}\n')
    source = ImagesConfig(path=tmp_path).build()
    assert len(source) == 1
    assert source.store.left_out == {"metadata files without a column file_name": 2}


def test_hidden_classes_are_none_and_blank_lines_are_passed_over(tmp_path: Path) -> None:
    images(tmp_path, "a.ppm", "b.ppm")
    (tmp_path / "metadata.csv").write_text("file_name,label\r\n\r\na.ppm,-1\r\nb.ppm,\r\n")
    assert facts(tmp_path) == {"a.ppm": (None, None), "b.ppm": (None, None)}


def test_videos_have_metadata_too(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes((bundled.videos("heldout") / "march.mp4").read_bytes())
    write(tmp_path / "metadata.csv", [{"file_name": "b.mp4", "label": 4, "caption": "marching"}])
    source = VideosConfig(path=tmp_path).build()
    assert (len(source), source.key(0), source.label(0), source.store.caption(0)) == (1, "b.mp4", 4, "marching")


def test_classes_and_captions_go_into_a_token_set(tmp_path: Path) -> None:
    data = images(tmp_path / "data", *(f"{i}.ppm" for i in range(5)))
    rows = [{"file_name": f"{i}.ppm", "label": i % 2, "text": f"image {i}" if i else ""} for i in range(5)]
    write(data / "metadata.csv", rows)
    out = tmp_path / "set"
    options = ["options.shard_files=2"]
    smalti.tokenize(save_tokenizer(tmp_path / "tokenizer"), data, out, workers=0, device="cpu", set=options)
    tokens = TokenSet(out)
    assert [(row.label, row.caption) for row in tokens] == [(i % 2, f"image {i}" if i else None) for i in range(5)]
