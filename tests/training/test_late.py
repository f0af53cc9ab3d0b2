"""A device that decides by itself which steps are skipped, and is read later, trains to the bits of one that is read at
each step. A CPU takes its place here (`tests.reference.late`), with the same fused AdamW."""

import copy
import shutil

import pytest
import torch

from smalti.discriminators import PatchConfig
from smalti.errors import SmaltiError
from smalti.files import read_rows
from smalti.generation import AutoregressiveConfig
from smalti.model_folder import checkpoints
from smalti.recipes import find
from smalti.training import fit as running
from smalti.training import optimizer
from smalti.training.config import MuonConfig, OptimizerConfig
from smalti.training.fit import fit
from smalti.training.generator_task import GeneratorTask
from smalti.training.late import MOST, Late
from smalti.training.optimizer import update_ema
from smalti.training.tokenizer_figures import read
from smalti.training.tokenizer_state import start_tokenizer
from smalti.training.tokenizer_step import begin, step
from smalti.training.tokenizer_task import TokenizerTask
from tests.reference.late import device_decides
from tests.reference.plain_step import ALONE
from tests.training.test_generator_run import config_of, made  # noqa: F401
from tests.training.test_run import final_digests, logged
from tests.training.test_step import GANS, clips, training

SMALL = ["steps=14", "batch_size=2", "save_every=7", "eval_every=14", "sample_every=14", "keep=9", "data.size=16",
         "validation=null", "tokenizer.width=8", "ema=0.9"]  # fmt: skip
BATCH_NORM = GANS["patch"].replace({"discriminator": PatchConfig(width=8, norm="batch")})
MUON = OptimizerConfig(muon=MuonConfig(turns=2), warmup=0, weight_decay=0.1)
CASES = {
    "AdamW": {},
    "Muon": {"optimizer": MUON, "ema": 0.9},
    "both players": {"gan": BATCH_NORM},
    "hinge": {"gan": BATCH_NORM.replace({"lecam": 0.0})},
    "one after the other": {"gan": BATCH_NORM.replace({"order": "alternate"})},
    "micro-batches": {"accumulate": 2},
    "EMA that starts later": {"ema": 0.9, "ema_start": 3},
    "no EMA": {"ema": 0.0},
}
BAD = (2, 3, 5)
"""Steps, counted from 0, whose pixels are NaN."""


def videos(count):
    some = [clips(size=16, seed=seed).float() for seed in range(count)]
    return [torch.full_like(video, torch.nan) if n in BAD else video for n, video in enumerate(some)]


def tensors(state):
    """All tensors of a state, and those of its EMA."""
    parts = {**state.tensors(), "ema": state.ema}
    return {f"{part}/{name}": t.clone() for part, source in parts.items() for name, t in source.state_dict().items()}


def differing(one, other):
    assert one.keys() == other.keys()
    return [name for name, tensor in one.items() if not torch.equal(tensor, other[name])]


@pytest.mark.parametrize("case", CASES)
def test_steps_that_are_read_together_have_the_bits_of_steps_that_are_read_one_by_one(case, monkeypatch):
    device_decides(monkeypatch)
    one, other = (start_tokenizer(training(**CASES[case]), ALONE) for _ in range(2))
    wanted = [step(one, video) for video in videos(8)]
    found = read(other, [begin(other, video) for video in videos(8)])
    assert [a.skipped for a in wanted] == [a.skipped for a in found] == [n in BAD for n in range(8)]
    lines = [[{k: repr(v) for k, v in result.line().items()} for result in results] for results in (wanted, found)]
    assert lines[0] == lines[1]
    assert differing(tensors(one), tensors(other)) == []
    assert (one.step, one.updates) == (other.step, other.updates) == (8, 5)


