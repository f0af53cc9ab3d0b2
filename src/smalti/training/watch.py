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


class _Series(NamedTuple):
    """A figure of the log."""

    recent: deque[float]
    """Its values in the last `WINDOW` lines."""
    medians: list[float]
    """Their median after each line, from `WINDOW` lines on."""
    jumps: deque[float]
    """Differences between neighbours among the last 100 lines."""

    def add(self, value: float) -> None:
        if self.recent:
            self.jumps.append(abs(value - self.recent[-1]))
        self.recent.append(value)
        if len(self.recent) == WINDOW:
            self.medians.append(median(self.recent))

    @property
    def now(self) -> float | None:
        """The median of the last lines; None where there are too few."""
        return self.medians[-1] if self.medians else None


class RunWatch:
    """The lines of a run's log so far. `add` returns what they show that they did not show before: each rule once."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self._series: dict[str, _Series] = defaultdict(lambda: _Series(deque(maxlen=WINDOW), [], deque(maxlen=100)))
        self._lines: list[tuple[int, float]] = []
        """(step, seconds per step since the line before) of lines that have both."""
        self._last: tuple[int, float] | None = None
        self._fired: set[str] = set()

    def add(self, line: Mapping[str, Any]) -> list[Warned]:
        """Take a line of log.jsonl into account; return the faults that it shows first."""
        if not (isinstance(line.get("step"), int) and isinstance(line.get("lr"), int | float) and "skipped" in line):
            return []  # validation and samples, and runs of version 0.1.0, which had other names
        self._count(line)
        found = []
        for rule, check in _RULES.items():
            if rule not in self._fired and (fault := check(self, line)) is not None:
                self._fired.add(rule)
                found.append(Warned(rule, line["step"], *fault))
        return found

    def _count(self, line: Mapping[str, Any]) -> None:
        names = {name: name for name in ("psnr", "perplexity", "gan_weight", "loss/discriminator", "dead_digits")}
        if "task" in line:  # each has bits of its own
            names["bits_per_token"] = f"bits_per_token {line['task']}"
        for name, known in names.items():
            value = line.get(name)
            if isinstance(value, int | float) and math.isfinite(value):
                self._series[known].add(float(value))
        self._time(line)

    def _time(self, line: Mapping[str, Any]) -> None:
        seconds, step = line.get("seconds"), line["step"]
        if not isinstance(seconds, int | float):
            return
        if self._last is not None and step > self._last[0] and seconds > self._last[1]:  # less: it was resumed
            self._lines.append((step, (seconds - self._last[1]) / (step - self._last[0])))
        self._last = (step, seconds)

    def now(self, name: str) -> float | None:
        """Return the median of a figure over the last lines; None where there are too few."""
        return self._series[name].now

    def deviation(self, name: str) -> float:
        """Return the standard deviation of a figure from line to line; robust: of normal ones, the median difference
        of two is 0.954 of it."""
        jumps = self._series[name].jumps
        return median(jumps) / 0.954 if jumps else 0.0

    def recent(self, name: str) -> list[float]:
        """Return a figure in the last `WINDOW` lines that have it."""
        return [*self._series[name].recent]

    def medians(self, name: str) -> list[float]:
        """Return the medians of a figure after each line, from the first that has enough before it."""
        return self._series[name].medians

    def times(self) -> list[tuple[int, float]]:
        """Return (step, seconds per step) of each line with the discriminator's part, which makes steps longer."""
        config = self.config
        gan = config.gan if isinstance(config, TokenizerTraining) else None
        return [(step, seconds) for step, seconds in self._lines if gan is None or step > gan.start]


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
        now, least = watch.now(name), min(watch.medians(name), default=math.inf)
        if now is not None and now > 1.25 * least:
            return f"{name} is {now:.2f}, more than 1.25 times its best {least:.2f}", lr
        return None
    now, best = watch.now("psnr"), max(watch.medians("psnr"), default=-math.inf)
    limit = max(3.0, 4 * watch.deviation("psnr"))
    if now is not None and now < best - limit:
        return f"psnr is {now:.2f} dB, more than {limit:.2g} dB below its best {best:.2f}", lr
    return None


_SPREAD = "spread the codes: a larger weight of batch_entropy (more negative), or codebook.restart for a table"


def _dead_digits(watch: RunWatch, line: Mapping[str, Any]) -> _Fault | None:
    """Fire where a digit has one value in 99.9 % of the tokens, line after line."""
    dead = watch.now("dead_digits")
    if not dead or line["step"] < _SETTLED or line.get("tokens", 0) < _ENOUGH:
        return None
    return f"{dead:.0f} digits have one value in 99.9 % of the tokens, and 0 should", _SPREAD


def _few_codes(watch: RunWatch, line: Mapping[str, Any]) -> _Fault | None:
    """Fire below 4 codes in even use (perplexity), or a quarter of the most that there were.

    A healthy video tokenizer lost a third of them in its first 35 steps, and had seven times as many in the end.
    """
    now, most = watch.now("perplexity"), max(watch.medians("perplexity"), default=0.0)
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
    now = watch.now("gan_weight")
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
    now = watch.now("loss/discriminator")
    if gan is None or now is None or line["step"] < gan.start + _SETTLED:
        return None
    coin = chance_loss(gan.losses[1])
    if all(abs(value - coin) < 1e-4 * coin for value in watch.recent("loss/discriminator")):
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
    medians = watch.medians(name)
    quarter = len(medians) // 4
    if len(medians) < _LONG or line["lr"] < watch.config.optimizer.lr / 2:
        return None
    before, last = (sum(part) / quarter for part in (medians[-2 * quarter : -quarter], medians[-quarter:]))
    if sign * (last - before) > 0:
        return None
    what = f"{name} is {last:.3f} over the last quarter of the run so far, no better than {before:.3f} before"
    return what, "lower optimizer.lr, or end the run"


def _slower(watch: RunWatch, line: Mapping[str, Any]) -> _Fault | None:
    """Fire where steps take three times as long as at first: medians of 10 lines."""
    times = [seconds for _, seconds in watch.times()]
    if len(times) < _PAST:
        return None
    first, now = median(times[:10]), median(times[-10:])
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
