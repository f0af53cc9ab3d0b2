"""Contenders take turns until each has spent the same budget; what they have learnt is measured along the way.

All are in one process: each advances by a slice of its budget, then the next one, in the reverse order at every second
slice, because the speed of a machine drifts. Only steps are paid for; reading data, measuring and saving are not. Every
point is on the disk before the next slice begins: a race that was killed goes on from there.
"""

import json
import re
import time
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from smalti.comparison.data import Material, noted
from smalti.comparison.evaluator import Judge, Point, Scored
from smalti.comparison.flops import operations
from smalti.comparison.learner import Learner, Learnt
from smalti.config import Config
from smalti.data import batches
from smalti.errors import ConfigError
from smalti.files import lock, new_folder, read_json, write_bytes, write_json
from smalti.metrics import Usage

POINTS, RUNS = "points.jsonl", "runs"
_SLICES = 4
"""Turns between two points."""


class Entry(NamedTuple):
    """A contender by name."""

    name: str
    build: Callable[[int], Learner]
    """A fresh learner of a seed."""


class Terms(Config):
    """What is equal for all."""

    budget: Literal["steps", "seconds", "teraflops"] = "steps"
    """`seconds`: CPU time of the steps, or the clock on an accelerator. Operations are those that torch counts: matrix
    products, convolutions and attention, forward and backward."""
    amount: float
    seeds: int = 2
    points: int = 8
    """How often what was learnt is measured, at equal shares of the budget."""
    batch_size: int = 8


