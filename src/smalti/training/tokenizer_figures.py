"""The figures of a tokenizer's training steps: as they lie on the device, and as they are read from it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from smalti.metrics.codebook import CodebookUse, Usage
from smalti.training.tokenizer_state import TrainState


class TokenizerStep(NamedTuple):
    """The figures of a step; means over ranks and micro-batches."""

    step: int
    losses: Mapping[str, float]
    """Unweighted losses by name; with a GAN also `adversarial`, `discriminator`, `penalty`, `lecam`."""
    total: float
    """The weighted sum that the tokenizer minimises, without the adversarial loss."""
    lr: float
    grad_norm: float
    """Norm of the tokenizer's gradient before clipping."""
    gan_weight: float
    psnr: float
    """PSNR of the training batch in dB, on floats."""
    usage: Usage
    """Usage of the codebook on this rank: by this batch, or in a run by all batches since the last line of the log."""
    skipped: bool
    """Whether the update was left out because a loss or gradient was not finite."""
    rows: int
    """Rows of all ranks that the step learnt from; 0 where none could be read, and the rest is empty or NaN."""

    bad_files: int = 0
    """Files of the run that could not be read so far, on this rank."""
    empty_steps: int = 0
    """Steps without a row, since the run was started or resumed."""
    restarted: int | None = None
    """Rows of the table of codes that began anew; None where the config has none that do."""
    pixels: int | None = None
    """Pixels that the step learnt from, in a run of several views."""
    samples: int | None = None
    """Digest of the samples of all steps of a run so far."""

    @property
    def note(self) -> str:
        """The loss and the PSNR, and the number of bad files if there are any."""
        bad = f" bad files {self.bad_files:,}" if self.bad_files else ""
        figures = f"loss {self.total:.4f} psnr {self.psnr:.2f}" if self.rows else "no file of this step could be read"
        return f"{figures}{bad}"

    def line(self) -> dict[str, Any]:
        """Return the line for log.jsonl; without losses where there was no row."""
        counts = {"rows": self.rows, "bad_files": self.bad_files, "empty_steps": self.empty_steps}
        if self.pixels is not None:
            counts["pixels"] = self.pixels
        if not self.rows:
            return {"step": self.step, "lr": self.lr, "skipped": self.skipped, **counts}
        use = self.usage.summary(pixels=1)
        return {
            "step": self.step,
            "total": self.total,
            "psnr": self.psnr,
            **{f"loss/{name}": value for name, value in self.losses.items()},
            "lr": self.lr,
            "grad_norm": self.grad_norm,
            "gan_weight": self.gan_weight,
            "usage": use.share,
            "distinct": use.distinct,
            "perplexity": use.perplexity,
            "tokens": use.tokens,
            "dead_digits": dead_digits(use),
            **({} if self.restarted is None else {"restarted": self.restarted}),
            "skipped": self.skipped,
            **counts,
        }


class Begun(NamedTuple):
    """A step whose figures were not looked at yet."""

    step: int
    lr: float
    rows: int = 0
    names: tuple[str, ...] = ()
    """Losses by name, as they come in the figures."""
    figures: Tensor | None = None
    """These losses, the norms of the gradients and whether the update was left out, on the device; None without a
    row."""
    ids: Tensor | None = None
    """Ids of this rank's rows, on the device."""
    restarted: int | None = None


def dead_digits(use: CodebookUse) -> int:
    """Count the digits that have one value in at least 99.9 % of the tokens: they carry less than 0.02 bits."""
    return sum(max(counts) >= 0.999 * sum(counts) > 0 for counts in use.digits)


def read(state: TrainState, steps: Sequence[Begun]) -> list[TokenizerStep]:
    """Return the figures of all steps since the last reading: one wait for a GPU, not one for each number."""
    figures = [each.figures for each in steps if each.figures is not None]
    ids = [each.ids for each in steps if each.ids is not None]
    numbers = iter(torch.cat(figures).tolist() if figures else [])
    all_ids = torch.cat(ids).cpu() if ids else torch.empty(0, dtype=torch.int64)
    results, at = [], 0
    for each in steps:
        usage, count = Usage(state.tokenizer.levels), 0 if each.ids is None else len(each.ids)
        usage.update(all_ids[at : at + count])
        at += count
        own = [next(numbers) for _ in range(0 if each.figures is None else len(each.figures))]
        results.append(_result(each, own, usage))
    state.end_late(sum(result.rows > 0 and not result.skipped for result in results))
    return results


def _result(begun: Begun, figures: Sequence[float], usage: Usage) -> TokenizerStep:
    means = dict(zip(begun.names, figures, strict=False))
    error = means.get("squared_error", math.nan)
    return TokenizerStep(
        step=begun.step,
        losses={n: v for n, v in means.items() if n not in ("total", "gan_weight", "squared_error")},
        total=means.get("total", math.nan),
        lr=begun.lr,
        grad_norm=figures[len(means)] if figures else 0.0,
        gan_weight=means.get("gan_weight", 0.0),
        psnr=-10 * math.log10(error / 4) if error > 0 else math.nan,
        usage=usage,
        skipped=bool(figures and figures[-1]),
        rows=begun.rows,
        restarted=begun.restarted,
    )
