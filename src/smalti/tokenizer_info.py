"""Facts of the tokenizer that made some ids, and the one check that another tokenizer is not used with them.

For the tokenizer of another project: where it is from, and how that project writes its ids.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

from jaxtyping import Int, Integer
from torch import Tensor

from smalti.config import Config, Triple, Tuple
from smalti.errors import BadTensor, InputError, IntegrityError
from smalti.video import describe, to_int64, whole_numbers

WHOLE_GROUPS = "the last column, row and frame repeat up to s*n frames and whole strides"
"""`padding` where the first latent holds a whole group of frames."""

PixelRange = Literal["signed", "unit"]
"""[-1, 1], or [0, 1]."""


class SourceIds(Config):
    """Form in which the project of a tokenizer writes its ids, against ours (`b t h w`, or `b h w` of images).

    The number of a code is the same but for `offset`: where a project counts its digits from the other end, its
    importer has turned the order of the channels.
    """

    layout: Literal["flat", "grid"] = "flat"
    """One row of ids per image or video, in the order of time, height and width, or their grid."""
    offset: int = 0
    """Number of code 0 there."""
    word: str | None = None
    """Word of an id in the vocabulary of the project's language model, as `<|visual token {:06d}|>`; null if none."""

    def to_source(self, ids: Integer[Tensor, "b *grid"], codes: int | None = None) -> Int[Tensor, "b *source"]:
        """Return our ids, of any integer type, in the project's form, as int64.

        Raises BadTensor for what are no ids `b t h w` or `b h w`, and for one outside [0, codes) where `codes`, the
        number of codes, is given.
        """
        ids = _whole_ids(ids, 0, codes)
        if ids.ndim not in (3, 4):
            hint = "; without a batch: ids[None]" if ids.ndim in (1, 2) else ""
            raise BadTensor(f"ids must be b t h w, or b h w for images (found {describe(ids)}){hint}")
        return (ids.flatten(1) if self.layout == "flat" else ids) + self.offset

    def from_source(
        self, ids: Integer[Tensor, "b *source"], grid: Sequence[int] | None = None, codes: int | None = None
    ) -> Int[Tensor, "b *grid"]:
        """Return the project's ids, of any integer type, in our form, as int64; flat ones need their `grid`, (frames,
        height, width) or (height, width) in tokens.

        Raises InputError where the grid is not given or does not fit, BadTensor for what are no ids with a batch, and
        for one outside [offset, offset + codes) where `codes`, the number of codes, is given.
        """
        ids = _whole_ids(ids, self.offset, codes) - self.offset
        if self.layout == "grid":
            if ids.ndim not in (3, 4):
                raise BadTensor(f"ids there are b t h w, or b h w of images (found {describe(ids)})")
            return ids
        if ids.ndim < 2:
            raise BadTensor(f"ids there are rows, b n (found {describe(ids)}); without a batch: ids[None]")
        sizes = () if grid is None else whole_numbers("grid", grid)
        tokens = math.prod(ids.shape[1:])
        if len(sizes) not in (2, 3) or min(sizes) < 1 or math.prod(sizes) != tokens:
            raise InputError(f"{tokens} ids in a row need their grid, as grid=(height, width) in tokens (found {grid})")
        return ids.reshape(len(ids), *sizes)


def _whole_ids(ids: Tensor, first: int, codes: int | None) -> Int[Tensor, "..."]:
    """Return ids of any integer type as int64: in a narrow one an offset would wrap around. Raises BadTensor for what
    are none, and for one outside [first, first + codes)."""
    if not isinstance(ids, Tensor):
        hint = "; of numpy: torch.from_numpy(ids)" if type(ids).__module__ == "numpy" else ""
        raise BadTensor(f"ids must be an integer tensor (found {describe(ids)}){hint}")
    return to_int64("ids", ids, first, None if codes is None else first + codes, "this tokenizer's ids")


class TokenizerSource(Config):
    """Origin of the tokenizer of another project, and what that project does around it."""

    family: str
    """Name of its family, as `smalti zoo` lists it."""
    network: str
    """Name of the network in its project."""
    name: str
    """File or repository that it was imported from."""
    revision: str | None = None
    """Commit of the repository; null for a local file."""
    sha256: str
    """Digest of the file; of several, of their digests."""
    weights: Literal["average", "live", "bare"]
    """EMA weights, live ones, or those of a file with one copy."""
    licence: str
    """Licence of the weights, as their project publishes them; `not stated` where it does not say."""
    licence_source: str | None = None
    """Place where that licence is stated."""
    pixels: PixelRange = "signed"
    """Range of the pixels there; ours is always [-1, 1]."""
    preprocessing: str
    """Resize and crop before its encoder."""
    ids: SourceIds = SourceIds()

    def facts(self) -> dict[str, Any]:
        """Return what is known of the project as plain data, its range of the pixels in numbers."""
        plain = {name: value for name, value in self.plain().items() if value is not None}
        plain["pixels"] = "[-1, 1]" if self.pixels == "signed" else "[0, 1]"
        plain["ids"] = {name: value for name, value in plain["ids"].items() if value is not None}
        return plain


class TokenizerInfo(Config):
    """Facts of a tokenizer that give ids their meaning. Token sets, compressed files and generators record them."""

    fingerprint: str
    """Sha256 of its config and weights."""
    levels: Tuple[int]
    """Values of each digit; digit 0 is the least significant of an id."""
    codebook_size: int
    strides: Triple[int]
    """Frames, height and width in pixels of one token."""
    digit_order: str = "id = sum of digit[j] * levels[0] * ... * levels[j - 1]: digit 0 is the least significant"
    padding: str = "the last column, row and frame repeat up to 1 + s*n frames and whole strides"
    first_frames: int = 1
    """Frames of the first latent: 1, or a whole group (VidTok's networks that are not causal)."""
    source_ids: SourceIds | None = None
    """Form of the ids in the project that the tokenizer is from; null for one of ours."""

    def plain(self) -> dict[str, Any]:
        """Return plain data, without `source_ids` where there are none and `first_frames` where it is 1: as it was
        before there were such tokenizers."""
        plain = super().plain()
        absent = {"source_ids"} if self.source_ids is None else set()
        absent |= {"first_frames"} if self.first_frames == 1 else set()
        return {name: value for name, value in plain.items() if name not in absent}

    def check(self, tokenizer: "TokenizerInfo", where: object) -> None:
        """Raise IntegrityError, naming `where`, unless `tokenizer` is the tokenizer with these facts."""
        for name in ("levels", "strides"):
            wanted, actual = getattr(self, name), getattr(tokenizer, name)
            if wanted != actual:
                mine, other = self.fingerprint[:16], tokenizer.fingerprint[:16]
                raise IntegrityError(
                    f"{where}: made by a tokenizer with {name} {wanted} ({mine}...), this one has {actual} "
                    f"({other}...): use the tokenizer that made it"
                )
        check_fingerprint(self.fingerprint, tokenizer.fingerprint, where)


def check_fingerprint(wanted: str, actual: str, where: object) -> None:
    """Raise IntegrityError, naming `where`, unless the tokenizer that made the ids of `where` is the present one."""
    if wanted != actual:
        raise IntegrityError(
            f"{where}: made by the tokenizer {wanted[:16]}..., this one is {actual[:16]}...; its ids mean nothing to "
            "another one: use the tokenizer that made it"
        )
