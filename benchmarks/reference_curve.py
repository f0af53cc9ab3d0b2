"""Keep the curve of a bench as the reference of a test: `python -m benchmarks.reference_curve BENCH`."""

import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean

from benchmarks.measure import machine
from smalti.comparison import read_points
from smalti.files import read_json, write_json

TARGET = Path(__file__).resolve().parents[1] / "tests" / "goldens" / "learning_curve.json"
KEPT = ("psnr", "perplexity", "learnt_loss")


def main(bench: Path) -> None:
    """Means over seeds, and the values of each, by contender and point."""
    asked, found = read_json(bench / "asked.json"), defaultdict(list)
    for point in read_points(bench):
        found[point.contender, point.steps].append(point)
    rows = [
        {"contender": name, "steps": steps, "seeds": len(points)}
        | {score: mean(getattr(point, score) for point in points) for score in KEPT}
        | {f"{score}_of_seeds": [getattr(point, score) for point in points] for score in KEPT}
        for (name, steps), points in found.items()
    ]
    terms = {"terms": asked["terms"], "steps": asked["steps"], "media": asked["media"]}
    write_json(TARGET, {**terms, "machine": machine(), "rows": rows})
    print(f"{TARGET}: {len(rows)} points")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
