"""The only layers that mix time: an output frame depends on its own and on earlier input frames alone, unless a window
lies `around` its frame.

With stride s, 1 + s*n frames become 1 + n, and 1 + n become 1 + s*n: a video starts with one frame of its own, so an
image is a video of one frame. A chunk that continues a stream gives s*n -> n and n -> s*n.

Frames go through a network as a batch of images, in the order in memory that kernels look for. A kernel takes a tensor
for channels-last by its strides, those of axes of size one among them. For one frame of one video `flatten` and
`unflatten` leave such an axis a stride that says "channels first", and `cat`, `stack` and `repeat_interleave` lose the
order of any five axes: each convolution then converts (1.2 to 1.45 times as long). Here axes are joined and split with
the channels in the last place, where every tensor has the strides of a dense one.

The past that these layers have yet to read is a `Stream`, owned by the caller.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, TypeVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from smalti.errors import BadTensor
from smalti.video import describe


class Stream:
    """The past of one video: what each causal layer has not read yet. A fresh one is its start; passing it advances it.

    State lives here and not on modules, so any number of videos can be in flight through one model, and a stream can be
    forked to try several continuations. The keys are the layers themselves.
    """

    def __init__(self) -> None:
        self._carries: dict[nn.Module, Tensor] = {}
        self._rooms: dict[nn.Module, Tensor] = {}  # in whose first places the carries of `extend` lie
        self._sizes: dict[nn.Module, tuple[int, ...]] = {}
        self.is_ending = False
        """Whether the next chunk is the last: layers then give what they hold back for later chunks."""

    def get(self, layer: nn.Module) -> Tensor | None:
        """Return what `layer` carried over, or None at the start of the video."""
        return self._carries.get(layer)

    def put(self, layer: nn.Module, carry: Tensor) -> None:
        """Replace what `layer` carries over. Detached and copied: a view would keep its whole chunk alive."""
        self._carries[layer] = carry.detach().clone()

    def extend(self, layer: nn.Module, new: Tensor, dim: int) -> Tensor:
        """Append `new` along axis `dim` to what `layer` carries over, and return all of it.

        The past is not copied at each call: it lies in a tensor with room for half as much again, so that n calls copy
        some 3n places and not n^2 / 2. What was returned before stays as it is. Where gradients are recorded or a graph
        is made, the whole is a new tensor; the carry is detached all the same.
        """
        past = self._carries.get(layer)
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            whole = new if past is None else torch.cat([past, new], dim)
            self._rooms.pop(layer, None)
            self.put(layer, whole)
            return whole
        length = 0 if past is None else past.shape[dim]
        size, room = length + new.shape[dim], self._rooms.get(layer)
        if room is None or room.shape[dim] < size or room.is_inference() != torch.is_inference_mode_enabled():
            shape = [size + size // 2 if axis == dim % new.dim() else count for axis, count in enumerate(new.shape)]
            room = self._rooms[layer] = new.new_empty(shape)
            if past is not None:
                room.narrow(dim, 0, length).copy_(past)
        room.narrow(dim, length, new.shape[dim]).copy_(new)
        self._carries[layer] = room.narrow(dim, 0, size)
        return self._carries[layer]

    def fork(self) -> "Stream":
        """An independent stream with the same past; what a carry holds is never overwritten, so it can be shared, and
        only this stream goes on in the room behind it."""
        twin = Stream()
        twin._carries, twin._sizes = dict(self._carries), dict(self._sizes)
        twin.is_ending = self.is_ending
        return twin

    @property
    def carries(self) -> dict[nn.Module, Tensor]:
        """Tensors that the layers carry over, in the order in which they ran; an empty one marks that its layer has."""
        return dict(self._carries)

    @classmethod
    def continued(cls, carries: Mapping[nn.Module, Tensor]) -> "Stream":
        """Return a stream that goes on from such carries."""
        stream = cls()
        stream._carries = dict(carries)
        return stream

    def check_size(self, network: nn.Module, size: tuple[int, ...]) -> None:
        """Raise BadTensor unless every chunk of `network` has the `size` (batch, height, width) of the first."""
        first = self._sizes.setdefault(network, size)
        if first != size:
            raise BadTensor(f"a chunk of a stream has (batch, height, width) = {first} as the first one (found {size})")

    @property
    def started(self) -> bool:
        """Whether anything has passed."""
        return bool(self._carries)

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return sum(carry.nbytes for carry in self._carries.values())


_Item = TypeVar("_Item")


def check_whole(stream: Stream | None, remedy: str, wanted: str) -> None:
    """Raise BadTensor where images or ids of images are given as the chunk of a stream."""
    if stream is not None:
        raise BadTensor(f"a chunk of a stream is {wanted}: {remedy}")


def check_stream(stream: object, option: str) -> None:
    """Raise BadTensor for what is no stream: the value of an `option` that was given without its name."""
    if stream is not None and not isinstance(stream, Stream):
        raise BadTensor(f"the second argument is a Stream, and others are named, as {option}={stream}")


def is_no_frames(chunk: object, axis: int) -> bool:
    """Return whether a chunk is a tensor without frames in `axis`."""
    return isinstance(chunk, Tensor) and chunk.ndim == axis + 3 and not chunk.shape[axis]


def several(chunks: Iterable[Tensor], remedy: str) -> Iterable[Tensor]:
    """Return chunks if they are several tensors. Raises BadTensor for one tensor, with what makes chunks of it."""
    if isinstance(chunks, Tensor) or not isinstance(chunks, Iterable):
        raise BadTensor(f"chunks must be several tensors, as {remedy} (found {describe(chunks)})")
    return chunks


def mark_last(items: Iterable[_Item], *, waits: bool) -> Iterator[tuple[_Item, bool]]:
    """Yield each item, and whether it is the last one; unless it `waits` for the next to know, each at once as if it
    was not."""
    waiting: list[_Item] = []
    for item in items:
        if waits:
            waiting.append(item)
            if len(waiting) == 1:
                continue
            item = waiting.pop(0)
        yield item, False
    for item in waiting:
        yield item, True


def time_first(
    x: Float[Tensor, "b c t h w"], dtype: torch.dtype, *, contiguous: bool = False
) -> Float[Tensor, "t b c h w"]:
    """Return a video, latents or codes with time first, in a number type, with the channels last in memory or, if
    `contiguous`, apart: whatever the order of x, always the same, so that equal numbers give equal bits."""
    frames = x.permute(2, 0, 1, 3, 4)
    order = torch.contiguous_format if contiguous else torch.channels_last
    return to_frames(to_images(frames).to(dtype, memory_format=order), frames.shape[:2])


def order_weights(network: nn.Module) -> None:
    """Lay the weights of 2-D convolutions out with the channels last, in place, for inputs that lie so: torch converts
    others at every call, which took up to 5 % of the time of a small image."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)


