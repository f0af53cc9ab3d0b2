"""Encoding with conditional tokens in a closed loop: each group of frames against what the decoder makes of those
before it."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from smalti.nn.causal import Stream, time_first
from smalti.quantize.quantizer import Quantizer
from smalti.tokenizer.conditional import (
    QUARTERS,
    ConditionalDecoder,
    ConditionalEncoder,
    held_for,
    past_of,
    to_groups,
    window,
)

TIE = 1e-4
"""Share by which errors of two modes must differ, so that rounding does not choose."""


class Loop(NamedTuple):
    """Encoding of a video, or of its next chunk, in a closed loop."""

    z: Float[Tensor, "b d t h2 w2"]
    """Latents, with gradients if they are recorded."""
    ids: Int[Tensor, "b t h2 w2"]
    pasts: Float[Tensor, "n b 3 h w"]
    """The past of each group, without gradients."""
    held: Bool[Tensor, "n b h2 w2"] | None = None
    """Tokens of the groups that are held; None where thresholds were not given."""


def closed_loop(
    encoder: ConditionalEncoder,
    decoder: ConditionalDecoder,
    quantizer: Quantizer,
    video: Float[Tensor, "t b 3 h w"],
    stream: Stream | None = None,
    check: bool = True,
    hold_below: Float[Tensor, " b"] | None = None,
) -> Loop:
    """Encode 1 + s*n frames, or the next s*n of a stream, each group against what the decoder makes of those before.

    With `hold_below`, a threshold for each video, a token of a group is held unless the squared error of its pixels
    (the mean, of 8-bit values) is lower with it by as much.

    Raises BadTensor for latents that are not finite, but not while gradients are recorded and not without `check`: what
    follows is then NaN.
    """
    past, recorded = None if stream is None else stream.get(encoder), torch.is_grad_enabled() or not check
    latents, ids, pasts, held = [], [], [], []
    for frames in _cut(video, encoder.group, is_start=past is None):
        if past is None:
            groups, z = None, encoder.first(frames)
        else:
            pasts.append(past)
            groups = to_groups(frames, encoder.group)
            z = encoder(groups, past.to(frames.dtype))
            if encoder.quarters:
                z = _with_modes(encoder, decoder, quantizer, z, groups, past)
        latents.append(z)
        with torch.no_grad():
            numbers, codes = _quantize(quantizer, z, recorded=recorded)
            ids.append(numbers)
            codes = time_first(codes, decoder.last_weight.dtype)
            made = decoder.after(codes, past)
            if groups is not None and hold_below is not None:
                held.append(_little(to_groups(made, encoder.group), groups, pasts[-1], codes.shape[3:], hold_below))
                made = decoder.after(codes, past, held[-1])
            past = past_of(made)
    if recorded:
        # Autocast keeps its copies of weights, and those of the loop have no gradients.
        torch.clear_autocast_cache()
    if stream is not None and past is not None:
        stream.put(encoder, past)
    z = torch.cat(latents).permute(1, 2, 0, 3, 4)
    return Loop(z, torch.cat(ids, 1), torch.cat(pasts) if pasts else video[:0], torch.cat(held) if held else None)


def _little(
    made: Float[Tensor, "n b c h w"],
    groups: Float[Tensor, "n b c h w"],
    pasts: Float[Tensor, "n b 3 h w"],
    grid: Sequence[int],
    least: Float[Tensor, " b"],
) -> Bool[Tensor, "n b h2 w2"]:
    """Return the tokens of a grid by which the mean squared error of their pixels, in 8-bit values, falls by less."""
    wide = groups.float()
    fall = (held_for(pasts, groups.shape[2] // 3).float() - wide).square() - (made.float().clamp(-1, 1) - wide).square()
    tokens = fall.mean(2).unflatten(-1, (grid[1], -1)).unflatten(-3, (grid[0], -1)).mean((-3, -1))
    return tokens * 127.5**2 < least.view(-1, 1, 1)


def _with_modes(
    encoder: ConditionalEncoder,
    decoder: ConditionalDecoder,
    quantizer: Quantizer,
    z: Float[Tensor, "1 b d h w"],
    groups: Float[Tensor, "1 b c h2 w2"],
    past: Float[Tensor, "1 b 3 h2 w2"],
) -> Float[Tensor, "1 b d h w"]:
    """Return, for each video of the batch, z or the latent of the quarter that decodes nearer to the original.

    A quarter cannot win where what it holds errs more than z in all: those are not tried.
    """
    recorded = torch.is_grad_enabled()

    def errors(z: Tensor) -> Float[Tensor, "m b"]:
        _, codes = _quantize(quantizer, z, recorded=recorded)
        pasts = past.expand(len(z), -1, -1, -1, -1)
        made = decoder.groups(time_first(codes, decoder.last_weight.dtype), pasts).clamp(-1, 1)
        return (made - groups).square().flatten(2).mean(2)

    with torch.no_grad():
        least, modes = errors(z), torch.arange(1, 1 + QUARTERS, device=z.device)
        if not torch.compiler.is_compiling():
            held = (held_for(past, encoder.group) - groups).square().mean((0, 2), dtype=torch.float64)
            outside = (held[:, None] * ~window(modes, held.shape[1:])).mean((2, 3)).T
            # The margin is for the rounding of sums.
            modes = modes[(outside < 1.001 * least).any(1)]
    if not len(modes):
        return z
    z = torch.cat([z, encoder.quarter_latents(groups, modes)])
    with torch.no_grad():
        every = torch.cat([least, errors(z[1:])])
        # Coding a quarter again changes nothing: of modes that are equal but for rounding the first.
        best = (every <= (1 + TIE) * every.amin(0)).int().argmax(0)
    return z.gather(0, best.view(1, -1, 1, 1, 1).expand(1, *z.shape[1:]))


def first_mode(
    encoder: ConditionalEncoder, quantizer: Quantizer, frames: Float[Tensor, "t b 3 h w"], past: Tensor
) -> Int[Tensor, "b 1 h2 w2"]:
    """Return the ids of the group after `past` that say what is new, whatever mode the encoder would choose."""
    numbers, _ = _quantize(quantizer, encoder(to_groups(frames, encoder.group), past.to(frames.dtype)), recorded=False)
    return numbers


def follow(encoder: nn.Module, encoding: Stream, decoder: nn.Module, decoding: Stream) -> None:
    """Let the stream of an encoding go on from the frames that another has decoded, not from those of its own ids.

    With conditional tokens that is their past, so whoever changes ids between two chunks calls it; encoders of other
    kinds have seen frames alone, and nothing changes."""
    if isinstance(encoder, ConditionalEncoder) and (past := decoding.get(decoder)) is not None:
        encoding.put(encoder, past)


def _quantize(quantizer: Quantizer, z: Float[Tensor, "t b d h w"], *, recorded: bool) -> tuple[Tensor, Tensor]:
    """Return the ids `b t h w` and codes `b d t h w` of latents; NaN in a training step gives codes that are NaN."""
    z = z.detach().permute(1, 2, 0, 3, 4)
    if recorded:
        return quantizer.nearest(z)
    ids = quantizer.encode(z)
    return ids, quantizer.decode(ids)


def _cut(video: Tensor, group: int, *, is_start: bool) -> Iterator[Tensor]:
    """Cut frames into groups, at the start of a video after a first frame of its own."""
    if is_start:
        yield video[:1]
    for at in range(1 if is_start else 0, len(video), group):
        yield video[at : at + group]
