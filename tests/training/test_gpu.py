"""What must hold on a CUDA device; run with `pytest -m gpu`."""

import pytest
import torch

from smalti.data import ImagesConfig
from smalti.data.bundled import photos
from smalti.discriminators import Magvit3DConfig, StyleGAN2Config
from smalti.nn.stream import Stream
from smalti.tokenizer import Tokenizer, TokenizerConfig
from smalti.training.config import GANConfig, TokenizerTraining
from smalti.training.distributed import World
from smalti.training.tokenizer_state import start_tokenizer
from smalti.training.tokenizer_step import step

pytestmark = pytest.mark.gpu
SMALL = {
    "width": 32,
    "depth": 1,
    "decoder_depth": 1,
    "middle": 1,
    "multipliers": (1, 2),
    "strides": ((2, 2),),
    "patch": 2,
}
PLANS = {
    "image": TokenizerConfig(**SMALL | {"strides": ((1, 2),), "norm": "frame", "adaptive": "frame"}),
    "point": TokenizerConfig(**SMALL, time_kernel=3),
    "full": TokenizerConfig(**SMALL, time_kernel=3, past_kernel="full", start="grey", norm="frame"),
}


def built(plan, dtype=torch.float64):
    """A tokenizer whose every parameter is random."""
    tokenizer, rng = Tokenizer(PLANS[plan]), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            fan = max(1, parameter[0].numel()) if parameter.dim() > 1 else 25
            parameter.add_(torch.randn(parameter.shape, generator=rng) / fan**0.5)
    return tokenizer.to(dtype).eval()


def clip(frames, dtype=torch.float64):
    rng = torch.Generator().manual_seed(1)
    return (torch.rand(2, 3, frames, 32, 48, generator=rng, dtype=torch.float64) * 2 - 1).to(dtype)


@pytest.mark.parametrize("plan", PLANS)
def test_ids_and_pixels_in_float64_are_those_of_the_cpu(plan):
    tokenizer, video = built(plan), clip(1 if plan == "image" else 9)
    with torch.inference_mode():
        ids = tokenizer.encode(video)
        pixels = tokenizer.decode(ids)
        tokenizer.to("cuda")
        assert torch.equal(tokenizer.encode(video.cuda()).cpu(), ids)
        torch.testing.assert_close(tokenizer.decode(ids.cuda()).cpu(), pixels, rtol=0, atol=1e-10)


@pytest.mark.parametrize("plan", PLANS)
def test_ids_in_float32_are_those_of_the_cpu_but_for_ties(plan):
    tokenizer, video = built(plan, torch.float32), clip(1 if plan == "image" else 9, torch.float32)
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False  # its 10 bits move latents by 1e-3
    try:
        with torch.inference_mode():
            z = tokenizer._to_latent(video)
            ids = tokenizer.quantizer.encode(z)
            around = [tokenizer.quantizer.encode(z + e) for e in (-1e-4, 1e-4)]
            ties = (around[0] != around[1]) | (around[0] != ids)
            differ = tokenizer.to("cuda").encode(video.cuda()).cpu() != ids
    finally:
        torch.backends.cudnn.allow_tf32 = before
    assert not (differ & ~ties).any()
    assert differ.float().mean() < 0.01


def test_chunks_of_a_stream_give_the_whole_on_the_gpu():
    tokenizer, video, stream = built("full").to("cuda"), clip(9).cuda(), Stream()
    with torch.inference_mode():
        parts = [tokenizer.encode(chunk, stream) for chunk in video.split([1, 4, 2, 2], 2)]
        assert torch.equal(torch.cat(parts, 1), tokenizer.encode(video))


@pytest.mark.parametrize("order", ["together", "alternate"])
@pytest.mark.parametrize(
    "judge", [StyleGAN2Config(size=32, width=32), Magvit3DConfig(width=16, multipliers=(2,), grid=2)]
)
def test_bfloat16_steps_are_finite_and_learn(judge, order):
    config = TokenizerTraining(
        tokenizer=PLANS["full"],
        data=ImagesConfig(path=photos("train")),
        steps=100,
        batch_size=2,
        weights={"l1": 1.0},
        precision="bfloat16",
        gan=GANConfig(discriminator=judge, adaptive=True, penalty="gradient_norm", order=order),
    )
    state = start_tokenizer(config, World(0, 1, torch.device("cuda")))
    video = clip(9, torch.float32)
    found = [step(state, video) for _ in range(20)]
    assert not any(measured.skipped for measured in found)
    assert found[-1].losses["l1"] < found[0].losses["l1"]
    assert all(p.dtype == torch.float32 for p in state.tokenizer.parameters())
