"""All kinds of sources: the same batches with and without workers, through YAML, and detected from a path."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch

from smalti.config import Config, load_yaml
from smalti.data import (
    ImagesConfig,
    JointConfig,
    Source,
    VideosConfig,
    batches,
    bundled,
    evaluation,
    magicmaster_images,
    magicmaster_videos,
    mindone_images,
    mindone_videos,
    source_of,
)
from smalti.errors import ConfigError, InputError
from smalti.recipes import find
from smalti.training.config import TokenizerTraining
from tests.packing import cells, pack, ppm, table, video

CLIP = {"size": 16, "frames": 3}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images, and each in a tar and a table; the same for videos."""
    folder = tmp_path_factory.mktemp("kinds")
    stills = {f"{i}.ppm": ppm(str(i), (20, 30)) for i in range(5)}
    video_files = {f"{i}.mp4": video(folder, str(i)) for i in range(4)}
    for name, media in (("stills", stills), ("video_files", video_files)):
        (folder / name).mkdir()
        for file, data in media.items():
            (folder / name / file).write_bytes(data)
        pack(folder / f"{name}-0.tar", media)
        column = "image" if name == "stills" else "video"
        table(folder / f"{name}.parquet", {column: cells(list(media.values())), "label": list(range(len(media)))})
    return folder


KINDS: dict[str, Callable[[Path], Config]] = {
    "images": lambda root: ImagesConfig(path=root / "stills", size=16),
    "videos": lambda root: VideosConfig(path=root / "video_files", **CLIP),
    "images of a tar": lambda root: ImagesConfig(path=root / "stills-0.tar", size=16),
    "videos of a tar": lambda root: VideosConfig(path=root / "video_files-{0..0}.tar", **CLIP),
    "images of a table": lambda root: ImagesConfig(path=root / "stills.parquet", size=16),
    "videos of a table": lambda root: VideosConfig(path=root / "video_files.parquet", **CLIP),
    "joint": lambda root: JointConfig(
        images=ImagesConfig(path=root / "stills-0.tar", size=16),
        videos=VideosConfig(path=root / "video_files.parquet", **CLIP),
        share=0.5,
    ),
    "magicmaster-images": lambda root: magicmaster_images(root / "stills", 16),
    "magicmaster-videos": lambda root: magicmaster_videos(root / "video_files", 16, train=True),
    "mindone-images": lambda root: mindone_images(root / "stills", 16, random_crop=True, flip=True),
    "mindone-videos": lambda root: mindone_videos(root / "video_files", 16, frames=3),
}


@pytest.mark.parametrize("kind", KINDS)
def test_batches_of_every_kind_are_the_same_with_and_without_workers(kind: str, root: Path) -> None:
    source = KINDS[kind](root).build()
    assert isinstance(source, Source)
    runs = [list(islice(batches(source, batch_size=3, seed=1, workers=workers), 4)) for workers in (0, 2)]
    for alone, helped in zip(*runs, strict=True):
        assert (alone.keys, alone.labels) == (helped.keys, helped.labels)
        assert torch.equal(alone.video, helped.video)


def test_a_folder_a_tar_and_a_table_of_the_same_media_give_the_same_batches(root: Path) -> None:
    for medium in ("images", "videos"):
        kinds = (medium, f"{medium} of a tar", f"{medium} of a table")
        runs = [list(islice(batches(KINDS[kind](root).build(), batch_size=2, seed=3), 3)) for kind in kinds]
        for loose, *packed in zip(*runs, strict=True):
            assert all(torch.equal(loose.video, batch.video) for batch in packed)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_survives_yaml(kind: str, root: Path, tmp_path: Path) -> None:
    config = KINDS[kind](root)
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    assert load_yaml(type(config), tmp_path / "c.yaml") == config


def test_the_kinds_of_a_joint_source_are_images_and_videos() -> None:
    config = JointConfig.parse({"images": {"path": "a"}, "videos": {"path": "b.tar", "kind": "tar-videos"}})
    assert (config.images.kind, config.videos.kind) == ("images", "videos")
    for wrong in ({"images": {"path": "a", "kind": "videos"}}, {"images": {"path": "a", "kind": "joint"}}):
        with pytest.raises(ConfigError, match="images"):
            JointConfig.parse({"videos": {"path": "b"}, **wrong})


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_takes_every_kind_to_train_and_all_but_joint_to_validate(kind: str, root: Path) -> None:
    config, base = KINDS[kind](root), find("tiny").plain()
    assert TokenizerTraining.parse({**base, "data": config.plain()}).data == config
    both = {**base, "data": config.plain(), "validation": config.plain()}
    if kind == "joint":
        with pytest.raises(ConfigError, match="validation"):
            TokenizerTraining.parse(both)
    else:
        assert TokenizerTraining.parse(both).validation == config


