"""Other projects' tokenizers as they are, from checkouts: encoder, quantizer, decoder, and the quantizer's own loss.

Nothing of them is copied here: a checkout of each lies in the folder that SMALTI_PEERS names, under the name given
below. What their files import beyond torch, einops and vector-quantize-pytorch, and no measured model runs, is stood in
for. Losses of quantizers are theirs, with their own weights.
"""

import importlib
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.peers import magicmaster

VARIABLE = "SMALTI_PEERS"
HOW = (
    f"set {VARIABLE} to a folder with checkouts of github.com/TencentARC/SEED-Voken as seed-voken, "
    "lucidrains/magvit2-pytorch as magvit2-pytorch, microsoft/VidTok as vidtok; and "
    f"{magicmaster.VARIABLE} to one of ZhichengHuang/MagicMaster; pip install --no-deps einops einx frozendict loguru "
    "rotary-embedding-torch taylor-series-linear-attention torch-einops-utils vector-quantize-pytorch"
)


class Rebuilt(NamedTuple):
    """What a forward pass gives."""

    video: Tensor
    ids: Tensor
    loss: Tensor | float
    """Of the quantizer, weighted as its authors do."""


class Peer(NamedTuple):
    """A contender of another project."""

    name: str
    build: Callable[[int], nn.Module]
    """The module for pictures or clips of so many pixels a side; it gives a `Rebuilt` of `b 3 t h w`."""
    levels: tuple[int, ...]


def images() -> tuple[Peer, ...]:
    """For pictures, 8x8 pixels a token."""
    fsq, lfq = (8, 8, 8, 5, 5, 5), (2,) * 14
    return (
        Peer("MagicMaster 2-D, FSQ 64,000", _magicmaster_2d, fsq),
        Peer("Open-MAGVIT2 2-D, LFQ 2^14", OpenMagvit2, lfq),
        Peer("magvit2-pytorch, FSQ 64,000", Lucidrains, fsq),
    )


def videos() -> tuple[Peer, ...]:
    """For clips, 4x8x8 pixels a token."""
    fsq = (8, 8, 8, 5, 5, 5)
    return (
        Peer("MagicMaster 3-D, FSQ 64,000", _magicmaster_3d, fsq),
        Peer("VidTok causal 4x8x8, FSQ 2^15", VidTok, (8,) * 5),
    )


def checkout(project: str) -> Path:
    """The folder of a project. Raises SystemExit where there is none."""
    if project == "magicmaster":
        found = magicmaster.find()
    else:
        folder = os.environ.get(VARIABLE)
        found = Path(folder) / project if folder and (Path(folder) / project).is_dir() else None
    if found is None:
        raise SystemExit(f"peers: no checkout of {project}; {HOW}")
    return found


class MagicMaster(nn.Module):
    """Its 2-D or 3-D MAGVIT-v2 with FSQ, which has no loss of its own."""

    def __init__(self, config: str, size: int, width: int) -> None:
        super().__init__()
        index = torch.zeros(1, dtype=torch.int64)
        made = magicmaster.build(checkout("magicmaster"), config, width=width, size=size, index=index)
        self.tokenizer = made.generator

    def forward(self, video: Tensor) -> Rebuilt:
        """Reconstruction and ids."""
        is_image = video.shape[2] == 1
        made, _, ids = self.tokenizer(video.squeeze(2) if is_image else video)
        made = made.unsqueeze(2) if made.dim() == 4 else made
        return Rebuilt(made, ids.unsqueeze(1) if ids.dim() == 3 else ids, 0.0)


def _magicmaster_2d(size: int) -> nn.Module:
    return MagicMaster("magvit/magvit_fsq_imagenet1k_style2_d128_64000_128x128_8x8_ep20.py", size, 32)


def _magicmaster_3d(size: int) -> nn.Module:
    return MagicMaster("magvit/magvit_v2_fsq_k600_style2_d64_64000_128x128_4x32_ep40.py", size, 32)


