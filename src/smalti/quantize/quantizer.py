"""The common part of all quantizers: any layout before one inner layout, and ids, digits and codes as one bijection;
and the two whose values are fixed, FSQ and LFQ.

A latent is `b d`, `b d n`, `b d h w` or `b d t h w`; its ids have the same shape without the channels. Inside there is
one layout, rows: `n d`, one row a position, in the order of the ids. A kind of quantizer sees rows alone.

A quantizer has digits, one integer below `levels[j]` each; an id is the digits in mixed radix (digit 0 least
significant). A scalar quantizer has a digit for each channel, a codebook a single one. Ids and digits are integer
arithmetic throughout, so they are exact up to 2^62 codes and under any autocast. `ScalarQuantizer` is the common part
of LFQ, FSQ and DSQ, whose digits are found by comparing, never by rounding.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int, Integer, Shaped
from pydantic import Field, model_validator
from torch import Tensor, nn

from smalti.config import Config, Tuple
from smalti.devices import is_in_graph
from smalti.errors import BadTensor
from smalti.quantize.entropy import WholeCode, batch_entropy, soft_digits, token_entropy
from smalti.video import describe, to_int64

LARGEST_CODEBOOK = 2**62
"""Ids are int64; two bits are left for sums of ids."""

_LAYOUTS = "b d, b d n, b d h w or b d t h w"
_ID_LAYOUTS = "b, b n, b h w or b t h w"


class Quantized(NamedTuple):
    """The result of a quantizer for a latent."""

    codes: Float[Tensor, "b d ..."]
    """Codes in the shape of the latent, all that the decoder sees; gradients pass straight through to z."""
    ids: Integer[Tensor, "b ..."]
    """Ids in the shape of the latent without its channels, int64."""
    losses: Mapping[str, Tensor]
    """Unweighted scalars by name, those that the config asks for."""


class Quantizer(nn.Module, ABC):
    """A layer from latents to codes and ids, for z of `b d`, `b d n`, `b d h w` or `b d t h w`.

    Laws (tests/quantize): `codes == decode(encode(z))`, `ids(digits(i)) == i` for every id, each layout has the ids and
    codes of every other bit for bit, and so have bf16 and fp16 autocast, because all arithmetic inside is float32
    (float64 for a float64 z). Raises BadTensor, a ValueError of one line, for a tensor that cannot be right. What can
    only be seen in the values (NaN, ids out of range) is checked in eager mode, not in a compiled, exported or captured
    graph.
    """

    def __init__(self, levels: Sequence[int], dim: int) -> None:
        super().__init__()
        self.levels = tuple(levels)
        """Values of each digit."""
        self.dim = dim
        """Channels of a latent and of its codes."""
        self.codebook_size = math.prod(self.levels)
        self._constants: dict[str, Tensor] = {}
        self._basis: Tensor
        self._level_counts: Tensor
        self.constant("_basis", torch.tensor([math.prod(self.levels[:j]) for j in range(len(self.levels))]))
        self.constant("_level_counts", torch.tensor(self.levels))

    def constant(self, name: str, exact: Tensor) -> None:
        """Register a fixed table: float32, or float64 to its last bit once the module is double."""
        self._constants[name] = exact
        self.register_buffer(name, exact.float() if exact.is_floating_point() else exact, persistent=False)

    @abstractmethod
    def quantize(self, z: Float[Tensor, "n d"]) -> Integer[Tensor, "n k"]:
        """Find the digits of rows of latents."""

    @abstractmethod
    def look_up(self, digits: Integer[Tensor, "n k"]) -> Float[Tensor, "n d"]:
        """Return the codes of rows of digits within their levels."""

    @abstractmethod
    def pass_through(
        self, z: Float[Tensor, "n d"], digits: Integer[Tensor, "n k"], whole: WholeCode | None = None
    ) -> tuple[Float[Tensor, "n d"], dict[str, Tensor]]:
        """Return the codes of those digits, bit for bit `look_up(digits)`, with a gradient to z, and the losses.

        `whole` is for rows that are a part of a batch: see `batch_entropy`."""

    @abstractmethod
    def recognise(self, codes: Float[Tensor, "n d"]) -> tuple[Integer[Tensor, "n k"], Float[Tensor, " n"]]:
        """Return the digits whose codes are nearest to rows of codes, and how far off each row is.

        Distances are in shares of the distance to the next code: 0 is a code, 0.5 the middle between two."""

    def forward(self, z: Float[Tensor, "b d ..."], whole: WholeCode | None = None, *, check: bool = True) -> Quantized:
        """Return codes with straight-through gradient, ids, and the losses of the config.

        `whole` is for a z that is part of a batch: see `smalti.quantize.entropy.batch_entropy`.

        A z that is not finite is refused, but not while gradients are recorded and not without `check`: there its codes
        are NaN, also of a frozen encoder, so that the loss shows it and a training step can skip, and nothing waits for
        the device.
        """
        self._check_latent("z", z)
        refused = check and not torch.is_grad_enabled()
        if refused:
            _check_finite("z", z)
        with torch.autocast(z.device.type, enabled=False):
            rows = _exact(_to_rows(z))
            digits = self.quantize(rows)
            codes, losses = self.pass_through(rows, digits, whole)
            if not refused:
                codes = codes.masked_fill(~rows.detach().isfinite().all(1, keepdim=True), torch.nan)
            return Quantized(_from_rows(codes, z), self._number(digits).view(_positions(z)), losses)

    def encode(self, z: Float[Tensor, "b d ..."]) -> Integer[Tensor, "b ..."]:
        """Return the ids of a latent. Raises BadTensor for another shape, and where z is not finite: that has none."""
        self._check_latent("z", z)
        _check_finite("z", z)
        with torch.autocast(z.device.type, enabled=False):
            return self._number(self.quantize(_exact(_to_rows(z)))).view(_positions(z))

    def nearest(self, z: Float[Tensor, "b d ..."]) -> tuple[Integer[Tensor, "b ..."], Float[Tensor, "b d ..."]]:
        """Return the ids and codes of a latent without gradients: those of `encode` and `decode`, but nothing waits for
        the device. Where z is not finite, codes are NaN and the id says nothing."""
        self._check_latent("z", z)
        with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
            rows = _exact(_to_rows(z))
            is_finite = rows.isfinite().all(1, keepdim=True)
            digits = self.quantize(rows.where(is_finite, 0))
            codes = self.look_up(digits).masked_fill(~is_finite, torch.nan)
            return self._number(digits).view(_positions(z)), _from_rows(codes, z)

    def decode(self, ids: Integer[Tensor, "b ..."], *, check: bool = True) -> Float[Tensor, "b d ..."]:
        """Return the codes of ids of any integer type, bit for bit those that `forward` gave.

        Raises BadTensor for ids that are no integers or outside [0, codebook_size); without `check` it waits for no
        device to see values.
        """
        digits = self.digits(ids, check=check)
        with torch.autocast(ids.device.type, enabled=False):
            return _from_rows(self.look_up(_to_rows(digits)), digits)

    def indices_to_codes(self, ids: Integer[Tensor, "b ..."]) -> Float[Tensor, "b d ..."]:
        """Return the codes of ids, as `decode` does under its own name."""
        return self.decode(ids)

    def codes_to_indices(self, codes: Float[Tensor, "b d ..."]) -> Integer[Tensor, "b ..."]:
        """Return the ids of codes: `codes_to_indices(indices_to_codes(ids))` is ids, for codes in half precision too.

        Raises BadTensor where a row is farther from every code than a quarter of the way to the next: those are
        latents, whose ids `encode` finds.
        """
        self._check_latent("codes", codes)
        _check_finite("codes", codes)
        with torch.autocast(codes.device.type, enabled=False):
            digits, off = self.recognise(_exact(_to_rows(codes)))
            if not is_in_graph() and (count := int((off > 0.25).sum())):
                raise BadTensor(
                    f"codes: {count:,} of {len(off):,} are no codes of this quantizer; encode takes latents"
                )
            return self._number(digits).view(_positions(codes))

    def digits(self, ids: Integer[Tensor, "b ..."], *, check: bool = True) -> Integer[Tensor, "b k ..."]:
        """Return the mixed-radix digits of ids. Raises BadTensor for an id outside [0, codebook_size), unless it is
        not to `check`."""
        if not isinstance(ids, Tensor) or not 1 <= ids.ndim <= 4:
            raise BadTensor(f"ids must be a tensor {_ID_LAYOUTS} (found {describe(ids)})")
        numbers = _integers("ids", ids, self.codebook_size if check else None).unsqueeze(1)
        shape = (1, -1, *(1,) * (ids.ndim - 1))
        return numbers // self._basis.view(shape) % self._level_counts.view(shape)

    def ids(self, digits: Integer[Tensor, "b k ..."]) -> Integer[Tensor, "b ..."]:
        """Return the ids of digits. Raises BadTensor for a digit outside [0, levels[j])."""
        count = len(self.levels)
        if not isinstance(digits, Tensor) or not 2 <= digits.ndim <= 5 or digits.shape[1] != count:
            raise BadTensor(f"digits must be a tensor b {count} ..., one a level (found {describe(digits)})")
        columns = [_integers(f"digit {j}", digits[:, j], level) for j, level in enumerate(self.levels)]
        return self._number(torch.stack(columns, -1))

    def _number(self, digits: Integer[Tensor, "... k"]) -> Integer[Tensor, "..."]:
        """Return the ids of digits in the last axis, unchecked."""
        return (digits.long() * self._basis).sum(-1)

    def _check_latent(self, name: str, z: Tensor) -> None:
        if not isinstance(z, Tensor) or not z.is_floating_point() or not 2 <= z.ndim <= 5:
            raise BadTensor(f"{name} must be a floating-point tensor {_LAYOUTS} (found {describe(z)})")
        if z.shape[1] != self.dim:
            hint = f"; with the channels last: {name}.movedim(-1, 1)" if z.shape[-1] == self.dim else ""
            raise BadTensor(f"{name} must have {self.dim} channels in axis 1: {_LAYOUTS} (found {describe(z)}){hint}")
        if not torch.compiler.is_compiling() and not z.numel():
            raise BadTensor(f"{name} is empty (found {describe(z)})")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Quantizer":
        """Move as any module does, but stay float32 when the rest of a model is made half precision (a rounded
        threshold is another quantizer), and make the tables anew for the new precision and device."""

        def keep(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.dtype in (torch.float16, torch.bfloat16) else moved

        super()._apply(keep, recurse)  # type: ignore[no-untyped-call, unused-ignore]
        for name, exact in self._constants.items():
            moved = self.get_buffer(name)
            self.register_buffer(name, exact.to(moved.device, moved.dtype), persistent=False)
        return self


def straight_through(surrogate: Tensor, values: Tensor) -> Tensor:
    """Return the values untouched, with the gradient of the surrogate; adding and subtracting it would move them by an
    ulp. Both have one shape."""
    through: Tensor = _StraightThrough.apply(surrogate, values)  # type: ignore[no-untyped-call, unused-ignore]
    return through


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, surrogate: Tensor, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def _to_rows(x: Shaped[Tensor, "b d ..."]) -> Shaped[Tensor, "n d"]:
    return x.movedim(1, -1).reshape(-1, x.shape[1])


def _from_rows(rows: Float[Tensor, "n d"], like: Shaped[Tensor, "b c ..."]) -> Float[Tensor, "b d ..."]:
    return rows.view(*_positions(like), rows.shape[1]).movedim(-1, 1)


def _positions(x: Tensor) -> tuple[int, ...]:
    return (x.shape[0], *x.shape[2:])


def _exact(z: Tensor) -> Tensor:
    return z if z.dtype == torch.float64 else z.float()


def _check_finite(name: str, x: Tensor) -> None:
    if not is_in_graph() and not torch.isfinite(x).all():
        raise BadTensor(f"{name} has {int((~torch.isfinite(x)).sum()):,} values that are not finite (NaN or infinite)")


def _integers(name: str, numbers: Tensor, end: int | None) -> Tensor:
    """Return integers of any type as int64. Raises BadTensor for none, another type, and one outside [0, end) if there
    is an end."""
    whole = to_int64(name, numbers, 0, end, "this quantizer")
    if not (torch.compiler.is_compiling() or numbers.numel()):
        raise BadTensor(f"{name}: there are none (found shape {tuple(numbers.shape)})")
    return whole


LARGEST_BATCH_ENTROPY = 2**24
"""The marginal over all codes is one float each: 64 MB here, twice that with its gradient."""

LossName = Literal["token_entropy", "batch_entropy", "commitment"]


class ScalarQuantizerConfig(Config):
    """The fields that every scalar quantizer has."""

    temperature: float = Field(1.0, gt=0)
    """Temperature of the soft digits in the entropies: p(digit) ~ exp(-(z - value)^2 / temperature). The paper's LFQ
    has 0.01, where the entropy has no gradient once |z| > 0.03; at 1 it still pulls at |z| = 1."""
    losses: Tuple[LossName] = ()
    """Losses that `forward` returns, unweighted."""

    @property
    def digit_levels(self) -> tuple[int, ...]:
        """Values per channel."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _within_limits(self) -> "ScalarQuantizerConfig":
        levels = self.digit_levels
        if not levels or min(levels) < 2:
            raise ValueError(f"every channel needs at least 2 levels (found {list(levels)})")
        size = math.prod(levels)
        if size > LARGEST_CODEBOOK:
            raise ValueError(f"{size:,} codes are more than 2^62, the most that an id can name")
        if size > LARGEST_BATCH_ENTROPY and "batch_entropy" in self.losses:
            raise ValueError(f"batch_entropy is exact over all codes and takes at most 2^24 of them (found {size:,})")
        return self


