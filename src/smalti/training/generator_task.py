"""A generator as a task of `fit`: its token sets, steps, bits per token of held-out rows, samples of every task."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smalti.errors import IntegrityError
from smalti.generation import MaskedTransformer, TokenLoss, autoregressive_loss, complete, validate
from smalti.metrics.contact_sheet import contact_sheet
from smalti.tokens.dataset import token_batches
from smalti.training.distributed import World
from smalti.training.generator_config import GeneratorTraining
from smalti.training.generator_step import GeneratorState, GeneratorStep, generator_step, prompt_of, start_generator
from smalti.training.optimizer import OptimizerState
from smalti.training.samples import count_samples, keep_skipped
from smalti.training.task import Samples, Stateful, Task
from smalti.training.token_data import GridRows, settle_classes
from smalti.video import to_uint8

_SAMPLES, _BATCH = 4, 16
"""Samples of a task in the log; held-out rows that are scored together."""


class GeneratorTask(Task):
    """The training of a token model. What can fail for want of files or memory fails when it is made."""

    def __init__(self, config: GeneratorTraining, world: World, previous: GeneratorTraining | None = None) -> None:
        self.rows = GridRows(config.data, config.generator)
        config, self.notes = settle_classes(config, self.rows, previous)
        self.rows.check_classes(config.generator.classes)
        self.held_out = None
        if config.validation is not None:
            self.held_out = GridRows(config.validation, config.generator, self.rows.classes)
            self.held_out.check_classes(config.generator.classes)
        if self.held_out is not None and self.held_out.tokens.tokenizer_info != self.rows.tokens.tokenizer_info:
            raise IntegrityError(f"{config.validation}: made by another tokenizer than {config.data}")
        self.state: GeneratorState = start_generator(config, self.rows, world)
        self.ema = self.state.ema.model
        self.data_count, self.data_digest = len(self.rows), self.rows.tokens.plan
        self.data_counts = {"rows": len(self.rows), "rows_of_other_shapes": self.rows.other_shapes}
        if config.validation is None:
            self.notes += ("no validation: set validation to a token set of other media",)

    def steps(self, folder: Path) -> Iterator[GeneratorStep]:
        """Train to the last step; a token set has no files that cannot be read."""
        config, world = self.state.config, self.state.world
        stream = token_batches(
            self.rows,
            batch_size=config.batch_size,
            seed=config.seed,
            start_step=self.state.step,
            part=(world.rank, world.size),
            workers=config.workers,
        )
        for _ in range(self.state.step, config.steps):
            batch = next(stream)
            result = generator_step(self.state, batch)
            names = [str(row) for row in batch.rows.tolist()]
            places = range(world.rank, config.batch_size, world.size)
            count_samples(self.state, names, places)
            if result.skipped:
                keep_skipped(self.state, folder, result.line(), names, places)
            yield result

    def tensors(self) -> dict[str, Stateful]:
        """Return the weights and the optimizer's tensors."""
        return {"live": self.state.model, "optimizer": OptimizerState(self.state.optimizer, self.state.model)}

    def export(self, folder: Path) -> None:
        """Write the generator with the EMA weights."""
        self.state.ema.save(folder, replace=True)

    def validate(self) -> dict[str, float]:
        """Score held-out rows under the first task: bits per token at each fixed share of masks, or in raster order."""
        if self.held_out is None:
            return {}
        sums: dict[str, TokenLoss] = {}
        count = min(len(self.held_out), self.state.config.validation_limit)
        for at in range(0, count, _BATCH):
            for name, losses in self._losses(self.held_out, range(at, min(at + _BATCH, count))).items():
                before = sums.get(name)
                sums[name] = losses if before is None else TokenLoss(*map(torch.add, before, losses))
        return {name: float(total.nats_per_token) / math.log(2) for name, total in sums.items()}

    def samples(self) -> Samples:
        """Sample every task under fixed noise, from the first rows of the held-out set (of the set without one)."""
        config, source = self.state.config, self.held_out or self.rows
        ids, labels = self._batch(source, range(min(_SAMPLES, len(source))))
        values: dict[str, Any] = {}
        sheet: list[list[Any]] = []
        for share in config.tasks:
            prompt = prompt_of(self.state, share.task, ids, labels)
            sampled = complete(self.state.ema.model, prompt, config.sampling)
            values[share.task.kind] = sampled.flatten(1).tolist()
            sheet += self._images(sampled)
        return Samples(contact_sheet(sheet, [""] * len(sheet[0])) if sheet else None, values)

    def _losses(self, source: GridRows, rows: range) -> dict[str, TokenLoss]:
        config, model = self.state.config, self.state.ema.model
        ids, labels = self._batch(source, rows)
        prompt = prompt_of(self.state, config.tasks[0].task, ids, labels)
        if isinstance(model, MaskedTransformer):
            return {f"bits_at_{share:g}": loss for share, loss in validate(model, ids, prompt, list(rows)).items()}
        with torch.no_grad():
            return {"bits": autoregressive_loss(model, ids, prompt.condition, config.loss, None)}

    def _batch(self, source: GridRows, rows: range) -> tuple[Tensor, Tensor]:
        examples = [source[row] for row in rows]
        ids, labels = torch.stack([row.ids for row in examples]), torch.tensor([row.label for row in examples])
        return ids.to(self.state.world.device), labels.to(self.state.world.device)

    def _images(self, ids: Tensor) -> list[list[Any]]:
        """Return a row of images for each sample: up to five of its frames."""
        if self.state.tokenizer is None:
            return []
        with torch.inference_mode():
            video = to_uint8(self.state.tokenizer.decode(ids).cpu()).numpy()
        frames = sorted({round(i * (video.shape[1] - 1) / 4) for i in range(5)})
        return [[clip[frame] for frame in frames] for clip in video]