def channels_to_end(x: Float[Tensor, "t b c h w"]) -> Float[Tensor, "t b h w c"]:
    """Return a view with the channels in the last place."""
    return x.permute(0, 1, 3, 4, 2)


def channels_from_end(x: Float[Tensor, "t b h w c"]) -> Float[Tensor, "t b c h w"]:
    """Return a view with the channels back in their place, the inverse of `channels_to_end`."""
    return x.permute(0, 1, 4, 2, 3)


def to_images(frames: Float[Tensor, "t b c h w"]) -> Float[Tensor, "n c h w"]:
    """Join time and batch; a view unless frames are left out in between."""
    return channels_to_end(frames).flatten(0, 1).permute(0, 3, 1, 2)


def to_frames(images: Float[Tensor, "n c h w"], counts: Sequence[int]) -> Float[Tensor, "t b c h w"]:
    """Split images into `counts` = (t, b), the inverse of `to_images`."""
    return channels_from_end(images.permute(0, 2, 3, 1).unflatten(0, counts))


def some_frames(x: Float[Tensor, "t b c h w"], which: slice) -> Float[Tensor, "t2 b c h w"]:
    """Return some frames, a view. Its gradient has the channels last, too, where torch would lay that of `x[which]` out
    by the order of the axes, and every layer before it would work on channels that lie apart."""
    return channels_from_end(channels_to_end(x)[which])


