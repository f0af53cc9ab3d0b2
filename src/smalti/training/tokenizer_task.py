"""A tokenizer as a task of `fit`: its data, steps, validation scores and samples."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from smalti.data import BadFileLog, Batch, Joint, Source, Views, batches, evaluation
from smalti.errors import InputError
from smalti.metrics import SMALTI, Usage
from smalti.metrics.contact_sheet import contact_sheet, difference
from smalti.text import say
from smalti.tokenizer import Tokenizer
from smalti.tokenizer.frames import round_trip, score_tokenizer
from smalti.training.ahead import Copies, done
from smalti.training.config import TokenizerTraining
from smalti.training.distributed import World
from smalti.training.late import MOST
from smalti.training.samples import count_samples, keep_skipped, settle_validation, split_data
from smalti.training.task import Samples, Stateful, Task, each_step
from smalti.training.tokenizer_figures import Begun, TokenizerStep, read
from smalti.training.tokenizer_state import TrainState, start_tokenizer
from smalti.training.tokenizer_step import begin
from smalti.video import to_uint8

_SAMPLES = 6
"""Clips in an image of samples."""
_RECENT = 1_000
"""Rows among which bad ones are counted."""


class BadRows:
    """Count of the rows of the last steps that could not be read: of `_RECENT` rows, or of one step if it has more."""

    def __init__(self, share: float) -> None:
        self.share = share
        """Largest share of them."""
        self._steps: deque[tuple[int, int]] = deque()
        self._listed = self._bad = 0

    def add(self, listed: int, bad: int) -> None:
        """Count a step's rows over all ranks, and how many of them are bad."""
        self._steps.append((listed, bad))
        self._listed, self._bad = self._listed + listed, self._bad + bad
        while self._listed - self._steps[0][0] >= _RECENT:
            listed, bad = self._steps.popleft()
            self._listed, self._bad = self._listed - listed, self._bad - bad

    @property
    def too_many(self) -> bool:
        """Whether there are more than the share allows; rows before the first step count as good."""
        return self._bad > self.share * max(self._listed, _RECENT)

    def __str__(self) -> str:
        return f"{self._bad:,} of the last {self._listed:,} rows could not be read"


class _Seen(NamedTuple):
    """The samples of a step and what was counted by then."""

    keys: Sequence[str]
    places: Sequence[int]
    listed: int
    """Rows of its batch over all ranks, with those that could not be read."""
    bad: int
    """Files that could not be read so far."""
    samples: int | None
    """Digest of the samples so far."""


