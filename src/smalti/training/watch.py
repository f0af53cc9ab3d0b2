"""The rules by which a run is watched: each a fault with a number and a limit in the lines of its log, and the usual
fix. They are the same while it trains and afterwards, of log.jsonl (`smalti doctor RUN`).

Limits lie well outside of what healthy runs of the recipes show: each rule says how far.
"""

import math
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any, NamedTuple

from smalti.training.config import RunConfig, TokenizerTraining

WINDOW = 5
"""Lines of the log over which a figure is a median: one odd batch is no fault."""
_PAST = 40
"""Lines from which on the speed of the last is compared with that of the first."""
_SPAN = 10
"""Lines over which seconds are medians."""
_LONG = 200
"""Lines from which on quarters of a run are compared: of fewer, their means differ by chance."""
_ENOUGH = 1_000
"""Tokens of a line from which on the use of codes means something."""
_SETTLED = 200
"""Steps after which codes are in use, and a discriminator has learned: MagicMaster's recipes begin with all six digits
dead and have none after 60; the loss of a fresh discriminator without norms is that of a coin to 0.03 %."""


class Warned(NamedTuple):
    """A fault of a run."""

    rule: str
    step: int
    """Step of the line in which it was seen first."""
    what: str
    """Number, and the limit that it passes."""
    remedy: str
    """The usual fix."""

    def __str__(self) -> str:
        return f"step {self.step:,}: {self.rule}: {self.what}; {self.remedy}"


class _Series:
    """A figure of the log: what the rules need of it, so that a line costs the same however long the run is."""

    def __init__(self) -> None:
        self.recent = deque[float](maxlen=WINDOW)
        """Its values in the last `WINDOW` lines."""
        self.jumps = deque[float](maxlen=100)
        """Differences between neighbours among the last lines."""
        self.now: float | None = None
        """The median of the last `WINDOW` lines; None where there are too few."""
        self.lowest, self.highest = math.inf, -math.inf
        """Of these medians."""
        self._sums = [0]
        """Sums of the medians so far, in units of 2^-20: whole numbers, so that equal means are equal."""

    def add(self, value: float) -> None:
        if self.recent:
            self.jumps.append(abs(value - self.recent[-1]))
        self.recent.append(value)
        if len(self.recent) == WINDOW:
            self.now = median(self.recent)
            self.lowest, self.highest = min(self.lowest, self.now), max(self.highest, self.now)
            self._sums.append(self._sums[-1] + round(self.now * (1 << 20)))

    @property
    def count(self) -> int:
        """Number of medians."""
        return len(self._sums) - 1

    @property
    def last_quarters(self) -> tuple[float, float]:
        """Means of the medians over the last quarter but one, and over the last."""
        size = self.count // 4
        ends = [self._sums[self.count - part * size] for part in (2, 1, 0)]
        return (ends[1] - ends[0]) / (size << 20), (ends[2] - ends[1]) / (size << 20)

    @property
    def deviation(self) -> float:
        """Standard deviation from line to line; robust: of normal ones, the median difference of two is 0.954 of it."""
        return median(self.jumps) / 0.954 if self.jumps else 0.0


