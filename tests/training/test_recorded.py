"""Steps whose losses and gradients are recorded and replayed are those of steps that are not, to the bit.

The recording here is of the same operations on a CPU (`tests.reference.traced`); that of a GPU is in `test_gpu.py`."""

import shutil

import pytest
import torch

from smalti.devices import is_in_graph
from smalti.errors import ConfigError, MachineError
from smalti.losses.perceptual import LPIPSConfig, lpips_shapes
from smalti.model_folder import checkpoints
from smalti.nn.replay import Recording
from smalti.quantize import CodebookConfig
from smalti.recipes import find
from smalti.training.config import CodebookTraining, TokenizerTraining
from smalti.training.distributed import World
from smalti.training.fit import fit
from smalti.training.recorded import RecordedGradients
from smalti.training.tokenizer_state import start_tokenizer
from smalti.training.tokenizer_step import step
from smalti.training.tokenizer_task import TokenizerTask
from smalti.video import check_video
from tests.nn.test_replay import LOOKS
from tests.reference.plain_step import ALONE
from tests.reference.traced import Traced, as_if_captured
from tests.training.test_run import final_digests, logged
from tests.training.test_step import GANS, MODEL, clips, training

SMALL = ["steps=9", "batch_size=2", "save_every=3", "eval_every=9", "sample_every=9", "log_every=1", "keep=9",
         "validation=null", "tokenizer.width=8", "ema=0.9", "entropy_boost=9", "entropy_boost_steps=7"]  # fmt: skip
FILM = ["data.size=16", "data.frames=5"]
JOINT = ["data.videos.size=16", "data.videos.frames=5", "data.images.size=16", "data.share=0.4", "held_out=0"]
CASES = {
    "tiny": ("tiny", ["data.size=16"], 1),
    "bfloat16, Muon": ("tiny", ["data.size=16", "precision=bfloat16", "optimizer.muon={turns: 2}"], 1),
    "frozen encoder": ("tiny", ["data.size=16", "frozen=[encoder]"], 1),
    "layers that are computed again": ("tiny", ["data.size=16", "checkpoint_activations=true"], 1),
    "tiny-video": ("tiny-video", FILM, 1),
    "two shapes": ("tiny-video-conditional", [*JOINT, "still_frames=1", "frozen=[]"], 2),
    "three views": ("tiny", ["data.size=16", "views=[{size: 24}, {size: [16, 32]}]"], 3),
    "held tokens": ("tiny-video-conditional", [*JOINT, "still_frames=5", "held_tokens={share: 0.5, least: 0.01}"], 1),
    "frozen images": ("tiny-video-conditional", [*JOINT, "still_frames=5"], 1),
}
"""Recipe, changes, and the number of shapes of batches."""


def recipe(name, changes):
    own = ["init=null", "tokenizer.image.width=8"] if name == "tiny-video-conditional" else []
    return find(name, tiny=True).override([*SMALL, *own, *changes])


def trained(config, out, record=None, *, resume=False):
    """Train in a folder; the recordings, if steps are recorded."""
    task = TokenizerTask(config, ALONE)
    if record is not None:
        task.state.recorded = RecordedGradients(task.state.tokenizer.parameters(), record)
    fit(task, out, resume=resume)
    return task.state.recorded


def lines(out):
    return [{name: value for name, value in line.items() if "second" not in name} for line in logged(out)]


@pytest.mark.parametrize("case", CASES)
def test_a_run_of_recorded_steps_has_the_bits_and_figures_of_one_without_also_when_it_is_resumed(tmp_path, case):
    name, changes, shapes = CASES[case]
    config, record = recipe(name, changes), Traced()
    trained(config, tmp_path / "plain")
    recorded = trained(config, tmp_path / "recorded", record)
    assert len(recorded) == record.recorded == shapes
    assert record.replayed == 9 - shapes
    assert final_digests(tmp_path / "recorded") == final_digests(tmp_path / "plain")
    assert lines(tmp_path / "recorded") == lines(tmp_path / "plain")
    for last in checkpoints(tmp_path / "recorded")[1:]:
        shutil.rmtree(last)
    trained(config, tmp_path / "recorded", Traced(), resume=True)
    assert final_digests(tmp_path / "recorded") == final_digests(tmp_path / "plain")
    assert lines(tmp_path / "recorded") == lines(tmp_path / "plain")


def started(record=None, kept=4, **changes):
    state = start_tokenizer(training(**changes), ALONE)
    if record is not None:
        state.recorded = RecordedGradients(state.tokenizer.parameters(), record, kept=kept)
    return state


def assert_equal_steps(videos, record, kept=4, **changes):
    plain, state = started(**changes), started(record, kept, **changes)
    for video in videos:
        assert step(state, video).line() == step(plain, video).line()
    for name, parts in plain.tensors().items():
        found = state.tensors()[name].state_dict()
        assert not [key for key, wanted in parts.state_dict().items() if not torch.equal(wanted, found[key])]
    return state


def some(count, **size):
    return [clips(seed=seed, **size).float() for seed in range(count)]


def test_at_most_so_many_shapes_are_recorded_and_only_those_that_come_twice():
    record = Traced()
    (a, b), (c,), (d, *_) = some(2), some(1, n=3), some(1, size=24)
    assert_equal_steps([a, c, b, c, d, d, d, a, c], record, kept=2)
    assert record.recorded == 2
    assert record.replayed == 4


