"""The records of a run: log.jsonl, TensorBoard events, images of samples."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from smalti.files import write_bytes
from smalti.training.task import Samples

L = TypeVar("L", bound="RunLog")


class RunLog:
    """log.jsonl and TensorBoard events; lines of steps after the one resumed from are taken out first."""

    def __init__(self, folder: Path, step: int) -> None:
        self.folder, self.first = folder, step
        self.path = folder / "log.jsonl"
        self.since = time.monotonic()
        _truncate(self.path, step)
        from torch.utils.tensorboard.writer import SummaryWriter

        self.events: Any = SummaryWriter(str(folder / "events"), purge_step=step)

    def __enter__(self: L) -> L:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.events.close()

    def write(self, line: Mapping[str, Any]) -> None:
        """Write a line, which has its `step`."""
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        for name, value in line.items():
            if name != "step" and isinstance(value, int | float):
                self.events.add_scalar(name, value, line["step"])

    def write_scores(self, step: int, scores: Mapping[str, float]) -> None:
        """Write a line of validation scores, if there are any."""
        if scores:
            self.write({"step": step, **{f"validation/{name}": value for name, value in scores.items()}})

    def write_samples(self, step: int, samples: Samples) -> None:
        """Write `samples/step-N.png` and a line of what else there is, if anything."""
        if samples.values:
            self.write({"step": step, **{f"samples/{name}": value for name, value in samples.values.items()}})
        if samples.image is not None:
            target = self.folder / "samples" / f"step-{step:08d}.png"
            target.parent.mkdir(exist_ok=True)
            samples.image.save(target)

    def steps_per_second(self, step: int) -> float:
        """Return the rate since the run was started or resumed."""
        return (step - self.first) / max(1e-9, time.monotonic() - self.since)


def _truncate(path: Path, last_step: int) -> None:
    """Drop the lines after `last_step`, and a line that was cut short by a kill."""
    if not path.is_file():
        return
    lines = []
    for text in path.read_text().splitlines():
        try:
            if json.loads(text)["step"] <= last_step:
                lines.append(text)
        except (ValueError, KeyError, TypeError):
            continue
    write_bytes(path, "".join(f"{text}\n" for text in lines).encode())