class ScalarQuantizer(Quantizer):
    """A quantizer that treats each channel of z on its own: a digit a channel, whose value is looked up.

    A kind has a surrogate, thresholds and values; everything here is in rows, `n d`, one row a position.
    """

    def __init__(self, config: ScalarQuantizerConfig) -> None:
        super().__init__(config.digit_levels, len(config.digit_levels))
        self.config = config

    @abstractmethod
    def surrogate(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The differentiable path from z to the scale of `values`; the straight-through gradient flows along it."""

    @abstractmethod
    def quantize(self, z: Float[Tensor, "n d"]) -> Int[Tensor, "n d"]:
        """The digit of every channel: how many of its thresholds z exceeds."""

    @abstractmethod
    def values(self) -> Float[Tensor, "d l"]:
        """The value of each digit, before `scale_codes`; rows of channels with fewer levels are padded at the end."""

    def scale_codes(self, values: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """A per-channel map from values to codes; the identity unless the quantizer learns one."""
        return values

    def look_up(self, digits: Int[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Return the code of each digit."""
        return self.scale_codes(self._values_of(digits))

    def pass_through(
        self, z: Float[Tensor, "n d"], digits: Int[Tensor, "n d"], whole: WholeCode | None = None
    ) -> tuple[Float[Tensor, "n d"], dict[str, Tensor]]:
        """Return the codes of digits with the gradient of the surrogate, and the losses that the config asks for."""
        surrogate, values = self.surrogate(z), self._values_of(digits)
        return self.scale_codes(straight_through(surrogate, values)), self._losses(surrogate, values, whole)

    def recognise(self, codes: Float[Tensor, "n d"]) -> tuple[Int[Tensor, "n d"], Float[Tensor, " n"]]:
        """Return the nearest digits channel by channel, and the largest distance over the channels."""
        table = self.code_table()
        present = torch.arange(table.shape[1], device=table.device) < self._level_counts[:, None]
        far = (codes.unsqueeze(-1) - table).abs().masked_fill(~present, torch.inf)
        distance, digits = far.min(-1)
        steps = table.diff(dim=1).abs().masked_fill(~present[:, 1:], torch.inf).amin(1)
        return digits, (distance / steps).amax(1)

    def code_table(self) -> Float[Tensor, "d l"]:
        """Return the code of each digit; rows of channels with fewer levels are padded at the end."""
        return self.scale_codes(self.values().T).T  # a column of values is a row of channels

    def _values_of(self, digits: Int[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        return self.values()[torch.arange(self.dim, device=digits.device), digits]

    def _losses(self, surrogate: Tensor, values: Tensor, whole: WholeCode | None) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        wanted = self.config.losses
        if "commitment" in wanted:
            losses["commitment"] = (surrogate - values).square().mean()
        if "token_entropy" in wanted or "batch_entropy" in wanted:
            log_p = soft_digits(surrogate, self.values(), self.levels, self.config.temperature)
            if "token_entropy" in wanted:
                losses["token_entropy"] = token_entropy(log_p)
            if "batch_entropy" in wanted:
                losses["batch_entropy"] = batch_entropy(log_p, self.levels, whole)
        return losses


MARGIN = 1e-3
"""Share by which the squash ends beyond the outermost values (`wide`) or before them (`paper`)."""
Squash = Literal["wide", "paper"]


class FSQConfig(ScalarQuantizerConfig):
    """`levels[j]` values in channel j: prod(levels) codes (Mentzer et al. 2023, arXiv 2309.15505)."""

    kind: Literal["fsq"] = "fsq"
    levels: Tuple[int] = (8, 8, 8, 5, 5, 5)
    """Values of each channel, at least 2; their product is the codebook size, here 64,000."""
    squash: Squash = "wide"
    """Squash of z: `wide` is that of MagicMaster and vector-quantize-pytorch, whose b(0) is 0; `paper` that of the
    authors' code, a little narrower, with another shift where the number of levels is even. Their ids differ near the
    thresholds, so a model keeps the one that it was trained with."""

    @property
    def digit_levels(self) -> tuple[int, ...]:
        """Values per channel."""
        return self.levels

    def build(self) -> "FSQ":
        """The quantizer."""
        return FSQ(self)


class FSQ(ScalarQuantizer):
    """Squashes and rounds each channel.

    For L levels: h = (L-1)(1+1e-3)/2, o = 1/2 for even L else 0, s = atanh(o/h), b = h tanh(z+s) - o.

    With the paper's squash h = (L-1)(1-1e-3)/2 and s = tan(o/h) (google-research/fsq; its page has no formula of s).

    The digit is round(b) + floor(L/2), the code round(b) / floor(L/2), the surrogate b / floor(L/2). Rounding is done
    by comparing z with the points where b crosses a half: atanh((k + 1/2 + o) / h) - s.
    """

    def __init__(self, config: FSQConfig) -> None:
        super().__init__(config)
        rows = [_channel(level, max(config.levels), config.squash) for level in config.levels]
        self._squash: Tensor
        self._thresholds: Tensor
        self._values: Tensor
        for j, name in enumerate(("_squash", "_thresholds", "_values")):
            self.constant(name, torch.tensor([row[j] for row in rows], dtype=torch.float64))

    def surrogate(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The squashed z, in the units of the codes."""
        half, offset, shift, step = self._squash.T
        return (half * torch.tanh(z + shift) - offset) / step

    def quantize(self, z: Float[Tensor, "n d"]) -> Int[Tensor, "n d"]:
        """How many thresholds z exceeds."""
        return (z.unsqueeze(-1) > self._thresholds).sum(-1)

    def values(self) -> Float[Tensor, "d l"]:
        """(digit - floor(L/2)) / floor(L/2)."""
        return self._values


def _channel(level: int, most: int, squash: Squash) -> tuple[list[float], list[float], list[float]]:
    """(h, o, s, floor(L/2)), the L-1 thresholds padded with infinity, the L values padded with zero."""
    # h and s are rounded to float32, as they are in the public implementations: the thresholds then agree to 1e-9.
    half32 = (torch.tensor(level, device="cpu") - 1) * (1 + MARGIN if squash == "wide" else 1 - MARGIN) / 2
    offset, step = 0.5 if level % 2 == 0 else 0.0, level // 2
    half, shift = half32.item(), ((offset / half32).atanh() if squash == "wide" else (offset / half32).tan()).item()
    thresholds = [math.atanh((k + 0.5 + offset) / half) - shift for k in range(-step, level - 1 - step)]
    values = [(digit - step) / step for digit in range(level)]
    padding = most - level
    return [half, offset, shift, float(step)], thresholds + [math.inf] * padding, values + [0.0] * padding


class LFQConfig(ScalarQuantizerConfig):
    """`bits` channels of two levels each: 2^bits codes (Yu et al. 2023, MAGVIT-v2, arXiv 2310.05737, section 3)."""

    kind: Literal["lfq"] = "lfq"
    bits: int = Field(18, ge=1, le=62)
    """Number of channels, one bit each; the codebook has 2^bits codes."""
    losses: Tuple[LossName] = ("token_entropy", "batch_entropy", "commitment")
    """Losses that `forward` returns, unweighted. Without an entropy loss nothing keeps the codes in use."""

    @property
    def digit_levels(self) -> tuple[int, ...]:
        """Two values per channel."""
        return (2,) * self.bits

    def build(self) -> "LFQ":
        """The quantizer."""
        return LFQ(self)


class LFQ(ScalarQuantizer):
    """Takes the sign of each channel: code = +1 where z > 0, else -1; the gradient passes unchanged (surrogate z)."""

    def __init__(self, config: LFQConfig) -> None:
        super().__init__(config)
        self._values: Tensor
        self.constant("_values", torch.tensor([[-1.0, 1.0]] * config.bits))

    def surrogate(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Z itself."""
        return z

    def quantize(self, z: Float[Tensor, "n d"]) -> Int[Tensor, "n d"]:
        """1 where z > 0 (strictly: zero is digit 0)."""
        return (z > 0).long()

    def values(self) -> Float[Tensor, "d l"]:
        """-1 and +1."""
        return self._values


@contextmanager
def watch_latents(quantizer: nn.Module) -> Iterator[list[Tensor]]:
    """Yield a list that fills with the latents which the quantizer is called with inside the block."""
    latents: list[Tensor] = []
    handle = quantizer.register_forward_pre_hook(lambda _, inputs: latents.append(inputs[0]))
    try:
        yield latents
    finally:
        handle.remove()
