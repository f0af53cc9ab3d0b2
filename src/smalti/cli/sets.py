"""What `smalti info` and `smalti eval` say of a token set."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smalti.cli.console import bar
from smalti.cli.opening import open_tokenizer
from smalti.errors import BadFile, ConfigError, InputError

if TYPE_CHECKING:
    from smalti.cli.evaluation import Answer
    from smalti.cli.listing import Question
    from smalti.metrics import Row


def is_token_set(path: Path) -> bool:
    """Whether a folder is a token set, finished or begun."""
    return (path / "plan.json").is_file() or (path / "dataset.json").is_file()


def measure_set(path: Path, data: Path, question: "Question") -> "Answer":
    """`smalti eval` of a token set: decoded rows against their originals below `data`."""
    from smalti.cli.evaluation import Answer, features_of, perceptual
    from smalti.metrics import Scores, by_name
    from smalti.tokens.finalize import read_made
    from smalti.tokens.reader import TokenSet
    from smalti.tokens.score import Asked, score_set

    protocol, tokens, bad = by_name(question.protocol), TokenSet(path), list[BadFile]()
    if protocol.convention is not None:
        raise ConfigError(f"--protocol {protocol.name} reads files in its own way; a token set holds what was encoded")
    for option, value in (("--size", question.size), ("--root", question.root), ("--statistics", question.statistics)):
        if value is not None:
            raise ConfigError(f"{option} {value}: {path} is a token set, whose options are fixed; leave it out")
    name = read_made(path).get("tokenizer")
    if name is None:
        raise InputError(f"{path}: does not say where its tokenizer is, in made.json")
    model = open_tokenizer(name, question.device)
    device = model.device
    scores = Scores(
        protocol,
        lpips=perceptual(protocol, question.lpips, device),
        features=features_of(protocol, question.features, device),
        levels=tokens.about.levels,
    )
    wanted, done = Asked(question.limit, question.frames or Asked().frames), 0
    root = data if data.is_dir() else data.parent
    with bar("measuring", question.limit or len(tokens)) as advance:

        def progress(score: "Row") -> None:
            nonlocal done
            done += 1
            advance(done, note=f"PSNR {score.psnr:.2f}")

        report = score_set(model, tokens, root, scores, asked=wanted, on_bad=bad.append, progress=progress)
    return Answer(report, bad, [])


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
