"""What MagicMaster's model files ask of mmengine, mmcv and torchvision, as small as they need it; all of it is our own.

The blur is the product with a banded matrix that smalti's discriminator has, so that no ratio owes anything to it.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smalti.discriminators.frames import TAPS, low_pass

Settings = dict[str, Any]


class Registry:
    """Classes by name, built from `dict(type=NAME, ...)`."""

    def __init__(self) -> None:
        self.classes: dict[str, type] = {}

    def register_module(self, name: str | None = None) -> Callable[[type], type]:
        """A decorator that keeps the class under `name` or its own."""

        def keep(kind: type) -> type:
            self.classes[name or kind.__name__] = kind
            return kind

        return keep

    def build(self, settings: Settings, default_args: Settings | None = None) -> Any:
        """The object that the settings describe."""
        given = {**(default_args or {}), **settings}
        return self.classes[given.pop("type")](**given)


class BaseModule(nn.Module):
    """A module whose weights could be initialised by a config."""

    def __init__(self, init_cfg: Settings | None = None) -> None:
        super().__init__()
        assert init_cfg is None


class BaseModel(BaseModule):
    """A model that prepares its batches and adds its losses up."""

    def __init__(self, data_preprocessor: nn.Module | None = None) -> None:
        super().__init__()
        self.data_preprocessor = data_preprocessor

    def parse_losses(self, losses: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of what is called a loss, and all of it for the log."""
        log = {name: value.mean() for name, value in losses.items()}
        log["loss"] = torch.stack([value for name, value in log.items() if "loss" in name]).sum()
        return log["loss"], log


class AsIs(nn.Module):
    """Batches that are prepared already."""

    def forward(self, data: Settings, training: bool = False) -> Settings:
        """The batch."""
        return data


class BaseAveragedModel(nn.Module):
    """A copy of a model that follows it."""

    def __init__(self, model: nn.Module, interval: int, device: object, update_buffers: bool) -> None:
        super().__init__()
        self.module = copy.deepcopy(model).requires_grad_(False)
        self.interval, self.update_buffers = interval, update_buffers
        self.register_buffer("steps", torch.tensor(0))


class Wrapped(nn.Module):
    """One process's share of a distributed model, without the exchange: its code reads `.module`."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, video: Tensor, cond: None = None, video_contains_first_frame: bool = True) -> Any:
        """What their tokenizer gives."""
        return self.module(video, cond, video_contains_first_frame)


class OptimWrapper:
    """Backward, a step, and gradients back to nothing."""

    _accumulative_counts = 1

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def initialize_count_status(self, model: nn.Module, begin: int, end: int) -> None:
        """Nothing is accumulated here."""

    def update_params(self, loss: Tensor) -> None:
        """One update."""
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class MessageHub:
    """What the loop tells the model: a step well after its average has started."""

    current: ClassVar["MessageHub"]

    @classmethod
    def get_current_instance(cls) -> "MessageHub":
        """The only one."""
        return cls.current

    def get_info(self, name: str) -> int:
        """The number of the step."""
        assert name == "iter"
        return 1_000_000

    def update_info(self, name: str, value: object) -> None:
        """Nothing is kept."""


MessageHub.current = MessageHub()


class ConvModule(nn.Module):
    """A convolution, here always without a norm and an activation."""

    def __init__(
        self,
        channels: int,
        out: int,
        kernel: int,
        *,
        padding: int,
        stride: int,
        bias: bool,
        norm_cfg: None,
        act_cfg: None,
    ) -> None:
        super().__init__()
        assert norm_cfg is act_cfg is None
        self.conv = nn.Conv2d(channels, out, kernel, stride=stride, padding=padding, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """The convolution."""
        return self.conv(x)


def upfirdn2d(x: Tensor, kernel: Tensor, padding: tuple[int, int]) -> Tensor:
    """The blur by [1, 3, 3, 1]; no other kernel is in their models."""
    taps = torch.tensor(TAPS, device=kernel.device)
    assert torch.equal(kernel, taps[:, None] * taps)
    return low_pass(low_pass(x, 2, 1, padding), 3, 1, padding)


def fused_bias_leakyrelu(x: Tensor, bias: Tensor, slope: float = 0.2, scale: float = 2**0.5) -> Tensor:
    """A bias for each channel, a leaky ReLU, a factor."""
    return F.leaky_relu(x + bias.view(1, -1, *[1] * (x.dim() - 2)), slope) * scale


class FusedBiasLeakyReLU(nn.Module):
    """The same with its bias."""

    def __init__(self, channels: int, negative_slope: float = 0.2, scale: float = 2**0.5) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.negative_slope, self.scale = negative_slope, scale


class VGG16(nn.Module):
    """The convolutions of VGG-16, with random weights."""

    WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
    """0 is a maximum over 2x2."""

    def __init__(self, pretrained: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in self.WIDTHS:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(True)] if width else [nn.MaxPool2d(2)]
            channels = width or channels
        self.features = nn.Sequential(*layers)


@contextmanager
def autocast(enabled: bool) -> Iterator[None]:
    """Their configs never turn it on."""
    assert not enabled
    yield


def modules(registry: Registry) -> dict[str, ModuleType]:
    """The modules that their files import from, by name."""

    def gone(*given: Any) -> Any:
        raise NotImplementedError("a part of MagicMaster that no measured model runs")

    def freeze(module: nn.Module, grads: bool) -> None:
        module.requires_grad_(grads)

    contents: dict[str, Settings] = {
        "magicmaster.registry": {"MODELS": registry},
        "magicmaster.structures": {"DataSample": object},
        "magicmaster.utils": {},
        "magicmaster.utils.typing": {"ForwardInputs": object, "SampleList": object},
        "magicmaster.models.utils": {"set_requires_grad": freeze},
        "mmengine": {"Config": object, "MessageHub": MessageHub, "print_log": gone},
        "mmengine.model": {
            **{"BaseModule": BaseModule, "BaseModel": BaseModel, "BaseAveragedModel": BaseAveragedModel},
            "is_model_wrapper": lambda module: isinstance(module, Wrapped),
            "normal_init": lambda module: nn.init.normal_(module.weight),
            **{"update_init_info": gone, "xavier_init": gone},
        },
        "mmengine.optim": {"OptimWrapper": OptimWrapper, "OptimWrapperDict": dict},
        "mmengine.dist": {"get_dist_info": gone},
        "mmengine.runner": {},
        "mmengine.runner.amp": {"autocast": autocast},
        "mmengine.runner.checkpoint": {"_load_checkpoint_with_prefix": gone},
        "mmcv": {},
        "mmcv.cnn": {},
        "mmcv.cnn.bricks": {"ConvModule": ConvModule, "build_norm_layer": gone},
        "mmcv.ops": {},
        "mmcv.ops.upfirdn2d": {"upfirdn2d": upfirdn2d},
        "mmcv.ops.fused_bias_leakyrelu": {
            "fused_bias_leakyrelu": fused_bias_leakyrelu,
            "FusedBiasLeakyReLU": FusedBiasLeakyReLU,
        },
        "torchvision": {},
        "torchvision.models": {"vgg16": VGG16},
        "requests": {},
        "tqdm": {"tqdm": gone},
    }
    made = {name: ModuleType(name) for name in contents}
    for name, content in contents.items():
        vars(made[name]).update(content)
        parent, _, last = name.rpartition(".")
        if parent in made:
            setattr(made[parent], last, made[name])
    return made
