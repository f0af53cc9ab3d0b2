"""Show-o's MAGVIT-v2 (hub: showlab/magvitv2), which MMaDA and many others use: LFQ of 13 bits, images, 16x16.

Its file says nothing of the architecture: widths and depths, which differ between the halves, are read from the shapes.
Channel 0 is the highest bit of an id, so the channels are turned: our ids are its ids.
"""

import torch
from torch import Tensor

from smalti.families.family import Checkpoint, Family, ImportOptions, Published, find_network, shapes_of
from smalti.families.halves import Layout, decoder_links, encoder_links, taming_half, turned, vqgan_config
from smalti.families.links import ForeignModel, convolution
from smalti.quantize import LFQConfig

_SIGN = "encoder.quant_conv.weight"
_SHOWLAB = Published(
    "showlab/magvitv2",
    licence="MIT",
    preprocessing="bicubic resize of the short side to 256 or 512 px, centre crop",
)


def _recognises(checkpoint: Checkpoint) -> bool:
    inside = ("encoder.quant_conv.", "decoder.post_quant_conv.", "quantize.power_vals")
    return any(name.startswith(part) or f".{part}" in name for name in checkpoint.shapes for part in inside)


def _read(checkpoint: Checkpoint, options: ImportOptions) -> ForeignModel:
    network = find_network(checkpoint.shapes, _SIGN, options.weights)
    shapes, layout = shapes_of(network, checkpoint.shapes), Layout()
    encoder, decoder = (taming_half(shapes, half) for half in ("encoder", "decoder"))
    bits = shapes[_SIGN][0]
    quant = convolution("encoder.quant_conv", "encoder.to_latent", dims=2)
    post, bias = convolution("decoder.post_quant_conv", "decoder.from_codes", dims=2)
    links = [
        *encoder_links(shapes, encoder, layout),
        *turned(quant, 0),
        *turned([post], 1),
        bias,
        *decoder_links(shapes, decoder, layout),
    ]
    return ForeignModel(
        kind="MAGVIT-v2",
        config=vqgan_config(shapes, encoder, decoder, LFQConfig(bits=bits), 1, layout),
        links=links,
        unused=[],
        notes=["its channels are turned: channel 0 was the highest bit of an id, so ids are equal"],
        names=network.names,
        copy=network.copy,
        constants={"quantize.embedding": _codes(bits), "quantize.power_vals": 2 ** torch.arange(bits - 1, -1, -1)},
        licence=_SHOWLAB.licence,
        preprocessing=_SHOWLAB.preprocessing,
    )


def _codes(bits: int) -> Tensor:
    """The table of all codes, the highest bit first: -1 and +1."""
    return 2.0 * (torch.arange(2**bits)[:, None] >> torch.arange(bits - 1, -1, -1) & 1) - 1


SHOWO = Family(
    name="showo",
    title="Show-o",
    sign="encoder.quant_conv and quantize.power_vals",
    recognises=_recognises,
    read=_read,
    files=(("pytorch_model.safetensors",), ("magvitv2.pth",)),
    published=(_SHOWLAB,),
)
