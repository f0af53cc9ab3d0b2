"""Variants take turns until each has spent the same budget; they are evaluated along the way.

All are in one process: each advances by a slice of its budget, then the next one, in the reverse order at every second
slice, because the speed of a machine drifts. Only steps count; reading data, evaluating and saving do not. Every point
is on the disk before the next slice begins: a comparison that was killed continues from there.
"""

import json
import re
import time
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from smalti.comparison.data import DataParts, note_bad_files
from smalti.comparison.evaluator import Evaluator, Point
from smalti.comparison.flops import count_flops
from smalti.comparison.learner import Learner, LearnerStep
from smalti.config import Config
from smalti.data import batches
from smalti.errors import ConfigError, InputError, IntegrityError
from smalti.files import check_manifest, lock, naming_os_errors, new_folder, read_json, write_bytes, write_json
from smalti.metrics import Report, Usage
from smalti.text import one_line

POINTS, RUNS = "points.jsonl", "runs"
_SLICES = 4
"""Turns between two points."""
_MAX_EMPTY = 100
"""Batches in a row without a file that can be read, before a comparison gives up."""


class LearnerSource(NamedTuple):
    """A variant's name and how its learners are built."""

    name: str
    build: Callable[[int], Learner]
    """Return a fresh learner of a seed."""


class Budget(Config):
    """The budget of every variant, and what else is equal for all."""

    budget: Literal["steps", "seconds", "teraflops"] = "steps"
    """`seconds`: CPU time of the steps, or the clock on an accelerator. Operations are those that torch counts: matrix
    products, convolutions and attention, forward and backward."""
    amount: float
    """Steps, seconds or 10^12 operations of each variant."""
    seeds: int = 2
    points: int = 8
    """Number of evaluations, at equal shares of the budget."""
    batch_size: int = 8


class VariantRun:
    """One variant with one seed."""

    def __init__(self, source: LearnerSource, seed: int, out: Path) -> None:
        self.source = source
        self.seed = seed
        self.folder = out / RUNS / slug(source.name) / str(seed)
        self.learner = source.build(seed)
        self.steps, self.seconds, self.flops = 0, 0.0, 0.0
        self.points: list[Point] = []
        self.fault: str | None = None
        """The reason why it has stopped early."""
        self._of_kind: dict[Hashable, float] = {}
        self._losses: list[float] = []
        self._psnrs: list[float] = []
        self._usage = Usage(self.learner.levels)
        if self.folder.is_dir():
            self._restore()

    def spent(self, budget: Budget) -> float:
        """Return the share of the budget that is spent."""
        return {"steps": self.steps, "seconds": self.seconds, "teraflops": self.flops / 1e12}[
            budget.budget
        ] / budget.amount

    def advance(self, parts: DataParts, budget: Budget, until: float, device: torch.device) -> None:
        """Learn until that share of the budget is spent: the batches of a seed are the same for all variants."""
        if self.fault is not None or self.spent(budget) >= until:
            return
        bad, size, empty = note_bad_files(parts.bad), budget.batch_size, 0
        for batch in batches(parts.train, batch_size=size, seed=self.seed, start_step=self.steps, on_bad=bad):
            empty = 0 if batch.keys else empty + 1
            if empty == _MAX_EMPTY:
                raise InputError(f"no file of {empty} batches in a row could be read: {next(iter(parts.bad.values()))}")
            if empty:
                self.steps += 1  # nothing is learnt, and all variants have the same step
                if self.spent(budget) >= until:
                    return
                continue
            share, video = self.spent(budget), batch.to(device).video
            self.flops += self._flops(video, share)
            began = _clock(device)
            result = self.learner.step(video, share)
            self.seconds += _clock(device) - began
            self.steps += 1
            self._note(result)
            if self.spent(budget) >= until:
                return

    def evaluate(self, evaluator: Evaluator, share: float) -> Point | None:
        """Return the point of this share, saved with the state; None for a run that has stopped."""
        if self.fault is not None or any(point.share >= share for point in self.points):
            return None
        report = evaluator.score(self.learner)
        if report is None:
            self.fault = f"a reconstruction was not finite after {self.steps:,} steps"
        else:
            self.points.append(self._point(report, share))
        self._losses, self._psnrs, self._usage = [], [], Usage(self.learner.levels)
        self._save()
        return None if self.fault is not None else self.points[-1]

    @property
    def flops_per_step(self) -> float:
        """The mean so far."""
        return self.flops / max(1, self.steps)

    def _note(self, result: LearnerStep) -> None:
        self._losses.append(result.loss)
        self._psnrs.append(result.psnr)
        self._usage = self._usage.merge(result.usage)

    def _flops(self, video: Tensor, share: float) -> float:
        """Return the operations of the next step, counted on a fresh learner once for each kind."""
        kind = (self.learner.kind(share), tuple(video.shape))
        if kind not in self._of_kind:
            fresh = self.source.build(self.seed)
            self._of_kind[kind] = count_flops(lambda: fresh.step(video, share))
        return self._of_kind[kind]

    def _point(self, report: Report, share: float) -> Point:
        use, learnt = report.codebook, self._usage.summary()
        assert use is not None
        assert use.bits_per_pixel is not None
        assert use.entropy_bits_per_pixel is not None
        count = max(1, len(self._losses))
        return Point(
            contender=self.source.name,
            seed=self.seed,
            share=share,
            steps=self.steps,
            seconds=self.seconds,
            flops=self.flops,
            psnr=report.psnr,
            ssim=report.ssim,
            lpips=report.lpips,
            frechet=None if report.frechet is None else report.frechet.distance,
            tokens=use.tokens,
            distinct=use.distinct,
            expected_distinct=use.expected_distinct,
            codebook_size=use.codebook_size,
            perplexity=use.perplexity,
            bits_per_pixel=use.bits_per_pixel,
            entropy_bits_per_pixel=use.entropy_bits_per_pixel,
            learnt_loss=sum(self._losses) / count,
            learnt_psnr=sum(self._psnrs) / count,
            learnt_tokens=learnt.tokens,
            learnt_distinct=learnt.distinct,
            learnt_expected_distinct=learnt.expected_distinct,
            learnt_perplexity=learnt.perplexity,
        )

    def _save(self) -> None:
        with new_folder(self.folder, replace=True) as part:
            self.learner.save(part)
            spent = {"steps": self.steps, "seconds": self.seconds, "flops": self.flops, "fault": self.fault}
            write_json(part / "run.json", {**spent, "points": [point.plain() for point in self.points]})

    def _restore(self) -> None:
        check_manifest(self.folder)
        self.learner.load(self.folder)
        about = read_json(self.folder / "run.json")
        self.steps, self.seconds, self.flops = about["steps"], about["seconds"], about["flops"]
        self.fault = about["fault"]
        self.points = [Point.parse(point, where=str(self.folder)) for point in about["points"]]


