"""Search of ids that cost fewer bits, or reconstruct better, than those of the encoder; the decoder stays as it is.

Minimized is J = D + price * R (rate-distortion optimized quantization, as in video codecs). D is the squared error of
the reconstruction in 8-bit values, the mean over the channels, summed over all pixels; R the bits of the ids under a
prior.

A sweep visits every token of a frame, in nine groups: every third row and column at a time, so that no token of a
group is a neighbour of another in the prior, and hardly one in the decoder. In a visit each digit, in the order in
which the prior codes them, takes the value v with the least

    price * -log2 p(v | neighbours, earlier digits) + g (v - c) + STEP * h (v - c)^2

where c is its code, g the gradient of D, and h the diagonal of the decoder's J^T J, estimated by E[(J^T s)^2] over
random signs s (Bekas, Kokiopoulou, Saad 2007). Then the group is decoded once, and a token keeps its new id where the
squared error of the 3 x 3 tokens around it and the bits of it fell in sum. Sweeps end where J no longer falls.

What a token does to the bits of later tokens, and to later frames, is not counted. A frame is searched given what the
decoder made of those before, so a video is a stream here, too. A token frame keeps its mode; where that is a quarter of
the frame at double size, a token is responsible for a quarter of its pixels there, and the rest of D does not move.

With conditional tokens a token may also be held: its pixels stay those of the frame decoded last, which costs next to
nothing. What a token is worth is the most by which the squared error of its pixels falls, over its group and the next h
groups as if those were held after it, h from 0 to `AHEAD`: what a scene that stands still gains lasts, and what moves
is worth coding though it will have gone. Held are the tokens that are worth less than their bits, then those that are
where the first are held, and so on, but none if J of the group is lower with all: the decoder sees no codes for held
tokens, and may not have learned that. A token frame in a mode of a quarter is coded whole or held whole, whichever of
the two, or of the first mode, is worth more.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from smalti.codec.contexts import Float64, Integers
from smalti.codec.entropy import alphabets, join, split
from smalti.codec.prior import SPACE, TIME, Canvas, Prior
from smalti.errors import ConfigError
from smalti.metrics.pixel import psnr
from smalti.nn.causal import Stream, time_first
from smalti.quantize.quantizer import ScalarQuantizer
from smalti.text import Progress
from smalti.tokenizer.closed_loop import first_mode, follow
from smalti.tokenizer.conditional import ConditionalDecoder, ConditionalEncoder, window
from smalti.tokenizer.frames import HELD_ID, choose_tile, decode_next, images_to_ids
from smalti.tokenizer.tokenizer import Tokenizer
from smalti.video import crop_to, pad_to, size_of, to_uint8, to_video

SWEEPS = 4
"""The most sweeps over a frame: twice as many gain 0.3 % of the bits of photographs at a price of 1,600."""
STEP = 2.0
"""Factor of the curvature, for the digits of a token and its neighbours move together: of 1, 2 and 3 that of the
least J on photographs."""
PROBES = 4
"""Random signs that the curvature is estimated with."""
APART = 3
"""Rows and columns from a token of a group to the next: beyond the prior's reach of two."""
AHEAD = 8
"""Groups of frames that a search of a video looks ahead, to tell what a token frame is worth."""
PASSES = 4
"""Times that tokens are looked for that are worth less than their bits, where those found before are held: once, 300
frames before a still camera had 24.85 dB at 0.0264 bits per pixel, twice 24.98 at 0.0192, thrice 24.95 at 0.0175."""
LEAST_ERROR = 1e-5
"""Mean squared error below which a frame counts as equal: 98 dB, so that a mean over frames stays finite."""
LARGEST_WHOLE = 1 << 19
"""Pixels of an image above which it is searched tile by tile, where that changes no token: gradients take 1.4 GB a
million pixels."""
_PAST = -min(frame for frame, _, _ in TIME)
_TO_8_BIT = 127.5**2 / 3
assert max(max(abs(y), abs(x)) for _, y, x in SPACE) < APART


class SearchResult(NamedTuple):
    """The ids of the next latent frame of a video, and the quality of the frames that it holds."""

    ids: Int[Tensor, "1 1 h2 w2"]
    """`HELD_ID` where a token is held."""
    psnr: tuple[float, ...]
    """PSNR of each frame in dB, of 8-bit pixels; 98 for equal ones."""


