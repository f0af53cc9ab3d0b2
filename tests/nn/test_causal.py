"""The causal convolution: one 3-D convolution where frames are large, a sum of 2-D ones where they are small."""

import pytest
import torch

from smalti.nn.causal import _LEAST, CausalConv, CausalUpsample, Stream, Window, stretch

CHANNELS, HEIGHT = 32, 80
assert CHANNELS * 9 * HEIGHT > _LEAST > CHANNELS * 5 * HEIGHT


def layer(dtype=torch.float64, time=3, strides=(1, 1), start="grey", kernel=3):
    rng = torch.Generator().manual_seed(0)
    conv = CausalConv(CHANNELS, 8, Window(time, "full", start), kernel=kernel, strides=strides)
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng) / 30)
    return conv.to(dtype)


def frames(count=8, batch=1, dtype=torch.float64, seed=1):
    rng = torch.Generator().manual_seed(seed)
    pictures = torch.randn(count * batch, CHANNELS, HEIGHT, 6, generator=rng).to(dtype)
    return pictures.contiguous(memory_format=torch.channels_last).unflatten(0, (count, batch))


def by_the_formula(conv, x, start):
    """y_t = sum_k W_k * x_{s t - (time - 1) + k}, frame by frame."""
    time, s = len(conv.past) + 1, conv.time_stride
    missing = time - s if start == "grey" else time - 1
    past = x[:1] if start == "repeat" else torch.zeros_like(x[:1])
    x = torch.cat([past.expand(missing, *x.shape[1:]), x])
    return torch.stack(
        [
            sum(tap(x[t + k]) for k, tap in enumerate((*conv.past, conv.now)))
            for t in range(0, len(x) - time + 1, s)
        ]
    )  # fmt: skip


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("time", "strides", "kernel"), [(3, (1, 1), 3), (3, (2, 2), 3), (4, (1, 2), 1), (2, (1, 1), 5)]
)
@pytest.mark.parametrize(("start", "count"), [("repeat", 9), ("zero", 11), ("grey", 8), ("grey", 2)])
def test_it_is_the_sum_of_its_taps(batch, time, strides, kernel, start, count):
    conv, x = layer(time=time, strides=strides, start=start, kernel=kernel), frames(count, batch)
    torch.testing.assert_close(conv(x), by_the_formula(conv, x, start), rtol=0, atol=1e-12)


@pytest.mark.parametrize("batch", [1, 2])
def test_its_gradients_are_those_of_the_sum_of_its_taps(batch):
    conv, x = layer(), frames(batch=batch).requires_grad_()
    wanted = [x, *conv.parameters()]
    probe = torch.randn(8, batch, 8, HEIGHT, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found, exact = (torch.autograd.grad((y * probe).sum(), wanted) for y in (conv(x), by_the_formula(conv, x, "grey")))
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


@pytest.mark.parametrize("batch", [1, 2])
def test_in_float32_the_future_never_reaches_the_past_bit_by_bit(batch):
    conv, x = layer(torch.float32), frames(batch=batch, dtype=torch.float32)
    y = conv(x)
    for first in range(1, 8):
        changed = torch.cat([x[:first], frames(8 - first, batch, torch.float32, seed=3)])
        assert torch.equal(conv(changed)[:first], y[:first])


@pytest.mark.parametrize("sizes", [(8, 8), (2, 14), (14, 2), (4, 4, 4, 4)])
def test_chunks_give_the_whole_whichever_way_each_is_computed(sizes):
    conv, x, stream = layer(), frames(16), Stream()
    parts = [conv(chunk, stream) for chunk in x.split(sizes)]
    torch.testing.assert_close(torch.cat(parts), conv(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("strides", "count"), [((1, 1), 8), ((1, 1), 2), ((2, 2), 8)])
def test_the_channels_stay_last_in_memory(batch, strides, count):
    pictures = layer(torch.float32, strides=strides)(frames(count, batch, torch.float32)).flatten(0, 1)
    assert pictures.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("time", "s"), [(1, 1), (2, 1), (3, 1), (5, 1), (2, 2), (3, 2), (4, 2), (5, 4)])
@pytest.mark.parametrize("start", ["repeat", "zero", "grey"])
@pytest.mark.parametrize("kernels", ["full", "point"])
def test_any_cut_gives_the_whole_for_any_kernel_and_stride(time, s, start, kernels):
    conv = CausalConv(3, 2, Window(time, kernels, start), strides=(s, 1)).double()
    for tap in conv.past:
        torch.nn.init.normal_(tap.weight)
    first = 0 if start == "grey" and time > 1 else 1
    x = torch.randn(first + 4 * s, 2, 3, 4, 5, dtype=torch.float64)
    whole = conv(x)
    assert len(whole) == (len(x) - first) // s + first
    for cut in ([first] if first else []) + [first + s, first + 2 * s, first + 3 * s]:
        stream = Stream()
        parts = [conv(part, stream) for part in (x[:cut], *x[cut:].split(s))]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("s", "r"), [(1, 2), (2, 1), (2, 2), (3, 2)])
@pytest.mark.parametrize("start", ["repeat", "grey"])
def test_upsampling_is_depth_to_space_with_the_time_phase_first(s, r, start):
    """Channel ((p C + c) r + i) r + j of frame t is channel c of frame s t + p at row r y + i, column r x + j; the
    s - 1 frames before the first are dropped, but for a grey start."""
    up = CausalUpsample(3, 2, Window(3, "full", start), strides=(s, r)).double()
    x = torch.randn(4, 1, 3, 2, 3, dtype=torch.float64)
    maps, y = up.conv(x), up(x)
    dropped = 0 if start == "grey" else s - 1
    assert y.shape == (4 * s - dropped, 1, 2, 2 * r, 3 * r)
    for f in range(len(y)):
        t, p = divmod(f + dropped, s)
        for c in range(2):
            for i in range(r):
                for j in range(r):
                    assert torch.equal(y[f, 0, c, i::r, j::r], maps[t, 0, ((p * 2 + c) * r + i) * r + j])


@pytest.mark.parametrize("s", [2, 3, 4])
def test_the_first_frame_may_be_the_first_phase_of_its_group_and_not_the_last(s):
    up, kept = (CausalUpsample(3, 2, Window(3, "full", "repeat"), strides=(s, 1), first_phase=p) for p in (False, True))
    kept.load_state_dict(up.state_dict())
    x = torch.randn(4, 1, 3, 2, 3)
    maps, last, first = up.conv(x), up(x), kept(x)
    assert torch.equal(first[1:], last[1:])
    assert torch.equal(first[0], maps[0, :, :2])
    assert torch.equal(last[0], maps[0, :, -2:])


@pytest.mark.parametrize(("count", "stride"), [(1, 1), (3, 2), (4, 3)])
@pytest.mark.parametrize("fresh", [True, False])
def test_stretching_repeats_pixels_and_frames_as_upsampling_places_them(count, stride, fresh):
    x = torch.arange(count * 6.0).view(count, 1, 1, 2, 3)
    dropped = stride - 1 if fresh else 0
    y = stretch(x, (count * stride - dropped, 4, 6), stride)
    for f in range(len(y)):
        assert torch.equal(y[f, 0, 0], x[(f + dropped) // stride, 0, 0].repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_a_fresh_layer_treats_every_frame_as_an_image():
    conv = CausalConv(3, 2, Window(3, "full", "repeat"))
    x = torch.randn(4, 1, 3, 4, 4)
    alone = torch.cat([conv(frame[None]) for frame in x])
    torch.testing.assert_close(conv(x), alone, rtol=0, atol=1e-6)
