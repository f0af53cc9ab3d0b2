"""The token contract over the architectures of Open-MAGVIT2, VidTok and Cosmos: causal where they say so, and only
there."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from smalti.nn.causal import Stream
from smalti.quantize import FSQConfig, LFQConfig
from smalti.tokenizer import CosmosConfig, OpenMagvit2Config, Tokenizer, VidTokConfig
from smalti.tokenizer.cosmos import TimeAttention
from smalti.tokenizer.frames import reconstruct_frames
from smalti.tokenizer.tokenizer import _ConfigFile
from smalti.video import latent_frames, to_uint8
from tests.randomise import random_tokenizer

BITS = LFQConfig(bits=10, losses=())
SMALL = {"width": 8, "depth": 1}
VIDTOK = {**SMALL, "quantizer": FSQConfig(levels=(8, 8, 8)), "multipliers": (1, 2, 2)}
COSMOS = {**SMALL, "latent": 6}
LATER = {"start": "repeat", "interpolation": "linear"}
VIDEO = {**COSMOS, "time_kernel": 3, "patch": 2}

CAUSAL = {
    "open-magvit2 image": OpenMagvit2Config(**SMALL, quantizer=BITS, multipliers=(1, 2, 2)),
    "vidtok 1.0": VidTokConfig(**VIDTOK, time_down=(0, 1), time_up=(1, 2)),
    # As in 4x16x16: time is doubled at other levels than those where it is halved.
    "vidtok 1.1": VidTokConfig(**VIDTOK | {"multipliers": (1, 1, 2, 2)}, **LATER, time_down=(1, 2), time_up=(1, 2)),
    "vidtok 1.1 8x": VidTokConfig(
        **VIDTOK | {"multipliers": (1, 1, 1, 1)}, **LATER, time_down=(0, 1, 2), time_up=(1, 2, 3)
    ),
    "cosmos image": CosmosConfig(**COSMOS, strides=((1, 2), (1, 2)), decoder_strides=((1, 2), (1, 2)), patch=2),
    "cosmos 4x8x8": CosmosConfig(**VIDEO | {"patch": 4}),
    "cosmos 8x16x16": CosmosConfig(**VIDEO, strides=((2, 2), (1, 2)), decoder_strides=((1, 2), (2, 2))),
}
NOT_CAUSAL = {
    "open-magvit2 video": OpenMagvit2Config(
        **SMALL, quantizer=BITS, multipliers=(1, 2, 2), time_kernel=3, time_strides=(1, 2)
    ),
    "vidtok, not causal": VidTokConfig(**VIDTOK, start="around", time_down=(0, 1), time_up=(1, 2)),
}
ALL = {**CAUSAL, **NOT_CAUSAL}


def built(config, dtype=torch.float64, seed=0):
    """A tokenizer whose every parameter is random (those that start at zero would hide faults)."""
    return random_tokenizer(config, seed).to(dtype)


def clip(frames, height=16, width=16, dtype=torch.float64, seed=1):
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(1, 3, frames, height, width, generator=rng, dtype=torch.float64).to(dtype) * 2 - 1


causal = pytest.mark.parametrize("name", CAUSAL)


@torch.no_grad()
def changes(tokenizer, first, frames=13):
    """How many ids before frame `first` change with it, and how many pixel frames before those that may."""
    video, s = clip(frames), tokenizer.strides[0]
    changed = video.clone()
    changed[:, :, first:] = clip(frames - first, seed=7)
    whole = 1 + (first - tokenizer.first_frames) // s  # latents whose frames all lie before the change
    ids, others = tokenizer.encode(video), tokenizer.encode(changed)
    seen = max(1, whole - tokenizer.lookahead)  # latents whose pixels depend on those alone; an image needs no other
    pixels = tokenizer.decode(ids)[:, :, : 1 + (seen - 1) * s] - tokenizer.decode(others)[:, :, : 1 + (seen - 1) * s]
    return int((ids != others)[:, :whole].sum()), pixels.abs().amax().item()


@causal
def test_the_future_never_reaches_the_past(name):
    tokenizer = built(CAUSAL[name])
    for first in (1, 4, 9):
        # The pixels' equality is to the last bit but for sums in another order, of which there are none here.
        assert changes(tokenizer, first) == (0, 0.0)


@pytest.mark.parametrize("name", ALL)
def test_the_label_of_causality_is_what_is_measured(name):
    tokenizer = built(ALL[name])
    ids, _ = changes(tokenizer, 9)
    assert (ids == 0) == tokenizer.is_causal == ALL[name].is_causal
    image = tokenizer.encode(clip(9)[:, :, :1])
    assert torch.equal(image, tokenizer.encode(clip(9))[:, :1]) == tokenizer.is_causal


@causal
def test_an_image_has_the_ids_and_pixels_of_a_videos_first_frame(name):
    tokenizer, video = built(CAUSAL[name]), clip(9)
    with torch.no_grad():
        ids, image = tokenizer.encode(video), tokenizer.encode(video[:, :, :1])
        assert torch.equal(image, ids[:, :1])
        first = tokenizer.decode(ids)[:, :, :1]
        assert torch.allclose(tokenizer.decode(image), first, rtol=0, atol=1e-12)


@causal
@settings(max_examples=3, deadline=None)
@given(cuts=st.lists(st.integers(1, 7), min_size=1, max_size=3), at_once=st.integers(1, 3))
def test_any_chunking_gives_the_ids_and_pixels_of_the_whole(name, cuts, at_once):
    tokenizer = built(CAUSAL[name])
    video = clip(sum(cuts), 16, 16)
    with torch.no_grad():
        ids = tokenizer.encode(video)
        streamed = torch.cat(list(tokenizer.encode_stream(video.split(cuts, 2))), 1)
        assert torch.equal(streamed, ids)
        size = (sum(cuts), 16, 16)
        whole = tokenizer.decode(ids, size=size)
        parts = list(tokenizer.decode_stream(ids.split(at_once, 1), size=size))
        assert torch.allclose(torch.cat(parts, 2), whole, rtol=0, atol=1e-12)


@causal
def test_a_frame_is_out_as_soon_as_no_later_latent_changes_it(name):
    """With a lookahead, the frames of a chunk but the first of its last group come with the next chunk."""
    tokenizer, stream = built(CAUSAL[name]), Stream()
    s, held = tokenizer.strides[0], tokenizer.lookahead * (tokenizer.strides[0] - 1)
    with torch.no_grad():
        ids = tokenizer.encode(clip(1 + 3 * s))
        counts = [tokenizer.decode(ids[:, i : i + 1], stream, is_last=i == 3).shape[2] for i in range(4)]
    assert counts == [1, s - held, s, s + held]


@causal
@pytest.mark.parametrize("frames", [1, 6])
def test_a_reconstructed_stream_has_the_frames_of_the_whole(name, frames):
    """Frame by frame with its reconstruction, in order, whatever the decoder holds back."""
    tokenizer = built(CAUSAL[name], torch.float32)
    video = clip(frames, 16, 16, torch.float32)
    sources = list(to_uint8(video)[0])
    s = tokenizer.strides[0]
    pairs = list(reconstruct_frames(tokenizer, iter(sources), chunk=s))
    assert len(pairs) == frames
    with torch.no_grad():
        whole = to_uint8(tokenizer((torch.stack(sources).movedim(-1, 0)[None].float() / 127.5) - 1).video)[0]
    for (source, image, _), wanted, given_ in zip(pairs, whole, sources, strict=True):
        assert torch.equal(source, given_)
        assert (image.int() - wanted.int()).abs().max() <= 1


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=3, deadline=None)
@given(frames=st.integers(1, 11), height=st.integers(1, 37), width=st.integers(1, 37))
def test_any_size_round_trips_to_the_same_shape(name, frames, height, width):
    tokenizer = built(ALL[name], torch.float32)
    video = clip(frames, height, width, torch.float32)
    with torch.no_grad():
        reconstruction = tokenizer(video)
        s, p, _ = tokenizer.strides
        assert reconstruction.video.shape == video.shape
        latents = latent_frames(frames, s, tokenizer.first_frames)
        assert reconstruction.ids.shape == (1, latents, -(-height // p), -(-width // p))
        assert torch.isfinite(reconstruction.video).all()


@pytest.mark.parametrize("name", ALL)
def test_gradients_reach_every_parameter(name):
    tokenizer = built(ALL[name])
    tokenizer(clip(9)).video.square().mean().backward()
    missing = [key for key, p in tokenizer.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert not missing


@pytest.mark.parametrize("name", ALL)
def test_a_saved_tokenizer_is_read_back(name, tmp_path):
    tokenizer = built(ALL[name], torch.float32)
    tokenizer.save(tmp_path / "saved")
    again = Tokenizer.load(tmp_path / "saved")
    assert again.fingerprint == tokenizer.fingerprint
    assert again.config == ALL[name] == _ConfigFile.parse({"tokenizer": ALL[name].plain()}).tokenizer


def test_the_future_attention_of_a_stream_grows_with_its_length_and_nothing_else_does():
    sizes = {}
    for name in ("vidtok 1.1", "cosmos 4x8x8"):
        tokenizer, stream = built(CAUSAL[name]), Stream()
        sizes[name] = []
        for frames in (5, 4, 4, 4):
            tokenizer.encode(clip(frames), stream)
            sizes[name].append(stream.nbytes)
    assert len(set(sizes["vidtok 1.1"])) == 1
    # Keys and values of one frame of latents, in float64.
    width, positions = 8 * 4, 2 * 2
    assert {b - a for a, b in zip(sizes["cosmos 4x8x8"], sizes["cosmos 4x8x8"][1:], strict=False)} == {
        2 * width * positions * 8
    }


@pytest.mark.parametrize(("frames", "chunk"), [(1, 1), (2, 2), (7, 7), (7, 1), (8, 3)])
@pytest.mark.parametrize("channels", [8, 32])
def test_attention_over_time_is_torchs_to_the_bit(frames, chunk, channels):
    torch.manual_seed(0)
    attention, x = TimeAttention(channels), torch.randn(frames, 2, channels, 3, 4)
    query, key, value = attention.query_key_value(attention.norm(x).permute(1, 3, 4, 0, 2).flatten(0, 2)).chunk(3, -1)
    stream, answers = Stream(), []
    for at in range(0, frames, chunk):
        end = min(at + chunk, frames)
        visible = torch.ones(end - at, end, dtype=torch.bool).tril(at)
        mixed = F.scaled_dot_product_attention(query[:, at:end], key[:, :end], value[:, :end], attn_mask=visible)
        wanted = x[at:end] + attention.out(mixed).unflatten(0, (2, 3, 4)).permute(3, 0, 4, 1, 2)
        answers.append(torch.equal(attention(x[at:end], stream), wanted))
    assert all(answers)
