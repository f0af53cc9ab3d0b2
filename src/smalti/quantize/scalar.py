"""The common part of LFQ, FSQ and DSQ: one digit per channel, and ids, digits and codes as one bijection.

Each channel j of a latent takes one of `levels[j]` values. A digit says which one, an id is the digits in mixed radix
(digit 0 least significant), a code is the value looked up from the digit. Ids and digits are integer arithmetic
throughout, so they are exact up to 2^62 codes and under any autocast.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from smalti.config import Config, Tuple
from smalti.quantize.entropy import batch_entropy, soft_digits, token_entropy

LARGEST_CODEBOOK = 2**62
"""Ids are int64; two bits are left for sums of ids."""
LARGEST_BATCH_ENTROPY = 2**24
"""The marginal over all codes is one float each: 64 MB here, twice that with its gradient."""

LossName = Literal["token_entropy", "batch_entropy", "commitment"]


class Quantized(NamedTuple):
    """The result of a quantizer for a latent."""

    codes: Float[Tensor, "b d t h w"]
    """Codes, all that the decoder sees; gradients pass straight through to z."""
    ids: Int[Tensor, "b t h w"]
    losses: Mapping[str, Tensor]
    """Unweighted scalars by name, those that the config asks for."""


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


class ScalarQuantizer(nn.Module, ABC):
    """A quantizer that treats each channel of z on its own.

    Laws (tests/quantize/test_quantizers.py): `codes == decode(encode(z))`, `ids(digits(i)) == i` for every id, and both
    hold bit for bit under bf16 and fp16 autocast, because all arithmetic inside is float32 (float64 for a float64 z).
    """

    def __init__(self, config: ScalarQuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.levels = config.digit_levels
        self.dim = len(self.levels)
        self.codebook_size = math.prod(self.levels)
        self._constants: dict[str, Tensor] = {}
        self._basis: Tensor
        self._level_counts: Tensor
        self.constant("_basis", torch.tensor([math.prod(self.levels[:j]) for j in range(self.dim)]))
        self.constant("_level_counts", torch.tensor(self.levels))

    def constant(self, name: str, exact: Tensor) -> None:
        """Register a fixed table: float32, or float64 to its last bit once the module is double."""
        self._constants[name] = exact
        self.register_buffer(name, exact.float() if exact.is_floating_point() else exact, persistent=False)

    @abstractmethod
    def surrogate(self, z: Float[Tensor, "b d t h w"]) -> Float[Tensor, "b d t h w"]:
        """The differentiable path from z to the scale of `values`; the straight-through gradient flows along it."""

    @abstractmethod
    def quantize(self, z: Float[Tensor, "b d t h w"]) -> Int[Tensor, "b d t h w"]:
        """The digit of every channel: how many of its thresholds z exceeds."""

    @abstractmethod
    def values(self) -> Float[Tensor, "d l"]:
        """The value of each digit, before `scale_codes`; rows of channels with fewer levels are padded at the end."""

    def scale_codes(self, values: Float[Tensor, "b d t h w"]) -> Float[Tensor, "b d t h w"]:
        """A per-channel map from values to codes; the identity unless the quantizer learns one."""
        return values

    def forward(self, z: Float[Tensor, "b d t h w"], whole: Callable[[Tensor], Tensor] | None = None) -> Quantized:
        """Codes with straight-through gradient, ids, and the losses of the config.

        `whole` is for a z that is part of a batch: see `smalti.quantize.entropy.batch_entropy`.
        """
        with torch.autocast(z.device.type, enabled=False):
            z = _exact(z)
            digits = self.quantize(z)
            surrogate = self.surrogate(z)
            values = self._look_up(digits)
            through: Tensor = _StraightThrough.apply(surrogate, values)  # type: ignore[no-untyped-call]
            codes = self.scale_codes(through)
            return Quantized(codes, self.ids(digits, check=False), self._losses(surrogate, values, whole))

    def encode(self, z: Float[Tensor, "b d t h w"]) -> Int[Tensor, "b t h w"]:
        """The ids of a latent. Raises ValueError where z is not finite: such a position has no digit."""
        with torch.autocast(z.device.type, enabled=False):
            z = _exact(z)
            if not torch.isfinite(z).all():
                raise ValueError(f"the latent has {int((~torch.isfinite(z)).sum())} values that are not finite")
            return self.ids(self.quantize(z), check=False)

    def decode(self, ids: Int[Tensor, "b t h w"]) -> Float[Tensor, "b d t h w"]:
        """The codes of ids, bit for bit those that `forward` gave. Raises ValueError for an id out of range."""
        with torch.autocast(ids.device.type, enabled=False):
            return self.scale_codes(self._look_up(self.digits(ids)))

    def digits(self, ids: Int[Tensor, "b t h w"]) -> Int[Tensor, "b k t h w"]:
        """The mixed-radix digits of ids. Raises ValueError for an id outside [0, codebook_size)."""
        _check_range("id", ids, self.codebook_size)
        basis, levels = self._basis.view(-1, 1, 1, 1), self._level_counts.view(-1, 1, 1, 1)
        return ids.long().unsqueeze(1) // basis % levels

    def ids(self, digits: Int[Tensor, "b k t h w"], check: bool = True) -> Int[Tensor, "b t h w"]:
        """The ids of digits. Raises ValueError for a digit outside [0, levels[j])."""
        if check:
            for j, level in enumerate(self.levels):
                _check_range(f"digit {j}", digits[:, j], level)
        return (digits.long() * self._basis.view(-1, 1, 1, 1)).sum(1)

    def _look_up(self, digits: Tensor) -> Tensor:
        table = self.values()
        channel = torch.arange(self.dim, device=digits.device).view(-1, 1, 1, 1)
        return table[channel, digits]

    def _losses(self, surrogate: Tensor, values: Tensor, whole: Callable[[Tensor], Tensor] | None) -> dict[str, Tensor]:
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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ScalarQuantizer":
        """Moves as any module does, but stays float32 when the rest of a model is made half precision (a rounded
        threshold is another quantizer), and makes its tables anew for the new precision and device."""

        def keep(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.dtype in (torch.float16, torch.bfloat16) else moved

        super()._apply(keep, recurse)  # type: ignore[no-untyped-call]
        for name, exact in self._constants.items():
            moved = self.get_buffer(name)
            self.register_buffer(name, exact.to(moved.device, moved.dtype), persistent=False)
        return self


class _StraightThrough(torch.autograd.Function):
    """Forward gives the hard values untouched (adding and subtracting the surrogate would move them by an ulp);
    backward gives the gradient to the surrogate."""

    @staticmethod
    def forward(ctx: Any, surrogate: Tensor, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def _exact(z: Tensor) -> Tensor:
    return z if z.dtype == torch.float64 else z.float()


def _check_range(what: str, integers: Tensor, end: int) -> None:
    if integers.is_floating_point() or integers.is_complex():
        raise ValueError(f"{what}s must be integers (found {integers.dtype})")
    if integers.numel():
        low, high = (int(v) for v in integers.aminmax())
        if low < 0 or high >= end:
            raise ValueError(f"{what} {low if low < 0 else high} is outside [0, {end})")
