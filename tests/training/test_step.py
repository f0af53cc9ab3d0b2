"""One step against the plain way: two forwards of the tokenizer, two passes through every loss network."""

import copy
import itertools
import math
import sys
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode

from smalti.data import ImagesConfig
from smalti.data.bundled import photos
from smalti.discriminators import Magvit2DConfig, Magvit3DConfig, PatchConfig, StyleGAN2Config
from smalti.errors import ConfigError
from smalti.losses import flat_share, weigh_frames
from smalti.quantize import LFQConfig
from smalti.tokenizer import TokenizerConfig
from smalti.training.config import GANConfig, MuonConfig, OptimizerConfig, TokenizerTraining
from smalti.training.distributed import Part
from smalti.training.optimizer import update_ema
from smalti.training.tokenizer_figures import read
from smalti.training.tokenizer_state import start_tokenizer
from smalti.training.tokenizer_step import accumulate, begin, step
from tests.reference.late import device_decides
from tests.reference.plain_step import ALONE, plain_gradients

MODEL = TokenizerConfig(
    width=8, depth=1, decoder_depth=1, middle=1, patch=2, multipliers=(1, 2), strides=((2, 2),), time_kernel=3,
    quantizer=LFQConfig(bits=6),
)  # fmt: skip
LFQ_WEIGHTS = {"l1": 0.7, "l2": 1.3, "token_entropy": 0.1, "batch_entropy": -0.1, "commitment": 0.25}
GANS = {
    "patch": GANConfig(discriminator=PatchConfig(width=8), adaptive=True, weight=0.75, lecam=0.1),
    "style": GANConfig(
        discriminator=StyleGAN2Config(size=16, width=8, frames="all"), loss="non_saturating", penalty="r1",
        penalty_weight=2.0,
    ),
    "open-magvit2": GANConfig(
        discriminator=PatchConfig(width=8), tokenizer_loss="non_saturating", adaptive=True, weight=0.75
    ),
    "magvit": GANConfig(
        discriminator=Magvit2DConfig(width=4, multipliers=(2, 2), grid=2), loss="non_saturating", penalty="r1",
        tokenizer_loss="hinge", penalty_weight=40.0, weight=0.125,
    ),
    "clip": GANConfig(
        discriminator=Magvit3DConfig(width=8, multipliers=(2,), grid=2), penalty="gradient_norm", adaptive=True
    ),
}  # fmt: skip


def training(**changes):
    settings = {
        "tokenizer": MODEL, "data": ImagesConfig(path=photos("train")), "steps": 10, "batch_size": 4,
        "weights": LFQ_WEIGHTS, "optimizer": OptimizerConfig(clip=None, warmup=0),
    }  # fmt: skip
    return TokenizerTraining(**(settings | changes))


def double(state):
    """A state in float64, its zero-initialised parts moved away from zero."""
    rng = torch.Generator().manual_seed(3)
    modules = [state.tokenizer, state.ema, *([state.gan.discriminator] if state.gan else [])]
    for module in modules:
        module.double()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=rng, dtype=torch.float64))
    return state


