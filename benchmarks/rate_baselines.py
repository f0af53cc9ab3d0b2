"""Beside the stored points of `rate_distortion`: its video codecs as they are now, also tuned for PSNR, and what is
trivial; no tokenizer is trained. Then its table, curves and BD-rates once more.

python -m benchmarks.rate_baselines [CODEC ...]      # measures these codecs anew, or what is not stored yet of all
"""

import os
import sys
from collections.abc import Iterator, Sequence

import torch

from benchmarks import rate_distortion as rd
from benchmarks.measure import RESULTS, write
from smalti.files import read_json


def stored(name: str) -> list[rd.Point]:
    """The points of an earlier run, none if there was none."""
    path = RESULTS / f"{name}.json"
    return [rd.Point(**row) for row in read_json(path)["rows"]] if path.is_file() else []


def measured(wanted: Sequence[str]) -> Iterator[rd.Point]:
    """Points of the wanted codecs, on the clips of `rate_distortion`."""
    photographs, film = rd.clips()
    os.environ.setdefault("SVT_LOG", "0")
    for media, clips in (("photographs", photographs), ("film", film)):
        for name, there_and_back in rd.TRIVIAL.items():
            if name in wanted:
                yield rd.point(media, name, "three bytes a colour", there_and_back, clips)
    for codec, crfs in rd.CRFS.items():
        if codec in wanted:
            for crf in crfs:
                yield rd.point("film", codec, f"crf {crf}", rd.by_ffmpeg(codec, crf), film)


def main() -> None:
    """Measure, write the files."""
    torch.set_num_threads(1)
    before = stored("rate_baselines")
    wanted = sys.argv[1:] or sorted({*rd.TRIVIAL, *rd.CRFS} - {p.codec for p in before})
    added = [*(p for p in before if p.codec not in wanted), *measured(wanted)]
    write("rate_baselines", [p._asdict() for p in added], note="beside rate_distortion_points.json, on the same clips")
    newer = {(p.media, p.codec) for p in added}
    found = [*(p for p in stored("rate_distortion_points") if (p.media, p.codec) not in newer), *added]
    rows = rd.bd_rates(found)
    write("rate_distortion_bd_rates", rows, note="bits of each codec over ours at equal PSNR, less 1")
    note = "at the bytes of each of our tokenizers; none where a codec's coarsest setting takes more"
    write("rate_distortion", rd.at_equal_bytes(found), note=note)
    rd.draw(found, rd.PICTURE)
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