class RunWatch:
    """The lines of a run's log so far. `add` returns what they show that they did not show before: each rule once."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.figures: dict[str, _Series] = defaultdict(_Series)
        """Figures of the log by their names, and bits of a token by their tasks, too."""
        self.times, self.first_times, self.latest_times = 0, list[float](), deque[float](maxlen=_SPAN)
        """Lines that say how long a step took, and these seconds in the first and the last of them; where there is a
        discriminator, of lines with its part, which makes steps longer."""
        self._last: tuple[int, float] | None = None
        self._fired: set[str] = set()

    def add(self, line: Mapping[str, Any]) -> list[Warned]:
        """Take a line of log.jsonl into account; return the faults that it shows first."""
        numbers = line.get("step"), line.get("lr"), line.get("tokens", 0)
        if not (all(isinstance(number, int | float) for number in numbers) and "skipped" in line):
            return []  # validation and samples, runs of version 0.1.0, which had other names, and damaged lines
        self._count(line)
        warnings = []
        for rule, check in _RULES.items():
            if rule not in self._fired and (fault := check(self, line)) is not None:
                self._fired.add(rule)
                warnings.append(Warned(rule, line["step"], *fault))
        return warnings

    def _count(self, line: Mapping[str, Any]) -> None:
        names = {name: name for name in ("psnr", "perplexity", "gan_weight", "loss/discriminator", "dead_digits")}
        if "task" in line:  # each has bits of its own
            names["bits_per_token"] = f"bits_per_token {line['task']}"
        for name, known in names.items():
            value = line.get(name)
            if isinstance(value, int | float) and math.isfinite(value):
                self.figures[known].add(float(value))
        self._time(line)

    def _time(self, line: Mapping[str, Any]) -> None:
        seconds, step = line.get("seconds"), line["step"]
        if not isinstance(seconds, int | float):
            return
        gan = self.config.gan if isinstance(self.config, TokenizerTraining) else None
        is_later = self._last is not None and step > self._last[0] and seconds > self._last[1]  # else it was resumed
        if self._last is not None and is_later and (gan is None or step > gan.start):
            each = (seconds - self._last[1]) / (step - self._last[0])
            self.times += 1
            self.latest_times.append(each)
            if len(self.first_times) < _SPAN:
                self.first_times.append(each)
        self._last = (step, seconds)


_Fault = tuple[str, str]
"""The number with its limit, and the usual fix."""


def _not_finite(watch: RunWatch, line: Mapping[str, Any]) -> _Fault | None:
    """Fire at the first update that is left out."""
    if not line["skipped"]:
        return None
    what = "a loss or gradient was NaN or infinite, and the update was left out (its samples are in skipped.jsonl)"
    return what, "look at these samples; if it comes again, lower optimizer.lr or set optimizer.clip"


def _diverging(watch: RunWatch, line: Mapping[str, Any]) -> _Fault | None:
    """Fire 3 dB below the best PSNR (batches of few samples: 4 deviations of theirs), or at 1.25 times the fewest bits.

    Medians of healthy runs fall by less than 1.5 dB, also when a discriminator starts; PSNR of batches of two varies by
    1.5 dB, and the lowest of 200 of their medians lies 3 dB below the highest.
    """
    lr = f"lower optimizer.lr ({line['lr']:.2g} now) or warm up longer, and go on from before"
    if "task" in line:
        name = f"bits_per_token {line['task']}"
        bits = watch.figures[name]
        if bits.now is not None and bits.now > 1.25 * bits.lowest:
            return f"{name} is {bits.now:.2f}, more than 1.25 times its best {bits.lowest:.2f}", lr
        return None
    psnr = watch.figures["psnr"]
    limit = max(3.0, 4 * psnr.deviation)
    if psnr.now is not None and psnr.now < psnr.highest - limit:
        return f"psnr is {psnr.now:.2f} dB, more than {limit:.2g} dB below its best {psnr.highest:.2f}", lr
    return None


_SPREAD = "spread the codes: a larger weight of batch_entropy (more negative), or codebook.restart for a table"


def _dead_digits(watch: RunWatch, line: Mapping[str, Any]) -> _Fault | None:
    """Fire where a digit has one value in 99.9 % of the tokens, line after line."""
    dead = watch.figures["dead_digits"].now
    if not dead or line["step"] < _SETTLED or line.get("tokens", 0) < _ENOUGH:
        return None
    return f"{dead:.0f} digits have one value in 99.9 % of the tokens, and 0 should", _SPREAD


def _few_codes(watch: RunWatch, line: Mapping[str, Any]) -> _Fault | None:
    """Fire below 4 codes in even use (perplexity), or a quarter of the most that there were.

    A healthy video tokenizer lost a third of them in its first 35 steps, and had seven times as many in the end.
    """
    perplexity = watch.figures["perplexity"]
    now, most = perplexity.now, perplexity.highest
    if now is None or line["step"] < _SETTLED or line.get("tokens", 0) < _ENOUGH:
        return None
    if now < 4:
        return f"the codes in use amount to {now:.1f} (perplexity), less than 4", _SPREAD
    if now < most / 4:
        return f"perplexity is {now:,.0f}, less than a quarter of the {most:,.0f} that it was", _SPREAD
    return None


def _adaptive_weight(watch: RunWatch, line: Mapping[str, Any]) -> _Fault | None:
    """Fire where the adversarial gradient is a 300th of that of the other losses, and the weight makes up for it.

    At 10,000 times it is cut off. With discriminators of the recipes it is below 10 times; with fresh ones up to 1,000
    times, for some steps.
    """
    config = watch.config
    gan = config.gan if isinstance(config, TokenizerTraining) else None
    now = watch.figures["gan_weight"].now
    if gan is None or not gan.adaptive or now is None or line["step"] < gan.start + _SETTLED:
        return None
    if now <= 300 * gan.weight:
        return None
    what = f"gan_weight is {now:,.3g}, more than 300 times gan.weight {gan.weight:g}"
    return what, "the discriminator gives no gradient: see whether it learns (loss/discriminator)"


def _one_sided(watch: RunWatch, line: Mapping[str, Any]) -> _Fault | None:
    """Fire where the discriminator's loss stays at that of a coin within 0.01 %, or below 2 % of it, or above thrice.

    In healthy runs it is 0.8 to 1.05 times that of a coin, and changes by 1 % from line to line.
    """
    config = watch.config
    gan = config.gan if isinstance(config, TokenizerTraining) else None
    loss = watch.figures["loss/discriminator"]
    now = loss.now
    if gan is None or now is None or line["step"] < gan.start + _SETTLED:
        return None
    coin = chance_loss(gan.losses[1])
    if all(abs(value - coin) < 1e-4 * coin for value in loss.recent):
        what = f"loss/discriminator stays at {now:.4g}, that of a coin ({coin:.4g}): it tells nothing apart"
        return what, "see gan.optimizer (lr, weight_decay), or take another gan.discriminator"
    if now < 0.02 * coin:
        what = f"loss/discriminator is {now:.2g}, less than 2 % of a coin's {coin:.4g}: it tells everything apart"
        return what, "lower gan.optimizer.lr, or set gan.lecam or gan.penalty"
    if now > 3 * coin:
        return f"loss/discriminator is {now:.3g}, more than 3 times a coin's {coin:.4g}", "lower gan.optimizer.lr"
    return None


def chance_loss(name: str) -> float:
    """Return the loss of a discriminator whose logits are 0 for everything."""
    return 1.0 if name == "hinge" else 2 * math.log(2)


def _plateau(watch: RunWatch, line: Mapping[str, Any]) -> _Fault | None:
    """Fire where the last quarter of the run so far is no better than the one before, at a high learning rate.

    At less than half of it, a cosine is about to end the run.
    """
    name, sign = ("psnr", 1.0) if "task" not in line else (f"bits_per_token {line['task']}", -1.0)
    figure = watch.figures[name]
    if figure.count < _LONG or line["lr"] < watch.config.optimizer.lr / 2:
        return None
    before, last = figure.last_quarters
    if sign * (last - before) > 0:
        return None
    what = f"{name} is {last:.3f} over the last quarter of the run so far, no better than {before:.3f} before"
    return what, "lower optimizer.lr, or end the run"


def _slower(watch: RunWatch, line: Mapping[str, Any]) -> _Fault | None:
    """Fire where steps take three times as long as at first: medians of `_SPAN` lines."""
    if watch.times < _PAST:
        return None
    first, now = median(watch.first_times), median(watch.latest_times)
    if now <= 3 * first:
        return None
    what = f"a step takes {now:.3g} s, more than 3 times the {first:.3g} s of the first lines"
    return what, "see what else runs on this machine, and how fast the data is read (workers)"


_RULES: Mapping[str, Callable[[RunWatch, Mapping[str, Any]], _Fault | None]] = {
    "not finite": _not_finite,
    "diverging": _diverging,
    "dead digits": _dead_digits,
    "few codes": _few_codes,
    "adaptive weight": _adaptive_weight,
    "one-sided discriminator": _one_sided,
    "plateau": _plateau,
    "slower": _slower,
}