def clips(n=4, frames=3, size=16, seed=0):
    return (
        torch.rand(n, 3, frames, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1
    )


def part_of(video, index, share=1.0):
    return Part(video, tuple(range(len(video))), index, share, len(video))


@pytest.mark.parametrize("name", GANS)
def test_gradients_equal_those_of_two_forwards_and_two_passes(name):
    state = double(start_tokenizer(training(gan=GANS[name]), ALONE))
    video, index = clips(), torch.tensor([0, 2, 1, 1])
    wanted = plain_gradients(state, video, index)
    state.gan.anchors = None
    accumulate(state, part_of(video, index))
    for module, gradients in zip((state.tokenizer, state.gan.discriminator), wanted, strict=True):
        for (parameter_name, parameter), gradient in zip(module.named_parameters(), gradients, strict=True):
            error = (parameter.grad - gradient).abs().max()
            assert error <= 1e-9 * gradient.abs().max() + 1e-15, parameter_name


@pytest.mark.parametrize("last", [1.0, 3.0])
def test_errors_of_pixels_weigh_as_the_last_frame_of_a_token_does(last):
    weighted = {**training().weights, "flat": 2.0}
    state = double(start_tokenizer(training(last_frame_weight=last, weights=weighted), ALONE))
    video = 0.02 * clips(frames=5)
    with torch.no_grad():
        made = state.tokenizer(video).video
    weights = weigh_frames(video, state.tokenizer.strides[0], last)
    measured, _ = accumulate(state, part_of(video, torch.zeros(4, dtype=torch.long)))
    errors = made - video
    assert torch.allclose(measured["l1"], (errors.abs() * weights).mean())
    assert torch.allclose(measured["l2"], (errors.square() * weights).mean())
    assert torch.allclose(measured["flat"], (errors.square() * weights * flat_share(video)).mean())


@pytest.mark.parametrize("judge", [PatchConfig(width=8, norm="batch"), StyleGAN2Config(size=16, width=8)])
@pytest.mark.parametrize("share", [1.0, 0.25])
@pytest.mark.parametrize("beyond", [0.0, 0.5])
def test_the_hinge_gives_both_players_their_own_gradients_whether_or_not_fakes_are_beyond_it(judge, share, beyond):
    gan = GANConfig(discriminator=judge, adaptive=True, weight=0.75, penalty="gradient_norm")
    state = double(start_tokenizer(training(gan=gan), ALONE))
    discriminator, video, index = state.gan.discriminator, clips(), torch.tensor([0, 2, 1, 1])
    last = [p for p in discriminator.parameters() if p.dim() == 1][-1]  # the bias of the logits
    with torch.no_grad():
        logits = discriminator(discriminator.samples(state.tokenizer(video).video, index))
        last -= logits.quantile(beyond) + (1 if beyond else 0.5)  # half of the fakes below -1, or none
    wanted = plain_gradients(state, video, index)
    accumulate(state, part_of(video, index, share))
    for module, gradients in zip((state.tokenizer, discriminator), wanted, strict=True):
        for (name, parameter), gradient in zip(module.named_parameters(), gradients, strict=True):
            error = (parameter.grad / share - gradient).abs().max()
            assert error <= 1e-9 * gradient.abs().max() + 1e-15, name


def test_a_batch_that_is_not_finite_moves_nothing():
    state = start_tokenizer(
        training(gan=GANS["patch"].model_copy(update={"discriminator": PatchConfig(width=8, norm="batch")})),
        ALONE,
    )
    video = clips(size=24).float()
    step(state, video)
    before = copy.deepcopy([state.tokenizer.state_dict(), state.ema.state_dict(), state.gan.discriminator.state_dict()])
    measured = step(state, torch.full_like(video, torch.nan))
    assert measured.skipped
    after = [state.tokenizer.state_dict(), state.ema.state_dict(), state.gan.discriminator.state_dict()]
    assert all(torch.equal(x[k], y[k]) for x, y in zip(before, after, strict=True) for k in x)
    assert state.step == 2
    assert state.updates == 1
    assert not step(state, video).skipped


@pytest.mark.parametrize("gan", [None, GANS["patch"], GANS["magvit"]])
def test_micro_batches_that_are_not_finite_are_skipped_too(gan):
    """They are surveyed without gradients before; where that refused NaN, the run ended."""
    state, video = start_tokenizer(training(gan=gan, accumulate=2), ALONE), clips().float()
    step(state, video)
    before = copy.deepcopy(state.tokenizer.state_dict())
    assert step(state, torch.full_like(video, torch.nan)).skipped
    assert all(torch.equal(before[name], t) for name, t in state.tokenizer.state_dict().items())
    assert not step(state, video).skipped


@pytest.mark.parametrize("frozen", ["encoder", "decoder"])
@pytest.mark.parametrize("weights", [LFQ_WEIGHTS, {"l1": 1.0}])
def test_a_step_with_a_frozen_network_learns_and_skips_a_batch_that_is_not_finite(frozen, weights):
    tokenizer = MODEL if "commitment" in weights else MODEL.with_quantizer(LFQConfig(bits=6, losses=()))
    state = start_tokenizer(training(tokenizer=tokenizer, weights=weights, frozen=(frozen,)), ALONE)
    before, video = copy.deepcopy(state.tokenizer.state_dict()), clips().float()
    assert step(state, torch.full_like(video, torch.nan)).skipped
    assert all(torch.equal(before[name], t) for name, t in state.tokenizer.state_dict().items())
    assert not step(state, video).skipped
    moved = {n.split(".")[0] for n, t in state.tokenizer.state_dict().items() if not torch.equal(before[n], t)}
    assert moved == {"encoder", "decoder"} - {frozen}


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({**LFQ_WEIGHTS, "comitment": 1.0}, "no loss for the weight 'comitment'"),
        ({"l1": 1.0}, "no weight for the loss"),
        ({**LFQ_WEIGHTS, "l3": 1.0}, "no loss for the weight 'l3'"),
    ],
)
def test_names_of_losses_and_weights_must_agree_at_the_first_step(weights, said):
    state = start_tokenizer(training(weights=weights), ALONE)
    with pytest.raises(ConfigError, match=said):
        step(state, clips().float())


