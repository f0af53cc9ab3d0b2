"""Steps in which tokens are held: which follows from (seed, step, place), what they learn, and when nothing is held.

That micro-batches, ranks, recordings and layers that are computed again change nothing is where it is of all steps:
`test_cut.py`, `test_recorded.py`, `test_recompute.py`, `test_no_waiting.py`."""

import math
import shutil

import pytest
import torch

from smalti.data import ImagesConfig, VideosConfig
from smalti.data.bundled import photos, videos
from smalti.errors import ConfigError
from smalti.model_folder import checkpoints
from smalti.nn.causal import time_first
from smalti.tokenizer.closed_loop import closed_loop
from smalti.training.config import HeldTokens, OtherView, TokenizerTraining
from smalti.training.distributed import cut
from smalti.training.fit import fit
from smalti.training.tokenizer_state import start_tokenizer
from smalti.training.tokenizer_step import accumulate
from smalti.training.tokenizer_task import TokenizerTask
from tests.reference.plain_step import ALONE
from tests.training.test_cut import assert_equal, clips, config_of, gradients_of, start
from tests.training.test_recorded import JOINT, recipe
from tests.training.test_run import final_digests

HELD = [*JOINT, "data.videos.frames=9", "still_frames=9", "held_tokens={share: 0.5, least: 0.01}"]


def held_config(**changes):
    return config_of("held", "none", "fixed", **changes)


def thresholds_of(config, at, places, **size):
    """The threshold of each place at a step, however its rows are cut."""
    video = clips(len(places), 2, 8, **size)
    parts = cut(config, at, ALONE, video, places)
    return {p: t for part in parts for p, t in zip(part.places, part.hold_below.tolist(), strict=True)}


@pytest.mark.parametrize("at", [0, 7])
def test_thresholds_follow_from_seed_step_and_place_however_the_batch_is_cut(at):
    config = held_config(batch_size=24)
    whole = thresholds_of(config, at, range(24))
    assert len({*whole.values()}) > 12
    for count, ranks in [(2, 1), (3, 1), (1, 2), (4, 3)]:
        other = config.replace({"accumulate": count})
        found = [thresholds_of(other, at, range(rank, 24, ranks)) for rank in range(ranks)]
        assert {place: t for part in found for place, t in part.items()} == whole
    lacking = [place for place in range(24) if place % 5]
    assert thresholds_of(config, at, lacking) == {place: whole[place] for place in lacking}
    longer = thresholds_of(config, at, range(61))  # a batch of another view
    assert {place: longer[place] for place in range(24)} == whole
    assert thresholds_of(config, at + 1, range(24)) != whole
    assert thresholds_of(config.replace({"seed": 1}), at, range(24)) != whole


@pytest.mark.parametrize(("share", "least", "most"), [(0.7, 1.0, 120.0), (0.1, 5.0, 5.0), (1.0, 0.01, 30.0)])
def test_thresholds_are_log_uniform_in_their_share_of_clips(share, least, most):
    config = held_config(held_tokens=HeldTokens(share=share, least=least, most=most))
    video = torch.zeros(8, 1, 1, 1, 1).expand(8, 3, 9, 1, 1)
    thresholds = torch.cat([part.hold_below for at in range(1000) for part in cut(config, at, ALONE, video, None)])
    assert thresholds.dtype == torch.float32
    held = thresholds > -math.inf
    assert abs(held.double().mean() - share) <= 4 * math.sqrt(share * (1 - share) / 8000)
    some = thresholds[held]
    assert some.min() >= least * (1 - 1e-6)
    assert some.max() <= most * (1 + 1e-6)
    if least == most:
        return
    along = ((some / least).log() / math.log(most / least)).sort().values
    steps = torch.arange(1, len(along) + 1) / len(along)
    assert (along - steps).abs().max() <= 2 / math.sqrt(len(along))  # Kolmogorov: exceeded once in 1,500 times


@pytest.mark.parametrize("case", ["none", "patch"])
@pytest.mark.parametrize("parts", [1, 2])
def test_steps_in_which_no_clip_is_held_are_those_without_the_option(case, parts):
    config = config_of("held", case, "all", accumulate=parts)
    without, nowhere = (config.replace({"held_tokens": h}) for h in (None, HeldTokens(share=1e-15)))
    assert [part.hold_below for part in cut(without, 0, ALONE, clips(), None)] == [None] * parts
    assert all((part.hold_below == -math.inf).all() for part in cut(nowhere, 0, ALONE, clips(), None))
    wanted, found, held = (gradients_of(start(one), clips()) for one in (without, nowhere, config))
    assert_equal(found, wanted)
    assert found["loss.l2"] != held["loss.l2"]


