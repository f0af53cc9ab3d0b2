"""The zoo: published tokenizers of other projects that smalti loads, with what is known of each."""

from typing import Any, NamedTuple

from smalti.families.checkpoint import FAMILIES


class ZooRow(NamedTuple):
    """One published tokenizer."""

    family: str
    """Name of its family, as `tokenizer.source.family` has it."""
    model: str
    """Use or data that it was trained for."""
    name: str
    """Name that `smalti.load` takes: of the hub, or of the file where its project publishes it elsewhere."""
    strides: tuple[int, int, int]
    """Frames, height and width in pixels of one token."""
    codes: int
    """Size of the codebook."""
    parameters: int
    """Numbers that are learned, as smalti builds it: without what its project stores and never runs."""
    licence: str
    """Licence of the weights, as its project states it."""
    score: str
    """Score that its project published, or others measured; empty if none is known here. Scores of two sources cannot
    be compared: data, resize and protocol differ."""
    source: str
    """Source of the score."""
    golden: str
    """Golden by which smalti's network is held to its project's code, with small weights (tests/goldens)."""
    is_causal: bool = True
    """Whether ids are independent of later frames; of image models, always."""
    streams: str = "frame by frame"
    """How a long video passes in constant memory, if it does."""
    is_tile_exact: bool = False
    """Whether a large frame can be cut into tiles without changing a token: of none here, norms or attention see it."""

    @property
    def load(self) -> str:
        """The line of Python that loads it."""
        return f'tokenizer = smalti.load("{self.name}")'

    def plain(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return {**self._asdict(), "load": self.load}


_VOKEN = "README of SEED-Voken"
_OM2 = "TencentARC/Open-MAGVIT2-Tokenizer"
_VIDTOK = "microsoft/VidTok/checkpoints"
_VIDTOK_SCORE = "README of VidTok, MCL-JCV, 17 frames of 256 px"
_AROUND_SCORE = "README of VidTok, MCL-JCV, 16 frames of 256 px"
_COSMOS_SCORE = "README of TokenBench, HD videos"
_NVIDIA = "NVIDIA Open Model License"
_F16 = (1, 16, 16)
_WHOLE = "no: in clips"
_STREAMED = "yes"
_LATE = "yes; frames come one latent late"
_GROWING = "yes; memory grows by its keys and values"


def _open_magvit2(model: str, name: str, codes: int, score: str) -> ZooRow:
    video, small = "Video" in name, "128" in name
    strides, parameters = ((1, 8, 8), 112_021_653) if small else ((1, 16, 16), 115_127_829)
    golden = "om2_image128L_w32_32px" if small else "om2_image256L_w32_64px"
    if video:
        strides, parameters, golden = (4, 8, 8), 370_547_349, "om2_video_w32_t9_32px"
    elif codes == 1 << 14:
        parameters = 115_094_033
    row = ZooRow(
        "open-magvit2", model, f"{_OM2}-{name}", strides, codes, parameters, "Apache-2.0", score, _VOKEN, golden
    )
    return row._replace(is_causal=False, streams=_WHOLE) if video else row


def _vidtok(file: str, strides: tuple[int, int, int], codes: int, parameters: int, score: str) -> ZooRow:
    later = file.endswith("v1_1")
    name = f"{_VIDTOK}/{'vidtok_v1_1/' if later else ''}vidtok_fsq_causal_{file}.ckpt"
    network = {(4, 8, 8): "fsq488_w32", (8, 8, 8): "fsq888_w16", (4, 16, 16): "fsq41616_w16"}[strides]
    golden = f"vidtok_v1{1 if later else 0}_{network}_t9_32px"
    source = "README of VidTok, MCL-JCV, whole videos" if later else _VIDTOK_SCORE
    model = f"video, {'1.1, long videos' if later else '1.0'}"
    row = ZooRow("vidtok", model, name, strides, codes, parameters, "MIT", score, source if score else "", golden)
    return row._replace(streams=_LATE if later else _STREAMED)


def _vidtok_around(strides: tuple[int, int, int], parameters: int, score: str) -> ZooRow:
    file = "".join(map(str, strides))
    name, width = f"{_VIDTOK}/vidtok_fsq_noncausal_{file}_262144.ckpt", 32 if strides[1] == 8 else 16
    golden = f"vidtok_v10_noncausal{file}_w{width}_t8_32px"
    model = "video, 1.0, not causal"
    row = ZooRow("vidtok", model, name, strides, 1 << 18, parameters, "MIT", score, _AROUND_SCORE, golden)
    return row._replace(is_causal=False, streams=_WHOLE)


def _cosmos(name: str, strides: tuple[int, int, int], parameters: int, score: str, source: str) -> ZooRow:
    video = "DV" in name
    size = "48" if strides == (4, 8, 8) else "32"
    golden = f"cosmos_dv{'x'.join(map(str, strides))}_w32_t9_{size}px" if video else "cosmos_di8x8_w32_64px"
    about = "video" if video else "images"
    row = ZooRow("cosmos", about, f"nvidia/Cosmos-{name}", strides, 64_000, parameters, _NVIDIA, score, source, golden)
    return row._replace(streams=_GROWING) if video else row


def _ibq(size: int, score: str, *, pretrained: bool = False) -> ZooRow:
    return ZooRow(
        "taming",
        "IBQ, 256 px, " + ("200 M images" if pretrained else "ImageNet"),
        f"TencentARC/IBQ-Tokenizer-{size}" + ("-Pretrain" if pretrained else ""),
        (1, 16, 16),
        size,
        106_787_715 + 256 * size,
        "Apache-2.0",
        score,
        _VOKEN,
        "ibq_w32_64x96",
    )


def _maskbit(bits: int, score: float) -> ZooRow:
    name, parameters = f"markweber/maskbit_tokenizer_{bits}bit", 54_417_795 + 5121 * bits
    row = ZooRow("maskbit", f"{bits} bits, ImageNet", name, _F16, 1 << bits, parameters, "Apache-2.0", "", "", "")
    return row._replace(
        score=f"rFID {score}, ImageNet 256 px", source="README of MaskBit", golden="maskbit_lfq10_w32_64x96"
    )


def _magicmaster(model: str, name: str, codes: int, parameters: int, score: str) -> ZooRow:
    video = "k600" in name
    golden = "mm3d_fsq64000_w32_t9_32px" if video else "mm2d_fsq64000_w32_64px"
    strides = (4, 8, 8) if video else (1, 8, 8)
    source = "README of MagicMaster"
    row = ZooRow("magicmaster", model, name, strides, codes, parameters, "Apache-2.0", score, source, golden)
    return row._replace(is_causal=False, streams=_WHOLE) if video else row


_ROWS = (
    ZooRow(
        *("showo", "Show-o, MMaDA: images", "showlab/magvitv2", _F16, 8192, 95_387_004, "MIT"),
        *("rFID 3.50, ImageNet 256 px", _VOKEN, "showo_magvitv2_w32_64x96"),
    ),
    _open_magvit2("ImageNet, 128 px", "128-resolution", 1 << 18, "rFID 1.18, ImageNet 128 px"),
    _open_magvit2("ImageNet, 256 px", "256-resolution", 1 << 18, "rFID 1.17, ImageNet 256 px"),
    _open_magvit2("100 M images, 256 px", "16384-Pretrain", 1 << 14, "rFID 2.55, ImageNet 256 px"),
    _open_magvit2("100 M images, 256 px", "262144-Pretrain", 1 << 18, "rFID 1.67, ImageNet 256 px"),
    _open_magvit2("UCF-101, 17 x 128 px", "262144-Video", 1 << 18, "rFVD 16, UCF-101, of its training videos"),
    _ibq(1024, "rFID 2.24, ImageNet 256 px"),
    _ibq(8192, "rFID 1.87, ImageNet 256 px"),
    _ibq(16384, "rFID 1.37, ImageNet 256 px"),
    _ibq(262144, "rFID 1.00, ImageNet 256 px"),
    _ibq(16384, "rFID 2.06, ImageNet 256 px", pretrained=True),
    _ibq(262144, "rFID 1.53, ImageNet 256 px", pretrained=True),
    ZooRow(
        *("taming", "Emu3.5: images", "BAAI/Emu3.5-VisionTokenizer", _F16, 131_072, 455_336_963),
        *("Apache-2.0", "", "", "ibq_w32_64x96"),
    ),
    ZooRow(
        *("taming", "VQGAN, ImageNet, 256 px", "vqgan_imagenet_f16_1024.ckpt:lookup=euclidean", _F16, 1024),
        *(72_141_699, "MIT", "rFID 7.94, ImageNet 256 px", "an issue of 1d-tokenizer", "taming_vqgan_f16_w32_64x96"),
    ),
    ZooRow(
        *("llamagen", "VQ-16, ImageNet", "FoundationVision/LlamaGen", _F16, 16_384, 71_883_403, "MIT"),
        *("rFID 2.19, ImageNet 256 px", "README of LlamaGen", "llamagen_vq16_w32_64px"),
    ),
    ZooRow(
        *(
            "llamagen",
            "VQ-8, ImageNet",
            "FoundationVision/LlamaGen/vq_ds8_c2i.pt",
            (1, 8, 8),
            16_384,
            70_109_835,
            "MIT",
        ),
        *("rFID 0.59, ImageNet 256 px", "README of LlamaGen", "llamagen_vq16_w32_64px"),
    ),
    ZooRow(
        *("llamagen", "Janus-Pro: images", "deepseek-ai/Janus-Pro-1B", _F16, 16_384, 71_883_403),
        *("DeepSeek model licence (its code: MIT)", "", "", "llamagen_vq16_w32_64px"),
    ),
    ZooRow(
        *("diffusers-vq", "aMUSEd: images", "amused/amused-256", _F16, 8192, 146_244_675, "openrail++"),
        *("", "", "diffusers_vq_amused_w32_64x96"),
    ),
    ZooRow(
        *("maskgit", "MaskGIT-VQGAN: RAR, TiTok", "fun-research/TiTok", _F16, 1024, 54_515_587, "Apache-2.0"),
        *("rFID 2.28, ImageNet 256 px", "an issue of 1d-tokenizer", "maskgit_vqgan_w32_64x96"),
    ),
    _maskbit(10, 1.76),
    _maskbit(12, 1.52),
    _maskbit(14, 1.37),
    _maskbit(16, 1.29),
    _maskbit(18, 1.16),
    _cosmos("0.1-Tokenizer-DI8x8", (1, 8, 8), 79_004_342, "", ""),
    _cosmos("0.1-Tokenizer-DI16x16", _F16, 83_723_958, "rFID 4.57, ImageNet 256 px", _VOKEN),
    _cosmos("0.1-Tokenizer-DV4x8x8", (4, 8, 8), 104_669_558, "rFVD 19.7", _COSMOS_SCORE),
    _cosmos("0.1-Tokenizer-DV8x8x8", (8, 8, 8), 105_653_366, "rFVD 43.9", _COSMOS_SCORE),
    _cosmos("0.1-Tokenizer-DV8x16x16", (8, 16, 16), 110_898_294, "rFVD 113.5", _COSMOS_SCORE),
    _vidtok("488_4096", (4, 8, 8), 1 << 12, 157_396_363, "rFVD 218.1"),
    _vidtok("488_32768", (4, 8, 8), 1 << 15, 157_424_012, "rFVD 196.9"),
    _vidtok("488_262144", (4, 8, 8), 1 << 18, 157_451_661, "rFVD 160.1"),
    _vidtok("41616_262144", (4, 16, 16), 1 << 18, 198_967_949, "rFVD 430.1"),
    _vidtok_around((4, 8, 8), 157_451_661, "rFVD 132.1"),
    _vidtok_around((4, 16, 16), 198_967_949, "rFVD 357.0"),
    _vidtok("488_32768_v1_1", (4, 8, 8), 1 << 15, 157_424_012, "rFVD 168.5"),
    _vidtok("888_32768_v1_1", (8, 8, 8), 1 << 15, 164_944_910, "rFVD 293.2"),
    _vidtok("41616_262144_v1_1", (4, 16, 16), 1 << 18, 198_967_949, ""),
    _magicmaster(
        *("ImageNet, 128 px", "magvit_fsq_imagenet1k_style2_d128_64000_128x128_8x8_ep20-04cd7358.pth", 64_000),
        *(113_492_105, "rFID 2.74, ImageNet 128 px"),
    ),
    _magicmaster(
        *("Kinetics-600, 17 x 128 px", "magvit_v2_fsq_k600_style2_d64_64000_128x128_4x32_ep40-1ea3cc49.pth", 64_000),
        *(93_045_449, "rFVD 59.65, Kinetics-600"),
    ),
)


def zoo() -> list[ZooRow]:
    """List the published tokenizers of other projects that `smalti.load` takes, family by family."""
    known = {family.name for family in FAMILIES}
    return [row for row in _ROWS if row.family in known]
