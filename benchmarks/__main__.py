"""`python -m benchmarks [names]`: run them, print their tables, keep results/NAME.json."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import (
    against,
    coder,
    convolution,
    entropy,
    generate,
    magicmaster,
    rate_distortion,
    sampling,
    speed,
    streaming,
    survival,
    tokens,
    training_memory,
    training_step,
    walk,
)
from benchmarks.measure import write


class Measured(NamedTuple):
    """A table: its rows have the same keys, and `note` says what they mean."""

    note: str
    rows: Sequence[Mapping[str, object]]


BENCHMARKS: Mapping[str, Callable[[], tuple[str, Sequence[Mapping[str, object]]]]] = {
    "coder": coder.measure,
    "entropy": entropy.measure,
    "speed": speed.measure,
    "streaming": streaming.measure,
    "convolution": convolution.measure,
    "training_memory": training_memory.measure,
    "training_step": training_step.measure,
    "magicmaster": magicmaster.measure,
    "peers": against.measure,
    "generate": generate.measure,
    "sampling": sampling.measure,
    "rate_distortion": rate_distortion.measure,
    "tokens": tokens.measure,
    "survival": survival.measure,
    "walk": walk.measure,
}


def shown(value: object) -> str:
    """Numbers with three figures, or whole from a thousand on."""
    if not isinstance(value, float):
        return "-" if value is None else str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def main(names: Sequence[str]) -> int:
    """Run the benchmarks named, or all."""
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        print(f"no benchmark is called {', '.join(unknown)}; there are: {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    console = Console(width=150)
    for name in names or BENCHMARKS:
        measured = Measured(*BENCHMARKS[name]())
        write(name, measured.rows, note=measured.note)
        table = Table(*measured.rows[0], title=f"{name}: {measured.note}", title_justify="left")
        for row in measured.rows:
            table.add_row(*map(shown, row.values()))
        console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