def join_frames(parts: Sequence[Float[Tensor, "_ b c h w"]]) -> Float[Tensor, "t b c h w"]:
    """Join in time."""
    return channels_from_end(torch.cat([channels_to_end(part) for part in parts]))


def repeat_frames(x: Float[Tensor, "t b c h w"], times: int) -> Float[Tensor, "t2 b c h w"]:
    """Repeat each frame."""
    return channels_from_end(channels_to_end(x).repeat_interleave(times, 0))


def interleave(first: Float[Tensor, "t b c h w"], second: Float[Tensor, "t b c h w"]) -> Float[Tensor, "t2 b c h w"]:
    """Return the frames of both in turns."""
    return channels_from_end(torch.stack([channels_to_end(first), channels_to_end(second)], 1).flatten(0, 1))


PastKernel = Literal["full", "point"]
Start = Literal["repeat", "zero", "grey", "copy", "around"]

_LEAST = 20_480
"""Rows in all channels and frames: of fewer, torch computes a 3-D convolution without oneDNN, several times slower."""

_POINTS_BY_ROWS = torch.backends.cpu.get_cpu_capability() == "AVX512"
"""Whether 1x1 convolutions of a few images are computed by rows: see `point_by_rows`."""


class Window(NamedTuple):
    """The part of time that a convolution sees."""

    time: int = 1
    """Frames: the current one and the `time - 1` before it."""
    past: PastKernel = "full"
    """Kernels of the past frames: as large as that of the current frame, or 1x1."""
    start: Start = "repeat"
    """Frames before the first one: copies of it, or zeros. With `grey`, a video comes with frames of its own in front
    that complete its first group (see `smalti.tokenizer.cnn`): groups are whole from the start, s*n -> n, and zeros
    stand before them (MagicMaster, mindone). `copy` is the same with copies of the first of them (VidTok 1.1).
    `around` is not causal: groups are whole, and the window lies around its frame, or group, with one frame more after
    it than before where it cannot lie in the middle; zeros stand on both sides of the video (VidTok's non-causal)."""

    @property
    def is_whole(self) -> bool:
        """Whether groups are whole from the start."""
        return self.start in ("grey", "copy", "around")


