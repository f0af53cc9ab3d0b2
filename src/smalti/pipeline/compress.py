"""Images and videos to small files of entropy-coded tokens, and back, by the name of a tokenizer."""

from pathlib import Path

from smalti.arguments import check_arguments, check_least
from smalti.codec.codec import Compressed, Decompressed, Goal, compress_file, decompress_file
from smalti.codec.entropy import Model
from smalti.codec.prior import Prior
from smalti.data.source import memory_as_bad_file
from smalti.devices import Precision
from smalti.errors import ConfigError
from smalti.families.checkpoint import as_tokenizer
from smalti.pipeline.outputs import check_targets
from smalti.text import Progress, printable
from smalti.tokenizer.tokenizer import Tokenizer

SUFFIX = ".smt"
LARGEST_PRICE = 1e12
"""Highest price of a bit in a search: beyond the squared error of any image."""


def compress(
    source: Path | str,
    target: Path | str,
    tokenizer: Tokenizer | str | Path,
    *,
    model: Model | None = None,
    prior: Prior | Path | str | None = None,
    group: int | None = None,
    price: float | None = None,
    bits: float | None = None,
    psnr: float | None = None,
    overwrite: bool = False,
    device: str | None = None,
    precision: Precision | None = None,
    progress: Progress | None = None,
) -> Compressed:
    """Write an image or a video as a `.smt` file of entropy-coded tokens, whole or not at all.

    `tokenizer` is one, or a name as `smalti.load` takes it; reading the file needs the same one. `model` says how ids
    are coded (docs/codec.md), `prior` is a file of `smalti prior`, which reading needs, too. None of both is the prior
    that ships with the package for this tokenizer, or else `adaptive`. With `group`, every so many frames of a video
    are a video of their own, at which decoding can start. `device` None is the best there is, `precision` None the
    number format of the tokenizer's file; in bfloat16 some ids are others, and as good.

    With one of `price`, `bits` and `psnr` the ids are not the encoder's but searched for (docs/codec.md), which takes
    some hundred times as long and needs a prior. `price` is the squared error in 8-bit values that a bit is worth: 0
    is quality alone, 1,600 fewer bits at a quality above that of the encoder's ids. `bits` asks for the best
    quality at so many bits per pixel of the whole file, `psnr` for the smallest file with so many dB; the price that
    does it is found by coding the source eight times. PSNR is that of the decoder in the number format of the search.

    Raises BadFile for media that cannot be read, ConfigError where `target` exists and may not be replaced, is the
    source or has another suffix, for a video and a tokenizer that is not causal without `group`, and for a goal that
    is not reached.
    """
    check_arguments(compress, locals())
    check_least({"group": (group, 1), "price": (price, 0), "bits": (bits, 0), "psnr": (psnr, 0)})
    goal = None if price is None and bits is None and psnr is None else Goal(price, bits, psnr)
    if goal is not None and sum(one is not None for one in goal) > 1:
        raise ConfigError("`price`, `bits` and `psnr` are three ways to say one thing: give one of them")
    if price is not None and price > LARGEST_PRICE:
        raise ConfigError(f"price: is above {LARGEST_PRICE:g}, the most that is allowed")
    source, target = Path(source), Path(target)
    check_targets([target], [source], overwrite=overwrite, other="another name")
    if target.suffix.lower() != SUFFIX:
        raise ConfigError(f"{printable(target)}: compressed files are written as {SUFFIX}")
    opened = as_tokenizer(tokenizer, device, precision)
    with memory_as_bad_file(printable(source)):
        return compress_file(
            opened, source, target, model=model, prior=_opened(prior), group=group, goal=goal, progress=progress
        )


def decompress(
    source: Path | str,
    target: Path | str,
    tokenizer: Tokenizer | str | Path,
    *,
    frames: tuple[int, int | None] | None = None,
    prior: Prior | Path | str | None = None,
    overwrite: bool = False,
    device: str | None = None,
    progress: Progress | None = None,
) -> Decompressed:
    """Write the image or the video that a `.smt` file holds: PNG, or H.264 at the frame rate of its source.

    `tokenizer` is the one that made the file, or its name as `smalti.load` takes it. `frames` = (first, end) takes the
    frames first to end - 1 of a video alone; an end of None is the last. `prior` is the file of the one that it was
    coded with, where that does not ship with the package. `device` None is the best there is.

    Raises InputError where there is no file, IntegrityError for one that is damaged or of another tokenizer,
    ConfigError for frames that are not in it and where `target` exists and may not be replaced or does not suit.
    """
    check_arguments(decompress, locals())
    source, target = Path(source), Path(target)
    check_targets([target], [source], overwrite=overwrite, other="another name")
    opened = as_tokenizer(tokenizer, device)
    return decompress_file(opened, source, target, frames=frames, prior=_opened(prior), progress=progress)


def _opened(prior: Prior | Path | str | None) -> Prior | None:
    return prior if prior is None or isinstance(prior, Prior) else Prior.load(Path(prior))