def test_lpips_and_its_weight_go_together():
    with pytest.raises(ConfigError, match="go together"):
        TokenizerTraining.parse({**training().plain(), "weights": {**LFQ_WEIGHTS, "lpips": 1.0}})


def test_the_discriminator_starts_and_ramps():
    gan = GANConfig(discriminator=PatchConfig(), start=10, ramp=4)
    assert [gan.share(n) for n in (0, 9, 10, 11, 13, 14, 99)] == [0, 0, 0.25, 0.5, 1, 1, 1]


def test_before_its_start_the_discriminator_is_not_touched():
    gan = GANConfig(discriminator=PatchConfig(width=8), start=2)
    state = start_tokenizer(training(gan=gan), ALONE)
    before = copy.deepcopy(state.gan.discriminator.state_dict())
    assert "adversarial" not in step(state, clips(size=24).float()).losses
    step(state, clips(size=24).float())
    assert all(torch.equal(before[k], v) for k, v in state.gan.discriminator.state_dict().items())
    assert "adversarial" in step(state, clips(size=24).float()).losses
    assert not all(torch.equal(before[k], v) for k, v in state.gan.discriminator.state_dict().items())


def test_learning_rates():
    cosine = OptimizerConfig(lr=1.0, warmup=10, final=0.1)
    rates = [cosine.lr_at(n, 110) for n in range(110)]
    assert math.isclose(rates[0], 0.1)
    assert max(rates) == rates[10] == 1.0
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert math.isclose(rates[-1], 0.1, abs_tol=1e-3)
    constant = OptimizerConfig(lr=1.0, warmup=0, schedule="constant")
    assert {constant.lr_at(n, 10) for n in range(10)} == {1.0}


@pytest.mark.parametrize(
    ("changes", "decays"),
    [
        ({"ema": 0.99}, {0: 0.1, 8: 0.5, 10_000: 0.99}),
        ({"ema": 0.9998, "ema_rise": "none"}, {0: 0.9998, 10_000: 0.9998}),
        ({"ema": 0.9998, "ema_rise": "none", "ema_start": 2_000}, {0: 0.0, 1_999: 0.0, 2_000: 0.9998}),
        ({"ema": 0.9999, "ema_rise": "exponential"}, {0: 0.0, 2_000: 0.9999 * (1 - math.exp(-1)), 10**6: 0.9999}),
        ({"ema": 0.9999, "ema_rise": "none", "ema_moves": 16}, {0: 0.9999**16, 10_000: 0.9999**16}),
        (
            {"ema": 0.9, "ema_rise": "exponential", "ema_moves": 2},
            {0: 0.0, 1_000: 0.81 * (1 - math.exp(-1)) * (1 - math.exp(-1.0005))},
        ),
        ({"ema": 0.0}, {0: 0.0, 10_000: 0.0}),
    ],
)
def test_the_decay_of_the_average_is_the_closed_form(changes, decays):
    config = training(**changes)
    assert {n: config.ema_decay(n) for n in decays} == pytest.approx(decays)


def test_the_average_moves_by_its_decay_and_is_the_weights_until_it_starts():
    live, average = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        average.weight.zero_()
        live.weight.fill_(1.0)
    update_ema(average, live, 0.9)
    assert math.isclose(average.weight.item(), 0.1, rel_tol=1e-6)
    update_ema(average, live, 0.0)
    assert torch.equal(average.weight, live.weight)
    state = start_tokenizer(training(ema_start=2, ema=0.5, ema_rise="none"), ALONE)
    for n in range(3):
        step(state, clips().float())
        same = [torch.equal(a, b) for a, b in zip(state.ema.parameters(), state.tokenizer.parameters(), strict=True)]
        assert all(same) == (n < 2)


@pytest.mark.parametrize("name", GANS)
def test_alternating_players_equal_two_plain_steps_one_after_the_other(name):
    """The discriminator's plain gradient and step; then the tokenizer's plain gradient against what has moved."""
    gan = GANS[name].replace({"order": "alternate"})
    state = double(start_tokenizer(training(gan=gan), ALONE))
    video, index = clips(), torch.tensor([0, 2, 1, 1])
    rival = copy.deepcopy(state)
    of_discriminator = plain_gradients(rival, video, index)[1]
    for parameter, gradient in zip(rival.gan.discriminator.parameters(), of_discriminator, strict=True):
        parameter.grad = gradient
    torch.nn.utils.clip_grad_norm_(rival.gan.discriminator.parameters(), gan.optimizer.clip)
    rival.gan.optimizer.step()
    of_tokenizer = plain_gradients(rival, video, index)[0]
    accumulate(state, part_of(video, index))
    for (part, parameter), gradient in zip(state.tokenizer.named_parameters(), of_tokenizer, strict=True):
        assert (parameter.grad - gradient).abs().max() <= 1e-9 * gradient.abs().max() + 1e-15, part
    moved = zip(state.gan.discriminator.parameters(), rival.gan.discriminator.parameters(), strict=True)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in moved)
    assert all(parameter.grad is None for parameter in state.gan.discriminator.parameters())


