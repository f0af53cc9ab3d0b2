"""Distances between the logits of an image classifier: ResNet-50 (He et al. 2015, arXiv 1512.03385) or ConvNeXt-S (Liu
et al. 2022, arXiv 2201.03545), frozen, with weights from a file of the user's.

MAGVIT and MAGVIT-v2 train with ResNet-50's, MaskBit with either, all at weight 0.1. Names and shapes of the weights
are torchvision's (`resnet50`, `convnext_small`). Nothing is ever downloaded.
"""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from smalti.config import Config, PathField
from smalti.errors import IntegrityError
from smalti.foreign import leaves, naming_file
from smalti.losses.functions import Frames, widen
from smalti.losses.perceptual import digest
from smalti.published_weights import PublishedFile, check_weights, read_published

Classifier = Literal["resnet50", "convnext_small"]

SIDE = 224
"""Height and width in pixels that both networks were trained at; every image is resized to it."""
CLASSES = 1000
"""Logits of an image, one for each class of ImageNet-1k."""

_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's pixels in [0, 1]: the weights were trained behind them."""


class LogitsConfig(Config):
    """The classifier, the file of its weights, and the frames that it sees."""

    kind: Literal["logits"] = "logits"
    net: Classifier = "resnet50"
    """Classifier: `resnet50` (MAGVIT-v2, MaskBit) or `convnext_small` (MaskBit)."""
    weights: PathField | None = None
    """A .safetensors, .pt or .pth file with torchvision's names; null searches SMALTI_RESNET50 or
    SMALTI_CONVNEXT_SMALL, then the cache."""
    frames: Frames = "all"
    """Frames of a clip that the loss is computed on: all (MAGVIT), or one at random."""

    def build(self) -> "LogitDistance":
        """The network with its weights. Raises MachineError if there are none, IntegrityError if they are wrong."""
        return LogitDistance(self.net, read_logit_weights(self.weights or find_logit_weights(self.net), self.net))


