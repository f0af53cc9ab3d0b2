"""Small media, packed as tars and Parquet files, for the tests of the sources that read them."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from smalti.data import write_video
from tests.goldens import rule


def ppm(name: str, size: tuple[int, int] = (10, 12)) -> bytes:
    """A PPM of noise that is named by `name`."""
    rows, columns = size
    return b"P6 %d %d 255\n" % (columns, rows) + rule.pixels(name, (rows, columns, 3)).tobytes()


def video(folder: Path, name: str, frames: int = 6) -> bytes:
    """An MP4 of 16 x 24 pixels."""
    pixels = torch.from_numpy(rule.pixels(name, (frames, 4, 6, 3))).repeat_interleave(4, 1).repeat_interleave(4, 2)
    write_video(folder / "made.mp4", pixels, 25)
    data = (folder / "made.mp4").read_bytes()
    (folder / "made.mp4").unlink()
    return data


def pack(path: Path, members: dict[str, bytes] | Sequence[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT) -> Path:
    """A tar of these members, in this order."""
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members.items() if isinstance(members, dict) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def table(path: Path, columns: dict[str, pa.Array | list], *, names: list[str] | None = None, rows: int = 2) -> Path:
    """A Parquet file with `rows` rows in a row group; `names` are those of the classes, kept as `datasets` does."""
    made = pa.table(columns)
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        made = made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(made, path, row_group_size=rows)
    return path


def cells(media: Sequence[bytes | None]) -> pa.Array:
    """A column as `datasets` has it: {bytes, path}."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.array([{"bytes": data, "path": f"{i}.jpg"} for i, data in enumerate(media)], kind)
