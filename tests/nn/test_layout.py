"""The order in memory of what convolutions read: channels last, and told so by every stride."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import smalti
from smalti.nn.blocks import to_patches_last
from smalti.nn.causal import Stream, interleave, join_frames, point_by_rows, repeat_frames, to_frames, to_images
from smalti.tokenizer import Tokenizer, TokenizerConfig, VQGANConfig
from smalti.tokenizer.cosmos import CosmosConfig
from smalti.tokenizer.vidtok import VidTokConfig


def dense(shape):
    """The strides of `n c *size` whose values lie channels last and without gaps."""
    _, c, *size = shape
    strides, step = [], c
    for axis in reversed(size):
        strides.insert(0, step)
        step *= axis
    return (step, 1, *strides)


def is_channels_last(shape, strides):
    """Dense images; between them there may be those that a time stride leaves out."""
    wanted = dense(shape)
    return strides[1:] == wanted[1:] and strides[0] >= wanted[0] and strides[0] % wanted[0] == 0


class Convolutions(TorchDispatchMode):
    """Within it, what each convolution reads: shape and strides, as torch's kernels are called, and its weights."""

    def __init__(self):
        super().__init__()
        self.read, self.weights = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "convolution" in str(function):
            self.read.append((tuple(args[0].shape), args[0].stride()))
            self.weights.append(args[1])
        return function(*args, **(kwargs or {}))


def small(**given):
    torch.manual_seed(0)
    return Tokenizer(TokenizerConfig(width=8, depth=1, decoder_depth=1, middle=0, **given)).eval()


def published(config):
    torch.manual_seed(0)
    return Tokenizer(config).eval()


VIDEO = {"time_kernel": 3, "strides": ((2, 2), (1, 2))}
SMALL = {"width": 8, "multipliers": (1, 2), "depth": 1}
LINEAR = {"time_down": (0,), "time_up": (1,), "start": "repeat", "interpolation": "linear"}
COSMOS = {"width": 8, "multipliers": (1, 2, 2), "depth": 1, "latent": 8, "patch": 2}
HALVES = {"strides": ((2, 2), (2, 1)), "decoder_strides": ((2, 1), (2, 2))}
MODELS = {
    "image": lambda: small(multipliers=(1, 2), strides=((1, 2),), patch=2),
    "video, 1x1 past": lambda: small(**VIDEO),
    "video, full past": lambda: small(**VIDEO, past_kernel="full"),
    "grey start": lambda: small(**VIDEO, start="grey", past_kernel="full", adaptive="frame"),
    "frame norm": lambda: small(**VIDEO, norm="frame"),
    "VQGAN": lambda: published(VQGANConfig(**SMALL)),
    "VQGAN by means": lambda: published(VQGANConfig(**SMALL, downsample="average", shortcut="output")),
    "VidTok 1.0": lambda: published(VidTokConfig(**SMALL, time_down=(0,), time_up=(1,))),
    "VidTok 1.1": lambda: published(VidTokConfig(**SMALL, **LINEAR)),
    "Cosmos, image": lambda: published(CosmosConfig(**COSMOS)),
    "Cosmos, video": lambda: published(CosmosConfig(**COSMOS, **HALVES, time_kernel=3)),
    "tiny-image": lambda: smalti.load("smalti/tiny-image"),
    "tiny-video": lambda: smalti.load("smalti/tiny-video"),
}