RunCallback = Callable[[float, VariantRun, Point | None], None]
"""Gets the share of the whole comparison that is done, the run that has just advanced, and its new point if any."""


def compare_variants(
    sources: Sequence[LearnerSource],
    parts: DataParts,
    budget: Budget,
    evaluator: Evaluator,
    out: Path,
    *,
    device: torch.device,
    on_advance: RunCallback | None = None,
    each_round: Callable[[Sequence[VariantRun]], object] | None = None,
) -> list[VariantRun]:
    """Train all variants, with all seeds; `out` holds the states and `points.jsonl`, and a comparison is resumed there.

    `each_round` is called when all have reached the next point, but for the last. Raises ConfigError for two variants
    of one name.
    """
    _check(sources)
    with lock(out / ".lock"):
        runs = [VariantRun(source, seed, out) for seed in range(budget.seeds) for source in sources]
        _write_points(out, runs)
        count = budget.points * _SLICES
        for number in range(1, count + 1):
            evaluated, new = number % _SLICES == 0, False
            for place, run in enumerate(runs if number % 2 else runs[::-1]):
                run.advance(parts, budget, number / count, device)
                point = run.evaluate(evaluator, number / count) if evaluated else None
                if point is not None:
                    new = True
                    _write_points(out, runs)
                if on_advance is not None:
                    on_advance((number - 1 + (place + 1) / len(runs)) / count, run, point)
            if new and number < count and each_round is not None:
                each_round(runs)
    return runs


def read_points(out: Path) -> list[Point]:
    """Return all points of the comparison in `out`, in the order of its runs. Raises ConfigError for a wrong line,
    IntegrityError for one that is not JSON, MachineError for a file that cannot be read."""
    path, points = out / POINTS, []
    with naming_os_errors(path):
        lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        try:
            plain = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise IntegrityError(
                f"{where}: not valid JSON ({one_line(error)}); it is damaged; resume the comparison to write it anew"
            ) from None
        points.append(Point.parse(plain, where=where))
    return points


def slug(name: str) -> str:
    """Return the name as a part of a path."""
    return re.sub(r"[^\w.=,+-]+", "-", name).strip("-.") or "variant"


def _check(sources: Sequence[LearnerSource]) -> None:
    if not sources:
        raise ConfigError("there is no variant; name one or more")
    slugs = [slug(source.name) for source in sources]
    twice = sorted({name for name in slugs if slugs.count(name) > 1})
    if twice:
        raise ConfigError(f"{twice[0]}: two variants have this name; give them different ones")


def _write_points(out: Path, runs: Sequence[VariantRun]) -> None:
    """Write all points so far, one JSON object a line; the truth is in the runs' own folders."""
    lines = "".join(json.dumps(point.plain()) + "\n" for run in runs for point in run.points)
    write_bytes(out / POINTS, lines.encode())


def _clock(device: torch.device) -> float:
    """Return the CPU time of this process; on an accelerator the clock, when its queue is empty."""
    if device.type == "cpu":
        return time.process_time()
    torch.accelerator.synchronize(device)
    return time.perf_counter()