@pytest.mark.parametrize("case", CASES)
def test_a_step_that_is_not_finite_moves_nothing_and_the_next_one_learns(case, monkeypatch):
    device_decides(monkeypatch)
    state = start_tokenizer(training(**CASES[case]), ALONE)
    good, bad = videos(3)[0], videos(3)[2]
    read(state, [begin(state, good) for _ in range(4)])
    before, updates = tensors(state), state.updates
    assert step(state, bad).skipped
    moved = differing(before, tensors(state))
    # A discriminator that moves first has seen a gradient of its own that is not finite either.
    assert moved == []
    assert state.updates == updates == 4
    assert not step(state, good).skipped
    assert differing(before, tensors(state))


@pytest.mark.parametrize("case", CASES)
def test_a_device_decides_as_the_host_does(case, monkeypatch):
    """Both with AdamW's fused kernel: weights and moments agree to the bit, Muon's and averages but for rounding."""
    with monkeypatch.context() as patch:
        patch.setattr(optimizer, "decides_alone", lambda device: True)
        host = start_tokenizer(training(**CASES[case]), ALONE)
        wanted = [step(host, video) for video in videos(8)]
    assert host.late is None
    device_decides(monkeypatch)
    state = start_tokenizer(training(**CASES[case]), ALONE)
    found = read(state, [begin(state, video) for video in videos(8)])
    assert [result.skipped for result in found] == [result.skipped for result in wanted]
    assert host.updates == state.updates
    ours, theirs = tensors(state), tensors(host)
    assert not [name for name in differing(ours, theirs) if case != "Muon" and not name.startswith("ema/")]
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.999, 1.0])
def test_an_average_with_a_decay_on_the_device_is_the_formula_and_exact_at_its_ends(decay):
    live = torch.nn.Linear(64, 64)
    average = copy.deepcopy(live)
    with torch.no_grad():
        [p.normal_(generator=torch.Generator().manual_seed(1)) for p in average.parameters()]
    before = [p.detach().clone() for p in average.parameters()]
    update_ema(average, live, torch.tensor(decay, dtype=torch.float64))
    for now, old, new in zip(average.parameters(), before, live.parameters(), strict=True):
        torch.testing.assert_close(now, decay * old + (1 - decay) * new, rtol=1e-6, atol=1e-6)
        assert decay not in (0, 1) or torch.equal(now, new if decay == 0 else old)


def test_decays_follow_the_number_of_updates_and_not_of_steps():
    late = Late([n / MOST for n in range(MOST)], torch.device("cpu"))
    skips = [0, 1, 1, 0, 0, 1, 0]
    found = [float(late.ema_decay(torch.tensor(float(skip)))) for skip in skips]
    assert found == pytest.approx([0, 1, 1, 0.01, 0.02, 1, 0.03])


def run_of(config, out, bad=(), *, resume=False, progress=None):
    """Train in a folder; pixels of some steps, counted from 0, are NaN."""
    task = TokenizerTask(config, ALONE)

    def spoil(_, inputs, kwargs):
        video, *rest = inputs
        return (torch.full_like(video, torch.nan) if task.state.step in bad else video, *rest), kwargs

    task.state.ddp.register_forward_pre_hook(spoil, with_kwargs=True)
    fit(task, out, resume=resume, progress=progress)
    return task


def lines(out):
    return [{name: repr(value) for name, value in line.items() if "second" not in name} for line in logged(out)]


def test_a_run_has_the_same_bits_and_lines_however_seldom_it_is_read_and_where_it_is_resumed(tmp_path, monkeypatch):
    device_decides(monkeypatch)
    config, bad = find("tiny", tiny=True).override(SMALL), (4, 5, 11)
    for every in (1, 5, 50):
        run_of(config.replace({"log_every": every}), tmp_path / f"{every}", bad)
    seldom, often = tmp_path / "50", tmp_path / "1"
    for out in (tmp_path / "5", seldom):
        assert final_digests(out) == final_digests(often)
        by_step = {line["step"]: line for line in lines(often)}
        for line in lines(out):  # but for the use of codes, which is of all steps since the last line
            same = {"total", "samples", "grad_norm", "skipped", "lr", "bad_files", "psnr"} & line.keys()
            assert {name: line[name] for name in same} == {name: by_step[line["step"]][name] for name in same}
        assert [*read_rows(out / "skipped.jsonl", "step")] == [*read_rows(often / "skipped.jsonl", "step")]
    assert [line["step"] for line in logged(seldom)] == [5, 6, 12, 14]
    shutil.rmtree(checkpoints(seldom)[-1])
    run_of(config.replace({"log_every": 3}), seldom, bad, resume=True)
    assert final_digests(seldom) == final_digests(often)


