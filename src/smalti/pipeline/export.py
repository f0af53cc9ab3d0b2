"""Write a token set as .npy files that can be mapped into memory: the library function behind `smalti export`."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

from smalti.arguments import check_arguments, check_out_folder
from smalti.files import naming_os_errors, new_folder, write_bytes, write_json
from smalti.tokens.reader import TokenSet
from smalti.tokens.shard import id_type


def export(tokens: TokenSet | str | Path, out: str | Path) -> dict[str, Any]:
    """Write the folder `out` with a manifest, whole or not at all, and return its metadata.json.

    `ids.npy` holds all ids, one row after the other, in the type of the set; row i is `ids[offsets[i]:offsets[i + 1]]`
    in the shape `shapes[i]`. Where all rows have one shape, metadata.json has `shape`, `rows t h w`, to which `ids` can
    be reshaped. `labels.npy` has -1 for a row without a class; `keys.txt` has one key a line. Raises ConfigError where
    `out` is there.
    """
    check_arguments(export, locals())
    check_out_folder("out", out)
    tokens, out = tokens if isinstance(tokens, TokenSet) else TokenSet(tokens), Path(out)
    count, total = len(tokens), int(tokens.totals["tokens"])
    shapes, offsets, labels = np.zeros((count, 3), np.int32), np.zeros(count + 1, np.int64), np.full(count, -1)
    keys = []
    with new_folder(out) as folder, naming_os_errors(out):
        kind = id_type(tokens.tokenizer_info.codebook_size)
        ids: Any = open_memmap(folder / "ids.npy", "w+", kind, (total,)) if total else np.empty(0, kind)
        for index, row in enumerate(tokens):
            offsets[index + 1] = offsets[index] + row.ids.size
            ids[offsets[index] : offsets[index + 1]] = row.ids.reshape(-1)
            shapes[index], labels[index] = row.ids.shape, -1 if row.label is None else row.label
            keys.append(row.key)
        if total:
            ids.flush()
        else:
            np.save(folder / "ids.npy", ids)
        same = count > 0 and bool((shapes == shapes[0]).all())
        for name, array in (("offsets", offsets), ("shapes", shapes), ("labels", labels)):
            np.save(folder / f"{name}.npy", array)
        write_bytes(folder / "keys.txt", "".join(f"{key}\n" for key in keys).encode("utf-8", "backslashreplace"))
        metadata = {
            "tokenizer": tokens.tokenizer_info.plain(),
            "rows": count,
            "tokens": total,
            "type": str(kind),
            "shape": [count, *shapes[0].tolist()] if same else None,
            "classes": list(tokens.classes),
        }
        write_json(folder / "metadata.json", metadata)
    return metadata
