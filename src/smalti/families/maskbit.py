"""MaskGIT's VQGAN (1d-tokenizer; RAR, TiTok) and MaskBit's tokenizers: LFQ of 10 to 18 bits, VQGAN+.

Pixels in [0, 1], no attention, few biases, and a shortcut that takes the output of its block (`OutputShortcutBlock`).
"""

import torch
from torch import Tensor

from smalti.families.family import Checkpoint, Family, ImportOptions, Published, find_network, shapes_of
from smalti.families.halves import (
    Half,
    HalfLevel,
    Layout,
    codebook_config,
    codebook_links,
    decoder_links,
    encoder_links,
    numbered,
    vqgan_config,
)
from smalti.families.links import ForeignModel, Shapes
from smalti.quantize import CodebookConfig, LFQConfig

_SIGN = "encoder.conv_in.weight"
_MASKGIT = Published("fun-research/TiTok", licence="Apache-2.0", files=("maskgit-vqgan-imagenet-f16-256.bin",))
_MASKBIT = tuple(
    Published(
        f"markweber/{name}",
        licence="Apache-2.0",
        files=("*.bin",),
        licence_source="the tag of its repository on the hub; README of MaskBit: for research purposes only",
    )
    for name in (
        *(f"maskbit_tokenizer_{bits}bit" for bits in (10, 12, 14, 16, 18)),
        "vqgan_plus_paper",
        "vqgan_plus_12bit",
        "maskgit_tokenizer",
    )
)
_BLOCKS = {"maskgit": "block", "maskbit": "res_blocks"}


def _half(shapes: Shapes, half: str, blocks: str) -> Half:
    is_encoder = half == "encoder"
    levels = numbered(shapes, f"{half}.{'down' if is_encoder else 'up'}")
    # MaskBit counts its decoder's levels in the order of execution, MaskGIT and its former models from the pixels: the
    # one without a doubling is the last.
    if not is_encoder and f"{levels[0]}.upsample_conv.weight" not in shapes:
        levels = levels[::-1]
    return Half(
        stem=f"{half}.conv_in",
        levels=[
            HalfLevel(
                blocks=numbered(shapes, f"{level}.{blocks}"),
                resample=_resample(shapes, level, is_encoder),
            )
            for level in levels
        ],
        middle=numbered(shapes, f"{half}.mid.res_blocks" if blocks == "res_blocks" else f"{half}.mid"),
        norm=f"{half}.norm_out",
        head=f"{half}.conv_out",
    )


def _resample(shapes: Shapes, level: str, is_encoder: bool) -> str | None:
    if not is_encoder:
        return f"{level}.upsample_conv"
    return f"{level}.down_conv" if any(name.startswith("encoder.down.0.down_conv.") for name in shapes) else None


def _recognises_maskgit(checkpoint: Checkpoint) -> bool:
    parts = ("encoder.mid.0.", "decoder.mid.0.")
    return any(name.startswith(part) or f".{part}" in name for name in checkpoint.shapes for part in parts)


def _recognises_maskbit(checkpoint: Checkpoint) -> bool:
    parts = ("encoder.mid.res_blocks.", "decoder.mid.res_blocks.", "encoder.down.0.res_blocks.")
    return any(name.startswith(part) or f".{part}" in name for name in checkpoint.shapes for part in parts)


def _read_maskgit(checkpoint: Checkpoint, options: ImportOptions) -> ForeignModel:
    return _read(checkpoint, options, "maskgit")


def _read_maskbit(checkpoint: Checkpoint, options: ImportOptions) -> ForeignModel:
    return _read(checkpoint, options, "maskbit")


def _read(checkpoint: Checkpoint, options: ImportOptions, family: str) -> ForeignModel:
    network = find_network(checkpoint.shapes, _SIGN, options.weights)
    shapes = shapes_of(network, checkpoint.shapes)
    encoder, decoder = (_half(shapes, half, _BLOCKS[family]) for half in ("encoder", "decoder"))
    layout = Layout(block_bias=False, shortcut_of="output", averages=encoder.levels[0].resample is None, pixels="unit")
    is_lfq = "quantize.embedding.weight" not in shapes and "quantize.bits_to_indices" in shapes
    bits = shapes["encoder.conv_out.weight"][0]
    quantizer: LFQConfig | CodebookConfig
    quantizer = LFQConfig(bits=bits) if is_lfq else codebook_config(shapes, "euclidean")
    kinds = {"maskgit": "VQGAN", "maskbit": f"LFQ {bits} bits" if is_lfq else "VQGAN+"}
    return ForeignModel(
        kind=kinds[family],
        config=vqgan_config(shapes, encoder, decoder, quantizer, 0, layout),
        links=[
            *encoder_links(shapes, encoder, layout),
            *([] if is_lfq else codebook_links(0)),
            *decoder_links(shapes, decoder, layout),
        ],
        unused=[],
        notes=["its wrapper clamps pixels to [0, 1]; ours are not clamped before they are written"],
        names=network.names,
        copy=network.copy,
        constants=_constants(bits) if is_lfq else {},
        lookup=None if is_lfq else "euclidean",
        licence="Apache-2.0",
        pixels="unit",
        preprocessing="256 px, short side resized, centre crop",
    )


def _constants(bits: int) -> dict[str, Tensor]:
    """The weights of the bits in an id, channel 0 the lowest, and the table of all codes."""
    places = torch.arange(bits)
    table = 2.0 * (torch.arange(2**bits)[:, None] >> places & 1) - 1
    return {"quantize.bits_to_indices": 2**places, "quantize.codebook": table}


MASKGIT = Family(
    name="maskgit",
    title="MaskGIT's VQGAN",
    sign="encoder.mid.0.conv1 without biases",
    recognises=_recognises_maskgit,
    read=_read_maskgit,
    published=(_MASKGIT,),
)
MASKBIT = Family(
    name="maskbit",
    title="MaskBit",
    sign="encoder.down.0.res_blocks",
    recognises=_recognises_maskbit,
    read=_read_maskbit,
    published=_MASKBIT,
)
