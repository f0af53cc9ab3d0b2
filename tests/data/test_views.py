"""Crops, lists and the shipped samples: what a sample shows, and in which order."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from smalti.config import load_yaml
from smalti.data import ImagesConfig, JointConfig, VideosConfig, bundled, evaluation, open_video, read_image
from smalti.data.files import list_files, read_list
from smalti.data.views import ViewConfig
from smalti.errors import ConfigError, InputError


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def put(folder: Path, *names: str, data: bytes = b"x") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


SIDES = st.integers(1, 400)


@given(SIDES, SIDES, st.integers(1, 64), st.integers(1, 64), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_a_view_lies_in_the_image_and_keeps_the_aspect(h: int, w: int, rows: int, columns: int, seed: int) -> None:
    for crop in ("random", "center"):
        view = ViewConfig(size=(rows, columns), crop=crop, scale=(0.3, 1.0), resize="bicubic").view((h, w), rng(seed))
        left, top, right, bottom = view.box
        assert 0 <= left < right <= w
        assert 0 <= top < bottom <= h
        assert (right - left) / (bottom - top) == pytest.approx(columns / rows, rel=1e-6)
        assert view.apply(np.zeros((h, w, 3), np.uint8)).shape == (rows, columns, 3)


def test_the_center_is_the_short_side_scaled_and_the_middle_cut() -> None:
    view = ViewConfig(size=50, crop="center", scale=(0.1, 0.2), flip=False).view((100, 300), rng())
    assert view.box == (100, 0, 200, 100)


def test_random_boxes_cover_the_range_of_scales_and_places() -> None:
    views = [ViewConfig(size=64).view((200, 300), rng(i)) for i in range(400)]
    sides = np.array([v.box[2] - v.box[0] for v in views])
    assert 100 <= sides.min() < 105
    assert 195 < sides.max() <= 200
    assert abs(sides.mean() - 150) < 5
    places = np.array([v.box[0] / (300 - side) for v, side in zip(views, sides, strict=True)])
    assert abs(places.mean() - 0.5) < 0.05
    assert 0.4 < np.mean([v.flip for v in views]) < 0.6


@pytest.mark.parametrize("room", [0, 1, 3])
@pytest.mark.parametrize("order", ["before", "after"])
def test_a_crop_of_whole_pixels_lies_at_each_of_its_places_as_often(order: str, room: int) -> None:
    """Room + 1 places from the first to the last, each with 1 / (room + 1) of 800 views, to four deviations."""
    views = [
        ViewConfig(size=8, crop_order=order, scale=(1.0, 1.0), resize="bicubic").view((8, 8 + room), rng(i))
        for i in range(800)
    ]
    counts = np.bincount([int(view.box[0]) for view in views], minlength=room + 1)
    share = 1 / (room + 1)
    assert len(counts) == room + 1
    assert np.abs(counts / 800 - share).max() <= 4 * np.sqrt(share * (1 - share) / 800)
    assert all(view.box[2] - view.box[0] == 8 for view in views)


def test_options_do_not_change_what_other_options_draw() -> None:
    with_flip, without = (ViewConfig(size=32, flip=flip).view((90, 80), rng(3)) for flip in (True, False))
    assert with_flip.box == without.box


@pytest.mark.parametrize("resize", ["lanczos", "bicubic", "bilinear"])
def test_scaling_down_is_antialiased(resize: str) -> None:
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255  # too fine for 32 pixels: an aliased filter would show them as bars
    view = ViewConfig(size=32, crop="center", flip=False, resize=resize).view((256, 256), rng())
    assert np.abs(view.apply(stripes).astype(int) - 127).max() <= 8


def test_without_a_size_the_image_is_given_as_it_is() -> None:
    path = bundled.photos("heldout") / "owl.jpg"
    source = ImagesConfig(path=path, size=None, flip=False).build()
    assert torch.equal(source.load(0, rng())[0], read_image(path))
    flipped = ImagesConfig(path=path, size=None, flip=True).build()
    found = {torch.equal(flipped.load(0, rng(i))[0], read_image(path).flip(1)) for i in range(8)}
    assert found == {True, False}


def test_a_sample_is_a_function_of_its_generator() -> None:
    source = ImagesConfig(path=bundled.photos("train"), size=24).build()
    assert torch.equal(source.load(3, rng(7)), source.load(3, rng(7)))
    assert not torch.equal(source.load(3, rng(7)), source.load(3, rng(8)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"path": "x", "scale": [0.9, 0.5]}, "scale"),
        ({"path": "x", "scale": [0.0, 0.5]}, "scale"),
        ({"path": "x", "size": 0}, "size"),
        ({"path": "x", "size": [8, 8, 8]}, "size"),
        ({"path": "x", "crop": "middle"}, "crop"),
        ({}, "path"),
    ],
)
def test_impossible_options_are_refused_by_name(data: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ImagesConfig.parse(data)


def test_fps_and_stride_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="fps or stride"):
        VideosConfig.parse({"path": "x", "fps": 12, "stride": 2})


def test_configs_survive_yaml(tmp_path: Path) -> None:
    config = JointConfig(
        images=ImagesConfig(path=bundled.photos("train"), size=(8, 16)),
        videos=VideosConfig(path=bundled.videos("train"), fps=12.0),
    )
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    assert load_yaml(JointConfig, tmp_path / "c.yaml") == config


# ---- lists


def test_files_come_in_the_byte_order_of_their_paths_whatever_made_them(tmp_path: Path) -> None:
    names = ["b.jpg", "a/z.jpg", "a-b.jpg", "a.jpg", "Z.JPG", "é.jpg", "a/b/c.jpg", "10.jpg", "9.jpg"]
    listings = []
    for order in (names, names[::-1]):
        folder = tmp_path / str(len(listings))
        put(folder, *order, "notes.txt", ".hidden.jpg", ".git/x.jpg")
        listings.append(list_files(folder, (".jpg",)))
    assert listings[0].files == listings[1].files == tuple(sorted(names, key=os.fsencode))
    assert listings[0].left_out == {"files of other kinds": 1, "hidden files or folders": 2}


def test_links_in_a_circle_end_and_each_real_file_comes_once(tmp_path: Path) -> None:
    root = tmp_path / "root"
    put(root, "a.jpg", "sub/b.jpg")
    put(tmp_path, "outside/c.jpg", "beside.jpg")
    (root / "loop").symlink_to(".")
    (root / "up").symlink_to("..")
    (root / "sub" / "again").symlink_to("../sub")
    (root / "there").symlink_to(tmp_path / "outside")
    (root / "aa.jpg").symlink_to("a.jpg")
    os.link(root / "a.jpg", root / "sub" / "hard.jpg")
    assert list_files(root, (".jpg",)).files == ("a.jpg", "sub/b.jpg", "there/c.jpg")


def test_too_many_files_and_none_are_errors(tmp_path: Path) -> None:
    put(tmp_path, *(f"{i}.jpg" for i in range(5)))
    with pytest.raises(InputError, match="more than 4"):
        list_files(tmp_path, (".jpg",), limit=4)
    with pytest.raises(InputError, match=r"no file ends in \.mp4 \(5 other"):
        list_files(tmp_path, (".mp4",))
    with pytest.raises(InputError, match="no such file or folder"):
        list_files(tmp_path / "absent", (".jpg",))
    with pytest.raises(InputError, match="in no class folder"):
        list_files(tmp_path, (".jpg",), class_folders=True)


@pytest.mark.parametrize(
    ("text", "labels", "classes"),
    [
        ("a.jpg\nsub/b.jpg\n", None, ()),
        ("path\r\na.jpg\r\nsub/b.jpg\r\n", None, ()),
        ("path,label\na.jpg,dog\nsub/b.jpg,cat\n", (1, 0), ("cat", "dog")),
        ('\ufeffpath,label\na.jpg,dog\n"sub/b.jpg",cat', (1, 0), ("cat", "dog")),
        ("a.jpg\t7\nsub/b.jpg\t2", (7, 2), tuple(map(str, range(8)))),
    ],
)
def test_lists_of_every_form_are_read(text: str, labels: object, classes: object, tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "sub/b.jpg")
    (tmp_path / "list.csv").write_text(text)
    listing = list_files(tmp_path / "list.csv", (".jpg",))
    assert (listing.files, listing.classes) == (("a.jpg", "sub/b.jpg"), (labels, classes))
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "list.txt").write_text(text)
    assert read_list(tmp_path / "lists" / "list.txt", tmp_path).files == listing.files


def test_the_faults_of_a_list_are_named_by_row_and_counted(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "list.csv").write_text("path,label\na.jpg,x\n\na.jpg,x\ngone.jpg,y\nb.jpg\n")
    with pytest.raises(InputError) as caught:
        list_files(tmp_path / "list.csv", (".jpg",))
    text = str(caught.value)
    for part in ("4 bad rows", "row 3 is blank", "row 4 repeats row 2", "row 5: no such file", "row 6 has no class"):
        assert part in text
    assert "\n" not in text
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(InputError, match="names no files"):
        read_list(tmp_path / "empty.txt")


# ---- samples


def test_the_shipped_photographs_and_videos_are_all_good_and_split() -> None:
    counts = {"train": (40, 12), "heldout": (8, 4)}
    names: dict[str, set[str]] = {}
    for split, (photos, clips) in counts.items():
        images = ImagesConfig(path=bundled.photos(split), size=None, flip=False).build()
        videos = VideosConfig(path=bundled.videos(split), frames=None, size=None, flip=False).build()
        assert (len(images), len(videos)) == (photos, clips)
        for batch in evaluation(images):
            assert min(batch.video.shape[3:]) >= 300
            assert batch.video.std() > 0.05
        names[split] = {images.key(i) for i in range(photos)} | {videos.key(i) for i in range(clips)}
    assert not names["train"] & names["heldout"]


def test_the_shipped_videos_move() -> None:
    for split in ("train", "heldout"):
        for path in sorted(bundled.videos(split).iterdir()):
            with open_video(path) as reader:
                assert (len(reader), reader.size, round(reader.fps)) == (41, (144, 256), 24)
                first, last = (f.float() for f in reader.at([0, 40]))
            assert 30 < float(first.mean()) < 230
            assert float((first - last).abs().mean()) > 3


def test_every_shipped_file_has_its_licence_and_all_weigh_under_5_mb() -> None:
    media = bundled.photos("train").parent.parent
    text = (media / "ATTRIBUTION.md").read_text(encoding="utf-8")
    files = [p for p in media.rglob("*") if p.is_file() and p.name != "ATTRIBUTION.md"]
    assert len(files) == 64
    assert sum(p.stat().st_size for p in files) < 5_000_000
    for path in files:
        assert f"`{path.relative_to(media).as_posix()}`" in text
    for picture in bundled.photos("train").iterdir():
        with Image.open(picture) as image:
            assert not image.getexif()


def test_images_kept_in_memory_are_the_images_on_disk() -> None:
    once, kept = (ImagesConfig(path=bundled.photos("train"), size=32, in_memory=n).build() for n in (0, 3))
    for _ in range(2):
        for index in (0, 1, 2, 3, 4):
            assert torch.equal(once.load(index, rng(index)), kept.load(index, rng(index)))
    assert len(kept._decoded) == 3
    whole = ImagesConfig(path=bundled.photos("train"), size=None, crop="center", flip=False, in_memory=1).build()
    whole.load(0, rng()).zero_()  # what a caller does to a sample does not reach the cached image
    assert whole.load(0, rng()).any()
