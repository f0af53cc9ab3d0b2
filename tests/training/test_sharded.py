"""Runs whose weights, gradients, moments and averages lie in shards over several processes (gloo), against runs of as
many processes that hold all of them each.

Of two ranks a sum has one order, so both kinds of run have the same bits where the norm of the gradient does not enter
(`clip` null): the norm itself is summed by shards. With it, and of three ranks, they agree in float64 to rounding.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

from smalti.errors import ConfigError
from smalti.model_folder import checkpoints
from smalti.recipes import find
from smalti.training.distributed import World
from smalti.training.tokenizer_state import start_tokenizer
from tests.training.test_generator_images import config_of as picture_config
from tests.training.test_generator_images import made as pictures  # noqa: F401 - a fixture
from tests.training.test_generator_run import config_of as video_config
from tests.training.test_generator_run import made as videos  # noqa: F401 - a fixture
from tests.training.test_ranks import TORCHRUN, digests, ended, sets, worst, written

STEPS = """
import json, sys
from datetime import timedelta
from pathlib import Path
import torch
from smalti.config import load_yaml
from smalti.data import batches
from smalti.training.config import TokenizerTraining
from smalti.training.distributed import join_world
from smalti.training.fit import save_checkpoint
from smalti.training.sharded import local
from smalti.training.tokenizer_step import step
from smalti.training.tokenizer_task import TokenizerTask

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
folder, config, broken = Path(sys.argv[1]), load_yaml(TokenizerTraining, Path(sys.argv[2])), sys.argv[3]

def nbytes(tensors):
    storages = [local(x).untyped_storage() for x in tensors if x is not None and not x.is_meta]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

with join_world("cpu", timeout=timedelta(seconds=300)) as world:
    task = TokenizerTask(config, world)
    state = task.state
    part = (world.rank, world.size)
    stream = batches(task.source, batch_size=config.batch_size, seed=config.seed, part=part)
    seen, norms, gradients = [], [], []
    move = state.optimizer.step

    def watched():
        gradients.append(nbytes(p.grad for p in state.tokenizer.parameters()))
        return move()

    state.optimizer.step = watched
    for number, batch in zip(range(config.steps), stream):
        video = batch.video.double()
        if broken == str(number) and world.rank == 1:
            video[:] = torch.nan
        result = step(state, video)
        seen.append(result.skipped)
        norms.append(result.grad_norm)
    moments = [x for held in state.optimizer.state.values() for name, x in held.items() if name != "step"]
    averages = [*state.ema.parameters(), *(() if state.sharded is None else state.sharded.averages)]
    held = {"weights": nbytes(state.tokenizer.parameters()), "gradients": gradients[-1],
            "moments": nbytes(moments), "averages": nbytes(averages), "skipped": seen}
    folder.mkdir(exist_ok=True)
    (folder / f"held-{world.rank}.json").write_text(json.dumps(held))
    (folder / f"norms-{world.rank}.json").write_text(json.dumps(norms))
    task.gather(saving=True)
    if world.is_main:
        save_checkpoint(task, folder)
"""
SMALL = ("steps=4", "batch_size=4", "validation=null", "data.size=32", "save_every=2", "log_every=1")
PLAIN = (*SMALL, "optimizer.clip=null")
GAN = (
    "gan={discriminator: {kind: patch, width: 8}, adaptive: true, weight: 0.5, penalty: r1, lecam: 0.01, "
    "optimizer: {lr: 4.0e-4, schedule: constant}}"
)
ALTERNATE = (
    "gan={discriminator: {kind: stylegan2, size: 32, width: 16}, adaptive: true, order: alternate, "
    "penalty: gradient_norm, optimizer: {lr: 4.0e-4, schedule: constant}}"
)
TABLE = "tokenizer.quantizer={kind: codebook, size: 64, dim: 4, losses: [codebook, commitment]}"


def ranks(count: int) -> list[object]:
    return [*TORCHRUN, "--standalone", "--nproc-per-node", count]


def command(name: object, out: Path, settings: tuple[str, ...], *, count: int = 2, tiny: bool = True) -> list[object]:
    form = ["--tiny"] if tiny else []
    return [*ranks(count), "-m", "smalti", "train", name, *form, *sets(*settings), "--device", "cpu", "--out", out]


def logged(out: Path, *without: str) -> list[dict[str, object]]:
    """The lines of a log, but for times."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{n: v for n, v in line.items() if n not in ("seconds", "steps_per_second", *without)} for line in lines]


def files(out: Path) -> set[str]:
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file() and "events" not in path.parts}


def undo_the_end(out: Path) -> None:
    """Make of a run of four steps one that was stopped after two."""
    for name in ("step-00000004", "tokenizer"):
        shutil.rmtree(out / name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("tiny", ["eval_every=2", "sample_every=2"]),
        ("tiny-video", ["optimizer.muon={}", "checkpoint_activations=true", "precision=bfloat16"]),
        ("tiny-video-conditional", ["frozen=[encoder.image]", "data.share=0.5", "held_tokens={share: 0.5}"]),
        ("tiny", [GAN, "checkpoint_activations=true"]),
        ("tiny", [ALTERNATE]),
        ("tiny", [TABLE, "weights={l2: 1.0, codebook: 1.0, commitment: 0.25}"]),
    ],
)
def test_a_run_in_shards_has_the_bits_the_files_and_the_log_of_one_that_is_whole(tmp_path, name, settings):
    given = [*(small for small in PLAIN if name != "tiny-video-conditional" or small != "data.size=32"), *settings]
    for kind in ("whole", "shards"):
        ended(command(name, tmp_path / kind, (*given, f"shard={kind == 'shards'}")))
    assert digests(tmp_path / "shards") == digests(tmp_path / "whole")
    assert files(tmp_path / "shards") == files(tmp_path / "whole")
    whole, shards = logged(tmp_path / "whole", "grad_norm"), logged(tmp_path / "shards", "grad_norm")
    assert shards == whole
    norms = [[line["grad_norm"] for line in logged(tmp_path / kind) if "lr" in line] for kind in ("whole", "shards")]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["masked", "autoregressive", "video"])
