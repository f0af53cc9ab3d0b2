"""States of MagicMaster's trainer beside the averaged generator: the live one, the discriminator, Adam's averages."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from smalti.errors import IntegrityError
from smalti.families.family import ImportOptions
from smalti.families.links import Link, assemble
from smalti.families.magicmaster import MAGICMASTER
from smalti.families.source import SourceFiles, read_source
from smalti.tokenizer import Tokenizer

_DISCRIMINATOR = ("discriminator.module.", "discriminator.")
_BUFFERS = ("kernel", "running_mean", "running_var", "num_batches_tracked")
_LAYERS = (
    (r"convs\.0\.0\.conv\.(weight_orig)", "first.{}"),
    (r"convs\.0\.1\.(bias)", "first.{}"),
    (r"convs\.(\d+)\.conv1\.0\.conv\.(weight_orig)", "blocks.{}.inner.{}"),
    (r"convs\.(\d+)\.conv1\.1\.(bias)", "blocks.{}.inner.{}"),
    (r"convs\.(\d+)\.conv2\.1\.conv\.(weight_orig)", "blocks.{}.down.{}"),
    (r"convs\.(\d+)\.conv2\.2\.(bias)", "blocks.{}.down.{}"),
    (r"convs\.(\d+)\.skip\.1\.conv\.(weight_orig)", "blocks.{}.skip.{}"),
    (r"final_conv\.0\.conv\.(weight_orig)", "last.{}"),
    (r"final_conv\.1\.(bias)", "last.{}"),
    (r"final_linear\.0\.linear\.(weight_orig)", "hidden.{}"),
    (r"final_linear\.0\.(bias)", "hidden.{}"),
    (r"final_linear\.1\.linear\.(weight_orig)", "logit.{}"),
    (r"final_linear\.1\.(bias)", "logit.{}"),
)
"""Names of its StyleGAN2 discriminator, and ours; its blocks count from 1."""


class TrainerStates(NamedTuple):
    """Tensors by our names; those of Adam as `exp_avg/NAME`, `exp_avg_sq/NAME` and `step/NAME`."""

    tokenizer: Mapping[str, Tensor]
    """Weights of the live tokenizer, without the average over steps."""
    tokenizer_adam: Mapping[str, Tensor]
    discriminator: Mapping[str, Tensor]
    """Weights of the discriminator; none where the file has none."""
    discriminator_adam: Mapping[str, Tensor]


def read_trainer_states(path: Path) -> TrainerStates:
    """Read a file that MagicMaster's trainer wrote, as data. What it does not hold is empty.

    Adam's averages of a tensor that fills several of ours, or part of one, are left out: Adam begins anew there. Raises
    IntegrityError where it is of another program or not whole, and where its optimizer is of other networks.
    """
    checkpoint = read_source(SourceFiles(str(path), (path,)))
    if not MAGICMASTER.recognises(checkpoint):
        raise IntegrityError(f"{path}: not a checkpoint of MagicMaster, the one project whose trainer goes on here")
    model = MAGICMASTER.read(checkpoint, ImportOptions(weights="live"))
    tokenizer = Tokenizer(model.config)
    names = [name[len(model.prefix) :] for name in checkpoint.shapes if name.startswith(model.prefix)]
    held = {name: checkpoint.tensors[model.prefix + name] for name in names}
    state = assemble(tokenizer, model.links, held, str(path))
    optimizers = checkpoint.tree.get("optimizer") if isinstance(checkpoint.tree, dict) else None
    optimizers = optimizers if isinstance(optimizers, dict) else {}
    adam = dict[str, Tensor]()
    links = {link.source: link for link in model.links}
    for name, kind, value in _averages(optimizers.get("generator"), names, f"{path}: generator"):
        if name in links:
            adam |= {f"{kind}/{ours}": tensor for ours, tensor in _moved(links[name], value, held[name], state)}
    prefix = next((p for p in _DISCRIMINATOR if any(name.startswith(p) for name in checkpoint.shapes)), None)
    theirs = [] if prefix is None else [name for name in checkpoint.shapes if name.startswith(prefix)]
    own = {name: _our_name(name[len(prefix or "") :], str(path)) for name in theirs}
    trained = [name for name in theirs if not name.endswith(_BUFFERS)]
    averages = _averages(optimizers.get("discriminator"), trained, f"{path}: discriminator")
    return TrainerStates(
        tokenizer=state,
        tokenizer_adam=adam,
        discriminator={ours: checkpoint.tensors[name] for name, ours in own.items() if ours},
        discriminator_adam={f"{kind}/{own[name]}": value for name, kind, value in averages},
    )


def _our_name(name: str, where: str) -> str:
    """Return our name of a tensor of a discriminator; empty for the fixed kernels of its filters."""
    if name.endswith(".kernel"):
        return ""
    if patch := re.fullmatch(r"model\.(\d+)\.(?:(conv|bn)\.)?(\w+)", name):
        stage, part, kind = int(patch[1]), patch[2], patch[3]
        # A convolution, a norm and an activation a stage; the first stage has no norm, the last is a convolution.
        return f"layers.{3 * stage - (part != 'bn') if stage else 0}.{kind}"
    for pattern, ours in _LAYERS:
        if match := re.fullmatch(pattern, name):
            *block, kind = match.groups()
            return ours.format(*(int(number) - 1 for number in block), kind)
    raise IntegrityError(f"{where}: {name} is no tensor of a discriminator of MagicMaster")


def _averages(optimizer: Any, names: Sequence[str], where: str) -> Iterator[tuple[str, str, Tensor]]:
    """Yield (name, kind, tensor) of Adam's state, whose numbers follow the order of the parameters."""
    if not isinstance(optimizer, dict):
        return
    try:
        numbers = [number for group in optimizer["param_groups"] for number in group["params"]]
        states = {int(number): dict(state) for number, state in optimizer["state"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise IntegrityError(f"{where}: its optimizer is no Adam of torch") from None
    if numbers != list(range(len(names))):
        raise IntegrityError(f"{where}: its optimizer has {len(numbers)} parameters, its network {len(names)}")
    for number, state in states.items():
        for kind in ("step", "exp_avg", "exp_avg_sq"):
            if number not in range(len(names)) or kind not in state:
                raise IntegrityError(f"{where}: its optimizer lacks {kind} of parameter {number}")
            # A copy: Adam changes it in place, and the file's tensors are mapped from the disk.
            yield names[number], kind, torch.as_tensor(state[kind]).to(torch.float32, copy=True)


def _moved(link: Link, value: Tensor, weight: Tensor, state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield our tensors of an average, or of a number of steps, of a tensor whose entries each become one of ours."""
    whole = list(link.into(torch.ones_like(weight)))
    alike = all(piece.rows is None and bool((piece.value == 1).all()) for piece in whole)
    if not alike or sum(piece.value.numel() for piece in whole) != weight.numel():
        return
    if value.dim() == 0 and weight.dim():
        yield from ((piece.name, value.clone()) for piece in whole)
    elif value.shape != weight.shape:
        raise IntegrityError(f"{link.source}: Adam's average has another shape than its weight")
    else:
        yield from ((piece.name, piece.value.clone()) for piece in link.into(value) if piece.name in state)