def test_a_batch_that_is_not_finite_is_skipped_in_a_replay_too():
    record, (a, b, c) = Traced(), some(3)
    bad = torch.full_like(a, torch.nan)
    state = started(record)
    found = [step(state, video).skipped for video in (a, b, bad, c)]
    assert found == [False, False, True, False]
    assert record.replayed == 3
    other = started()
    for video in (a, b, bad, c):
        step(other, video)
    assert all(torch.equal(t, state.ema.state_dict()[name]) for name, t in other.ema.state_dict().items())


@pytest.fixture(scope="module")
def lpips(tmp_path_factory):
    """LPIPS of random weights."""
    from safetensors.torch import save_file

    rng, path = torch.Generator().manual_seed(0), tmp_path_factory.mktemp("lpips") / "alex.safetensors"
    save_file({name: torch.rand(shape, generator=rng) * 0.05 for name, shape in lpips_shapes("alex").items()}, path)
    return LPIPSConfig(net="alex", weights=path)


def test_each_replay_has_the_random_frames_and_the_weights_of_its_step(lpips):
    weights = {"l1": 1.0, "lpips": 1.0, "token_entropy": 0.1, "batch_entropy": -0.1, "commitment": 0.25}
    changes = {"lpips": lpips, "lpips_frames": "random", "weights": weights, "entropy_boost": 9.0}
    assert_equal_steps(some(5, n=2, size=32), Traced(), **changes, entropy_boost_steps=4)


def test_no_recording_looks_at_a_value():
    record = Traced()
    assert_equal_steps(some(3), record)
    assert record.recorded
    assert not [name for name in record.operations if any(word in name for word in (*LOOKS, "aminmax"))]


def test_values_are_not_looked_at_while_a_graph_is_captured():
    wrong = torch.full((1, 3, 1, 4, 4), torch.nan)
    assert not is_in_graph()
    with as_if_captured():
        assert is_in_graph()
        check_video(wrong)
        MODEL.quantizer.build().encode(torch.full((1, 6), torch.nan))
    with pytest.raises(ValueError, match="not finite"):
        check_video(wrong)


def test_results_are_copies_and_gradients_are_where_they_were_before():
    parameter, inputs = torch.nn.Parameter(torch.tensor([2.0, 3.0])), [torch.tensor([1.0, 5.0]), torch.ones(2)]
    record = RecordedGradients([parameter], Traced())

    def accumulate(x):
        loss = (parameter * x).sum()
        loss.backward()
        return {"loss": loss.detach()}, x.long()

    found = []
    for x in [inputs[0], *inputs, inputs[0]]:
        found.append(record.run(accumulate, [x]))
        assert torch.equal(parameter.grad, x)
        parameter.grad = None
    assert [float(measured["loss"]) for measured, _ in found] == [17, 17, 5, 17]
    assert [ids.tolist() for _, ids in found] == [[1, 5], [1, 5], [1, 1], [1, 5]]


def test_runs_of_the_function_aside_leave_nothing():
    state, seen = started(), []

    def record(run, tensors):
        before = [p.clone() for p in state.tokenizer.parameters()]
        with torch.no_grad():
            first, second = run(*tensors), run(*tensors)
        seen.append(all(torch.equal(a, b) for a, b in zip(first, second, strict=True)))
        seen.append(all(torch.equal(a, b) for a, b in zip(before, state.tokenizer.parameters(), strict=True)))
        seen.append(all(p.grad is None for p in state.tokenizer.parameters()))
        return Recording(tuple(tensors), second, lambda: None)

    state.recorded = RecordedGradients(state.tokenizer.parameters(), record)
    for video in some(2):
        step(state, video)
    assert seen == [True, True, True]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gan": GANS["patch"]}, "with gan cannot"),
        ({"accumulate": 2}, "with accumulate above 1 cannot"),
        ({"gan": GANS["patch"], "accumulate": 2}, "with gan and accumulate above 1 cannot"),
        (
            {"lpips": LPIPSConfig(dropout=0.5), "weights": {"l1": 1.0, "lpips": 1.0}},
            "with lpips.dropout cannot",
        ),
        (
            {"tokenizer": MODEL.with_quantizer(CodebookConfig(size=16, dim=4)), "codebook": CodebookTraining()},
            "with codebook cannot",
        ),
    ],
)
def test_steps_that_cannot_be_recorded_are_refused_in_one_line(changes, said):
    plain = {name: value.plain() if hasattr(value, "plain") else value for name, value in changes.items()}
    with pytest.raises(ConfigError, match=f"cuda_graph: a step {said} be recorded; set it to false"):
        TokenizerTraining.parse({**training().plain(), **plain, "cuda_graph": True})
    TokenizerTraining.parse({**training().plain(), **plain})


def test_a_run_on_another_device_and_on_several_ranks_is_refused_in_one_line():
    config = training(cuda_graph=True)
    with pytest.raises(MachineError, match="cuda_graph: recording a step needs a CUDA device, and the run is on cpu"):
        start_tokenizer(config, ALONE)
    with pytest.raises(ConfigError, match="cuda_graph: the gradients of 2 ranks cannot be recorded"):
        start_tokenizer(config, World(0, 2, torch.device("cuda")))