# ---- what a path asks for


@pytest.mark.parametrize(
    ("name", "config", "count"),
    [
        ("stills", ImagesConfig, 5),
        ("stills/0.ppm", ImagesConfig, 1),
        ("video_files", VideosConfig, 4),
        ("video_files/0.mp4", VideosConfig, 1),
        ("stills-0.tar", ImagesConfig, 5),
        ("video_files-{0..0}.tar", VideosConfig, 4),
        ("stills.parquet", ImagesConfig, 5),
        ("video_files.parquet", VideosConfig, 4),
    ],
)
def test_a_path_says_which_source_it_is(name: str, config: type, count: int, root: Path) -> None:
    found = source_of(root / name, frames=4)
    assert type(found) is config
    source = found.build()
    assert len(source) == count
    [batch] = islice(evaluation(source), 1)
    shape = (1, 3, 1, 20, 30) if "images" in found.kind else (1, 3, 4, 16, 24)
    assert batch.video.shape == shape  # whole frames, as they are
    again = [next(evaluation(source)).video for _ in range(2)]
    assert torch.equal(*again)


def test_a_list_of_files_tars_or_tables_says_what_is_in_it(root: Path) -> None:
    for text, kind in (
        ("stills/0.ppm\nstills/1.ppm", "images"),
        ("video_files/0.mp4,1\nvideo_files/1.mp4,0", "videos"),
        ("stills-0.tar", "images"),
        ("video_files.parquet", "videos"),
    ):
        (root / "list.txt").write_text(text)
        found = source_of(root / "list.txt")
        assert found.kind == kind
        assert len(found.build()) > 0
    (root / "list.txt").unlink()


def test_sources_of_a_path_show_the_middle_at_the_size_that_is_asked_for() -> None:
    config = source_of(bundled.videos("heldout"), size=(18, 32), frames=5)
    assert config == VideosConfig(
        path=bundled.videos("heldout"),
        size=(18, 32),
        frames=5,
        crop="center",
        flip=False,
        sampling="center",
        short="skip",
    )
    assert source_of(bundled.photos("heldout"), size=64) == ImagesConfig(
        path=bundled.photos("heldout"), size=64, crop="center", flip=False
    )
    assert source_of(bundled.videos("heldout"), frames=None).frames is None


def test_where_both_are_there_one_is_preferred(tmp_path: Path) -> None:
    (tmp_path / "a.ppm").write_bytes(ppm("a"))
    (tmp_path / "b.mp4").write_bytes(video(tmp_path, "b"))
    assert [source_of(tmp_path).kind, source_of(tmp_path, prefer="images").kind] == ["videos", "images"]
    path = pack(tmp_path / "c.tar", {"a.ppm": ppm("a"), "b.mp4": b""})
    assert [source_of(path).kind, source_of(path, prefer="images").kind] == ["videos", "images"]
    path = table(tmp_path / "c.parquet", {"image": cells([b""]), "video": cells([b""])})
    assert [source_of(path).kind, source_of(path, prefer="images").kind] == ["videos", "images"]


