"""What `smalti eval` says of a token set."""

from pathlib import Path
from typing import TYPE_CHECKING

from smalti.cli.console import bar
from smalti.errors import BadFile, ConfigError

if TYPE_CHECKING:
    from smalti.cli.evaluation import Answer
    from smalti.cli.listing import Question
    from smalti.metrics import Row


def measure_set(path: Path, data: Path, question: "Question") -> "Answer":
    """`smalti eval` of a token set: decoded rows against their originals below `data`."""
    from smalti.cli.evaluation import Answer, features_of, perceptual
    from smalti.metrics import Scores, by_name
    from smalti.pipeline.decode import open_set_tokenizer
    from smalti.tokens.reader import TokenSet
    from smalti.tokens.score import Asked, score_set

    protocol, tokens, bad = by_name(question.protocol), TokenSet(path), list[BadFile]()
    if protocol.convention is not None:
        raise ConfigError(f"--protocol {protocol.name} reads files in its own way; a token set holds what was encoded")
    for option, value in (("--size", question.size), ("--root", question.root), ("--statistics", question.statistics)):
        if value is not None:
            raise ConfigError(f"{option} {value}: {path} is a token set, whose options are fixed; leave it out")
    model = open_set_tokenizer(tokens, device=question.device)
    device = next(model.parameters()).device
    scores = Scores(
        protocol,
        lpips=perceptual(protocol, question.lpips, device),
        features=features_of(protocol, question.features, device),
        levels=tokens.tokenizer_info.levels,
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
