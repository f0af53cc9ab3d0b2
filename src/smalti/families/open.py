"""Load a tokenizer by its name."""

from pathlib import Path

import torch

from smalti.arguments import check_arguments
from smalti.devices import Precision, as_device, pick_device
from smalti.errors import ConfigError
from smalti.families.checkpoint import load_converted, source_at, with_revision
from smalti.families.family import ImportOptions
from smalti.families.names import FORMS, find_tokenizer, is_foreign, shipped_folder, split_options, with_options
from smalti.quantize import Lookup
from smalti.tokenizer import Tokenizer
from smalti.tokenizer_info import PixelRange

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""Number types that networks compute in; torch stores others, as of 8 bits, and has no convolutions of them."""


def load(
    name: str | Path,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    *,
    lookup: Lookup | None = None,
    pixels: PixelRange | None = None,
) -> Tokenizer:
    """Load the tokenizer of that name, for inference: on the CPU and with the number type of its file unless said.

    `name` is a tokenizer folder, a run folder (its finished tokenizer, or its newest checkpoint's), `smalti/tiny-image`
    or `smalti/tiny-video`, which ship with the package, a checkpoint of another project (a file, or its folder), or a
    repository of the Hugging Face hub, ours or another project's, which is downloaded once into its cache:
    `owner/name`, `owner/name@revision`, `owner/name/file.ckpt`, or the same after `hf:`. A folder that exists comes
    before a repository of the same name; a `Path` is never a repository. `revision` says the same as `@revision`.

    The family of another project's checkpoint is recognised by its tensors (`smalti zoo` lists the families); it is
    converted once, in float32, and read from the cache after. `lookup` and `pixels` are asked for where neither it nor
    its name says them (`import_checkpoint`); everywhere else that takes a name, they are a part of it:
    `vqgan.ckpt:lookup=euclidean`.

    Raises InputError for a name of nothing, IntegrityError for a tokenizer that has changed since it was written or a
    checkpoint of no known family, ConfigError for an option that is missing or wrong, MachineError where the hub cannot
    be reached. Runs no code that it loads.
    """
    check_arguments(load, locals(), {"name": f"give {FORMS}"})
    if dtype is not None and dtype not in _DTYPES:
        known = ", ".join(map(str, _DTYPES))
        raise ConfigError(f"dtype: {str(dtype).removeprefix('torch.')} is no type of weights; give {known}")
    place = as_device(device)
    bare, options = split_options(name)
    options = with_options(options, {"lookup": lookup, "pixels": pixels}, str(name))
    source = source_at(with_revision(find_tokenizer(bare), revision, str(name)))
    if is_foreign(source.paths[0]):
        tokenizer = load_converted(source, options)
    elif options != ImportOptions():
        raise ConfigError(f"{name}: is a tokenizer of smalti, which needs no {', '.join(options.essence())}")
    else:
        tokenizer = Tokenizer.load(source.paths[0])
    if dtype is None and source.paths[0] == shipped_folder(str(bare)):
        dtype = torch.float32  # its file holds half precision, which is exact in float32
    return tokenizer.to(device=place, dtype=dtype)


def as_tokenizer(
    tokenizer: Tokenizer | str | Path, device: str | None = None, precision: Precision | None = None
) -> Tokenizer:
    """Return a tokenizer as it is, or load it by a name as `load` takes it, on `device` or the best there is.

    `precision` is the number format of its networks; None is that of its file. Raises ConfigError for a `precision`
    beside a tokenizer that is loaded already.
    """
    if not isinstance(tokenizer, Tokenizer):
        loaded = load(tokenizer, pick_device(device))
        return loaded if precision is None else loaded.compute_in(getattr(torch, precision))
    if precision is not None:
        raise ConfigError("`precision` is for a tokenizer that is loaded by its name; this one: tokenizer.compute_in")
    return tokenizer
