"""What a generator's run leaves to look at: log lines, bits per token of held-out rows, samples of every task."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from smalti.generation import MaskedTransformer, TokenLoss, autoregressive_loss, complete, validate
from smalti.metrics.contact_sheet import contact_sheet
from smalti.training.run_log import Lines
from smalti.training.token_data import GridRows
from smalti.video import to_uint8

if TYPE_CHECKING:
    from smalti.training.generator_state import GeneratorMade, GeneratorState

_DRAWN, _BATCH = 4, 16
"""Samples of a task in the log; held-out rows that are measured together."""


class GeneratorLog(Lines):
    """Lines of the training and of held-out rows, samples as ids and, with a tokenizer, as pictures."""

    def __init__(self, folder: Path, state: "GeneratorState", rows: GridRows, held: GridRows | None) -> None:
        super().__init__(folder, state.step, leads=state.world.leads)
        self.state, self.config, self.shown, self.held = state, state.config, held or rows, held

    def write(self, made: "GeneratorMade") -> None:
        """Write a line every `log_every` steps, at the end, and for a skipped step."""
        ended = made.step == self.config.steps
        if self.leads and (ended or made.step % self.config.log_every == 0 or made.skipped):
            self.append({**made._asdict(), "steps_per_second": self.rate(made.step)})

    def validate(self) -> None:
        """Bits per token of held-out rows under the first task: at each fixed share of masks, or in raster order."""
        if self.held is None or not self.leads:
            return
        sums: dict[str, TokenLoss] = {}
        count = min(len(self.held), self.config.validation_limit)
        for at in range(0, count, _BATCH):
            for name, found in self._measured(list(range(at, min(at + _BATCH, count)))).items():
                before = sums.get(name)
                sums[name] = found if before is None else TokenLoss(*map(torch.add, before, found))
        line = {f"validation/{name}": float(s.nats_per_token) / math.log(2) for name, s in sums.items()}
        self.append({"step": self.state.step, **line})

    def draw(self) -> None:
        """Samples of every task under fixed noise, which begin with the first rows of the held-out (or the) set."""
        line: dict[str, Any] = {"step": self.state.step}
        sheet: list[list[Any]] = []
        ids, labels = self._rows(list(range(min(_DRAWN, len(self.shown)))))
        for share in self.config.tasks:
            drawn = self._sampled(share.task, ids, labels)
            line[f"samples/{share.task.kind}"] = drawn.flatten(1).tolist()
            sheet += self._pictures(drawn)
        self.append(line)
        if sheet:
            target = self.folder / "samples" / f"step-{self.state.step:08d}.png"
            target.parent.mkdir(exist_ok=True)
            contact_sheet(sheet, [""] * len(sheet[0])).save(target)

    def _measured(self, rows: list[int]) -> dict[str, TokenLoss]:
        from smalti.training.generator_state import prompt_of

        ids, labels = self._rows(rows)
        prompt, model = prompt_of(self.state, self.config.tasks[0].task, ids, labels), self.state.average.model
        if isinstance(model, MaskedTransformer):
            return {f"bits_at_{share:g}": found for share, found in validate(model, ids, prompt, rows).items()}
        with torch.no_grad():
            return {"bits": autoregressive_loss(model, ids, prompt.condition, self.config.loss, None)}

    def _rows(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        device = self.state.world.device
        found = [self.shown[row] for row in rows]
        ids, labels = torch.stack([row.ids for row in found]), torch.tensor([row.label for row in found])
        return ids.to(device), labels.to(device)

    def _sampled(self, task: Any, ids: Tensor, labels: Tensor) -> Tensor:
        from smalti.training.generator_state import prompt_of

        prompt = prompt_of(self.state, task, ids, labels)
        return complete(self.state.average.model, prompt, self.config.sampling)

    def _pictures(self, ids: Tensor) -> list[list[Any]]:
        """A row for each sample: up to five frames of it."""
        if self.state.tokenizer is None:
            return []
        with torch.inference_mode():
            video = to_uint8(self.state.tokenizer.decode(ids).cpu()).numpy()
        chosen = sorted({round(i * (video.shape[1] - 1) / 4) for i in range(5)})
        return [[clip[frame] for frame in chosen] for clip in video]
