"""Facts of a token set for `smalti info`."""

import math
from pathlib import Path
from typing import Any


def describe_set(path: Path) -> dict[str, Any]:
    """Everything there is to say about a token set, as plain data; of one that is not finished, how far it is."""
    from smalti.tokens.finalize import DATASET, read_made, summarize
    from smalti.tokens.plan import load_plan
    from smalti.tokens.reader import TokenSet

    finished = (path / DATASET).is_file()
    if finished:
        found = TokenSet(path)
        about, options, totals = found.about, found.options, found.totals
    else:
        plan = load_plan(path)
        about, options, totals = plan.about, plan.options, summarize(plan)._asdict()
    tokens = totals["tokens"]
    return {
        "kind": "token set",
        "finished": finished,
        **totals,
        "bits_per_token": 8 * totals["bytes"] / tokens if tokens else None,
        "codebook_bits": math.log2(about.codebook_size),
        "tokenizer": about.plain(),
        "options": options.plain(),
        "made": read_made(path),
    }
