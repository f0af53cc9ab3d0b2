"""Beside the stored points of `rate_distortion`: x264 and x265 tuned for PSNR, what is trivial, and BD-rates of all.

python -m benchmarks.rate_baselines [CODEC ...]      # measures what is not stored yet of these codecs, or of all
"""

import os
import sys
from collections.abc import Iterator

import torch

from benchmarks import rate_distortion as rd
from benchmarks.measure import RESULTS, write
from smalti.files import read_json


def stored(name: str) -> list[rd.Point]:
    """The points of an earlier run, none if there was none."""
    path = RESULTS / f"{name}.json"
    return [rd.Point(**row) for row in read_json(path)["rows"]] if path.is_file() else []


def missing(found: list[rd.Point], wanted: list[str]) -> Iterator[rd.Point]:
    """Points of the wanted codecs that are not among `found`, on the same clips."""
    there = {(p.media, p.codec) for p in found}
    photographs, film = rd.clips()
    os.environ.setdefault("SVT_LOG", "0")
    for media, clips in (("photographs", photographs), ("film", film)):
        for name, there_and_back in rd.TRIVIAL.items():
            if (media, name) not in there and name in wanted:
                yield rd.point(media, name, "three bytes a colour", there_and_back, clips)
    for codec, crfs in rd.CRFS.items():
        if ("film", codec) not in there and codec in wanted:
            for crf in crfs:
                yield rd.point("film", codec, f"crf {crf}", rd.by_ffmpeg(codec, crf), film)


def main() -> None:
    """Measure, write both files."""
    torch.set_num_threads(1)
    before, added = stored("rate_distortion_points"), stored("rate_baselines")
    added += missing([*before, *added], sys.argv[1:] or [*rd.TRIVIAL, *rd.CRFS])
    write("rate_baselines", [p._asdict() for p in added], note="beside rate_distortion_points.json, on the same clips")
    rows = rd.bd_rates([*before, *added])
    write("rate_distortion_bd_rates", rows, note="bits of each codec over ours at equal PSNR, less 1")
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
