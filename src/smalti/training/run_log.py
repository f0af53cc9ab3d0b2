"""What a run leaves to look at: log.jsonl, TensorBoard events, pictures of reconstructions, validation reports."""

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from torch import Tensor

from smalti.data import BadFileLog, JointConfig, evaluation
from smalti.files import write_bytes
from smalti.metrics import SMALTI, Usage
from smalti.metrics.contact_sheet import contact_sheet, difference
from smalti.tokenizer.score import round_trip, score_tokenizer
from smalti.training.config import TokenizerTraining
from smalti.training.tokenizer_state import TrainState
from smalti.training.tokenizer_step import Measured
from smalti.video import to_uint8

L = TypeVar("L", bound="Lines")
_DRAWN = 6
"""Clips in a picture of reconstructions."""


class Lines:
    """log.jsonl and TensorBoard events, written on the leading rank alone.

    Lines of steps after the one resumed from are taken out first.
    """

    def __init__(self, folder: Path, step: int, *, leads: bool) -> None:
        self.folder, self.leads, self.begun = folder, leads, step
        self.path = folder / "log.jsonl"
        self.since = time.monotonic()
        self.events: Any = None
        if leads:
            _truncate(self.path, step)
            from torch.utils.tensorboard.writer import SummaryWriter

            self.events = SummaryWriter(str(folder / "events"), purge_step=step)

    def __enter__(self: L) -> L:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.events is not None:
            self.events.close()

    def append(self, line: dict[str, Any]) -> None:
        """Write a line, which has its `step`."""
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        for name, value in line.items():
            if name != "step" and isinstance(value, int | float):
                self.events.add_scalar(name, value, line["step"])

    def rate(self, step: int) -> float:
        """Steps a second since the run began or went on."""
        return (step - self.begun) / max(1e-9, time.monotonic() - self.since)


class RunLog(Lines):
    """What a tokenizer's run leaves."""

    def __init__(self, folder: Path, state: TrainState, bad: BadFileLog) -> None:
        super().__init__(folder, state.step, leads=state.world.leads)
        self.bad = bad
        self.config = state.config
        self.usage = Usage(state.tokenizer.levels)
        self._samples: list[Tensor] | None = None

    def write(self, measured: Measured) -> None:
        """Collect a step; write a line every `log_every` steps and at the end."""
        self.usage = self.usage.merge(measured.usage)
        ended = measured.step == self.config.steps
        if not self.leads or not (ended or measured.step % self.config.log_every == 0 or measured.skipped):
            return
        use = self.usage.summary(pixels=1)
        line: dict[str, Any] = {"step": measured.step, "total": measured.total, "psnr": measured.psnr}
        line |= {f"loss/{name}": value for name, value in measured.losses.items()}
        line |= {"rate": measured.rate, "gradient": measured.gradient, "adversary_weight": measured.adversary_weight}
        line |= {"usage": use.share, "distinct": use.distinct, "perplexity": use.perplexity, "tokens": use.tokens}
        line |= {"steps_per_second": self.rate(measured.step), "skipped": measured.skipped, "bad_files": self.bad.total}
        self.append(line)
        self.usage = Usage(self.usage.levels)

    def validate(self, state: TrainState) -> None:
        """Score the averaged weights on the held-out data under the default protocol."""
        if state.config.validation is None or not self.leads:
            return
        report = score_tokenizer(
            state.average, state.config.validation.build(), SMALTI, limit=state.config.validation_limit
        )
        scores = {name: getattr(report, name) for name in ("psnr", "ssim", "ms_ssim", "lpips")}
        line = {f"validation/{name}": value for name, value in scores.items() if value is not None}
        self.append({"step": state.step, **line})

    def draw(self, state: TrainState) -> None:
        """A sheet of originals, reconstructions and their difference, always of the same clips."""
        self._samples = self._samples or _first_clips(state.config)
        rows = []
        for video in self._samples:
            # Encoded and decoded, not `forward`: its entropies are taken over all ranks, and this rank is alone here.
            again = round_trip(state.average, video)[0].cpu()
            rows.append([to_uint8(v)[0, -1].numpy() for v in (video, again)])
        sheet = contact_sheet(
            [[a, b, difference(a, b)] for a, b in rows], ["original", "reconstruction", "difference x4"]
        )
        target = self.folder / "samples" / f"step-{state.step:08d}.png"
        target.parent.mkdir(exist_ok=True)
        sheet.save(target)


def _first_clips(config: TokenizerTraining) -> list[Tensor]:
    """The clips that every picture shows: the first of the validation data, or of the training data without it."""
    chosen = config.validation or config.data
    source = (chosen.videos if isinstance(chosen, JointConfig) else chosen).build()
    return [batch.video for batch, _ in zip(evaluation(source), range(_DRAWN), strict=False)]


def _truncate(path: Path, last_step: int) -> None:
    """Keep the lines up to `last_step`; a line cut short by a kill goes too."""
    if not path.is_file():
        return
    kept = []
    for text in path.read_text().splitlines():
        try:
            if json.loads(text)["step"] <= last_step:
                kept.append(text)
        except (ValueError, KeyError, TypeError):
            continue
    write_bytes(path, "".join(f"{text}\n" for text in kept).encode())
