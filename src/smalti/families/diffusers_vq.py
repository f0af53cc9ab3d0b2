"""`VQModel` of diffusers, in the folder `vqvae` of a pipeline: aMUSEd, Meissonic, Muddit, Lumina-DiMOO.

Its config says the groups of the norms, and not the range of the pixels, which its pipeline's image processor decides.
"""

from smalti.errors import ConfigError, IntegrityError
from smalti.families.family import Checkpoint, Family, ImportOptions, Published, find_network, shapes_of
from smalti.families.halves import (
    Half,
    HalfLevel,
    Layout,
    codebook_config,
    codebook_links,
    count,
    decoder_links,
    encoder_links,
    numbered,
    vqgan_config,
)
from smalti.families.links import ForeignModel, Shapes

_SIGN = "encoder.conv_in.weight"
_CLASS = "VQModel"
_NAMES = ("group_norm", "to_q", "to_k", "to_v", "to_out.0")
_FORMER_NAMES = ("group_norm", "query", "key", "value", "proj_attn")
"""Names of the attention's layers in files of before 2023."""
_PUBLISHED = (
    Published("amused/amused-256", licence="openrail++", pixels="unit", preprocessing="256 px, centre crop"),
    Published("amused/amused-512", licence="openrail++", pixels="unit", preprocessing="512 px, centre crop"),
    Published("MeissonFlow/Meissonic", licence="Apache-2.0", pixels="unit", preprocessing="1024 px, centre crop"),
    Published(
        "Alpha-VLLM/Lumina-DiMOO",
        licence="not stated (its code: Apache-2.0)",
        pixels="unit",
        preprocessing="multiples of 16 px",
        licence_source="no tag on its page on the hub; LICENSE of github.com/Alpha-VLLM/Lumina-DiMOO",
    ),
)


def _half(shapes: Shapes, half: str) -> Half:
    is_encoder = half == "encoder"
    kind, resample = ("down_blocks", "downsamplers.0.conv") if is_encoder else ("up_blocks", "upsamplers.0.conv")
    levels = [
        HalfLevel(
            blocks=numbered(shapes, f"{level}.resnets"),
            attention=numbered(shapes, f"{level}.attentions") if count(shapes, f"{level}.attentions") else (),
            resample=f"{level}.{resample}",
        )
        for level in numbered(shapes, f"{half}.{kind}")  # in the order of execution, in the decoder too
    ]
    attends = count(shapes, f"{half}.mid_block.attentions")
    return Half(
        stem=f"{half}.conv_in",
        levels=levels,
        middle=numbered(shapes, f"{half}.mid_block.resnets"),
        middle_attention=f"{half}.mid_block.attentions.0" if attends else None,
        norm=f"{half}.conv_norm_out",
        head=f"{half}.conv_out",
    )


def _recognises(checkpoint: Checkpoint) -> bool:
    if name := checkpoint.config.get("_class_name"):
        return name == _CLASS
    parts = ("encoder.down_blocks.", "decoder.up_blocks.")
    return "quantize.embedding.weight" in checkpoint.shapes and any(
        name.startswith(parts) for name in checkpoint.shapes
    )


def _read(checkpoint: Checkpoint, options: ImportOptions) -> ForeignModel:
    config = checkpoint.config
    if "_class_name" not in config:
        raise ConfigError(f"{checkpoint.where}: its config.json is not beside it, which says its norm_num_groups")
    for field, known in (("norm_type", "group"), ("act_fn", "silu")):
        if config.get(field, known) != known:
            raise IntegrityError(
                f"{checkpoint.where}: {field} {config[field]!r} in its config.json; only {known} is read"
            )
    network = find_network(checkpoint.shapes, _SIGN, options.weights)
    shapes = shapes_of(network, checkpoint.shapes)
    row = DIFFUSERS_VQ.row(checkpoint.repository)
    pixels = (row.pixels if row is not None else None) or options.pixels
    if pixels is None:
        raise ConfigError(
            f"{checkpoint.where}: VQModel does not say the range of its pixels, and a wrong one gives other ids; give"
            " `pixels` unit for [0, 1] (aMUSEd and its kin) or signed for [-1, 1] (pixels= in Python, in a name"
            " NAME:pixels=unit)"
        )
    encoder, decoder = (_half(shapes, half) for half in ("encoder", "decoder"))
    is_old = any(".query.weight" in name for name in shapes)
    groups = config.get("norm_num_groups", 32)
    layout = Layout(
        shortcut="conv_shortcut",
        attention=_FORMER_NAMES if is_old else _NAMES,
        groups=groups,
        pixels=pixels,
    )
    return ForeignModel(
        kind=_CLASS,
        config=vqgan_config(shapes, encoder, decoder, codebook_config(shapes, "euclidean"), 1, layout),
        links=[
            *encoder_links(shapes, encoder, layout),
            *codebook_links(1),
            *decoder_links(shapes, decoder, layout),
        ],
        unused=[],
        notes=[],
        names=network.names,
        copy=network.copy,
        lookup="euclidean",
        licence="not stated in the file; that of its pipeline" if row is None else row.licence,
        pixels=pixels,
        preprocessing="that of its pipeline" if row is None else row.preprocessing,
    )


DIFFUSERS_VQ = Family(
    name="diffusers-vq",
    title="VQModel of diffusers",
    sign="config.json with VQModel, encoder.down_blocks",
    recognises=_recognises,
    read=_read,
    files=(
        ("vqvae/diffusion_pytorch_model.safetensors",),
        ("vqvae/diffusion_pytorch_model.fp16.safetensors",),
        ("diffusion_pytorch_model.safetensors",),
        ("diffusion_pytorch_model.fp16.safetensors",),
    ),
    published=_PUBLISHED,
)