class CausalConv(nn.Module):
    """A convolution over the current frame and the `time - 1` before it: y_t = sum_k W_k * x_{s t - (time - 1) + k}.

    An image model is the same layer with `time=1`, and what a stream carries is the layer's own argument. Whole kernels
    are one 3-D convolution of the frames and their past; a few small frames, and 1x1 kernels of past frames, are a sum
    over k of 2-D convolutions of shifted views. Against padding and `nn.Conv3d`: benchmarks/results/convolution.json.
    `past="point"` gives the past taps 1x1 kernels: 2/9 more operations than the 2-D convolution for two past frames,
    where full kernels take 2 times more. The past taps start at zero: a fresh model treats every frame as an image,
    which is also what `inflate` gives.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        window: Window = Window(),  # noqa: B008 - immutable
        *,
        kernel: int = 3,
        strides: tuple[int, int] = (1, 1),
        bias: bool = True,
    ) -> None:
        super().__init__()
        time, self.kernels, self.start = window
        self.is_whole = window.is_whole
        if time < strides[0]:
            raise ValueError(f"a time stride of {strides[0]} needs a kernel of at least as many frames (found {time})")
        self.now = nn.Conv2d(channels, out, kernel, stride=strides[1], padding=kernel // 2, bias=bias)
        size = kernel if self.kernels == "full" else 1
        self.past = nn.ModuleList(
            nn.Conv2d(channels, out, size, stride=strides[1], padding=size // 2, bias=False) for _ in range(time - 1)
        )
        """Taps from the oldest frame to the one before the current."""
        self.time_stride = strides[0]
        for tap in self.past:
            nn.init.zeros_(tap.weight)  # type: ignore[arg-type]

    def forward(self, x: Float[Tensor, "t b c h w"], stream: Stream | None = None) -> Float[Tensor, "t2 b c2 h2 w2"]:
        """`t` is 1 + s*n at the start of a video and s*n after it; where groups are whole (`Window`) always s*n."""
        frames = self._with_past(x, stream) if self.past else x
        count = (frames.shape[0] - len(self.past) - 1) // self.time_stride + 1
        whole = self.past and self.kernels == "full" and _is_large(frames)
        y = self._at_once(frames) if whole else self._tap_by_tap(frames, count)
        if stream is not None and self.past:
            stream.put(self, frames[count * self.time_stride :])
        return y

    def _at_once(self, frames: Tensor) -> Tensor:
        weight = torch.stack([cast(Tensor, tap.weight) for tap in (*self.past, self.now)], 2)
        strides, padding = (self.time_stride, *self.now.stride), (0, *self.now.padding)
        return _frames(F.conv3d(_clips(frames), weight, self.now.bias, strides, padding))

    def _tap_by_tap(self, frames: Tensor, count: int) -> Tensor:
        y = self._tap(self.now, frames, len(self.past), count)
        for k, tap in enumerate(self.past):
            y = y + self._tap(tap, frames, k, count)
        return y

    def _with_past(self, x: Tensor, stream: Stream | None) -> Tensor:
        if self.start == "around":
            outside = len(self.past) + 1 - self.time_stride
            zero = torch.zeros_like(x[:1])
            return join_frames((*[zero] * (outside // 2), x, *[zero] * (outside - outside // 2)))
        carry = None if stream is None else stream.get(self)
        if carry is None:
            first = some_frames(x, slice(1)) if self.start in ("repeat", "copy") else torch.zeros_like(x[:1])
            # Between chunks s - 1 frames of the past are still to come; a start with whole groups is such a place.
            count = len(self.past) + 1 - self.time_stride if self.is_whole else len(self.past)
            carry = channels_from_end(channels_to_end(first).expand(count, -1, -1, -1, -1))
        elif len(self.past) + 1 == self.time_stride:  # each group stands alone
            return x
        return join_frames((carry, x))

    def _tap(self, tap: nn.Module, frames: Tensor, first: int, count: int) -> Tensor:
        inputs = some_frames(frames, slice(first, first + (count - 1) * self.time_stride + 1, self.time_stride))
        images = to_images(inputs)
        if _POINTS_BY_ROWS and not torch.compiler.is_compiling() and images.shape[0] < 16 and _is_point(tap):
            return to_frames(point_by_rows(tap, images), inputs.shape[:2])
        return to_frames(tap(images), inputs.shape[:2])


def _is_point(tap: nn.Module) -> bool:
    """Whether torch would give a 1x1 convolution of a few images in float32 on one thread to MKL."""
    is_point = isinstance(tap, nn.Conv2d) and tap.kernel_size == (1, 1) and tap.stride == (1, 1)
    return is_point and tap.weight.dtype == torch.float32 and tap.weight.device.type == "cpu"


def point_by_rows(tap: nn.Module, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h w"]:
    """Apply a 1x1 convolution to the rows as a batch, a view: of 16 images and more, torch leaves it to oneDNN.

    In AVX-512 oneDNN takes 246 GFLOP/s where MKL, on processors of AMD, takes 87; in AVX2 they are alike.
    """
    n, _, h, w = images.shape
    y: Tensor = tap(images.permute(0, 2, 3, 1).reshape(n * h, w, 1, -1).permute(0, 3, 1, 2))
    return y.permute(0, 2, 3, 1).reshape(n, h, w, -1).permute(0, 3, 1, 2)


def _is_large(frames: Tensor) -> bool:
    """Return whether one 3-D convolution is faster; a graph for all sizes has that one."""
    return torch.compiler.is_compiling() or frames.is_cuda or frames[..., 0].numel() > _LEAST


def _clips(frames: Tensor) -> Tensor:
    """`t b c h w` as `b c t h w` with the channels last in memory: a copy only where b > 1."""
    rows = frames.permute(1, 0, 3, 4, 2).contiguous()
    # The view gives the dimension b = 1 the stride that tells this order from others.
    return rows.view(rows.shape).permute(0, 4, 1, 2, 3)


def _frames(clips: Tensor) -> Tensor:
    """The inverse of `_clips`."""
    return clips.permute(2, 0, 3, 4, 1).contiguous().permute(0, 1, 4, 2, 3)


class CausalUpsample(nn.Module):
    """A causal convolution to more channels, then depth-to-space in time and space (MAGVIT-v2, figure 3).

    Channels are ordered (time phase, channel, row phase, column phase). At the start of a video the first frame has no
    past to fill, so the s-1 frames before it are dropped: 1 + n frames become 1 + s*n. With `start="grey"` these frames
    are the video's own and stay. `activate` puts a SiLU before the shuffle (MagicMaster). `first_phase` keeps the first
    frame before those that are dropped instead of the one after them (Open-MAGVIT2).
    """

    def __init__(
        self,
        channels: int,
        out: int,
        window: Window,
        *,
        strides: tuple[int, int],
        bias: bool = True,
        activate: bool = False,
        first_phase: bool = False,
    ) -> None:
        super().__init__()
        self.strides, self.activate, self.first_phase = strides, activate, first_phase
        self.conv = CausalConv(channels, out * strides[0] * strides[1] ** 2, window, bias=bias)

    def forward(self, x: Float[Tensor, "t b c h w"], stream: Stream | None = None) -> Float[Tensor, "t2 b c2 h2 w2"]:
        """`1 + n` frames in, `1 + s*n` out at the start of a video; `n` and `s*n` after it."""
        fresh = not self.conv.is_whole and (stream is None or stream.get(self.conv) is None)
        y: Tensor = self.conv(x, stream)
        y = silu(y) if self.activate else y
        s = self.strides[0]
        if s > 1:
            phases = channels_to_end(y).unflatten(-1, (s, -1))  # t b h w s c
            y = channels_from_end(phases.permute(0, 4, 1, 2, 3, 5).contiguous().flatten(0, 1))
            if fresh:
                kept = (slice(1), slice(s, None)) if self.first_phase else (slice(s - 1, None),)
                parts = [some_frames(y, which) for which in kept]
                y = join_frames(parts) if len(parts) > 1 else parts[0]
        if self.strides[1] == 1:
            return y
        return to_frames(F.pixel_shuffle(to_images(y), self.strides[1]), y.shape[:2])


def stretch(x: Float[Tensor, "t b c h w"], size: tuple[int, int, int], stride: int) -> Float[Tensor, "t2 b c h2 w2"]:
    """Nearest upsampling to `size` = (frames, rows, columns), by `stride` in time, aligned as `CausalUpsample` aligns.

    Whether the first frame is the start of a video follows from the counts: 1 + n -> 1 + s*n there, n -> s*n later.
    """
    y = to_frames(F.interpolate(to_images(x), size=size[1:], mode="nearest"), x.shape[:2])
    return some_frames(repeat_frames(y, stride), slice(stride * x.shape[0] - size[0], None)) if stride > 1 else y


def silu(fresh: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return x * sigmoid(x), in place when gradients are off; the caller must not use the argument again."""
    return F.silu(fresh, inplace=not (torch.is_grad_enabled() and fresh.requires_grad))