class OpenMagvit2(nn.Module):
    """Open-MAGVIT2's image tokenizer for 128 pixels, of width 32 and two blocks a level in place of 128 and four.

    LFQ of 2^14 codes, as in its pretraining config: its entropy makes one probability for each token and code, at 2^18
    and 2,048 tokens some 2 GB a tensor.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        folder = checkout("seed-voken") / "src" / "Open_MAGVIT2" / "modules"
        shape = {"ch": 32, "out_ch": 3, "in_channels": 3, "num_res_blocks": 2, "z_channels": 14}
        with _packages({"openmagvit2": folder}):
            networks = importlib.import_module("openmagvit2.diffusionmodules.improved_model")
            quantizers = importlib.import_module("openmagvit2.vqvae.lookup_free_quantize")
        self.encoder = networks.Encoder(**shape, ch_mult=(1, 2, 2, 4), resolution=size)
        self.decoder = networks.Decoder(**shape, ch_mult=(1, 2, 2, 4), resolution=size)
        self.quantizer = quantizers.LFQ(dim=14, codebook_size=2**14)

    def forward(self, video: Tensor) -> Rebuilt:
        """Entropy loss at 0.1 and commitment at 0.25, as in its configs."""
        z = self.encoder(video.squeeze(2))
        (codes, entropy, ids), parts = self.quantizer(z, return_loss_breakdown=True)
        made = self.decoder(codes).unsqueeze(2)
        ids = ids.reshape(len(video), 1, *z.shape[2:])
        return Rebuilt(made, ids, 0.1 * entropy + 0.25 * parts.commitment)


class Lucidrains(nn.Module):
    """magvit2-pytorch's tokenizer with the spatial layers of its README, width 32 (not 64), and FSQ in place of LFQ."""

    LAYERS = (
        *("residual", "compress_space", ("consecutive_residual", 2), "compress_space", ("consecutive_residual", 2)),
        *("linear_attend_space", "compress_space", ("consecutive_residual", 2), "attend_space"),
    )

    def __init__(self, size: int) -> None:
        super().__init__()
        absent = ("torchvision", "torchvision.models", "gateloop_transformer", "kornia", "kornia.filters")
        with _packages({"magvit2_pytorch": checkout("magvit2-pytorch") / "magvit2_pytorch"}, absent):
            module = importlib.import_module("magvit2_pytorch.magvit2_pytorch")
            self.tokenizer = module.VideoTokenizer(
                image_size=size,
                init_dim=32,
                max_dim=256,
                layers=self.LAYERS,
                use_fsq=True,
                fsq_levels=[8, 8, 8, 5, 5, 5],
                use_gan=False,
                perceptual_loss_weight=0.0,
                flash_attn=False,
            )
        self.tokenizer.discr = nn.Identity()  # 40 M parameters that are made in any case

    def forward(self, video: Tensor) -> Rebuilt:
        """FSQ has no loss of its own."""
        codes, ids = self.tokenizer.quantizers(self.tokenizer.encode(video))
        return Rebuilt(self.tokenizer.decode(codes), ids, 0.0)


class VidTok(nn.Module):
    """VidTok's causal tokenizer of its config vidtok_fsq_causal_488_32768, of width 32 in place of 128."""

    def __init__(self, size: int) -> None:
        super().__init__()
        shape = {"double_z": False, "z_channels": 5, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 2, 4, 4]}
        rest = {
            "time_downsample_factor": 4,
            "num_res_blocks": 2,
            "init_pad_mode": "replicate",
            "norm_type": "layernorm",
        }
        absent = tuple("lightning.pytorch.utilities.rank_zero".rsplit(".", n)[0] for n in range(3, -1, -1))
        with _packages({"vidtok_modules": checkout("vidtok") / "vidtok" / "modules"}, absent):
            networks = importlib.import_module("vidtok_modules.model_3dcausal")
            regularizers = importlib.import_module("vidtok_modules.regularizers")
        self.encoder = networks.EncoderCausal3DPadding(**shape, **rest)
        self.decoder = networks.DecoderCausal3DPadding(**shape, **rest)
        self.quantizer = regularizers.FSQRegularizer(
            levels=[8] * 5,
            entropy_loss_weight=0.1,
            entropy_loss_annealing_steps=2000,
            entropy_loss_annealing_factor=3,
            commitment_loss_weight=0.25,
        )
        self.steps = 0

    def forward(self, video: Tensor) -> Rebuilt:
        """Its auxiliary loss, with its annealing; where it is not trained, ids alone are wanted."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # its autocast has another name by now
            codes, found = self.quantizer(self.encoder(video), n_steps=self.steps)
        self.steps += self.training
        return Rebuilt(self.decoder(codes), found["indices"], found["aux_loss"])


class _Stand(ModuleType):
    """A module whose every name is something that no measured model calls."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent


class _Absent:
    """Passes for a class or a decorator; an enumeration's members too."""

    DEFAULT = None

    def __new__(cls, *given: Any) -> Any:
        """A decorated function stays itself."""
        return given[0] if len(given) == 1 and callable(given[0]) else super().__new__(cls)


class _packages:
    """Their folders as packages whose `__init__` is not run, among stand-ins; all are gone again afterwards."""

    def __init__(self, folders: Mapping[str, Path], absent: tuple[str, ...] = ()) -> None:
        self.folders, self.absent = folders, absent

    def __enter__(self) -> None:
        self.before = dict(sys.modules)
        for name, folder in self.folders.items():
            package = ModuleType(name)
            package.__path__ = [str(folder)]
            sys.modules[name] = package
        for name in self.absent:
            sys.modules[name] = _Stand(name)

    def __exit__(self, *_: object) -> None:
        ours = (*self.folders, *self.absent)
        for name in set(sys.modules) - set(self.before):
            if name in ours or name.split(".")[0] in ours:
                del sys.modules[name]
        sys.modules.update({name: module for name, module in self.before.items() if name in ours})