def check_searchable(tokenizer: Tokenizer, *, is_video: bool = False) -> None:
    """Raise ConfigError for a tokenizer whose ids are not digits of one channel each, one without gradients, and for a
    video one that cannot be streamed frame by frame."""
    remedy = "leave `price`, `bits` and `psnr` out"
    is_scalar = isinstance(tokenizer.quantizer, ScalarQuantizer)
    if not is_scalar or alphabets(tokenizer.levels) != tuple(tokenizer.levels):
        raise ConfigError(
            f"a search of ids needs a scalar quantizer, FSQ, LFQ or DSQ, with digits of up to 256 levels; {remedy}"
        )
    if is_video and (not tokenizer.is_causal or tokenizer.lookahead):
        raise ConfigError(
            f"a search of the ids of a video needs a causal tokenizer whose decoder does not look ahead; {remedy}"
        )
    if any(weights.is_inference() for weights in tokenizer.parameters()):
        raise ConfigError("a search of ids needs gradients: load the tokenizer outside of torch.inference_mode()")


class _Option(NamedTuple):
    """A way to code a token frame after the first."""

    ids: Int[Tensor, "1 1 h2 w2"]
    worth: Float[Tensor, "1 1 h2 w2"] = torch.zeros(1, 1, 1, 1)
    """By how much J falls with each token, in the best of the spans of groups ahead; a held one is worth nothing."""
    now: float = 0.0
    """By how much J of its own group falls with all of them."""


