"""The 18 configurations of MagicMaster (github.com/ZhichengHuang/MagicMaster), by the names of its config files."""

from typing import Literal

from smalti.data import ImagesConfig, VideosConfig
from smalti.discriminators import DiscriminatorConfig, PatchConfig, StyleGAN2Config
from smalti.families.magicmaster import LEVELS
from smalti.losses.perceptual import LPIPSConfig
from smalti.quantize import DSQConfig, FSQConfig, QuantizerConfig
from smalti.recipes.data import IMAGENET, KINETICS_600, imagenet, kinetics
from smalti.tokenizer import AnyTokenizerConfig, TokenizerConfig, VQGANConfig
from smalti.training.config import AdversaryConfig, OptimizerConfig, TokenizerTraining

AS_THEIRS = ("adversary.order=alternate", "lpips.dropout=0.5")
"""What all its runs do and ours do better: the discriminator moves first, and the tokenizer then plays against another
one than was measured; LPIPS drops half of its differences, for it was left in training mode."""
IN_FLOAT32 = "precision=float32"
"""Its images declare bfloat16 and run in float32: autocast is never entered. Ours are bfloat16."""
UNTIED = "tokenizer.quantizer.levels=[8,8,5,4,4,5]"
"""The 25,600 codes that its DSQ of 15,360 has. There, channel 5 has the bins of channel 2; here, bins of its own."""


def image_tokenizer(codes: int = 64_000) -> TokenizerConfig:
    """Its 2-D MAGVIT-v2: 113,492,105 parameters, those that it stores and never runs left out."""
    return TokenizerConfig(
        quantizer=FSQConfig(levels=LEVELS[codes]),
        width=128,
        multipliers=(1, 2, 2, 4),
        strides=((1, 2), (1, 2), (1, 2)),
        depth=4,
        decoder_depth=4,
        middle=4,
        stem_kernel=7,
        code_kernel=1,
        head_kernel=1,
        norm="frame",
        final_norm=False,
        adaptive="frame",
        adaptive_source="first",
        activate_upsample=True,
    )


def video_tokenizer(quantizer: QuantizerConfig, width: int = 64) -> TokenizerConfig:
    """Its 3-D MAGVIT-v2, whose norms see the whole clip: 93,045,449 parameters at width 64, 371,950,985 at 128."""
    return image_tokenizer().replace(
        {
            "quantizer": quantizer,
            "width": width,
            "strides": ((1, 2), (2, 2), (2, 2)),
            "stem_time": 7,
            "head_time": 1,
            "norm": "clip",
            "adaptive": "clip",
            "time_kernel": 3,
            "past_kernel": "full",
            "start": "grey",
        }
    )


def imagenet_row(
    *, size: int = 128, codes: int = 64_000, judge: str = "style2", batch: int = 64, epochs: int = 20
) -> TokenizerTraining:
    """A row of its table of ImageNet results. `judge` is style2 or patch; `batch` counts all GPUs."""
    return _training(
        image_tokenizer(codes),
        _judge(judge, size, penalty=True),
        data=(imagenet("train", size), imagenet("val", size)),
        batch=batch,
        steps=epochs * (IMAGENET // batch),
        average=(0.9998, 20_000),
        precision="bfloat16",
    )


def kinetics_row(
    *, quantizer: str = "fsq", codes: int = 64_000, width: int = 64, epochs: int = 40, average_from: int = 2_000
) -> TokenizerTraining:
    """A row of its table of Kinetics-600 results: 17 frames at a stride of 2, 128 px, 4 clips on each of 32 GPUs.

    DSQ of 15,360 codes is what its name says here; in MagicMaster it has 25,600 (see `smalti.families.magicmaster`).
    """
    chosen = DSQConfig(levels=LEVELS[codes]) if quantizer == "dsq" else FSQConfig(levels=LEVELS[codes])
    return _training(
        video_tokenizer(chosen, width),
        _judge("style2", 128, penalty=True),
        data=(kinetics("train"), kinetics("val")),
        batch=128,
        steps=epochs * -(-KINETICS_600 // 128),
        average=(0.9998, average_from),
    )


def vqgan_row(*, judge: str = "style2", epochs: int = 20) -> TokenizerTraining:
    """One of its VQGAN configurations: ImageNet 256 px, 16x16 strides, 12 pictures on each of 8 GPUs; no penalty."""
    passes = -(-IMAGENET // 96) if judge == "patch" else IMAGENET // 96  # the former keeps the last, smaller batch
    return _training(
        VQGANConfig(quantizer=FSQConfig(levels=LEVELS[64_000])),
        _judge(judge, 256, penalty=False),
        data=(imagenet("train", 256), imagenet("val", 256)),
        batch=96,
        steps=epochs * passes,
        average=(0.9999 if judge == "patch" else 0.9998, 20_000),
    )


def _judge(name: str, size: int, *, penalty: bool) -> AdversaryConfig:
    network: DiscriminatorConfig = PatchConfig(norm="batch")
    if name == "style2":
        network = StyleGAN2Config.parse({"size": size})
    return AdversaryConfig(
        discriminator=network,
        weight=0.75,
        adaptive=True,
        penalty="one_centred" if penalty else "none",
        optimizer=_adam(4.32e-4),
    )


def _adam(rate: float) -> OptimizerConfig:
    return OptimizerConfig(lr=rate, betas=(0.5, 0.9), weight_decay=0.0, warmup=0, schedule="constant", clip=None)


def _training(
    tokenizer: AnyTokenizerConfig,
    adversary: AdversaryConfig,
    *,
    data: tuple[ImagesConfig | VideosConfig, ImagesConfig | VideosConfig],
    batch: int,
    steps: int,
    average: tuple[float, int],
    precision: Literal["float32", "bfloat16"] = "float32",
) -> TokenizerTraining:
    """What all 18 have in common. `average`: the decay of the averaged weights, and the update that it starts at."""
    return TokenizerTraining(
        tokenizer=tokenizer,
        data=data[0],
        validation=data[1],
        validation_limit=1_000,
        steps=steps,
        batch_size=batch,
        weights={"l1": 1.0, "lpips": 1.0},
        lpips=LPIPSConfig(net="vgg"),
        lpips_frames="random",
        adversary=adversary,
        optimizer=_adam(5.4e-5),
        ema=average[0],
        ema_rise="none",
        ema_start=average[1],
        precision=precision,
        workers=12 if tokenizer.time_kernel > 1 else 4,
        log_every=100,
        save_every=10_000,
        sample_every=10_000,
        eval_every=10_000,
    )
