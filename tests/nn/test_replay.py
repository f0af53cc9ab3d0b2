"""Calls that are recorded and replayed give what they always give, and what cannot be replayed is refused."""

import pytest
import torch

import smalti
from smalti.errors import ConfigError, MachineError
from smalti.generation import SamplingConfig, sample
from smalti.generation.masked import MaskedInput
from smalti.nn.causal import Stream
from smalti.nn.replay import Replays, replayed
from tests.generation.test_parallel_decoding import EVERY_WAY, masked, prompt
from tests.randomise import random_tokenizer
from tests.reference.traced import Traced
from tests.tokenizer.graph_laws import CONFIGS

LOOKS = ("_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "unique", "is_nonzero")
"""Operations that read values into Python or bring numbers of Python to the device: no graph of a GPU can have them."""


def clips(tokenizer, groups=1, count=4, batch=2):
    """Videos of one legal size with the frames of a first latent and some groups."""
    s, h, w = tokenizer.strides
    frames = 1 if tokenizer.config.time_kernel == 1 else tokenizer.first_frames + s * groups
    rng = torch.Generator().manual_seed(groups)
    return list(torch.rand(count, batch, 3, frames, 2 * h, 3 * w, generator=rng) * 2 - 1)


def chunks(tokenizer, video):
    """Its first latent and its groups, one by one."""
    return video.split([tokenizer.first_frames, *[tokenizer.strides[0]] * 3], 2)


def both_ways(run, model, record, kept=99):
    """What a function gives, and what it gives again while calls are replayed; and the number of recordings."""
    with torch.inference_mode():
        wanted = run()
        with Replays(model.replayable, record, kept=kept) as replays:
            found = run()
            count = len(replays)
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        assert a.stride() == b.stride()
        assert torch.equal(a, b)
    return count


@pytest.mark.parametrize("name", CONFIGS)
def test_ids_and_pixels_of_every_tokenizer_are_those_of_its_networks(name):
    """The third call of a size and all later ones are replayed, and none writes over what another gave."""
    tokenizer, record = random_tokenizer(CONFIGS[name]), Traced()
    small, large = clips(tokenizer), clips(tokenizer, groups=2)

    def run():
        ids = [tokenizer.encode(video) for pair in zip(small, large, strict=True) for video in pair]
        return [*ids, *(tokenizer.decode(i) for i in ids)]

    assert both_ways(run, tokenizer, record) == record.recorded >= 2
    assert record.replayed >= 2 * record.recorded
    assert not [name for name in record.operations if any(word in name for word in LOOKS)]


@pytest.mark.parametrize(
    "name", [name for name, config in CONFIGS.items() if config.is_causal and config.time_kernel > 1]
)
def test_streams_are_those_of_the_networks(name):
    tokenizer, record = random_tokenizer(CONFIGS[name]), Traced()
    videos = clips(tokenizer, groups=3, count=3)

    def run():
        ids = [list(tokenizer.encode_stream(chunks(tokenizer, video))) for video in videos]
        pixels = [list(tokenizer.decode_stream(of_video)) for of_video in ids]
        return [x for rows in (*ids, *pixels) for x in rows]

    count = both_ways(run, tokenizer, record)
    assert count == record.recorded > 0
    if name == "cosmos video":  # its past grows: only starts, of both networks, come again
        assert count == 2


@pytest.mark.parametrize("config", EVERY_WAY[:2], ids=lambda c: str(c.guidance.scale))
def test_samples_of_a_masked_model_are_those_of_its_networks(config):
    model, record = masked(hints=True), Traced()
    prompts = [prompt(4, seed=seed, hinted=0.5) for seed in (0, 0, 0)]
    count = both_ways(lambda: [sample(model, p, config) for p in prompts], model, record)
    assert record.replayed > count > 0
    assert not [name for name in record.operations if any(word in name for word in LOOKS)]


def test_a_stream_that_is_forked_goes_on_from_its_own_past():
    tokenizer, record = random_tokenizer(CONFIGS["video point fsq"]), Traced()
    start, a, b, c = chunks(tokenizer, clips(tokenizer, groups=3)[0])

    def run():
        found = []
        for _ in range(3):
            stream = Stream()
            first = tokenizer.encode(start, stream)
            twin = stream.fork()
            found += [first, *(tokenizer.encode(chunk, stream) for chunk in (a, b, c))]
            found += [tokenizer.encode(chunk, twin) for chunk in (b, a, c)]
        return found

    assert both_ways(run, tokenizer, record) == 2  # the start, and any group after it


def test_at_most_so_many_sizes_are_recorded_and_only_those_that_come_twice():
    tokenizer, record = random_tokenizer(CONFIGS["image lfq"]), Traced()
    with torch.inference_mode(), Replays(tokenizer.replayable, record, kept=2) as replays:
        counts = []
        for width in (1, 2, 1, 1, 2, 3, 3, 3, 1):
            tokenizer.latents(torch.zeros(1, 3, 8, 8 * width))
            counts.append(len(replays))
        assert counts == [0, 0, 1, 1, 2, 2, 2, 2, 2]
        assert record.replayed == 4
    assert not len(replays)
    assert "forward" not in vars(tokenizer.encoder)


def test_sizes_that_came_once_are_not_remembered_for_ever():
    tokenizer, record = random_tokenizer(CONFIGS["image lfq"]), Traced()
    with Replays(tokenizer.replayable, record, kept=2) as replays:
        for number in range(2_500):
            replays._remember(number)
        assert len(replays._once) <= 1_000


def test_weights_that_are_written_are_followed_and_those_that_are_moved_are_refused():
    tokenizer, record = random_tokenizer(CONFIGS["image lfq"]), Traced()
    (video,) = clips(tokenizer, count=1)
    with torch.no_grad(), Replays(tokenizer.replayable, record, kept=4):
        before = [tokenizer.latents(video) for _ in range(3)][-1]
        tokenizer.encoder.to_latent.now.weight.mul_(2)
        tokenizer.encoder.to_latent.now.bias.mul_(2)
        torch.testing.assert_close(tokenizer.latents(video), 2 * before)
        assert record.replayed == 3
        tokenizer.double()
        with pytest.raises(ConfigError, match="weights were moved"):
            tokenizer.latents(video)
    assert tokenizer.latents(video).dtype == torch.float64


def test_a_recording_is_of_one_setting_of_the_switches():
    tokenizer, record = random_tokenizer(CONFIGS["image lfq"]), Traced()
    before = torch.backends.cuda.matmul.allow_tf32
    (video,) = clips(tokenizer, count=1)
    try:
        with torch.inference_mode(), Replays(tokenizer.replayable, record, kept=4):
            for is_fast in (False, True, False, True):
                torch.backends.cuda.matmul.allow_tf32 = is_fast
                tokenizer.latents(video)
        assert record.recorded == 2
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def test_what_cannot_be_replayed_is_refused_in_one_line():
    tokenizer = random_tokenizer(CONFIGS["image lfq"])
    (video,) = clips(tokenizer, count=1)
    with Replays(tokenizer.replayable, Traced(), kept=4) as replays:
        with pytest.raises(ConfigError, match="gradients are recorded"):
            tokenizer.encode(video)
        with torch.inference_mode(), pytest.raises(ConfigError, match="in such a block already"):
            replays.__enter__()
        with (
            torch.inference_mode(),
            torch.autocast("cpu", torch.bfloat16),
            pytest.raises(ConfigError, match="`dtype`"),
        ):
            tokenizer.encode(video)
    model = masked()
    with Replays(model.replayable, Traced(), kept=4), torch.inference_mode():
        inputs = MaskedInput(model.blank((2, 3, 4), 1), prompt(1).condition)
        with pytest.raises(ConfigError, match="an argument is Generator"):
            model.features(inputs, torch.Generator())
    with pytest.raises(MachineError, match="need a CUDA device, and the model is on cpu"), replayed(tokenizer):
        pass
    with pytest.raises(ConfigError, match="kept"), replayed(tokenizer, kept=0):
        pass


@pytest.mark.gpu
@pytest.mark.parametrize("name", CONFIGS)
def test_graphs_of_a_gpu_give_the_ids_and_pixels_of_the_networks(name):
    tokenizer = random_tokenizer(CONFIGS[name]).cuda()
    small, large = ([video.cuda() for video in clips(tokenizer, groups)] for groups in (1, 2))
    is_streamed = tokenizer.is_causal and tokenizer.config.time_kernel > 1

    def run():
        ids = [tokenizer.encode(video) for pair in zip(small, large, strict=True) for video in pair]
        found = [*ids, *(tokenizer.decode(i) for i in ids)]
        for video in [large[0], large[1], large[2]] if is_streamed else []:
            parts = video.split([tokenizer.first_frames, *[tokenizer.strides[0]] * 2], 2)
            of_stream = list(tokenizer.encode_stream(parts))
            found += [*of_stream, *tokenizer.decode_stream(of_stream)]
        return found

    with torch.inference_mode():
        wanted = run()
        with replayed(tokenizer, kept=99) as replays:
            found = run()
            assert len(replays) >= 2
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        assert (a != b).double().mean() < 1e-3 if a.dtype == torch.int64 else torch.allclose(a, b, rtol=0, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["smalti/tiny-image", "smalti/tiny-video", "smalti/tiny-video-2"])
def test_graphs_of_a_gpu_give_the_ids_of_the_shipped_tokenizers(name):
    tokenizer = smalti.load(name, "cuda")
    rng = torch.Generator().manual_seed(0)
    shape = (1, 3, 1 if name.endswith("image") else 9, 128, 128)
    videos = [(torch.rand(shape, generator=rng) * 2 - 1).cuda() for _ in range(4)]
    with torch.inference_mode():
        wanted = [(tokenizer.latents(video), tokenizer.encode(video)) for video in videos]
        with replayed(tokenizer) as replays:
            found = [(tokenizer.latents(video), tokenizer.encode(video)) for video in videos]
            assert len(replays) > 0
    for (z, ids), (wanted_z, wanted_ids) in zip(found, wanted, strict=True):
        assert torch.equal(z, wanted_z)
        assert torch.equal(ids, wanted_ids)


@pytest.mark.gpu
def test_graphs_of_a_gpu_give_the_samples_of_the_networks():
    model = masked().cuda()
    prompts = [prompt(4, seed=seed) for seed in (0, 0, 0)]
    with torch.inference_mode():
        wanted = [sample(model, p, SamplingConfig(steps=4)) for p in prompts]
        with replayed(model) as replays:
            found = [sample(model, p, SamplingConfig(steps=4)) for p in prompts]
            assert len(replays) > 0
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
