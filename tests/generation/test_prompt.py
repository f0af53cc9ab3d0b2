"""Tasks: which pixels are given, and the cells that follow from what a causal tokenizer's tokens depend on."""

import pytest
import torch

from smalti import Tokenizer, TokenizerConfig
from smalti.config import Config
from smalti.errors import ConfigError
from smalti.generation import (
    GenerationTask,
    InterpolationTask,
    PaintingTask,
    PredictionTask,
    TaskConfig,
    keep_static,
    latent_cells,
    paste_known,
    task_prompt,
    task_tokens,
)

KINDS, REGIONS = ("outpainting", "inpainting"), ("central", "vertical", "horizontal", "moving")
SIZE, STRIDES = (17, 128, 128), (4, 8, 8)
EVERY_TASK = [
    GenerationTask(),
    PredictionTask(frames=1),
    PredictionTask(frames=5),
    PredictionTask(frames=3),
    InterpolationTask(),
    *(PaintingTask(kind=kind, region=region) for kind in KINDS for region in REGIONS),
]
each_task = pytest.mark.parametrize("task", EVERY_TASK, ids=lambda t: "-".join(map(str, t.plain().values())))


@pytest.mark.parametrize(
    ("frames", "known", "hinted"),
    [(1, 1, 0), (2, 1, 1), (4, 1, 1), (5, 2, 0), (6, 2, 1), (9, 3, 0), (16, 4, 1)],
)
def test_prediction_knows_whole_latent_frames_and_hints_at_the_next(frames, known, hinted):
    found = latent_cells(PredictionTask(frames=frames).known_pixels(SIZE), STRIDES)
    assert found.known.flatten(1).sum(1).tolist() == [256] * known + [0] * (5 - known)
    assert found.hinted.flatten(1).sum(1).tolist() == [0] * known + [256] * hinted + [0] * (5 - known - hinted)


def test_five_frames_of_kinetics_are_512_tokens_and_768_are_predicted():
    found = latent_cells(PredictionTask(frames=5).known_pixels(SIZE), STRIDES)
    assert (int(found.known.sum()), int((~found.known).sum())) == (512, 768)


def test_interpolation_knows_the_first_frame_and_hints_at_the_last():
    found = latent_cells(InterpolationTask().known_pixels(SIZE), STRIDES)
    assert found.known.flatten(1).sum(1).tolist() == [256, 0, 0, 0, 0]
    assert found.hinted.flatten(1).sum(1).tolist() == [0, 0, 0, 0, 256]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("region", REGIONS)
def test_painting_gives_a_box_of_half_the_side_or_all_else(kind, region):
    t, h, w = 5, 16, 24
    given = PaintingTask(kind=kind, region=region).known_pixels((t, h, w))
    box = given if kind == "outpainting" else ~given
    for frame in range(t):
        left = {"moving": round(frame / 4 * 12), "horizontal": 0}.get(region, 6)
        right = 24 if region == "horizontal" else left + 12
        all_rows = region == "vertical" or (region == "moving" and kind == "outpainting")
        wanted = torch.zeros(h, w, dtype=torch.bool)
        wanted[slice(0, h) if all_rows else slice(4, 12), left:right] = True
        assert torch.equal(box[frame], wanted)


def test_known_cells_of_paintings_are_those_whose_reach_is_given():
    """Of 128 rows 32 to 95 are given: cells 4 to 11 of 16 are inside; with a reach of 9 pixels 6 to 9 are known."""
    given = PaintingTask(kind="outpainting", region="horizontal").known_pixels((1, 128, 128))
    for reach, first, last in ((0, 4, 11), (1, 5, 10), (8, 5, 10), (9, 6, 9), (None, 16, 15)):
        found = latent_cells(given, STRIDES, reach)
        rows = found.known[0, :, 0].nonzero()[:, 0].tolist()
        assert rows == list(range(first, last + 1))
        assert (found.known | found.hinted)[0, :, 0].nonzero()[:, 0].tolist() == list(range(4, 12))
        assert not (found.known & found.hinted).any()


