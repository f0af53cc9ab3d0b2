"""Every single piece of a run's state matters: without it a resumed run ends elsewhere, or does not begin.

The pieces are those of a checkpoint itself, so that a new one is tried without a change here.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

from smalti.errors import SmaltiError
from smalti.files import MANIFEST, load_tensors, manifest, read_notes, save_tensors, write_json
from smalti.model_folder import checkpoints
from smalti.pipeline.train import train
from smalti.recipes import find
from smalti.training.config import TokenizerTraining

COMMON = ["steps=8", "batch_size=2", "save_every=4", "keep=9", "log_every=1", "sample_every=100", "eval_every=100",
          "data.size=32", "validation=null", "tokenizer.width=8", "tokenizer.patch=8"]  # fmt: skip
RUNS = {
    "scalar": ["gan={discriminator: {kind: patch, width: 8, norm: batch}, adaptive: true, lecam: 0.1, weight: 0.5}"],
    "table": ["tokenizer.quantizer={kind: codebook, size: 64, dim: 4, losses: [commitment]}",
              "weights={l2: 1.0, commitment: 0.25}", "codebook={rows: averages, restart: 0.5, decay: 0.5}"],
}  # fmt: skip
FACTS = {"format", "smalti", "torch", "device", "tensors"}
"""Fields of state.json that are no state: the writer and its device, which `smalti info` shows, and the number of
tensors in each file, which is a check."""


@pytest.fixture(scope="module", params=RUNS)
def undisturbed(request, tmp_path_factory):
    """A run of eight steps that saved after four, and its config."""
    config = find("tiny", tiny=True).override([*COMMON, *RUNS[request.param]])
    assert isinstance(config, TokenizerTraining)
    out = tmp_path_factory.mktemp("quiet") / "run"
    train(config, out)
    return config, out


def cut_back(run: Path, out: Path) -> Path:
    """Copy a run as if it had been killed after its first checkpoint; give that checkpoint."""
    shutil.copytree(run, out, ignore=shutil.ignore_patterns("events", "step-00000008", "tokenizer"))
    (checkpoint,) = checkpoints(out)
    shutil.copytree(checkpoints(run)[0], checkpoint, dirs_exist_ok=True)
    return checkpoint


def end_of(run: Path) -> tuple[dict[str, bytes], list[str]]:
    """The tensors at the end of a run, and the record of its samples."""
    last = checkpoints(run)[-1]
    assert last.name == "step-00000008"
    tensors = {
        f"{path.relative_to(last)}/{name}": tensor.numpy().tobytes()
        for path in last.rglob("*.safetensors")
        for name, tensor in load_tensors(path).items()
    }
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return tensors, [line.get("samples", "") for line in lines]


def pieces(checkpoint: Path) -> list[tuple[str, str]]:
    """Every kind of tensor in every file (of optimizers: each moment), and every field of state.json."""
    found = [
        ("state.json", field) for field in json.loads((checkpoint / "state.json").read_text()) if field not in FACTS
    ]
    for path in sorted(checkpoint.rglob("*.safetensors")):
        tensors = load_tensors(path)
        kinds = {name.split("/")[0] if "/" in name else name.split(".")[0] for name in tensors}
        found += [(str(path.relative_to(checkpoint)), kind) for kind in sorted(kinds)]
    return found


def sign(checkpoint: Path) -> None:
    """Write manifests that fit: the damage is not to be found by a digest."""
    for path in sorted(checkpoint.rglob(MANIFEST), key=lambda path: -len(path.parts)):
        path.unlink()
        write_json(path, manifest(path.parent))


def differs(config: TokenizerTraining, out: Path, end: tuple[dict[str, bytes], list[str]]) -> bool:
    """Resume; return whether it was refused, or ended elsewhere."""
    try:
        train(config, out, resume=True)
    except SmaltiError:
        return True
    return end_of(out) != end


@pytest.mark.slow
def test_a_run_without_a_single_piece_of_its_state_is_refused_or_ends_elsewhere(undisturbed, tmp_path):
    config, run = undisturbed
    end = end_of(run)
    whole = cut_back(run, tmp_path / "whole")
    sign(whole)
    assert not differs(config, tmp_path / "whole", end)
    tried = pieces(whole)
    print(len(tried), tried)
    unnoticed = []
    for number, (file, kind) in enumerate(tried):
        for how in ("absent", "zero"):
            out = tmp_path / f"{number}-{how}"
            checkpoint = cut_back(run, out)
            path = checkpoint / file
            if file == "state.json":
                facts = json.loads(path.read_text())
                facts = {n: v for n, v in facts.items() if n != kind} if how == "absent" else facts | {kind: 0}
                write_json(path, facts)
            else:
                tensors = load_tensors(path)
                mine = [n for n in tensors if n.split("/")[0] == kind or n.split(".")[0] == kind]
                kept = {n: t for n, t in tensors.items() if n not in mine}
                zeros = {n: torch.zeros_like(tensors[n]) for n in mine if how == "zero"}
                notes = read_notes(path)
                path.unlink()
                if kept or zeros:
                    save_tensors(path, {**kept, **zeros}, {"step": notes["step"]} if "step" in notes else None)
            sign(checkpoint)
            if not differs(config, out, end):
                unnoticed.append((file, kind, how))
            shutil.rmtree(out)
    assert not unnoticed