def test_ten_skips_in_a_row_end_the_run_before_anything_is_saved_after_them(tmp_path, monkeypatch):
    device_decides(monkeypatch)
    config = find("tiny", tiny=True).override([*SMALL, "steps=40", "save_every=15", "log_every=100"])
    with pytest.raises(SmaltiError, match="step 13: losses or gradients were not finite 10 times in a row"):
        run_of(config, tmp_path / "run", range(3, 13))
    assert not checkpoints(tmp_path / "run")
    assert [row["step"] for row in read_rows(tmp_path / "run" / "skipped.jsonl", "step")] == [*range(4, 14)]


def test_a_signal_stops_a_run_after_the_present_step_also_where_none_was_read(tmp_path, monkeypatch):
    device_decides(monkeypatch)
    config = find("tiny", tiny=True).override([*SMALL, "log_every=100"])
    run_of(config, tmp_path / "quiet")
    received = []

    class Signals(list):
        """A signal that comes during the fourth step."""

        def __bool__(self):
            received.append(None)
            return len(received) >= 4

    class Collecting:
        def __enter__(self):
            return Signals([15])

        def __exit__(self, *_):
            pass

    with monkeypatch.context() as patch:
        patch.setattr(running, "collect_signals", Collecting)
        with pytest.raises(running.Stopped, match="stopped by SIGTERM at step 4"):
            run_of(config, tmp_path / "run")
    assert [folder.name for folder in checkpoints(tmp_path / "run")] == ["step-00000004"]
    run_of(config, tmp_path / "run", resume=True)
    assert final_digests(tmp_path / "run") == final_digests(tmp_path / "quiet")


def test_no_more_steps_are_begun_than_can_be_counted(tmp_path, monkeypatch):
    device_decides(monkeypatch)
    config = find("tiny", tiny=True).override([*SMALL, f"steps={MOST + 5}", "save_every=1000", "log_every=1000"])
    task = run_of(config, tmp_path / "run")
    assert task.state.updates == MOST + 5


@pytest.mark.parametrize("kind", ["masked", "autoregressive"])
def test_a_generator_has_the_same_bits_and_skips_however_seldom_it_is_read(made, tmp_path, monkeypatch, kind):  # noqa: F811
    device_decides(monkeypatch)

    def run(every):
        changes = {"steps": 9, "save_every": 9, "eval_every": 9, "sample_every": 9, "log_every": every}
        config = config_of(made, **changes)
        if kind == "autoregressive":
            same = {name: getattr(config.generator, name) for name in ("levels", "grid", "width", "depth", "heads")}
            model, tasks = AutoregressiveConfig(**same), [{"task": {"kind": "generation"}}]
            config = config_of(made, **changes, generator=model.plain(), tasks=tasks, sampling={})
        task = GeneratorTask(config, ALONE)

        def spoil(_, __, losses):
            return losses._replace(total=losses.total * torch.nan) if task.state.step in (2, 3, 6) else losses

        task.state.objective.register_forward_hook(spoil)
        fit(task, tmp_path / f"{every}")
        assert task.state.updates == 6
        return final_digests(tmp_path / f"{every}")

    assert run(1) == run(50)
    rows = [[*read_rows(tmp_path / name / "skipped.jsonl", "step")] for name in ("1", "50")]
    assert rows[0] == rows[1]
    assert [row["step"] for row in rows[0]] == [3, 4, 7]
    often, seldom = ({line["step"]: line for line in lines(tmp_path / name)} for name in ("1", "50"))
    assert {step: often[step] for step in seldom} == seldom
