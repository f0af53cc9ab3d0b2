"""The I3D of the Fréchet video distance (Carreira and Zisserman 2017): 400 logits of Kinetics for a clip.

The graph pads as TensorFlow does. Weights are read by the names of the usual port to PyTorch, or, from a file with
other names, in the order of the graph if every shape agrees.
"""

import re
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from smalti.errors import IntegrityError
from smalti.metrics.conv_graph import (
    Branches,
    ConvLayer,
    Layers,
    PoolLayer,
    Weights,
    convolutions,
    run_layers,
    weight_shapes,
)
from smalti.metrics.features import Network

_SIDE = 224
_EPS = 1e-5
"""Added to the variances in the usual port."""
_LOGITS = ConvLayer("logits.conv3d", None, (400, 1024, 1, 1, 1), (1, 1, 1), (0, 0, 0), activation="none")
_EPS_IN_PROGRAM = re.compile(
    r"^ *eps : Final\[float\] = ([0-9.e+-]+)$|torch\.batch_norm\(.*, ([0-9.e+-]+), (?:True|False)\)$", re.MULTILINE
)
"""Finds the same number in the text of a TorchScript program, scripted or traced."""
_WIDTHS = {
    "Mixed_3b": (192, 64, 96, 128, 16, 32, 32),
    "Mixed_3c": (256, 128, 128, 192, 32, 96, 64),
    "Mixed_4b": (480, 192, 96, 208, 16, 48, 64),
    "Mixed_4c": (512, 160, 112, 224, 24, 64, 64),
    "Mixed_4d": (512, 128, 128, 256, 24, 64, 64),
    "Mixed_4e": (512, 112, 144, 288, 32, 64, 64),
    "Mixed_4f": (528, 256, 160, 320, 32, 128, 128),
    "Mixed_5b": (832, 256, 160, 320, 32, 128, 128),
    "Mixed_5c": (832, 384, 192, 384, 48, 128, 128),
}
"""Channels of the input, then of the branches: b0, b1a, b1b, b2a, b2b, b3b."""


def _conv(name: str, into: int, out: int, side: int, stride: int = 1) -> ConvLayer:
    return ConvLayer(f"{name}.conv3d", f"{name}.bn", (out, into, side, side, side), (stride,) * 3, None, eps=_EPS)


def _mixed(name: str) -> Branches:
    into, b0, b1a, b1b, b2a, b2b, b3b = _WIDTHS[name]
    return Branches(
        (
            (_conv(f"{name}.b0", into, b0, 1),),
            (_conv(f"{name}.b1a", into, b1a, 1), _conv(f"{name}.b1b", b1a, b1b, 3)),
            (_conv(f"{name}.b2a", into, b2a, 1), _conv(f"{name}.b2b", b2a, b2b, 3)),
            (PoolLayer("max", (3, 3, 3), (1, 1, 1), None), _conv(f"{name}.b3b", into, b3b, 1)),
        )
    )


_FLAT = PoolLayer("max", (1, 3, 3), (1, 2, 2), None)
_TRUNK: Layers = (
    _conv("Conv3d_1a_7x7", 3, 64, 7, 2),
    _FLAT,
    _conv("Conv3d_2b_1x1", 64, 64, 1),
    _conv("Conv3d_2c_3x3", 64, 192, 3),
    _FLAT,
    _mixed("Mixed_3b"),
    _mixed("Mixed_3c"),
    PoolLayer("max", (3, 3, 3), (2, 2, 2), None),
    *(_mixed(f"Mixed_4{letter}") for letter in "bcdef"),
    PoolLayer("max", (2, 2, 2), (2, 2, 2), None),
    _mixed("Mixed_5b"),
    _mixed("Mixed_5c"),
    PoolLayer("mean", (2, 7, 7), (1, 1, 1), (0, 0, 0)),
)


def i3d_input(clips: Tensor) -> Tensor:
    """Return clips `b 3 t h w` on 0..255 as the graph takes them: 224 x 224, bilinear (it aliases), on [-1, 1]."""
    count, _, frames = clips.shape[:3]
    flat = clips.transpose(1, 2).flatten(0, 1) / 127.5 - 1
    flat = F.interpolate(flat, (_SIDE, _SIDE), mode="bilinear", align_corners=False)
    return flat.unflatten(0, (count, frames)).transpose(1, 2)


def _features(weights: Weights, clips: Tensor) -> Tensor:
    return run_layers((*_TRUNK, _LOGITS), weights, i3d_input(clips)).mean((2, 3, 4))


def weights_in_graph_order(tensors: Mapping[str, Tensor], program: str) -> dict[str, Tensor]:
    """Return the weights of another port under our names, from a TorchScript file with layers in the graph's order.

    Each convolution must have one batch norm, except the classifier, which has a bias. The number that the norms add
    to the variances is read from the text of the `program`; the variances returned here absorb the difference from
    ours. Raises IntegrityError, with what to do instead, for any other file; the caller compares every shape.
    """
    modules: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        prefix, _, last = name.rpartition(".")
        modules.setdefault(prefix, {})[last] = tensor
    layers = [module for module in modules.values() if "weight" in module and module["weight"].ndim == 5]
    norms = [module for module in modules.values() if "running_mean" in module]
    heads = [module for module in layers if "bias" in module]
    trunk = list(convolutions(_TRUNK))
    whole = all({"weight", "bias", "running_var"} <= norm.keys() for norm in norms)
    eps = {float(scripted or traced) for scripted, traced in _EPS_IN_PROGRAM.findall(program)}
    if not (len(eps) == len(heads) == 1 and whole and len(layers) - 1 == len(norms) == len(trunk)):
        raise IntegrityError(
            f"no I3D that can be recognised by its tensors ({len(layers)} convolutions, {len(norms)} norms, "
            f"{len(eps)} values of eps); save its weights as .safetensors by the names of docs/metrics.md"
        )
    added_once = eps.pop()
    renamed = {f"{_LOGITS.name}.{part}": heads[0][part] for part in ("weight", "bias")}
    others = [module for module in layers if module is not heads[0]]
    for conv, module, norm in zip(trunk, others, norms, strict=True):
        renamed[f"{conv.name}.weight"] = module["weight"]
        for part in ("weight", "bias", "running_mean", "running_var"):
            renamed[f"{conv.norm}.{part}"] = norm[part]
        renamed[f"{conv.norm}.running_var"] = norm["running_var"].double() + (added_once - _EPS)
    return renamed


I3D = Network(
    name="i3d",
    score="rfvd",
    dim=400,
    per="clip",
    features=_features,
    shapes=weight_shapes((*_TRUNK, _LOGITS)),
    file="i3d_torchscript.pt",
    fewest_frames=9,
    renamed=weights_in_graph_order,
)
"""400 logits a clip, the mean over time."""
