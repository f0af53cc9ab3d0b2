"""Compare an exported tokenizer with the one it was made from: every id of some media, whole and streamed.

Sums in another order move a latent by its rounding error, and one on a threshold then has another id. Such a tie is
known by its margin: how far the latent would have to move, against how far float32 is from float64 at all.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from smalti.pipeline.runtimes import Exported
from smalti.quantize import Quantizer
from smalti.tokenizer import Tokenizer

_ROUNDING = 4
"""Rounding errors of PyTorch itself up to which a margin is a tie: sums in another order have an error of their own."""
_FARTHEST = 1024.0
"""Steps between codes beyond which no way out is looked for."""
_HALVINGS = 50


class Agreement:
    """Counts of ids that are the same, and of those that are not."""

    def __init__(self, tokenizer: Tokenizer, exported: Exported) -> None:
        self.tokenizer, self.exported = tokenizer, exported
        self._exact: Tokenizer | None = None
        self.counts: dict[str, dict[str, Any]] = {}
        """Counts by program."""

    @torch.no_grad()
    def add(self, name: str, video: Float[Tensor, "b 3 t h w"]) -> None:
        """Compare one video in all ways that there are."""
        video = video.to(self.tokenizer.device)
        ids = self.tokenizer.encode(video)
        pixels = self.tokenizer.decode(ids)
        if self._frames("encode") is None:
            self._ids("encode", name, video, ids, self.exported.run("encode", video)[0])
            self._pixels("decode", name, pixels, self.exported.run("decode", ids)[0])
        if "encode_step" in self.exported.programs:
            whole = self.tokenizer.pad(video)
            self._ids("encode_step", name, whole, ids, self._stream("encode", whole, self.tokenizer.strides[0]))
            self._pixels("decode_step", name, pixels, self._stream("decode", ids, 1))

    @property
    def differing(self) -> tuple[int, int]:
        """Ids that differ, and ids in all."""
        rows = [row for row in self.counts.values() if "ids" in row]
        return sum(row["differing"] for row in rows), sum(row["ids"] for row in rows)

    @property
    def ties(self) -> int:
        """Ids that differ by a tie."""
        return sum(row.get("ties", 0) for row in self.counts.values())

    def _frames(self, program: str) -> int | None:
        """Return of how many frames, or token frames, a chunk of a program is; None for any number."""
        (name, port), *_ = self.exported.programs[program]["inputs"].items()
        count = port["shape"][2 if name == "video" else 1]
        return count if isinstance(count, int) else None

    def _stream(self, run: str, x: Tensor, stride: int) -> Tensor:
        """Return the results of a first chunk of one group and a part, and of later ones of two groups each, or of what
        the programs take where that is fixed."""
        axis = 2 if run == "encode" else 1
        start, last = f"{run}_start", f"{run}_last"
        start = start if start in self.exported.programs else run
        first = self._frames(start) or (1 + stride if x.shape[axis] > 1 else 1)
        if x.shape[axis] == 1 and last in self.exported.programs:
            return self.exported.run(run, x)[0]
        later = x.narrow(axis, first, x.shape[axis] - first)
        size = self._frames(f"{run}_step") or 2 * stride
        chunks = [x.narrow(axis, 0, first), *(later.split(size, axis) if later.numel() else ())]
        parts: list[Tensor] = []
        state: Sequence[Tensor] = ()
        for number, chunk in enumerate(chunks):
            if number == 0:
                name = start
            else:
                name = last if last in self.exported.programs and number == len(chunks) - 1 else f"{run}_step"
            y, *state = self.exported.run(name, chunk.contiguous(), *state)
            parts.append(y)
        return torch.cat(parts, 2 if run == "decode" else 1)

    def _ids(self, program: str, name: str, video: Tensor, ids: Tensor, others: Tensor) -> None:
        row = self.counts.setdefault(program, {"media": 0, "ids": 0, "differing": 0, "ties": 0, "other": []})
        row["media"] += 1
        is_loop = self._frames("encode") is not None
        if is_loop:  # what comes after an id that differs has another past
            ids, others = (x[:, : _equal(ids, others) + 1] for x in (ids, others))
        row["ids"] += ids.numel()
        count = int((ids != others).sum())
        if not count:
            return
        row["differing"] += count
        z = self.tokenizer.latents(video)[:, :, : ids.shape[1]]
        if self._exact is None:
            self._exact = copy.deepcopy(self.tokenizer).double()
        exact = self._exact.latents(video.double())[:, :, : ids.shape[1]]
        same = _equal(ids, self._exact.quantizer.encode(exact)) + 1 if is_loop else None
        rounding = float((z[:, :, :same] - exact[:, :, :same]).abs().amax())
        off = margins(self.tokenizer.quantizer, z, ids, others)
        ties = int((off <= _ROUNDING * rounding).sum())
        row["ties"] += ties
        row["other"].append({"medium": name, "differing": count, "margin": float(off.amax()), "rounding": rounding})

    def _pixels(self, program: str, name: str, pixels: Tensor, others: Tensor) -> None:
        row = self.counts.setdefault(program, {"media": 0, "pixels": 0, "largest_difference": 0.0})
        row["media"] += 1
        row["pixels"] += pixels.numel() // 3
        row["largest_difference"] = max(row["largest_difference"], float((pixels - others).abs().amax()))


def _equal(ids: Int[Tensor, "b t h w"], others: Int[Tensor, "b t h w"]) -> int:
    """Return the number of token frames before the first that differs."""
    differ = (ids != others).flatten(2).any(2).any(0)
    return int(differ.int().argmax()) if differ.any() else ids.shape[1]


def margins(
    quantizer: Quantizer, z: Float[Tensor, "b d t h w"], ids: Int[Tensor, "b t h w"], others: Int[Tensor, "b t h w"]
) -> Float[Tensor, " n"]:
    """Return how far each latent whose other id differs would have to move to leave the cell of its id towards that.

    Of several digits that differ, the farthest counts; infinity where no such way leads out."""
    where = ids != others
    rows, own, other = z.movedim(1, -1)[where], quantizer.digits(ids[where]), quantizer.digits(others[where])
    codes, distances = quantizer.decode(ids[where]), rows.new_zeros(len(rows))
    for j in range(own.shape[1]):
        one = own.clone()
        one[:, j] = other[:, j]
        way = quantizer.decode(quantizer.ids(one)) - codes
        near, far = rows.new_zeros(len(rows)), rows.new_full((len(rows),), _FARTHEST)
        for _ in range(_HALVINGS):
            middle = (near + far) / 2
            left = quantizer.encode(rows + middle[:, None] * way) != ids[where]
            near, far = near.where(left, middle), middle.where(left, far)
        distance = (far * way.norm(dim=1)).masked_fill(far == _FARTHEST, torch.inf)
        distances = distances.maximum(distance.where(own[:, j] != other[:, j], torch.zeros_like(distance)))
    return distances
