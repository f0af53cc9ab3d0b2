"""The rules of a watched run: each fires on a run that was trained with its fault, none on healthy runs."""

import json
import time

import pytest

from smalti.config import load_yaml
from smalti.errors import SmaltiError
from smalti.pipeline.train import train
from smalti.recipes import find
from smalti.training.config import TokenizerTraining
from smalti.training.watch import RunWatch

SETTINGS = ["batch_size=2", "save_every=100000", "eval_every=100000", "sample_every=100000", "log_every=1",
            "data.size=32", "validation=null", "tokenizer.width=8", "weights={l2: 1.0, batch_entropy: -0.001}",
            "gan={discriminator: {kind: patch, width: 8}, adaptive: true, weight: 0.1}"]  # fmt: skip
COLLAPSE = ("gan=null", "weights={l2: 1.0, batch_entropy: 10.0}", "log_every=8", "steps=208", "tokenizer.patch=4")
BLIND = (
    "weights={l2: 10.0, batch_entropy: -0.001}",
    "gan.discriminator={kind: patch, width: 8, norm: none}",
    *("gan.optimizer.weight_decay=999", "gan.optimizer.lr=1e-3", "gan.start=2", "log_every=10", "steps=220"),
)
"""A weight decay that takes all of the discriminator at each step."""
STRONG = "gan.optimizer.lr=1e-2", "optimizer.lr=1e-9", "gan.weight=0", "log_every=10", "steps=210"
FAULTS = {
    "unlearnable": (("optimizer.lr=1e30", "optimizer.warmup=0", "optimizer.clip=null", "steps=40"), {"not finite"}),
    "too fast": (("gan=null", "init=smalti/tiny-image", "batch_size=4", "optimizer.lr=1", "optimizer.warmup=1000",
                  "optimizer.clip=null", "steps=70"), {"diverging"}),
    "collapsed": (COLLAPSE, {"few codes", "dead digits"}),
    "blind": (BLIND, {"one-sided discriminator", "adaptive weight"}),
    "strong": (STRONG, {"one-sided discriminator"}),
    "still": (("gan=null", "optimizer.lr=1e-12", "optimizer.schedule=constant", "steps=230"), {"plateau"}),
    "slowed": (("gan=null", "steps=50"), {"slower"}),
}  # fmt: skip
"""Settings with a fault, and the rules that must fire on it."""


def recipe(*changes):
    return find("tiny", tiny=True).override([*SETTINGS, *changes])


def run(out, config, progress=None):
    if config.optimizer.lr == 1e30:
        with pytest.raises(SmaltiError, match="not finite 10 times in a row"):
            train(config, out, progress=progress)
    else:
        train(config, out, progress=progress)


def faults(out):
    """The faults that the rules find in the log of a run, in order."""
    watch = RunWatch(load_yaml(TokenizerTraining, out / "config.yaml"))
    return [fault for text in (out / "log.jsonl").read_text().splitlines() for fault in watch.add(json.loads(text))]


def wait(done, total=None, note=""):
    if done > 41:
        time.sleep(1.5)


QUICK = ("unlearnable",)


@pytest.mark.parametrize(
    "fault", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAULTS]
)
def test_rules_fire_on_a_run_with_their_fault_once_and_say_number_and_remedy(tmp_path, capsys, fault):
    settings, rules = FAULTS[fault]
    run(tmp_path / "run", recipe(*settings), wait if fault == "slowed" else None)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: step ")]
    found = faults(tmp_path / "run")
    print(*said, sep="\n")
    assert said == [f"warning: {one}" for one in found]  # one law, while it trains and afterwards
    assert rules <= {one.rule for one in found}
    assert len({one.rule for one in found}) == len(found)
    for one in found:
        assert one.remedy
        assert one.rule == "not finite" or any(c.isdigit() for c in one.what)


@pytest.mark.slow
def test_a_resumed_run_warns_of_what_is_new_alone(tmp_path, capsys):
    config = recipe(*BLIND, "gan.optimizer.schedule=constant", "optimizer.schedule=constant")
    run(tmp_path / "run", config)
    assert "one-sided discriminator" in capsys.readouterr().err
    train(config.override(["steps=240"]), tmp_path / "run", resume=True)
    assert "warning: step" not in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["tiny", "tiny-video", "paper-image-128", "mindone-video-gan", "magicmaster-imagenet-style2-64000-128-8x8-ep20"],
)
def test_no_rule_fires_on_a_healthy_run(tmp_path, capsys, name):
    train(find(name, tiny=True).override(["steps=300", "log_every=2"]), tmp_path / "run")
    assert "warning: step" not in capsys.readouterr().err
