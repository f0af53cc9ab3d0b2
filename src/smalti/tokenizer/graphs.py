"""A tokenizer as programs of one graph each, for any batch, length, height and width: what an export writes.

`encode` is video -> ids, `decode` is ids -> video. A video tokenizer has a streaming step of each besides, with the
past of every causal layer as inputs and outputs: `encode` and `decode` give the past after the first chunk,
`encode_step` and `decode_step` take and give it. Where pixels depend on later latents (`lookahead`), the first chunk
has a program of its own, `decode_start`, and so has the last, `decode_last`.

Conditional tokens are made in a loop over the groups of a video, and a graph has no loop: `encode` and `decode` are of
the first frame, the steps of one group each, and the past is the frame that was decoded last.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from smalti.nn.causal import Stream
from smalti.tokenizer.conditional import ConditionalConfig
from smalti.tokenizer.tokenizer import Tokenizer

_Axes = Mapping[int, str]
_VIDEO: _Axes = {0: "batch", 2: "frames", 3: "height", 4: "width"}
_IDS: _Axes = {0: "batch", 1: "latents", 2: "rows", 3: "columns"}


class Program(NamedTuple):
    """One graph to be: a module of tensors in and tensors out, with an example and the names and free axes of both."""

    name: str
    module: nn.Module
    example: tuple[Tensor, ...]
    inputs: dict[str, _Axes]
    """Axes of any size of each input, by their names."""
    outputs: tuple[str, ...]
    multiple: int = 1
    """Number of which the frames of the first input are a multiple."""


class _Whole(nn.Module):
    """A method of a tokenizer, from one tensor to one, and if asked to the past after it."""

    def __init__(self, tokenizer: Tokenizer, run: str, layers: Sequence[nn.Module], *, ends: bool = True) -> None:
        super().__init__()
        self.tokenizer, self.run, self.ends = tokenizer, run, ends
        self._layers = tuple(layers)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the result of the one input, and the past of each layer."""
        (x,) = inputs
        if self.ends and not self._layers:
            return _rows(_run(self.tokenizer, self.run, x, None, True))
        stream = Stream()
        # A whole video may end anywhere: its last group is completed first, and then it is a chunk.
        x = self.tokenizer.pad(x) if self.run == "encode" else x
        y = _run(self.tokenizer, self.run, x, stream, self.ends)
        return _rows(y, *(stream.carries[layer] for layer in self._layers))


class _Step(nn.Module):
    """The next chunk of a stream: a tensor and the past of each layer, to a tensor and their new past."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        run: str,
        layers: Sequence[nn.Module],
        marks: Mapping[nn.Module, Tensor],
        *,
        ends: bool,
    ) -> None:
        super().__init__()
        self.tokenizer, self.run, self.ends = tokenizer, run, ends
        self._layers, self._marks = tuple(layers), dict(marks)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the result of the first input after the past of the others, and the new past in their order."""
        x, *past = inputs
        stream = Stream.continued({**self._marks, **dict(zip(self._layers, past, strict=True))})
        y = _run(self.tokenizer, self.run, x, stream, self.ends)
        return _rows(y, *(() if self.ends else (stream.carries[layer] for layer in self._layers)))


