"""The commands of the documents, copied from them and run one after the other, in folders that have what they name."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from typing import NamedTuple

import pytest

from smalti.data import bundled
from tests.rules.tree import ROOT

FENCE = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHORT = ("steps=4", "optimizer.warmup=1", "eval_every=4", "save_every=2", "sample_every=4")
"""What a training command has besides: the documents' runs take from minutes to weeks."""
SHORT_COMPARISON = "--size 32 --batch 2 --points 1 --seeds 1 --limit 4 --frames 5"
OUT_OF_REACH = {
    "showlab/": "the hub",
    "microsoft/": "the hub",
    "hf:": "the hub",
    "srun": "Slurm; tests/training",
    "torchrun": "several processors; tests/training",
    "--gpus": "a GPU",
    "cuda": "a GPU",
    "--engine ray": "ray; tests/tokens",
    "train-{0000..0146}.tar": "147 tars; tests/tokens",
    "ImageNet": "ImageNet",
    "imagenet": "ImageNet",
    "eval k600": "Kinetics",
    "kinetics600": "Kinetics",
    "ucf101": "UCF-101",
    "paper-": "ImageNet and Kinetics",
    ".pth": "a published checkpoint",
    ".pt": "a published checkpoint",
    ".ckpt": "a published checkpoint",
    ".npz": "published statistics",
    "protocol smalti-frechet": "the weights of EfficientNet",
    "open-magvit2": "the weights of LPIPS and Inception",
    "smalti-g": "the weights of Inception or I3D",
}


NOT_FOLLOWED = {
    "docs/cli.md": "examples of every verb, one by one; their options are checked by test_docs_snippets",
    "docs/zoo.md": "the hub",
    "docs/mindone.md": "ImageNet and UCF-101; the same path by --tiny is in docs/migrating.md",
    "docs/clusters.md": "Slurm, Docker",
}
"""Pages with commands that nobody can run from a copy of the repository alone, and what they take."""


class Page(NamedTuple):
    """A document, and the runs that it takes for granted."""

    name: str
    runs: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()
    """Token sets that it takes for granted."""
    blocks: slice = slice(None)
    """The blocks that are run: others take data sets."""
    needs: str = "pyarrow"
    """A package of an extra that its commands take."""


SETS = ("video-tokens", "heldout-tokens")
PAGES = (
    Page("README.md"),
    Page("docs/training.md"),
    Page("docs/tokens.md", ("tiny", "video")),
    Page("docs/codec.md", ("video",)),
    Page("docs/metrics.md", ("tiny",), blocks=slice(1)),
    Page("docs/generation.md", ("tiny", "tiny-video"), SETS, slice(2)),
    Page("docs/migrating.md", blocks=slice(3, 4)),
    Page("docs/export.md", ("mine",), needs="onnxscript"),
    Page("docs/browser.md", ("mine",), needs="onnxscript"),
    Page("docs/learning.md", blocks=slice(2)),
)


def commands(page):
    """Lines of the blocks of a document that call smalti, without their comments."""
    text = (ROOT / page.name).read_text(encoding="utf-8")
    for block in FENCE.findall(text)[page.blocks]:
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith(("smalti ", ".venv/bin/smalti ")):
                yield re.sub(r"\s+#\s.*", "", line)


def run(folder, command):
    """Run a line as a user would, in a shell."""
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env={**os.environ, "PATH": f"{folder}/.venv/bin:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-500:]}\n{done.stderr[-1500:]}"


def shortened(command):
    """A command with few steps where it trains."""
    if "smalti compare " in command:
        budget = "--seconds 1" if "--seconds" in command else "--steps 2"
        return f"{command} {SHORT_COMPARISON} {budget}"
    if "smalti prior " in command:
        return f"{command} --steps 4"
    if "smalti train " not in command:
        return command
    return " ".join([command, *(f"--set {field}" for field in SHORT)])


def install(folder):
    """Put the command into `.venv/bin` of a folder, where README has it."""
    script = folder / ".venv" / "bin" / "smalti"
    script.parent.mkdir(parents=True)
    script.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT / "src"} exec {sys.executable} -m smalti "$@"\n')
    script.chmod(0o755)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Trained tokenizers of images and of video, and token sets of both."""
    folder = tmp_path_factory.mktemp("runs")
    install(folder)
    for recipe in ("tiny", "tiny-video"):
        run(folder, shortened(f"smalti train {recipe}"))
    shutil.copytree(folder / "runs/tiny-video", folder / "runs/video")
    shutil.copytree(folder / "runs/tiny", folder / "runs/mine")
    media = bundled.videos("train")
    for name in SETS:
        run(folder, f"smalti tokenize runs/tiny-video {media} --out {name} --size 64 --clip 17")
    return folder


@pytest.fixture
def folder(tmp_path):
    """A folder with the media that the documents speak of."""
    install(tmp_path)
    photos, videos = sorted(bundled.photos("heldout").glob("*.jpg")), sorted(bundled.videos("heldout").glob("*.mp4"))
    shutil.copy(photos[0], tmp_path / "photo.jpg")
    for name in ("clip.mp4", "video.mp4"):
        shutil.copy(videos[0], tmp_path / name)
    for label in ("owl", "other"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for photo in photos[:: 1 if label == "owl" else 2]:
            shutil.copy(photo, tmp_path / "photos" / label / f"{label}-{photo.name}")
    for name in ("videos", "clips"):
        shutil.copytree(videos[0].parent, tmp_path / name)
    (tmp_path / "clips.csv").write_text("path\n" + "".join(f"clips/{video.name}\n" for video in videos))
    for number, name in enumerate(("train.txt", "test.txt")):
        (tmp_path / name).write_text("".join(f"{video.name}\n" for video in videos[number::2]))
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "0.tar", "w") as tar:
        for photo in photos:
            tar.add(photo, photo.name)
    for name in ("originals", "reconstructions", *(f"samples-{i}" for i in range(3))):
        shutil.copytree(photos[0].parent, tmp_path / name)
    return tmp_path


def is_out_of_reach(command):
    """Whether a command needs what is not here, or does not end."""
    waits = "smalti serve" in command and "--save" not in command  # ends at Ctrl-C; tests/app
    return waits or any(word in command for word in OUT_OF_REACH)


def test_every_page_with_commands_is_followed_or_says_why_not():
    pages = [path.relative_to(ROOT).as_posix() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))]
    found = {name for name in pages if any(commands(Page(name)))}
    assert found == {page.name for page in PAGES} | set(NOT_FOLLOWED)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_the_commands_of_a_page_run_in_their_order(page, folder, request):
    pytest.importorskip(page.needs, reason="an extra is not installed")
    if page.runs:
        ready = request.getfixturevalue("runs")
        for name in page.runs:
            shutil.copytree(ready / "runs" / name, folder / "runs" / name)
        for name in page.sets:
            shutil.copytree(ready / name, folder / name)
    done = 0
    for command in commands(page):
        if is_out_of_reach(command):
            continue
        run(folder, shortened(command))
        done += 1
    assert done >= (2 if page.name != "docs/browser.md" else 1)
