"""VQGANs named as in taming-transformers: its own, Chameleon's, IBQ of SEED-Voken, and Emu3.5's.

All have the same names of tensors, and two laws that find the row of a code: taming and Chameleon take the nearest, IBQ
and Emu3.5 the largest inner product. The law is in no file of weights, so a known name of the hub or a config decides,
or the user does: a wrong one gives no error, and other ids.
"""

import json

from smalti.errors import ConfigError, IntegrityError
from smalti.families.family import Checkpoint, Family, ImportOptions, Published, find_network, shapes_of
from smalti.families.halves import (
    Layout,
    codebook_config,
    codebook_links,
    decoder_links,
    encoder_links,
    taming_half,
    vqgan_config,
)
from smalti.families.links import ForeignModel
from smalti.quantize import Lookup
from smalti.tokenizer_info import SourceIds

_SIGN = "encoder.conv_in.weight"
_EMU = "BAAI/Emu3.5-VisionTokenizer"
_IBQ = tuple(
    Published(
        f"TencentARC/IBQ-Tokenizer-{size}",
        licence="Apache-2.0",
        files=("*.ckpt",),
        lookup="inner",
        preprocessing="256 px, short side resized, centre crop",
    )
    for size in ("1024", "8192", "16384", "262144", "16384-Pretrain", "262144-Pretrain")
)
_PUBLISHED = (
    *_IBQ,
    Published(
        _EMU,
        licence="Apache-2.0",
        files=("model.ckpt",),
        lookup="inner",
        preprocessing="bicubic resize to an area of 512^2 to 1024^2 px, aspect kept, sides multiples of 16",
    ),
)
_CLASSES: dict[str, Lookup] = {"taming.models.vqgan": "euclidean", "ibqgan": "inner"}
"""Text in a config -> law of the class that it names."""


def _recognises(checkpoint: Checkpoint) -> bool:
    parts = ("encoder.mid.block_1.", "decoder.mid.block_1.", "encoder.mid.attn_1.")
    return any(name.startswith(part) or f".{part}" in name for name in checkpoint.shapes for part in parts)


def _read(checkpoint: Checkpoint, options: ImportOptions) -> ForeignModel:
    network = find_network(checkpoint.shapes, _SIGN, options.weights)
    shapes, layout = shapes_of(network, checkpoint.shapes), Layout()
    if "quantize.embed.weight" in shapes or "quantize.proj.weight" in shapes:
        raise IntegrityError(f"{checkpoint.where}: a VQGAN with Gumbel noise, whose ids are random; not read")
    if "quantize.used" in shapes:
        raise IntegrityError(f"{checkpoint.where}: a VQGAN whose ids are mapped to a shorter list (remap); not read")
    encoder, decoder = (taming_half(shapes, half) for half in ("encoder", "decoder"))
    row = TAMING.row(checkpoint.repository)
    own = row.lookup if row is not None else _law(checkpoint)
    lookup = own or options.lookup
    if "quantize.embedding.weight" in shapes and lookup is None:
        raise ConfigError(
            f"{checkpoint.where}: a VQGAN that does not say by which law it finds a code, and a wrong one gives other"
            " ids; give `lookup` euclidean for taming and Chameleon, or inner for IBQ and Emu3.5"
            " (lookup= in Python, FILE:lookup=... in a name)"
        )
    config = vqgan_config(shapes, encoder, decoder, codebook_config(shapes, lookup or "euclidean"), 1, layout)
    notes = [f"a code is found by the law {lookup!r}, {'as its config says' if own else 'as was given'}"]
    if "l2_normalize" in _text(checkpoint):
        notes.append("l2_normalize in its config changes nothing: its model never passes it on")
    words = SourceIds(word="<|visual token {:06d}|>") if row is not None and row.repository == _EMU else SourceIds()
    unknown = "not stated in the file; taming-transformers is MIT, SEED-Voken Apache-2.0, Chameleon for research only"
    return ForeignModel(
        kind="Emu3.5" if words.word else "IBQ" if lookup == "inner" else "VQGAN",
        config=config,
        links=[
            *encoder_links(shapes, encoder, layout),
            *codebook_links(1),
            *decoder_links(shapes, decoder, layout),
        ],
        unused=[],
        notes=notes,
        names=network.names,
        copy=network.copy,
        lookup=lookup,
        licence=unknown if row is None else row.licence,
        preprocessing="256 px, short side resized, centre crop" if row is None else row.preprocessing,
        ids=words,
    )


def _law(checkpoint: Checkpoint) -> Lookup | None:
    """Return the law of the class that a config names; None where there is none, or several."""
    laws = {law for text, law in _CLASSES.items() if text in _text(checkpoint)}
    return laws.pop() if len(laws) == 1 else None


def _text(checkpoint: Checkpoint) -> str:
    return json.dumps(checkpoint.config, default=str).lower()


TAMING = Family(
    name="taming",
    title="VQGAN named as in taming",
    sign="encoder.mid.block_1 and quantize.embedding",
    recognises=_recognises,
    read=_read,
    files=(("model.ckpt",), ("vqgan.ckpt",), ("last.ckpt",)),
    published=_PUBLISHED,
    others={"loss.": "its loss, discriminator and LPIPS", "model_ema.": "EMA of the loss, and its counters"},
)