def test_a_path_that_says_nothing_or_too_much_is_refused(tmp_path: Path) -> None:
    def refused(path: Path) -> str:
        with pytest.raises(InputError) as caught:
            source_of(path)
        assert str(caught.value).isprintable()
        return str(caught.value).replace(f"{tmp_path}/", "")

    assert "no such file or folder" in refused(tmp_path / "absent")
    assert "no file ends in .jpg" in refused(tmp_path)
    pack(tmp_path / "a.tar", {"a.txt": b"x"})
    assert refused(tmp_path / "a.tar") == "a.tar: no images and no videos, by their suffixes; name the kind in a config"
    (tmp_path / "a.tar").write_bytes(b"x" * 600)
    assert "a.tar: no header at byte 0" in refused(tmp_path / "a.tar")
    (tmp_path / "b.png").touch()
    assert "holds files of several kinds (.png .tar); give those of one kind" in refused(tmp_path)
    (tmp_path / "list.txt").write_text("b.png\na.tar\n")
    assert "list.txt: holds files of several kinds (.png .tar)" in refused(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("list.txt\n")
    assert "list.txt: no images and no videos, by their suffixes" in refused(tmp_path / "list.txt")
    table(tmp_path / "a.parquet", {"jpg": cells([b""])})
    assert refused(tmp_path / "a.parquet") == (
        "a.parquet: no column image or video (there are: jpg); name it in a config"
    )


# ---- packing and former kinds


FORMER = {
    "tar-images": ({"path": "a.tar"}, ImagesConfig(path=Path("a.tar"))),
    "tar-videos": ({"path": "set", "member": "mp4"}, VideosConfig(path=Path("set"), packing="tars", member="mp4")),
    "parquet-images": (
        {"path": "hf:a/b", "column": "image", "label": "fine"},
        ImagesConfig(path=Path("hf:a/b"), packing="parquet", label="fine"),
    ),
    "parquet-videos": ({"path": "a.parquet", "column": "clip"}, VideosConfig(path=Path("a.parquet"), column="clip")),
}


@pytest.mark.parametrize("kind", FORMER)
def test_the_kinds_of_earlier_versions_are_read(kind: str) -> None:
    fields, config = FORMER[kind]
    assert type(config).parse({"kind": kind, "limit": 1_000_000, **fields}) == config
    assert type(config).parse({"kind": kind, **fields, "limit": 7}).limit == 7
    base = find("tiny").plain()
    training = TokenizerTraining.parse(
        {**base, "data": {"kind": kind, **fields}, "validation": {"kind": kind, **fields}}
    )
    assert training.data == training.validation == config
    assert training.plain()["data"]["kind"] == config.kind
    with pytest.raises(ConfigError, match=r"^config: data\.colour: no such field"):
        TokenizerTraining.parse({**base, "data": {"kind": kind, **fields, "colour": 1}})


def test_fields_of_earlier_versions_are_read() -> None:
    former = {"kind": "videos", "path": "a", "limit": 20_000_000, "cut": "before"}
    assert VideosConfig.parse(former) == VideosConfig(path=Path("a"), crop_order="before")


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("stills", {"member": "ppm"}, "stills: member is an option of tars, and these are loose files; leave it out"),
        (
            "stills",
            {"label": "x"},
            "stills: label x names a column, and no metadata (.csv or .jsonl with file_name) describe the files; "
            "leave it out",
        ),
        (
            "stills-0.tar",
            {"class_folders": True},
            "class_folders is an option of loose files, and these are tars; leave",
        ),
        (
            "stills-{0..0}.tar",
            {"column": "x"},
            "column is an option of Parquet files, and these are tars; leave it out",
        ),
        ("stills.parquet", {"member": "x"}, "member is an option of tars, and these are Parquet files; leave it out"),
        ("stills", {"match": "x"}, "match is an option of Parquet files, and these are loose files; leave it out"),
        (
            "stills",
            {"revision": "x"},
            "revision is an option of Parquet files, and these are loose files; leave it out",
        ),
    ],
)
def test_options_of_another_packing_are_refused_in_one_line(name: str, option: dict, message: str, root: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        ImagesConfig(path=root / name, **option).build()
    assert message in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_folder_of_several_packings_needs_one_of_them(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.ppm").write_bytes(ppm(name))
    pack(tmp_path / "c.tar", {f"{i}.ppm": ppm(str(i)) for i in range(3)})
    with pytest.raises(
        InputError, match=r"holds files of several kinds \(\.ppm \.tar\); give those of one kind, or set"
    ):
        ImagesConfig(path=tmp_path).build()
    assert len(ImagesConfig(path=tmp_path, packing="files").build()) == 2
    assert len(ImagesConfig(path=tmp_path, packing="tars").build()) == 3
    assert len(ImagesConfig.parse({"kind": "tar-images", "path": tmp_path}).build()) == 3


def test_a_folder_may_be_called_like_a_tar(tmp_path: Path) -> None:
    (tmp_path / "a.tar").mkdir()
    (tmp_path / "a.tar" / "{1}.ppm").write_bytes(ppm("1"))
    assert len(ImagesConfig(path=tmp_path / "a.tar").build()) == 1
    assert len(ImagesConfig(path=tmp_path / "a.tar" / "{1}.ppm").build()) == 1