class LogitDistance(nn.Module):
    """d(a, b) = mean over 1000 classes of (logit(a) - logit(b))².

    No modes, nothing to train: `train()` and `eval()` change nothing, and no parameter asks for a gradient.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, net: Classifier, weights: Mapping[str, Tensor]) -> None:
        """`weights` by torchvision's names; raises IntegrityError on a wrong name or shape."""
        super().__init__()
        check_weights(weights, logit_shapes(net), f"torchvision's {net}")
        self.net: Classifier = net
        self.digest = digest(weights)
        """sha256 of the weights: what a published number has to name."""
        network = _network(net)
        network.load_state_dict({name: value.detach().float() for name, value in weights.items()}, assign=True)
        self.network = network.requires_grad_(False)
        # For pixels in [-1, 1] instead of [0, 1].
        shift, scale = ([2 * m - 1 for m in _MEAN], [2 * d for d in _DEVIATION])
        self.register_buffer("shift", torch.tensor(shift).view(3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(scale).view(3, 1, 1), persistent=False)

    def logits(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1000"]:
        """The logits of pixels in [-1, 1] of any size, resized to 224 x 224 (bilinear, antialiased)."""
        if x.shape[-2:] != (SIDE, SIDE):
            x = F.interpolate(widen(x), size=(SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
        logits: Tensor = self.network((x - self.shift) / self.scale)
        return widen(logits)

    def forward(self, a: Float[Tensor, "n 3 h w"], b: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n"]:
        """Return the distance of each pair, pixels in [-1, 1]; 0 for equal images."""
        return (self.logits(a) - self.logits(b)).square().mean(1)


def find_logit_weights(net: Classifier) -> Path:
    """Find the file: environment variable, then cache file. Raises MachineError if it is nowhere."""
    variable = f"SMALTI_{net.upper()}"
    return PublishedFile(
        variable=variable,
        cached=f"{net}.safetensors",
        package=None,
        packaged="",
        absent=f"no weights for {net!r}: save those of torchvision.models.{net}(weights='IMAGENET1K_V1').state_dict() "
        f"with torch.save, and set the field `weights` (or {variable}) to that file",
    ).find()


def read_logit_weights(path: Path, net: Classifier) -> dict[str, Tensor]:
    """Read weights by torchvision's names from .safetensors, .pt or .pth; runs no code.

    Batch norms' counts of batches are left out. Raises MachineError if the file cannot be opened, IntegrityError if it
    is not what it should be.
    """
    with naming_file(path):
        tree = read_published(path, f"set the field `weights` to a file of {net}'s weights")
        weights: dict[str, Tensor] = {}
        for name, leaf in leaves(tree):
            if name.endswith("num_batches_tracked"):
                continue
            if not isinstance(leaf, Tensor):
                raise IntegrityError(f"{name or 'the root'}: not a tensor; give a state_dict of torchvision's {net}")
            weights[name] = leaf
        check_weights(weights, logit_shapes(net), f"torchvision's {net}")
        return weights


def logit_shapes(net: Classifier) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a classifier's weights."""
    return {name: tuple(value.shape) for name, value in _network(net).state_dict().items()}


def _network(net: Classifier) -> nn.Module:
    """Build the classifier without weights: they are put in place of it, and no random number is taken."""
    with torch.device("meta"):
        return _ResNet() if net == "resnet50" else _ConvNeXt()


class _FrozenNorm(nn.Module):
    """A batch norm that always uses its running statistics."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self.get_buffer("running_mean"), self.get_buffer("running_var")
        return F.batch_norm(x, mean, variance, self.get_buffer("weight"), self.get_buffer("bias"), eps=1e-5)


class _ResNet(nn.Module):
    """ResNet-50 with the stride in the 3x3 convolutions, as torchvision has it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False), _FrozenNorm(64)
        width = 64
        for i, depth in enumerate((3, 4, 6, 3), start=1):
            inner = 64 * 2 ** (i - 1)
            blocks = [
                _Bottleneck(width if j == 0 else 4 * inner, inner, 2 if i > 1 and j == 0 else 1) for j in range(depth)
            ]
            self.add_module(f"layer{i}", nn.Sequential(*blocks))
            width = 4 * inner
        self.fc = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        for i in range(1, 5):
            x = self.get_submodule(f"layer{i}")(x)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


class _Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions to four times the inner width, and the skip."""

    def __init__(self, channels: int, inner: int, stride: int) -> None:
        super().__init__()
        out = 4 * inner
        self.conv1, self.bn1 = nn.Conv2d(channels, inner, 1, bias=False), _FrozenNorm(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, bias=False), _FrozenNorm(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, out, 1, bias=False), _FrozenNorm(out)
        self.downsample: nn.Module | None = None
        if channels != out or stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride=stride, bias=False), _FrozenNorm(out))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class _ConvNeXt(nn.Module):
    """ConvNeXt-S: a stem of 4x4 patches, four stages of blocks, a norm and a stride-2 convolution between them."""

    def __init__(self) -> None:
        super().__init__()
        widths = (96, 192, 384, 768)
        stages: list[nn.Module] = [nn.Sequential(nn.Conv2d(3, widths[0], 4, stride=4), _ChannelNorm(widths[0]))]
        for depth, (width, following) in zip((3, 3, 27, 3), itertools.pairwise((*widths, 0)), strict=True):
            stages.append(nn.Sequential(*(_ConvNeXtBlock(width) for _ in range(depth))))
            if following:
                stages.append(nn.Sequential(_ChannelNorm(width), nn.Conv2d(width, following, 2, stride=2)))
        self.features = nn.Sequential(*stages)
        self.classifier = nn.Sequential(_ChannelNorm(widths[-1]), nn.Flatten(1), nn.Linear(widths[-1], CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).mean((2, 3), keepdim=True))
        return logits


class _ConvNeXtBlock(nn.Module):
    """x + scale * (7x7 depthwise convolution, norm, linear to four times the width, GELU, linear back)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer_scale = nn.Parameter(torch.empty(width, 1, 1))
        self.block = nn.Sequential(
            nn.Conv2d(width, width, 7, padding=3, groups=width),
            _ChannelsLast(),
            nn.LayerNorm(width, eps=1e-6),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
            _ChannelsFirst(),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.block(x)
        return x + self.layer_scale * y


class _ChannelNorm(nn.LayerNorm):
    """A norm over the channels of `n c h w`."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class _ChannelsLast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(1, -1)


class _ChannelsFirst(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(-1, 1)