def test_alternating_players_need_a_whole_batch():
    gan = GANS["patch"].replace({"order": "alternate"})
    with pytest.raises(ValueError, match="accumulate 1"):
        training(gan=gan, accumulate=2)


def test_bfloat16_convolutions_run_in_bfloat16():
    state = start_tokenizer(training(precision="bfloat16"), ALONE)
    seen = set()
    for module in state.tokenizer.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda _, __, output: seen.add(output.dtype))
    step(state, clips().float())
    assert seen == {torch.bfloat16}


READING = ("tolist", "item", "__float__", "__int__", "__bool__", "__index__", "cpu", "numpy")


class Waits(TorchFunctionMode):
    """Within it, the lines of the package at which Python reads a tensor's values: a GPU's queue runs empty there."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") in READING:
            caller = sys._getframe(1)
            while not ({"smalti", "torch"} & {*Path(caller.f_code.co_filename).parts}):
                caller = caller.f_back
            path = Path(caller.f_code.co_filename)
            on_cpu = path.name in ("distributed.py", "codebook.py")  # what they read is there whatever the device
            if "torch" not in path.parts and not on_cpu:
                self.lines.append((path.name, caller.f_lineno))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": OptimizerConfig(muon=MuonConfig(turns=2))},
        {"gan": GANS["patch"]},
        {"gan": GANS["style"]},
        {"gan": GANS["magvit"], "accumulate": 2},
        {"gan": GANS["patch"].replace({"order": "alternate"})},
    ],
)
def test_a_step_waits_for_no_device_and_a_reading_for_figures_and_ids(changes, monkeypatch):
    device_decides(monkeypatch)
    state, video = start_tokenizer(training(**changes), ALONE), clips(size=16).float()
    read(state, [begin(state, video), begin(state, video)])
    with Waits() as seen:
        steps = [begin(state, video) for _ in range(3)]
    assert seen.lines == []
    with Waits() as seen:
        assert len(read(state, steps)) == 3
    assert len(seen.lines) == 2, seen.lines


def test_with_a_hinge_and_without_lecam_it_waits_once_to_learn_which_of_two_gradients_it_takes(monkeypatch):
    device_decides(monkeypatch)
    state, video = start_tokenizer(training(gan=GANS["patch"].replace({"lecam": 0.0})), ALONE), clips(size=16).float()
    with Waits() as seen:
        steps = [begin(state, video) for _ in range(3)]
    assert len(seen.lines) == 3, seen.lines
    assert not any(result.skipped for result in read(state, steps))


def test_losses_fall_on_one_batch():
    state = start_tokenizer(training(steps=40, optimizer=OptimizerConfig(lr=3e-3, warmup=0)), ALONE)
    video = clips(size=16).float() * 0.2 + 0.3
    first = step(state, video).losses["l2"]
    for _ in range(39):
        last = step(state, video).losses["l2"]
    assert last < first / 2


def test_bfloat16_steps_are_finite_and_keep_float32_parameters():
    state = start_tokenizer(training(precision="bfloat16", gan=GANS["clip"]), ALONE)
    measured = step(state, clips().float())
    assert not measured.skipped
    assert all(p.dtype == torch.float32 for p in state.tokenizer.parameters())


def test_the_psnr_of_a_step_is_that_of_clamped_pixels():
    state, video = start_tokenizer(training(steps=2), ALONE), clips().float()
    with torch.no_grad():
        state.tokenizer.decoder.last_weight.mul_(40)  # far beyond [-1, 1]
        found = state.tokenizer(video).video
    assert found.abs().max() > 1.5
    error = ((found.clamp(-1, 1) - video) / 2).square().mean().item()  # of pixels in [0, 1]
    assert math.isclose(step(state, video).psnr, -10 * math.log10(error), rel_tol=1e-5)


def test_real_samples_are_scored_in_float32_where_there_is_a_penalty():
    """A second derivative in bfloat16 is noise."""
    gan = GANS["style"].replace({"penalty_every": 2})
    state = start_tokenizer(training(precision="bfloat16", gan=gan), ALONE)
    seen = []
    state.gan.discriminator.first.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    for _ in range(2):
        step(state, clips().float())
    bfloat16, float32 = torch.bfloat16, torch.float32
    assert seen == [bfloat16, float32, bfloat16, bfloat16]  # fake and real with a penalty, fake and real without