def programs(tokenizer: Tokenizer, *, one_group: bool = False) -> list[Program]:
    """Return the programs of a tokenizer, whose results are those of `encode`, `decode` and their streams.

    With `one_group`, a step is of one group alone: the graph of any number of them refuses one where torch runs it.
    """
    s, h, w = tokenizer.strides
    alone = isinstance(tokenizer.config, ConditionalConfig)
    # A decoder that waits for later latents cuts two off: of an example of three one is left, and torch fixes a one.
    start = 1 if alone else 1 + (4 if tokenizer.lookahead else 2) * s
    frames = s if one_group or alone else 2 * s
    longer = start if alone else start + s
    sizes = (2, start, 5 * h - 1, 7 * w), (3, longer, 6 * h, 9 * w - 1), (2, frames, 5 * h - 1, 7 * w)
    with torch.no_grad():
        video, other, chunk = (_noise(*size).to(tokenizer.device) for size in sizes)
        ids = tokenizer.encode(video).contiguous()
        steps = tokenizer.is_causal and bool(_past(tokenizer, "encode", video) or _past(tokenizer, "decode", ids))
        if not steps:
            return [
                Program("encode", _Whole(tokenizer, "encode", ()), (video,), {"video": _VIDEO}, ("ids",)),
                Program("decode", _Whole(tokenizer, "decode", ()), (ids,), {"ids": _IDS}, ("video",)),
            ]
        later = ids[:, -(frames // s) :].contiguous()
        fixed = _Fixed(alone, one_group or alone)
        return [
            *_streamed(tokenizer, "encode", (video, other), chunk, fixed),
            *_streamed(tokenizer, "decode", (ids, tokenizer.encode(other).contiguous()), later, fixed),
        ]


class _Fixed(NamedTuple):
    """Chunks of a stream that have a number of frames of their own, and not any."""

    start: bool
    step: bool


def _streamed(
    tokenizer: Tokenizer, run: str, firsts: tuple[Tensor, Tensor], chunk: Tensor, fixed: _Fixed
) -> list[Program]:
    """Return the whole and the steps of `encode` or `decode`, by examples of first chunks of two sizes and lengths (the
    past of attention over time grows) and of a later one."""
    past, others = (_past(tokenizer, run, first) for first in firsts)
    layers = [layer for layer, carry in past.items() if carry.numel()]
    marks = {layer: carry for layer, carry in past.items() if not carry.numel()}
    # An axis that differs between two streams of other sizes is free in all.
    free = [_free_axes(past[layer], others[layer]) for layer in layers]
    names = [f"{number:02d}" for number in range(len(layers))]
    x, axes, y = ("video", _VIDEO, "ids") if run == "encode" else ("ids", _IDS, "video")
    still = {axis: word for axis, word in axes.items() if word not in ("frames", "latents")}
    inputs = {
        x: still if fixed.step else axes,
        **{f"state_in_{n}": dims for n, dims in zip(names, free, strict=True)},
    }
    outputs = (y, *(f"state_out_{n}" for n in names))
    waits = run == "decode" and tokenizer.lookahead > 0
    carries = (chunk, *(past[layer] for layer in layers))

    def step(name: str, *, ends: bool) -> Program:
        module = _Step(tokenizer, run, layers, marks, ends=ends)
        multiple = tokenizer.strides[0] if run == "encode" and not fixed.step else 1
        return Program(name, module, carries, inputs, (y,) if ends else outputs, multiple)

    if not waits:
        whole = _Whole(tokenizer, run, layers)
        first = Program(run, whole, firsts[:1], {x: still if fixed.start else axes}, outputs)
        return [first, step(f"{run}_step", ends=False)]
    start = _Whole(tokenizer, run, layers, ends=False)
    return [
        Program(run, _Whole(tokenizer, run, ()), firsts[:1], {x: axes}, (y,)),
        Program(f"{run}_start", start, firsts[:1], {x: axes}, outputs),
        step(f"{run}_step", ends=False),
        step(f"{run}_last", ends=True),
    ]


def _run(tokenizer: Tokenizer, run: str, x: Tensor, stream: Stream | None, ends: bool) -> Tensor:
    return tokenizer.encode(x, stream) if run == "encode" else tokenizer.decode(x, stream, is_last=ends)


def _past(tokenizer: Tokenizer, run: str, first: Tensor) -> dict[nn.Module, Tensor]:
    """Return what each layer carries over after a first chunk."""
    stream = Stream()
    _run(tokenizer, run, first, stream, False)
    return {layer: carry.contiguous() for layer, carry in stream.carries.items()}


def _rows(*outputs: Tensor) -> tuple[Tensor, ...]:
    """Return tensors as contiguous memory, which is how AOTInductor reads those that come in, whatever they are."""
    return tuple(x.contiguous() for x in outputs)


def _free_axes(carry: Tensor, other: Tensor) -> dict[int, str]:
    pairs = enumerate(zip(carry.shape, other.shape, strict=True))
    return {axis: f"axis{axis}" for axis, (one, two) in pairs if one != two}


def _noise(*size: int) -> Tensor:
    """Return a video of random pixels."""
    batch, frames, height, width = size
    rng = torch.Generator().manual_seed(0)
    return torch.rand(batch, 3, frames, height, width, generator=rng) * 2 - 1


def graph_of(program: Program, *, half: bool = False) -> torch.export.ExportedProgram:
    """Trace a program with all its free axes, with its weights kept in half precision if asked.

    torch sets sizes of one apart: run by torch, the graph of a step for any number of groups refuses one.
    """
    free, module = torch.export.Dim.AUTO, HalfWeights(program.module) if half else program.module
    shapes: list[Any] = [dict.fromkeys(axes, free) for axes in program.inputs.values()]
    if program.multiple > 1:  # of frames
        shapes[0][2] = program.multiple * torch.export.Dim("groups")
    with torch.no_grad():
        return torch.export.export(module.eval(), program.example, dynamic_shapes=(tuple(shapes),), strict=False)


class HalfWeights(nn.Module):
    """A module that keeps its weights in half precision and computes with them in float32; the quantizer's stay."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        for name, parameter in module.named_parameters():
            if ".quantizer." not in f".{name}":
                parameter.data = parameter.data.half()

    def forward(self, *inputs: Tensor) -> Any:
        """Return what the module returns with the rounded weights."""
        halves = {n: p.float() for n, p in self.module.named_parameters() if p.dtype == torch.float16}
        return torch.func.functional_call(self.module, halves, inputs)