def test_a_token_model_in_shards_has_the_bits_of_a_whole_one(pictures, videos, tmp_path, kind):  # noqa: F811
    if kind == "video":
        config = video_config(videos, steps=4, save_every=2)
    else:
        config = picture_config(pictures, kind, tasks=[{"task": {"kind": "generation"}}])
    config = config.replace({"steps": 4, "save_every": 2, "optimizer": config.optimizer.replace({"clip": None})})
    yaml = written(config, tmp_path / "run.yaml")
    for name in ("whole", "shards"):
        ended(command(yaml, tmp_path / name, ("log_every=1", f"shard={name == 'shards'}"), tiny=False))
    assert digests(tmp_path / "shards") == digests(tmp_path / "whole")
    assert files(tmp_path / "shards") == files(tmp_path / "whole")
    assert logged(tmp_path / "shards", "grad_norm") == logged(tmp_path / "whole", "grad_norm")


@pytest.mark.slow
@pytest.mark.parametrize("settings", [[], ["accumulate=2", GAN], ["optimizer.muon={}"]])
def test_three_ranks_with_a_cut_gradient_agree_in_float64_to_rounding(tmp_path, settings):
    """A step of 1e-16 in a gradient becomes one of at most about 1e-10 in six steps of Adam: the smallest gradients of
    these networks are 1e-6 of the largest, and Adam divides by them."""
    config = find("tiny", tiny=True).override([*SMALL, "steps=6", "batch_size=6", *settings])
    script = tmp_path / "steps.py"
    script.write_text(STEPS)
    for kind in ("whole", "shards"):
        yaml = written(config.replace({"shard": kind == "shards"}), tmp_path / f"{kind}.yaml")
        ended([*ranks(3), script, tmp_path / kind, yaml, "none"])
    found = worst(tmp_path / "whole", tmp_path / "shards")
    assert max(found.values()) < 1e-10, found
    norms = [
        json.loads((tmp_path / kind / f"norms-{r}.json").read_text())
        for kind, r in (("whole", 0), *(("shards", r) for r in range(3)))
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-9)
    assert norms[1] == norms[2] == norms[3]


@pytest.mark.slow
def test_a_rank_holds_its_part_of_weights_gradients_moments_and_averages(tmp_path):
    """Rows of chunk r of W: at most ceil(n / W) of n, and together all of them."""
    config = find("tiny-video", tiny=True).override([*SMALL])
    script = tmp_path / "steps.py"
    script.write_text(STEPS)
    held = {}
    for kind, count in (("whole", 2), ("shards", 2), ("shards", 3)):
        config = config.replace({"shard": kind == "shards", "batch_size": 6})
        yaml = written(config, tmp_path / "run.yaml")
        ended([*ranks(count), script, tmp_path / f"{kind}-{count}", yaml, "1"])
        each = [json.loads((tmp_path / f"{kind}-{count}" / f"held-{r}.json").read_text()) for r in range(count)]
        # A NaN of rank 1 in the second step: all ranks leave it out.
        assert [one["skipped"] for one in each] == [[False, True, False, False]] * count
        held[kind, count] = each
    total = held["whole", 2][0]["weights"]
    assert held["whole", 2][0] == held["whole", 2][1]
    for kind, factor in (("weights", 1), ("gradients", 1), ("moments", 2), ("averages", 1)):
        for count in (2, 3):
            parts = [one[kind] for one in held["shards", count]]
            print(f"{kind}: {factor * total:,} bytes whole, {max(parts):,} of one rank of {count}")
            assert sum(parts) >= factor * total  # all of them; storages end with rows of no use where n is no multiple
            assert max(parts) < 1.05 * factor * total / count, (kind, count)


@pytest.mark.slow
def test_either_kind_of_run_goes_on_from_the_checkpoint_of_the_other_and_with_another_number_of_ranks(tmp_path):
    for name in ("whole", "shards"):
        ended(command("tiny", tmp_path / name, (*PLAIN, "optimizer.muon={}", GAN, f"shard={name == 'shards'}")))
    before = digests(tmp_path / "whole")
    for name in ("whole", "shards"):
        undo_the_end(tmp_path / name)
        ended([*ranks(2), "-m", "smalti", "train", tmp_path / name, "--resume", "--set", f"shard={name == 'whole'}"])
        assert digests(tmp_path / name) == before
    undo_the_end(tmp_path / "whole")
    ended([*ranks(3), "-m", "smalti", "train", tmp_path / "whole", "--resume", "--set", "shard=true"])
    assert checkpoints(tmp_path / "whole")[-1].name == "step-00000004"
    assert max(worst(tmp_path / "whole", tmp_path / "shards").values()) < 1e-4


def test_one_process_holds_all_and_trains_as_without(tmp_path):

    state = start_tokenizer(find("tiny", tiny=True).override(["shard=true"]), World(0, 1, torch.device("cpu")))
    assert state.sharded is None
    assert state.averaged is state.ema


def test_a_table_whose_rows_are_set_is_not_cut():
    codebook = [TABLE, "weights={l2: 1.0, codebook: 1.0, commitment: 0.25}", "codebook={restart: 0.1}"]
    with pytest.raises(ConfigError, match="shard: rows of a table"):
        find("tiny", tiny=True).override([*codebook, "shard=true"])