@each_task
def test_known_tokens_are_those_of_the_whole_video(task):
    """The rule itself: a real causal tokenizer gives the known cells of a condition the tokens of the true video."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = TokenizerConfig(
            width=8, patch=2, multipliers=(1, 2), strides=((2, 2),), depth=1, decoder_depth=1, middle=0, time_kernel=2
        )
        tokenizer = Tokenizer(config).double().eval()
        for parameter in tokenizer.encoder.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    video = torch.rand(1, 3, 5, 48, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1
    size, reach = (5, 48, 64), tokenizer.encoder.reach
    given = task.known_pixels(size) if not (isinstance(task, PredictionTask) and task.frames == 5) else None
    if given is None:
        with pytest.raises(ConfigError, match="none is left to predict"):
            task.known_pixels(size)
        return
    filled = task.fill(video)
    if not isinstance(task, InterpolationTask):
        assert torch.equal(filled[:, :, given], video[:, :, given])
    assert torch.allclose(filled[:, :, given], video[:, :, given], rtol=0, atol=1e-15)
    with torch.inference_mode():
        true, drafted = tokenizer.encode(video), tokenizer.encode(filled)
    for seen in (reach, None):
        prompt = task_prompt(task, drafted, tokenizer.strides, reach=seen)
        assert torch.equal(drafted[prompt.known], true[prompt.known])
    if task.kind in ("prediction", "interpolation"):
        assert prompt.known.any()
    assert torch.equal(paste_known(given, video, filled * 0)[:, :, given], video[:, :, given])
    assert (paste_known(given, video, filled * 0)[:, :, ~given] == 0).all()


@pytest.mark.parametrize(("size", "place"), [((2, 8, 8), 0), ((5, 16, 24), 0), ((5, 16, 24), 3), ((3, 7, 9), 1)])
def test_what_stands_still_is_held_and_what_moves_is_generated(size, place):
    rng = torch.Generator().manual_seed(0)
    last = torch.rand((2, 3, *size[1:]), generator=rng, dtype=torch.float64) * 2 - 1
    frame = torch.rand((2, 3, 1, *size[1:]), generator=rng, dtype=torch.float64) * 2 - 1
    still = frame.expand(-1, -1, size[0], -1, -1)
    assert torch.equal(keep_static(last, still, place), last[:, :, None].expand_as(still))
    moving = still.clone()
    moving[:, :, -1] += 5.0
    held = keep_static(last, moving, place)
    assert torch.equal(held[:, :, place], last)
    assert torch.allclose(held[:, :, -1], moving[:, :, -1], atol=1e-12)
    corner = still.clone()
    corner[:, :, -1, 0, 0] += 2.0  # one pixel moves: what lies beyond the window of it is held
    held = keep_static(last, corner, place, window=3)
    assert torch.equal(held[..., -1, 2:, 2:], last[..., 2:, 2:])
    assert not torch.equal(held[..., -1, :2, :2], last[..., :2, :2])


def test_conditions_are_filled_as_the_task_says():
    video = torch.arange(5.0).view(1, 1, 5, 1, 1).expand(1, 3, 5, 4, 8).clone()
    assert PredictionTask(frames=2).fill(video)[0, 0, :, 0, 0].tolist() == [0, 1, 1, 1, 1]
    assert InterpolationTask().fill(video * video)[0, 0, :, 0, 0].tolist() == [0, 4, 8, 12, 16]
    columns = torch.arange(8.0).expand(1, 3, 5, 4, 8)
    out, within = (PaintingTask(kind=kind, region="vertical").fill(columns) for kind in KINDS)
    assert out[0, 0, 0, 0].tolist() == [2, 2, 2, 3, 4, 5, 5, 5]
    assert within[0, 0, 0, 0].tolist() == [0, 1, 0, 0, 0, 0, 6, 7]
    moving = PaintingTask(kind="outpainting", region="moving").fill(columns + 1)
    assert moving[0, 0, 0, 0].tolist() == [1, 2, 3, 4, 0, 0, 0, 0]
    assert moving[0, 0, 4, 0].tolist() == [0, 0, 0, 0, 5, 6, 7, 8]
    assert (GenerationTask().fill(video) == 0).all()


def test_generation_knows_nothing():
    prompt = task_prompt(GenerationTask(), torch.zeros(2, 5, 4, 4, dtype=torch.int64), STRIDES)
    assert not prompt.visible.any()


@pytest.mark.parametrize("size", [(16, 128, 128), (17, 127, 128), (2, 8, 8)])
def test_a_size_without_a_whole_latent_grid_is_refused(size):
    with pytest.raises(ConfigError, match=r"1 \+ 4 n frames, heights in multiples of 8"):
        latent_cells(torch.ones(size, dtype=torch.bool), STRIDES)


def test_wrong_tasks_are_one_line():
    class Holder(Config):
        task: TaskConfig

    for data, said in (
        ({"kind": "prediktion"}, "did you mean 'prediction'"),
        ({"kind": "prediction", "frames": 0}, "greater than or equal to 1"),
        ({"kind": "inpainting", "region": "left"}, "central"),
    ):
        with pytest.raises(ConfigError, match=said) as error:
            Holder.parse({"task": data}, where="t.yaml")
        assert "\n" not in str(error.value)
    for task in EVERY_TASK:
        assert Holder.parse({"task": task.plain()}).task == task
    with pytest.raises(ConfigError, match="none between"):
        InterpolationTask().known_pixels((2, 8, 8))


def test_task_tokens_are_indices_into_those_of_the_model():
    assert task_tokens("prediction", (), 3) is None
    assert task_tokens("prediction", ("generation", "prediction"), 2).tolist() == [1, 1]
    with pytest.raises(ConfigError, match="has not learned inpainting"):
        task_tokens("inpainting", ("generation",), 1)