class Search:
    """A search for one tokenizer, one prior and one price: the squared error, in 8-bit values, that a bit is worth."""

    def __init__(self, tokenizer: Tokenizer, prior: Prior, price: float) -> None:
        """Raise ConfigError as `check_searchable` does."""
        check_searchable(tokenizer)
        self.tokenizer, self.prior, self.price = tokenizer, prior, price
        self._levels = tuple(tokenizer.levels)
        self._free = len(self._levels) - (tokenizer.config.modes > 1)
        """Digits that may move: not the mode."""
        quantizer = tokenizer.quantizer
        assert isinstance(quantizer, ScalarQuantizer)
        self._table = quantizer.code_table().detach().double().cpu().numpy()

    def image(self, image: UInt8[Tensor, "h w 3"], progress: Progress | None = None) -> SearchResult:
        """Search the ids of an image, tile by tile where it is large and the tokenizer allows."""
        with torch.inference_mode(False), torch.no_grad():
            return self._image(image, progress)

    def _image(self, image: UInt8[Tensor, "h w 3"], progress: Progress | None) -> SearchResult:
        tokenizer, target = self.tokenizer, to_video(image).to(self.tokenizer.device)
        ids = images_to_ids(tokenizer, image[None]).clone()
        if not tokenizer.is_tile_exact or image.shape[0] * image.shape[1] <= LARGEST_WHOLE:
            ids = self._searched(target, ids, [], None, progress=progress)
            return SearchResult(ids, self._quality(tokenizer.decode(ids), target))
        tiles, (_, down, right) = tokenizer.decoding_tiles(choose_tile(tokenizer)), tokenizer.strides
        cut, wrong = list(tiles.cut((ids.shape[-2], ids.shape[-1]))), 0.0
        for number, tile in enumerate(cut, start=1):
            rows, columns = tile.read
            pixels = target[..., rows.start * down : rows.stop * down, columns.start * right : columns.stop * right]
            inside = [slice(p.start // s, p.stop // s) for p, s in zip(tile.inside, (down, right), strict=True)]
            mine = torch.zeros(rows.stop - rows.start, columns.stop - columns.start, dtype=torch.bool)
            mine[tuple(inside)] = True
            ids[(..., *tile.read)] = self._searched(pixels, ids[(..., *tile.read)], [], None, mine.flatten().numpy())
            if progress is not None:
                progress(number, len(cut))
        for tile in cut:
            decoded = tokenizer.decode(ids[(..., *tile.read)])[(..., *tile.inside)]
            pixels = target[(..., *tile.place)]
            decoded = crop_to(decoded, (1, *pixels.shape[-2:]))
            wrong += float((to_uint8(decoded).double() - to_uint8(pixels).double()).square().sum())
        return SearchResult(ids, (_decibels(wrong / image.numel()),))

    def video(self, frames: Iterable[UInt8[Tensor, "h w 3"]]) -> Iterator[SearchResult]:
        """Search the ids of the frames of a video, one latent frame after the other, in constant memory.

        Of conditional tokens each depends on the `AHEAD` groups of frames after its own, too, and `ids_to_frames`
        decodes them. Raises ConfigError for a tokenizer that cannot be streamed frame by frame.
        """
        tokenizer = self.tokenizer
        check_searchable(tokenizer, is_video=True)
        encoding, decoding, before = Stream(), Stream(), list[Tensor]()
        for near in _windows(frames, tokenizer.strides[0], AHEAD if self.may_hold else 0):
            # Not around the yield, which would carry the modes into the caller.
            with torch.inference_mode(False), torch.no_grad():
                target, *later = (to_video(group).to(tokenizer.device) for group in near)
                whole = tokenizer.strides[0] if decoding.started else 1
                ids = tokenizer.encode(pad_to(target, (whole, *target.shape[3:])), encoding).clone()
                ids = self._choose(ids, before, decoding, target, later)
                if (ids != HELD_ID).any():
                    ids = self._searched(target, ids, before, decoding)
                    before = [*before, ids][-_PAST:]
                quality = self._quality(decode_next(tokenizer, ids, decoding), target)
                follow(tokenizer.encoder, encoding, tokenizer.decoder, decoding)
            yield SearchResult(ids, quality)

    @property
    def may_hold(self) -> bool:
        """Whether tokens may be left out: bits cost something, and the past of the tokens is one frame alone.

        Where bits cost nothing, a token that errs more than the frame before is bettered in place."""
        return self.price > 0 and isinstance(self.tokenizer.decoder, ConditionalDecoder)

    def _choose(
        self, ids: Tensor, before: list[Tensor], decoding: Stream, target: Tensor, later: list[Tensor]
    ) -> Int[Tensor, "1 1 h2 w2"]:
        """Return the ids of the next token frame, `HELD_ID` where they are held.

        `ids` are the encoder's. In another mode than the first, they compete with those of the first.
        """
        encoder, past = self.tokenizer.encoder, decoding.get(self.tokenizer.decoder) if self.may_hold else None
        if past is None or not isinstance(encoder, ConditionalEncoder):
            return ids
        candidates = [ids]
        if int(self._split(ids)[-1, 0]) and self._free < len(self._levels):
            frames = time_first(pad_to(target, (self.tokenizer.strides[0], *past.shape[3:])), self.tokenizer.dtype)
            candidates.append(first_mode(encoder, self.tokenizer.quantizer, frames, past))
        options = [_Option(torch.full_like(ids, HELD_ID))]
        options += [self._option(one, before, decoding, target, later) for one in candidates]
        some = options[-1]
        for _ in range(PASSES):
            if not (some.worth < 0).any():
                break
            some = self._option(some.ids.masked_fill(some.worth < 0, HELD_ID), before, decoding, target, later)
        if some.now > options[-1].now:
            options[-1] = some
        return max(options, key=lambda option: float(option.worth.sum())).ids

    def _option(
        self,
        ids: Int[Tensor, "1 1 h2 w2"],
        before: list[Tensor],
        decoding: Stream,
        target: Tensor,
        later: list[Tensor],
    ) -> "_Option":
        frame = _Frame(self, target, ids, before, decoding)
        made, past = frame.decoded(), decoding.get(self.tokenizer.decoder)
        assert past is not None
        past = crop_to(past.permute(1, 2, 0, 3, 4), (1, *size_of(target)[1:])).clamp(-1, 1)
        falls = [frame.by_token(_wrong(past, target) - _wrong(made, target))]
        falls += [frame.by_token(_wrong(past, group) - _wrong(made[:, :, -1:], group)) for group in later]
        cost = self.price * torch.from_numpy(frame.bits()).to(falls[0]).view(falls[0].shape)
        worth = torch.stack(falls).cumsum(0).amax(0) - cost
        return _Option(ids, worth[None, None], float((falls[0] - cost).sum()))

    def _searched(
        self,
        target: Float[Tensor, "1 3 f h w"],
        ids: Int[Tensor, "1 1 h2 w2"],
        before: list[Tensor],
        stream: Stream | None,
        inside: NDArray[np.bool_] | None = None,
        progress: Progress | None = None,
    ) -> Int[Tensor, "1 1 h2 w2"]:
        """Return ids of one latent frame with a J that is not above that of `ids`.

        `before` are the ids of the last latent frames, `stream` has decoded them; of `inside` alone, a flag for each
        token, ids may change; a held token stays so.
        """
        frame = _Frame(self, target, ids, before, stream)
        height, width = ids.shape[-2:]
        group = (np.arange(height)[:, None] % APART * APART + np.arange(width) % APART).reshape(-1)
        free = frame.is_coded if inside is None else inside & frame.is_coded
        places = [np.flatnonzero((group == number) & free) for number in range(APART**2)]
        best, kept = frame.cost(), frame.symbols.copy()
        for sweep in range(SWEEPS):
            for at in places:
                if at.size:
                    frame.visit(at)
            cost = frame.cost()
            if not cost < best:
                break
            best, kept = cost, frame.symbols.copy()
            if progress is not None:
                progress(sweep + 1, SWEEPS)
        found = torch.from_numpy(join(kept.reshape(-1, 1, height, width), self._levels))[None].to(ids.device)
        return found.masked_fill(ids == HELD_ID, HELD_ID)

    def _split(self, ids: Int[Tensor, "1 1 h2 w2"]) -> Integers:
        """Return the symbols of ids `k n`, zeros for those that are held."""
        return split(ids[0].clamp(min=0).cpu().numpy(), self._levels).reshape(len(self._levels), -1)

    def _quality(self, pixels: Tensor, target: Tensor) -> tuple[float, ...]:
        pixels = crop_to(pixels, (target.shape[2], *target.shape[3:]))
        wrong = (to_uint8(pixels).double() - to_uint8(target).double()).square()
        return tuple(_decibels(error) for error in wrong[0].flatten(1).mean(1).tolist())


class _Frame:
    """One latent frame under search: its symbols, what they cost and what the decoder makes of them."""

    def __init__(
        self, search: Search, target: Tensor, ids: Tensor, before: list[Tensor], stream: Stream | None
    ) -> None:
        self._search, self._target, self._stream = search, target, stream
        self._held = held if (held := ids == HELD_ID).any() else None
        self._grid = (int(ids.shape[-2]), int(ids.shape[-1]))
        self.symbols = search._split(ids)
        """`k n`."""
        self.is_coded = ~held.flatten().cpu().numpy()
        has_modes = search._free < len(search._levels)
        self._mode = int(self.symbols[-1, 0]) if has_modes and stream is not None and stream.started else 0
        self._canvas = Canvas((len(before) + 1, *self._grid), search._levels)
        for number, old in enumerate(before):
            known = (old != HELD_ID).flatten().cpu().numpy()
            self._canvas.write(self._places(number)[known], search._split(old)[:, known])
        self._places_here = self._places(len(before))
        self._canvas.write(self._places_here[self.is_coded], self.symbols[:, self.is_coded])

    def bits(self) -> Float64:
        """Return the bits of each token, none of a held one."""
        return self._priced(np.arange(self.symbols.shape[1]), self.symbols) * self.is_coded

    def cost(self) -> float:
        """J of all tokens."""
        return float(self._errors(self._codes(self.symbols)).sum()) + self._search.price * float(self.bits().sum())

    def decoded(self) -> Float[Tensor, "1 3 f h w"]:
        """Return what the decoder makes of the symbols, within the range of pixels."""
        return self._decoded(self._codes(self.symbols)).clamp(-1, 1)

    def visit(self, at: Integers) -> None:
        """Give the tokens at these places other symbols where that lowers J."""
        codes = self._codes(self.symbols).requires_grad_()
        with torch.enable_grad():
            errors = self._errors(codes)
            (gradient,) = torch.autograd.grad(errors.sum(), codes)
        old = self.symbols[:, at]
        new = self._proposed(at, self._rows(gradient)[at])
        if (new == old).all():
            return
        tried = self.symbols.copy()
        tried[:, at] = new
        change = self._around(self._errors(self._codes(tried)) - errors.detach())[at]
        bits = self._priced(at, new) - self._priced(at, old)
        better = (change + self._search.price * bits < 0) & (new != old).any(0)
        self.symbols[:, at[better]] = new[:, better]
        self._canvas.write(self._places_here[at], self.symbols[:, at])

    def _proposed(self, at: Integers, gradient: Float64) -> Integers:
        """Return the symbols `k n` that the model of J prefers."""
        table, prior = self._search._table, self._search.prior
        state, chosen = prior.heads(self._canvas.context(self._places_here[at])), []
        for digit, level in enumerate(self._search._levels[: self._search._free]):
            move = table[digit, :level] - table[digit, self.symbols[digit, at]][:, None]
            model = gradient[:, digit, None] * move + STEP * self._curvature[at, digit, None] * move**2
            symbol = (model + self._search.price * _bits(prior.weights(state, digit))).argmin(1)
            state = prior.learn(state, digit, symbol)
            chosen.append(symbol)
        return np.stack([*chosen, *self.symbols[self._search._free :, at]])

    def _priced(self, at: Integers, symbols: Integers) -> Float64:
        """Return the bits of tokens at these places with symbols `k n`."""
        prior, total = self._search.prior, np.zeros(at.size)
        state = prior.heads(self._canvas.context(self._places_here[at]))
        for digit, values in enumerate(symbols):
            total += _bits(prior.weights(state, digit))[np.arange(at.size), values]
            state = prior.learn(state, digit, values)
        return total

    @cached_property
    def _curvature(self) -> Float64:
        """The diagonal of J^T J of the decoder at the codes of now, `n k`, in the units of D."""
        rng, codes = torch.Generator().manual_seed(0), self._codes(self.symbols).requires_grad_()
        total = torch.zeros_like(codes)
        with torch.enable_grad():
            pixels = self._decoded(codes)
            for number in range(PROBES):
                signs = torch.randint(0, 2, pixels.shape, generator=rng).to(pixels) * 2 - 1
                (gradient,) = torch.autograd.grad((pixels * signs).sum(), codes, retain_graph=number + 1 < PROBES)
                total += gradient.float().square()
        return self._rows(total) * (_TO_8_BIT / PROBES)

    def _errors(self, codes: Tensor) -> Float[Tensor, "h2 w2"]:
        """Return D of the pixels of each token; of a token frame in a mode of a quarter, D of those pixels."""
        _, down, right = self._search.tokenizer.strides
        wrong = self._padded(_wrong(self._decoded(codes).clamp(-1, 1), self._target))
        if self._mode:
            mine = window(torch.tensor([self._mode], device=wrong.device), wrong.shape)[0]
            wrong, down, right = wrong[mine].view(wrong.shape[0] // 2, -1), down // 2, right // 2
        return wrong.view(self._grid[0], down, self._grid[1], right).sum((1, 3))

    def by_token(self, values: Float[Tensor, "h w"]) -> Float[Tensor, "h2 w2"]:
        """Return the sums of pixels' values over the squares of the first mode's tokens."""
        _, down, right = self._search.tokenizer.strides
        return self._padded(values).view(self._grid[0], down, self._grid[1], right).sum((1, 3))

    def _padded(self, values: Float[Tensor, "h w"]) -> Float[Tensor, "h2 w2"]:
        _, *sides = self._search.tokenizer.strides
        down, right = (n * side - size for n, side, size in zip(self._grid, sides, values.shape, strict=True))
        return F.pad(values, (0, right, 0, down))

    def _around(self, errors: Float[Tensor, "h2 w2"]) -> Float64:
        """Return the sums over the 3 x 3 tokens around each."""
        return F.avg_pool2d(errors[None, None], 3, 1, 1, divisor_override=1).double().flatten().cpu().numpy()

    def _decoded(self, codes: Tensor) -> Tensor:
        tokenizer, stream = self._search.tokenizer, None if self._stream is None else self._stream.fork()
        held = () if self._held is None else (self._held.transpose(0, 1),)
        pixels = tokenizer.decoder(time_first(codes, tokenizer.dtype), stream, *held).permute(1, 2, 0, 3, 4)
        return crop_to(pixels, size_of(self._target)).float()

    def _codes(self, symbols: Integers) -> Float[Tensor, "1 k 1 h2 w2"]:
        rows = np.stack([self._search._table[digit, values] for digit, values in enumerate(symbols)])
        device = self._target.device
        return torch.from_numpy(rows).float().view(1, -1, 1, *self._grid).to(device)

    def _rows(self, codes: Tensor) -> Float64:
        return codes[0].flatten(1).T.double().cpu().numpy()

    def _places(self, number: int) -> Integers:
        size = math.prod(self._grid)
        return np.arange(number * size, (number + 1) * size)


def _windows(
    frames: Iterable[UInt8[Tensor, "h w 3"]], stride: int, ahead: int
) -> Iterator[tuple[UInt8[Tensor, "t h w 3"], ...]]:
    """Cut a video into its first frame and groups of `stride`, the last maybe shorter; yield each with up to `ahead`
    groups after it."""
    source, near, count = iter(frames), deque[Tensor](), 1
    while True:
        while len(near) <= ahead and (group := list(islice(source, count))):
            near.append(torch.stack(group))
            count = stride
        if not near:
            return
        yield tuple(near)
        near.popleft()


def _wrong(shown: Float[Tensor, "1 3 f h w"], wanted: Float[Tensor, "1 3 f h w"]) -> Float[Tensor, "h w"]:
    """Return D of each pixel, over all frames; one frame that is shown stands for all."""
    return (shown - wanted).square().sum((0, 1, 2)) * _TO_8_BIT


def _decibels(error: float) -> float:
    return float(psnr(torch.tensor(max(error, LEAST_ERROR)), 255.0))


def _bits(weights: Integers) -> Float64:
    """Return -log2 of the probabilities of rows of weights; of one that is zero, those of half a weight."""
    return np.log2(weights.sum(-1, keepdims=True)) - np.log2(np.maximum(weights, 0.5))
