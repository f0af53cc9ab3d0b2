"""The 18 configurations of MagicMaster (github.com/ZhichengHuang/MagicMaster), by the names of its config files."""

from smalti.data import ImagesConfig, VideosConfig
from smalti.discriminators import DiscriminatorConfig, PatchConfig, StyleGAN2Config
from smalti.families.magicmaster import LEVELS
from smalti.losses.perceptual import LPIPSConfig
from smalti.quantize import DSQConfig, FSQConfig, QuantizerConfig
from smalti.recipes.data import IMAGENET, KINETICS_600, imagenet, kinetics
from smalti.tokenizer import AnyTokenizerConfig, TokenizerConfig, VQGANConfig
from smalti.training.config import GANConfig, OptimizerConfig, TokenizerTraining

AS_THEIRS = ("gan.order=alternate", "lpips.dropout=0.5")
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
    *, size: int = 128, codes: int = 64_000, discriminator: str = "style2", batch: int = 64, epochs: int = 20
) -> TokenizerTraining:
    """A row of its table of ImageNet results. `discriminator` is style2 or patch; `batch` counts all GPUs."""
    return _training(
        image_tokenizer(codes),
        _gan(discriminator, size, penalty=True),
        train=imagenet("train", size),
        validation=imagenet("val", size),
        batch=batch,
        steps=epochs * (IMAGENET // batch),
        ema=0.9998,
        ema_start=20_000,
    ).replace({"precision": "bfloat16"})


def kinetics_row(
    *, quantizer: str = "fsq", codes: int = 64_000, width: int = 64, epochs: int = 40, ema_start: int = 2_000
) -> TokenizerTraining:
    """A row of its table of Kinetics-600 results: 17 frames at a stride of 2, 128 px, 4 clips on each of 32 GPUs.

    DSQ of 15,360 codes is what its name says here; in MagicMaster it has 25,600 (see `smalti.families.magicmaster`).
    """
    layer = DSQConfig(levels=LEVELS[codes]) if quantizer == "dsq" else FSQConfig(levels=LEVELS[codes])
    return _training(
        video_tokenizer(layer, width),
        _gan("style2", 128, penalty=True),
        train=kinetics("train"),
        validation=kinetics("val"),
        batch=128,
        steps=epochs * -(-KINETICS_600 // 128),
        ema=0.9998,
        ema_start=ema_start,
    )


def vqgan_row(*, discriminator: str = "style2", epochs: int = 20) -> TokenizerTraining:
    """One of its VQGAN configurations: ImageNet 256 px, 16x16 strides, 12 images on each of 8 GPUs; no penalty."""
    passes = (
        -(-IMAGENET // 96) if discriminator == "patch" else IMAGENET // 96
    )  # the former keeps the last, smaller batch
    return _training(
        VQGANConfig(quantizer=FSQConfig(levels=LEVELS[64_000])),
        _gan(discriminator, 256, penalty=False),
        train=imagenet("train", 256),
        validation=imagenet("val", 256),
        batch=96,
        steps=epochs * passes,
        ema=0.9999 if discriminator == "patch" else 0.9998,
        ema_start=20_000,
    )


def _gan(name: str, size: int, *, penalty: bool) -> GANConfig:
    network: DiscriminatorConfig = PatchConfig(norm="batch")
    if name == "style2":
        network = StyleGAN2Config.parse({"size": size})
    return GANConfig(
        discriminator=network,
        weight=0.75,
        adaptive=True,
        penalty="gradient_norm" if penalty else "none",
        optimizer=_adam(4.32e-4),
    )


def _adam(lr: float) -> OptimizerConfig:
    return OptimizerConfig(lr=lr, betas=(0.5, 0.9), weight_decay=0.0, warmup=0, schedule="constant", clip=None)


def _training(
    tokenizer: AnyTokenizerConfig,
    gan: GANConfig,
    *,
    train: ImagesConfig | VideosConfig,
    validation: ImagesConfig | VideosConfig,
    batch: int,
    steps: int,
    ema: float,
    ema_start: int,
) -> TokenizerTraining:
    """Return what all 18 have in common."""
    return TokenizerTraining(
        tokenizer=tokenizer,
        data=train,
        validation=validation,
        validation_limit=1_000,
        steps=steps,
        batch_size=batch,
        weights={"l1": 1.0, "lpips": 1.0},
        lpips=LPIPSConfig(net="vgg"),
        lpips_frames="random",
        gan=gan,
        optimizer=_adam(5.4e-5),
        ema=ema,
        ema_rise="none",
        ema_start=ema_start,
        workers=12 if tokenizer.time_kernel > 1 else 4,
        log_every=100,
        save_every=10_000,
        sample_every=10_000,
        eval_every=10_000,
    )