def test_a_step_learns_from_the_pixels_of_tokens_that_are_not_held_alone():
    """Its gradient is that of the squared error over those pixels, decoded from codes with zeros in place of the held
    ones; where all are held, none but that of the first frame."""
    config = held_config(weights={"l2": 1.0}, still_frames=5)
    quantizer = config.tokenizer.quantizer.replace({"losses": ()})
    config = config.replace({"tokenizer": config.tokenizer.with_quantizer(quantizer)})
    state, video = start(config), clips(4, 5)
    tokenizer, frames = state.tokenizer, time_first(video, torch.float64)
    (part,) = cut(config, 0, ALONE, video, None)
    part = part._replace(hold_below=torch.tensor([-math.inf, 5.0, 60.0, math.inf]))
    networks = tokenizer.encoder, tokenizer.decoder, tokenizer.quantizer
    loop = closed_loop(*networks, frames, hold_below=part.hold_below)
    held = torch.cat([torch.zeros_like(loop.held[:1]), loop.held])  # none of the first frame
    shares = loop.held.double().mean((0, 2, 3))
    assert shares[0] == 0 < shares[1] <= shares[2] < shares[3] == 1
    codes = tokenizer.quantizer(loop.z, None, check=False).codes * ~held.movedim(0, 1)[:, None]
    made = tokenizer.decoder.after_pasts(time_first(codes, torch.float64), loop.pasts)
    side = tokenizer.strides[1]
    shut = held.repeat_interleave(side, -1).repeat_interleave(side, -2)[:, :, None].expand_as(made)
    learnt = ((made - frames).square() * ~shut).mean()
    wanted = torch.autograd.grad(learnt, [*tokenizer.parameters()])
    losses, _ = accumulate(state, part)
    size = torch.stack([gradient.norm() for gradient in wanted]).norm()
    for (name, parameter), gradient in zip(tokenizer.named_parameters(), wanted, strict=True):
        assert (parameter.grad - gradient).abs().max() <= 1e-12 * size, name
    shown = torch.where(shut, torch.cat([frames[:1], loop.pasts]), made)  # a group has one frame here
    assert torch.allclose(losses["l2"], (shown - frames).square().mean())
    first = tokenizer.decoder.first(time_first(codes[:, :, :1], torch.float64))
    assert torch.allclose(loop.pasts, torch.cat([first, shown[1:-1]]).clamp(-1, 1))
    tokenizer.zero_grad()
    accumulate(state, part._replace(hold_below=torch.full((4,), math.inf)))
    for name, parameter in tokenizer.named_parameters():
        is_image = name.startswith(("encoder.image", "decoder.image"))
        assert (parameter.grad is not None and bool(parameter.grad.any())) == is_image, name


def test_a_run_with_held_tokens_resumes_bit_for_bit_and_may_not_change_them(tmp_path):
    config, out = recipe("tiny-video-conditional", HELD), tmp_path / "run"
    fit(TokenizerTask(config, ALONE), out)
    wanted = final_digests(out)
    for last in checkpoints(out)[1:]:
        shutil.rmtree(last)
    fit(TokenizerTask(config, ALONE), out, resume=True)
    assert final_digests(out) == wanted
    other = config.replace({"held_tokens": None})
    with pytest.raises(ConfigError, match="other settings: held_tokens"):
        fit(TokenizerTask(other, ALONE), out, resume=True)
    fit(TokenizerTask(other, ALONE), tmp_path / "other")
    assert final_digests(tmp_path / "other") != wanted


def test_validation_and_samples_hold_nothing():
    config = recipe("tiny-video-conditional", [*HELD, "validation_limit=2"])
    config = config.replace({"validation": config.data.videos})
    tasks = [TokenizerTask(config.replace({"held_tokens": held}), ALONE) for held in (None, HeldTokens(share=1.0))]
    rng = torch.Generator().manual_seed(3)
    for parameters in zip(*(task.ema.parameters() for task in tasks), strict=True):
        noise = 0.05 * torch.randn(parameters[0].shape, generator=rng)
        for parameter in parameters:
            parameter += noise
    (scores, sheet), (others, shown) = ((task.validate(), task.samples()) for task in tasks)
    assert scores == others
    assert sheet.image == shown.image


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"least": 3.0, "most": 2.0}, r"held_tokens: least \(3\) must not exceed most \(2\)"),
        ({"least": 0.0}, "held_tokens.least"),
        ({"share": 0.0}, "held_tokens.share"),
        ({"share": 1.1}, "held_tokens.share"),
        ({"most": math.inf}, "held_tokens.most"),
    ],
)
def test_thresholds_that_are_none_are_refused_in_one_line(changes, said):
    plain = held_config().plain()
    with pytest.raises(ConfigError, match=said):
        TokenizerTraining.parse({**plain, "held_tokens": changes})
    TokenizerTraining.parse({**plain, "held_tokens": {"share": 1.0, "least": 2.0, "most": 2.0}})


def test_tokens_that_cannot_be_held_are_refused_in_one_line(tmp_path):
    other = config_of("fsq", "none", "fixed")
    said = "held_tokens: tokens of conditional-cnn alone can be held, not causal-cnn; set it to null"
    with pytest.raises(ConfigError, match=said):
        other.replace({"held_tokens": HeldTokens()})
    with pytest.raises(ConfigError, match="held_tokens: no token of an image can be held; set still_frames to"):
        held_config(data=ImagesConfig(path=photos("train"))).replace({"still_frames": 1})
    film = VideosConfig(path=videos("train"), size=64, frames=1)
    one = r"held_tokens: no token of one frame can be held; set frames of videos to 2\+, or held_tokens to null"
    with pytest.raises(ConfigError, match=one):
        held_config().replace({"data": film, "still_frames": 1})
    with pytest.raises(ConfigError, match=one):
        held_config().replace({"data": film, "still_frames": 1, "views": (OtherView(size=32),)})
    assert held_config(data=film, still_frames=1, views=(OtherView(frames=5),)).held_note is None
    assert held_config(data=film, still_frames=9).held_note is None  # steps see it as a clip that stands still
    start_tokenizer(other, ALONE).tokenizer.save(tmp_path / "tokenizer")
    other = other.replace(
        {"held_tokens": HeldTokens(), "init": tmp_path / "tokenizer"}
    )  # it might be a conditional one
    with pytest.raises(ConfigError, match=said):
        start_tokenizer(other, ALONE)
