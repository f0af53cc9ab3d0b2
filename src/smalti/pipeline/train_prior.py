"""Train a prior over the ids of a tokenizer on token sets; `smalti compress` codes with it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from smalti.arguments import check_arguments, check_least
from smalti.codec.contexts import Integers
from smalti.codec.learn_prior import Learned, learn_prior
from smalti.errors import ConfigError
from smalti.pipeline.outputs import check_targets
from smalti.text import Progress, printable
from smalti.tokens.reader import TokenSet


def train_prior(
    sets: Sequence[Path | str],
    out: Path | str,
    *,
    steps: int = 3000,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Learned:
    """Train a prior on all rows of token sets of one tokenizer, and write it to `out`, whole or not at all.

    Minutes on one core; all ids are held in memory, 20 bytes a token and more. Equal sets, steps and seed give a prior
    of the same size; its numbers depend on the order of sums of the machine, which codes nothing: files name the prior
    that they were coded with. Raises InputError and IntegrityError for sets that cannot be read, ConfigError for sets
    of several tokenizers, and where `out` exists and may not be replaced.
    """
    check_arguments(train_prior, locals())
    check_least({"steps": (steps, 1), "seed": (seed, 0)})
    out = Path(out)
    check_targets([out], [], overwrite=overwrite, other="another name")
    if out.suffix != ".safetensors":
        raise ConfigError(f"{printable(out)}: a prior is written as .safetensors")
    opened = [TokenSet(path) for path in sets]
    first = opened[0]
    for other in opened[1:]:
        first.tokenizer_info.check(other.tokenizer_info, first.path)

    def blocks() -> Iterator[Integers]:
        for tokens in opened:
            yield from (tokens.ids(index).numpy() for index in range(len(tokens)))

    learned = learn_prior(blocks(), first.tokenizer_info, steps=steps, seed=seed, progress=progress)
    learned.prior.save(out)
    return learned