class TokenizerTask(Task):
    """The training of a tokenizer. What can fail for want of files, weights or memory fails when it is made."""

    def __init__(self, config: TokenizerTraining, world: World, previous: TokenizerTraining | None = None) -> None:
        config = settle_validation(config, previous)
        split = split_data(config)
        self.source, self.validation = split.train, split.validation
        self.data_counts, self.notes = split.counts, split.notes
        self.state: TrainState = start_tokenizer(config, world)
        self.ema: Tokenizer = self.state.ema
        self.data_count = len(self.source)
        keys = "\n".join(self.source.key(i) for i in range(self.data_count))
        self.data_digest = hashlib.sha256(keys.encode("utf-8", "surrogateescape")).hexdigest()
        self._clips: list[Tensor] = []

    def steps(self, folder: Path, wanted: Callable[[int], bool] = each_step) -> Iterator[TokenizerStep]:
        """Train to the last step; files that cannot be read are listed in `bad_files.jsonl` (`-RANK`) of `folder`.

        Without `workers` a thread reads the batch of the next step during each step, and is still in between. A step
        without a row that can be read learns nothing and is counted. Raises InputError where more than `max_bad` of the
        last rows cannot be read, or no row at all could.
        """
        config = self.state.config
        usage, recent, empty = Usage(self.state.tokenizer.levels), BadRows(config.max_bad), 0
        for result, seen in self._trained(folder, wanted):
            if result.skipped:
                keep_skipped(self.state, folder, result.line(), seen.keys, seen.places)
            usage, empty = usage.merge(result.usage), empty + (not result.rows)
            recent.add(seen.listed, seen.listed - result.rows)
            if recent.too_many or (result.step == empty == config.steps):
                raise InputError(
                    f"step {result.step}: {recent} (max_bad {config.max_bad:g}); repair the files in "
                    f"{folder / 'bad_files*.jsonl'}, or resume with a larger max_bad"
                )
            counted = result._replace(usage=usage, bad_files=seen.bad, empty_steps=empty)
            yield counted._replace(pixels=self._pixels(result), samples=seen.samples)
            if result.rows and (result.skipped or result.step % config.log_every == 0):
                usage = Usage(usage.levels)  # a line of the log has all batches since the last

    def _trained(self, folder: Path, wanted: Callable[[int], bool]) -> Iterator[tuple[TokenizerStep, "_Seen"]]:
        """Train to the last step; yield the steps that were read together, and what each has seen."""
        config, world = self.state.config, self.state.world
        bad_files = BadFileLog(folder / f"bad_files{f'-{world.rank}' if world.rank else ''}.jsonl")
        stream = batches(
            self.source,
            batch_size=config.batch_size,
            seed=config.seed,
            start_step=self.state.step,
            part=(world.rank, world.size),
            workers=config.workers,
            on_bad=bad_files,
        )

        copies, begun = Copies(world.device), list[tuple[Begun, _Seen]]()

        def load() -> tuple[Batch, int]:
            return copies.begin(next(stream)), bad_files.total

        if world.is_main and (note := config.cut_note(world.size)):
            say(f"warning: {note}")
        with ThreadPoolExecutor(1) as reader:
            ahead: Future[tuple[Batch, int]] | None = None
            for number in range(self.state.step + 1, config.steps + 1):
                batch, bad = load() if ahead is None else ahead.result()
                batch, ahead = copies.finish(batch), None
                if config.workers == 0 and number < config.steps:  # worker processes read ahead by themselves
                    ahead = reader.submit(load)
                one = begin(self.state, batch.video, batch.places)
                count_samples(self.state, batch.keys, batch.places)
                begun.append((one, _Seen(batch.keys, batch.places, batch.listed, bad, self.state.samples)))
                if config.workers > 0 and copies.are_ahead and number < config.steps:
                    ahead = done(load)
                if ahead is not None:
                    wait([ahead])  # validation and samples may read from the same files
                if wanted(number) or self.state.late is None or len(begun) == MOST:
                    results = read(self.state, [one for one, _ in begun])
                    yield from zip(results, [seen for _, seen in begun], strict=True)
                    begun.clear()

    def _pixels(self, result: TokenizerStep) -> int | None:
        """Return the pixels that a step learnt from; None where all steps are of one view."""
        source = self.source
        if not isinstance(source, Views):
            return None
        return result.rows * source.pixels_of(result.step - 1, self.state.config.seed)

    def tensors(self) -> dict[str, Stateful]:
        """Return the weights and optimizers' tensors of both networks."""
        return self.state.tensors()

    def export(self, folder: Path) -> None:
        """Write the tokenizer with the EMA weights."""
        self.ema.save(folder, replace=True)

    def validate(self) -> dict[str, float]:
        """Score the EMA weights on the held-out data under the default protocol."""
        if self.validation is None:
            return {}
        limit = self.state.config.validation_limit
        report = score_tokenizer(self.ema, self.validation, SMALTI, limit=limit)
        scores = {name: getattr(report, name) for name in ("psnr", "ssim", "ms_ssim", "lpips")}
        return {name: value for name, value in scores.items() if value is not None}

    def samples(self) -> Samples:
        """Return a sheet of originals, reconstructions and their difference, always of the same clips."""
        self._clips = self._clips or _first_clips(self.validation or self.source)
        rows = []
        for video in self._clips:
            # Encoded and decoded, not `forward`: its entropies are taken over all ranks, and this rank is alone here.
            reconstruction = round_trip(self.ema, video)[0].cpu()
            a, b = (to_uint8(v)[0, -1].numpy() for v in (video, reconstruction))
            rows.append([a, b, difference(a, b)])
        return Samples(contact_sheet(rows, ["original", "reconstruction", "difference x4"]), {})


def _first_clips(shown: Source) -> list[Tensor]:
    """Return the first clips of a source; of images and videos together, of the videos."""
    source = shown.videos if isinstance(shown, Joint) else shown
    return [batch.video for batch, _ in zip(evaluation(source), range(_SAMPLES), strict=False)]