def use(tokenizer, batch, frames, side, way):
    video = torch.rand(batch, 3, frames, side, side) * 2 - 1
    s = tokenizer.strides[0]
    if way == "whole":
        tokenizer.decode(tokenizer.encode(video))
    elif way == "images":
        tokenizer.decode(tokenizer.encode(video[:, :, 0]))
    elif way == "tiles":
        tokenizer.decode(tokenizer.encode(video, tile=side // 2), tile=side // 2)
    else:
        past, latents = Stream(), Stream()
        for part in (video[:, :, :1], *video[:, :, 1 : 1 + 2 * s].split(s, 2)):
            tokenizer.decode(tokenizer.encode(part, past), latents)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("batch", "frames", "side"), [(1, 1, 32), (1, 9, 16), (2, 9, 16)])
@torch.no_grad()
def test_every_convolution_reads_channels_last_by_all_strides(name, batch, frames, side):
    tokenizer = MODELS[name]()
    ways = ["whole"] + ["images"] * (frames == 1)
    ways += ["tiles"] * tokenizer.is_tile_exact + ["stream"] * (frames > 1 and tokenizer.is_causal)
    for way in ways:
        with Convolutions() as seen:
            use(tokenizer, batch, frames, side, way)
        assert len(seen.read) > 5
        wrong = [(shape, strides) for shape, strides in seen.read if not is_channels_last(shape, strides)]
        assert not wrong, f"{way}: {len(wrong)} of {len(seen.read)}: {wrong[:3]}"


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("batch", "frames", "side"), [(1, 1, 32), (1, 9, 16), (2, 9, 16)])
def test_every_gradient_reaches_a_convolution_channels_last(name, batch, frames, side):
    """A view of some frames, and what is repeated, get gradients by the order of their axes unless they are taken so
    that the channels are last: then all layers before them would work on channels that lie apart."""
    tokenizer = MODELS[name]().train()
    video = torch.rand(batch, 3, frames, side, side) * 2 - 1
    y = tokenizer(video).video
    with Convolutions() as seen:
        y.square().mean().backward()
    # Those of pixels and latents come from outside, in the order of the loss and of the quantizer.
    ends = tokenizer.quantizer.dim, tokenizer.decoder.last_weight.shape[0]
    gradients = [(shape, strides) for shape, strides in seen.read if shape[1] not in ends]
    assert len(gradients) > 5
    wrong = [(shape, strides) for shape, strides in gradients if not is_channels_last(shape, strides)]
    assert not wrong, f"{len(wrong)} of {len(gradients)}: {wrong[:3]}"


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_the_weights_of_a_loaded_tokenizer_lie_as_what_they_multiply(name, tmp_path):
    """Otherwise torch lays them out anew at every call."""
    tokenizer = MODELS[name]()
    tokenizer.save(tmp_path / "tokenizer")
    loaded = smalti.load(tmp_path / "tokenizer")
    assert loaded.fingerprint == tokenizer.fingerprint
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with Convolutions() as seen:
        z = loaded.latents(image)
        loaded.decode(loaded.encode(image))
    weights = [weight for weight in seen.weights if weight.dim() == 4]
    assert len(weights) > 5
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    torch.testing.assert_close(z, tokenizer.latents(image), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1, 3, 4, 5), (1, 2, 3, 4, 5), (3, 1, 4, 1, 5), (2, 3, 1, 4, 1), (1, 1, 2, 1, 1)])
def test_frames_become_images_and_frames_again_without_a_copy(shape):
    t, b, c, h, w = shape
    frames = torch.randn(t, b, h, w, c).permute(0, 1, 4, 2, 3)
    images = to_images(frames)
    assert images.shape == (t * b, c, h, w)
    assert images.stride() == dense(images.shape)
    assert torch.equal(images, frames.flatten(0, 1))
    again = to_frames(images, (t, b))
    assert torch.equal(again, frames)
    assert again.data_ptr() == frames.data_ptr()


@pytest.mark.parametrize("shape", [(3, 2, 3, 8, 16), (1, 1, 3, 4, 8), (1, 2, 2, 4, 4), (1, 1, 3, 4, 4)])
def test_patches_are_pixel_unshuffle_with_the_channels_last_whatever_the_order(shape):
    t, b, c, h, w = shape
    apart = torch.randn(b, c, t, h, w, requires_grad=True)
    for x in (apart.permute(2, 0, 1, 3, 4), apart.permute(2, 0, 3, 4, 1).contiguous().permute(0, 1, 4, 2, 3)):
        wanted = F.pixel_unshuffle(x.flatten(0, 1), 4).unflatten(0, (t, b))
        found = to_patches_last(x, 4)
        assert torch.equal(found, wanted)
        assert to_images(found).stride() == dense((t * b, 16 * c, h // 4, w // 4))
        assert to_images(found).data_ptr() == found.data_ptr()
        slope = torch.randn_like(wanted)
        assert torch.equal(
            *(torch.autograd.grad((y * slope).sum(), apart, retain_graph=True)[0] for y in (found, wanted))
        )


def test_joining_repeating_and_interleaving_are_torchs_with_the_channels_last():
    x, y = (torch.randn(2, 1, 4, 5, 3).permute(0, 1, 4, 2, 3) for _ in range(2))
    for found, wanted in (
        (join_frames((x[:1], y)), torch.cat([x[:1], y])),
        (repeat_frames(x, 3), x.repeat_interleave(3, 0)),
        (interleave(x, y), torch.stack([x, y], 1).flatten(0, 1)),
    ):
        assert torch.equal(found, wanted)
        assert to_images(found).stride() == dense(to_images(found).shape)


def test_images_in_contiguous_memory_stay_so():
    frames = torch.randn(1, 1, 3, 4, 5)
    assert to_images(frames).is_contiguous()
    assert not to_images(frames).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(1, 5, 16, 3), (3, 4, 6, 2), (1, 1, 1, 1)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_1x1_convolution_by_rows_is_that_by_images(shape, bias):
    n, c, h, w = shape
    tap = torch.nn.Conv2d(c, 7, 1, bias=bias).double()
    x = torch.randn(n, h, w, c, dtype=torch.float64).permute(0, 3, 1, 2).requires_grad_()
    found, wanted = point_by_rows(tap, x), tap(x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    probe, inputs = torch.randn_like(wanted), [x, *tap.parameters()]
    pairs = zip(*(torch.autograd.grad((y * probe).sum(), inputs) for y in (found, wanted)), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    images = found.detach()
    assert images.stride() == dense(images.shape)