class Run:
    """One contender with one seed."""

    def __init__(self, entry: Entry, seed: int, out: Path) -> None:
        self.entry = entry
        self.seed = seed
        self.folder = out / RUNS / slug(entry.name) / str(seed)
        self.learner = entry.build(seed)
        self.steps, self.seconds, self.flops = 0, 0.0, 0.0
        self.points: list[Point] = []
        self.fault: str | None = None
        """Why it has stopped early."""
        self._of_kind: dict[Hashable, float] = {}
        self._losses: list[float] = []
        self._psnrs: list[float] = []
        self._usage = Usage(self.learner.levels)
        if self.folder.is_dir():
            self._restore()

    def spent(self, terms: Terms) -> float:
        """The share of the budget that is spent."""
        return {"steps": self.steps, "seconds": self.seconds, "teraflops": self.flops / 1e12}[
            terms.budget
        ] / terms.amount

    def advance(self, material: Material, terms: Terms, until: float, device: torch.device) -> None:
        """Learn until that share of the budget is spent: the batches of a seed are the same for all contenders."""
        if self.fault is not None or self.spent(terms) >= until:
            return
        bad, size = noted(material.bad), terms.batch_size
        for batch in batches(material.train, batch_size=size, seed=self.seed, start_step=self.steps, on_bad=bad):
            share, video = self.spent(terms), batch.video.to(device)
            self.flops += self._flops(video, share)
            began = _clock(device)
            learnt = self.learner.step(video, share)
            self.seconds += _clock(device) - began
            self.steps += 1
            self._note(learnt)
            if self.spent(terms) >= until:
                return

    def measure(self, judge: Judge, share: float) -> Point | None:
        """The point of this share, kept on disk with the state; None for a run that has stopped."""
        if self.fault is not None or any(point.share >= share for point in self.points):
            return None
        scored = judge.score(self.learner)
        if scored is None:
            self.fault = f"a reconstruction was not finite after {self.steps:,} steps"
        else:
            self.points.append(self._point(scored, share))
        self._losses, self._psnrs, self._usage = [], [], Usage(self.learner.levels)
        self._save()
        return None if self.fault is not None else self.points[-1]

    @property
    def flops_per_step(self) -> float:
        """The mean so far."""
        return self.flops / max(1, self.steps)

    def _note(self, learnt: Learnt) -> None:
        self._losses.append(learnt.loss)
        self._psnrs.append(learnt.psnr)
        self._usage = self._usage.merge(learnt.usage)

    def _flops(self, video: Tensor, share: float) -> float:
        """Operations of the step that comes: of a fresh learner, once for each kind."""
        kind = (self.learner.kind(share), tuple(video.shape))
        if kind not in self._of_kind:
            fresh = self.entry.build(self.seed)
            self._of_kind[kind] = operations(lambda: fresh.step(video, share))
        return self._of_kind[kind]

    def _point(self, scored: Scored, share: float) -> Point:
        use, learnt = scored.usage.summary(scored.pixels), self._usage.summary()
        assert use.bits_per_pixel is not None
        assert use.entropy_bits_per_pixel is not None
        count = max(1, len(self._losses))
        return Point(
            contender=self.entry.name,
            seed=self.seed,
            share=share,
            steps=self.steps,
            seconds=self.seconds,
            flops=self.flops,
            psnr=scored.psnr,
            ssim=scored.ssim,
            lpips=scored.lpips,
            frechet=scored.frechet,
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
        self.learner.load(self.folder)
        about = read_json(self.folder / "run.json")
        self.steps, self.seconds, self.flops = about["steps"], about["seconds"], about["flops"]
        self.fault = about["fault"]
        self.points = [Point.parse(point, where=str(self.folder)) for point in about["points"]]


Watch = Callable[[float, Run, Point | None], None]
"""Sees the share of the whole race that is done, the run that has just advanced, and its new point if there is one."""


def race(
    entries: Sequence[Entry],
    material: Material,
    terms: Terms,
    judge: Judge,
    out: Path,
    *,
    device: torch.device,
    watch: Watch | None = None,
    each_round: Callable[[Sequence[Run]], object] | None = None,
) -> list[Run]:
    """Let all contenders learn, with all seeds; `out` holds the states and `points.jsonl`, and a race is resumed there.

    `each_round` is called when all have reached the next point, but for the last. Raises ConfigError for two contenders
    of one name.
    """
    _check(entries)
    with lock(out / ".lock"):
        runs = [Run(entry, seed, out) for seed in range(terms.seeds) for entry in entries]
        _write_points(out, runs)
        count = terms.points * _SLICES
        for number in range(1, count + 1):
            measured, new = number % _SLICES == 0, False
            for place, run in enumerate(runs if number % 2 else runs[::-1]):
                run.advance(material, terms, number / count, device)
                point = run.measure(judge, number / count) if measured else None
                if point is not None:
                    new = True
                    _write_points(out, runs)
                if watch is not None:
                    watch((number - 1 + (place + 1) / len(runs)) / count, run, point)
            if new and number < count and each_round is not None:
                each_round(runs)
    return runs


def read_points(out: Path) -> list[Point]:
    """All points of the race in `out`, in the order of its runs. Raises ConfigError for an object that is no point."""
    path = out / POINTS
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Point.parse(json.loads(line), where=f"{path}, line {number}") for number, line in enumerate(lines, 1)]


def slug(name: str) -> str:
    """The name as a part of a path."""
    return re.sub(r"[^\w.=,+-]+", "-", name).strip("-.") or "contender"


def _check(entries: Sequence[Entry]) -> None:
    if not entries:
        raise ConfigError("there is no contender; name one or more")
    slugs = [slug(entry.name) for entry in entries]
    twice = sorted({name for name in slugs if slugs.count(name) > 1})
    if twice:
        raise ConfigError(f"{twice[0]}: two contenders have this name; give them different ones")


def _write_points(out: Path, runs: Sequence[Run]) -> None:
    """All points so far, one JSON object a line; the truth is in the runs' own folders."""
    lines = "".join(json.dumps(point.plain()) + "\n" for run in runs for point in run.points)
    write_bytes(out / POINTS, lines.encode())


def _clock(device: torch.device) -> float:
    """CPU time of this process; on an accelerator the clock, when its queue is empty."""
    if device.type == "cpu":
        return time.process_time()
    torch.accelerator.synchronize(device)
    return time.perf_counter()
