"""Recipes of smalti's own tokenizers, and of MAGVIT-v2's as the paper describes them."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from smalti.data import ImagesConfig, JointConfig, VideosConfig, bundled
from smalti.discriminators import Magvit2DConfig, Magvit3DConfig, PatchConfig
from smalti.families.names import TINY_IMAGE, TINY_VIDEO
from smalti.losses.logits import LogitsConfig
from smalti.losses.perceptual import LPIPSConfig
from smalti.quantize import FSQConfig, LFQConfig
from smalti.recipes.recipe import FOLDER, IMAGENET, KINETICS_600, START, Recipe
from smalti.tokenizer import ConditionalConfig, TokenizerConfig
from smalti.training.config import GANConfig, MuonConfig, OptimizerConfig, TokenizerTraining

DEMO_STEPS = (2300, 320)
"""Image and video steps of `smalti demo`: within its six minutes on two cores."""


def own_recipes() -> Iterator[Recipe]:
    """Yield smalti's own recipes; none has a published score."""
    yield Recipe("tiny", "images, in a minute on a CPU, on the photos that ship with smalti", tiny, small=tiny)
    about = "video, in minutes on a CPU, on the videos that ship with smalti"
    yield Recipe("tiny-video", about, tiny_video, small=tiny_video)
    about = "video whose tokens say what is new, from smalti/tiny-image, on the media that ship with smalti"
    yield Recipe("tiny-video-conditional", about, tiny_video_conditional, small=partial(tiny_video_conditional, 40))
    for name, steps, config in zip(("image", "video"), DEMO_STEPS, (tiny, tiny_video), strict=True):
        about = f"the {name} part of `smalti demo`"
        yield Recipe(f"demo-{name}", about, partial(config, steps), small=partial(config, 8))
    yield Recipe("image", "images at 128 px, 8x8, FSQ 64,000: our default", image, small=tiny)
    yield Recipe("video", "video at 17x128x128, 4x8x8, FSQ 64,000: our default", video, small=tiny_video)
    about = "goes on with any image tokenizer, of smalti or another project, at 256 px"
    yield Recipe("finetune-image", about, finetune_image, small=partial(finetune_tiny, tiny, TINY_IMAGE))
    about = "goes on with any video tokenizer, of smalti or another project, at 17x128x128"
    yield Recipe("finetune-video", about, finetune_video, small=partial(finetune_tiny, tiny_video, TINY_VIDEO))


_PAPER_DIFFERS = (
    "logits: weights of ResNet-50 from a file of yours, behind its own normalisation; the authors' file is not public",
    "norms: groups of channels of one frame, so that video is causal; the authors' code has them over time too",
    "modulation: the codes of the position, nearest neighbour; the paper's figure does not say how",
    "start: the first frame repeated in front of a video; the paper does not say",
    "biases: all convolutions have one; the authors' earlier code has none in stem and residual blocks",
    "entropies: exact, over the global batch; the authors' code takes each device's and log(p + 1e-5)",
    "entropies' boost: 3 times falling to 1 in 2,000 steps, as read by others; the paper says that it falls",
    "LeCAM: on each logit, anchors from the first batch's means; the authors' code has mean logits, anchors from 0",
    "pixels: in [-1, 1] for [0, 1], so L2's weight 5 is 1.25 here and R1's cost 10 is 40",
    "schedule: warm-up of one epoch, as in MAGVIT, and the cosine begins after it; there both begin at once",
    "precision: bfloat16 products of float32 weights, the default of the authors' TPUs",
    "crops: a random square, flipped half of the time; the paper does not say for tokenizers",
)
"""Differences of all recipes of MAGVIT-v2's tokenizers from the paper and its authors' earlier code."""
_IMAGE_DIFFERS = (
    *_PAPER_DIFFERS,
    "discriminator: MAGVIT's released 2-D one, with blur-pools; the paper's own is not released",
)
_VIDEO_DIFFERS = (
    *_PAPER_DIFFERS,
    "discriminator: its pixels are averaged over what is left of time before the linear layers (1 frame of 17)",
    "inflation: by `smalti inflate`, norms, strides and past frames as there; the discriminator starts anew, as there",
)


def paper_recipes() -> Iterator[Recipe]:
    """Yield the tokenizers of MAGVIT-v2 (arXiv 2310.05737)."""
    scores = {
        128: "rFID 1.15, LPIPS 0.0685 on ImageNet val (arXiv 2310.05737, table 5a)",
        256: "none published for the tokenizer; gFID 1.78 guided (arXiv 2310.05737)",
        512: "none published for the tokenizer; gFID 1.91 guided (arXiv 2310.05737)",
    }
    for size, score in scores.items():
        stride = max(8, size // 16)
        widths = ("widths: those of 256 px go on; the paper does not say them for 512 px",) if size == 512 else ()
        yield Recipe(
            f"paper-image-{size}",
            f"MAGVIT-v2's image tokenizer, {size} px, {stride}x{stride}, LFQ 2^18",
            partial(paper_image, size),
            score,
            data="ImageNet-1k, batch 256, 270 epochs",
            differs=(*_IMAGE_DIFFERS, *widths),
        )
    yield Recipe(
        "paper-video-128",
        "MAGVIT-v2's video tokenizer on Kinetics-600, 17x128x128, 4x8x8, LFQ 2^18",
        paper_video,
        "none published for the tokenizer on Kinetics-600; its tokens gave FVD 4.3 in prediction (arXiv 2310.05737)",
        data="Kinetics-600, batch 256, 190 epochs",
        prepare=f"smalti inflate runs/paper-image-128 --out {START} --time-strides 1,2,2 --past full",
        differs=(
            *_VIDEO_DIFFERS,
            "score: rFVD 8.62, LPIPS 0.0537 in table 5b are a tokenizer's of UCF-101, whose settings are not published",
        ),
    )


def small_image_tokenizer() -> TokenizerConfig:
    """Return 1.2 M parameters for two cores: 8x8 strides, 64,000 codes, all blocks at the resolution of the tokens.

    `smalti compare` compares it with other stems, norms, quantizers and depths.
    """
    return TokenizerConfig(
        quantizer=FSQConfig(levels=(8, 8, 8, 5, 5, 5), temperature=0.1, losses=("batch_entropy",)),
        patch=8,
        width=96,
        multipliers=(1, 1),
        strides=((1, 1),),
        depth=1,
        decoder_depth=1,
        middle=0,
    )


def small_video_tokenizer() -> TokenizerConfig:
    """Return the small image tokenizer, inflated: 4x8x8 strides; the taps of past frames are 1x1."""
    return small_image_tokenizer().replace({"time_kernel": 4, "strides": ((4, 1),)})


def tiny(steps: int = 300) -> TokenizerTraining:
    """Train the small tokenizer on the photos that smalti ships; 300 steps are half a minute on two cores.

    Crops of 64 pixels give four times the steps of crops of 128 for the same time, and the network has no fixed size.
    The batch entropy spreads the codes early on: its weight falls to a twentieth.
    """
    return TokenizerTraining(
        tokenizer=small_image_tokenizer(),
        data=ImagesConfig(path=bundled.photos("train"), size=64, scale=(0.35, 0.7), in_memory=64),
        validation=ImagesConfig(path=bundled.photos("heldout"), size=128, crop="center", flip=False),
        steps=steps,
        batch_size=8,
        weights={"l2": 1.0, "batch_entropy": -0.001},
        entropy_boost=19.0,
        entropy_boost_steps=steps,
        optimizer=OptimizerConfig(lr=4e-3, warmup=min(60, steps)),
        ema=0.99,
        save_every=max(1, steps // 3),
        sample_every=max(1, steps // 2),
        eval_every=max(1, steps // 5),
    )


def tiny_video(steps: int = 200) -> TokenizerTraining:
    """Train the small video tokenizer on the videos that smalti ships."""
    return tiny(steps).replace(
        {
            "tokenizer": small_video_tokenizer(),
            "data": VideosConfig(path=bundled.videos("train"), size=64, frames=9, scale=(0.4, 0.8)),
            "validation": VideosConfig(
                path=bundled.videos("heldout"), size=128, frames=17, crop="center", flip=False, sampling="center"
            ),
            "batch_size": 4,
            "entropy_boost": 0.0,
            "optimizer": OptimizerConfig(lr=2e-3, warmup=min(30, steps)),
            "eval_every": max(1, steps // 2),
        }
    )


def conditional_video_tokenizer() -> ConditionalConfig:
    """Return the networks of smalti/tiny-image, which make the first frame, and those of the groups of 4 after it."""
    image = small_image_tokenizer().replace({"patch": 4, "multipliers": (1, 2), "strides": ((1, 2),)})
    return ConditionalConfig(image=image)


def tiny_video_conditional(steps: int = 400) -> TokenizerTraining:
    """Train conditional tokens with Muon on the videos that smalti ships, and on its photos as clips that stand still;
    the first frame is smalti/tiny-image's, whose weights stay."""
    base = tiny_video(steps)
    assert isinstance(base.data, VideosConfig)
    return base.replace(
        {
            "tokenizer": conditional_video_tokenizer(),
            "init": Path(TINY_IMAGE),
            "frozen": ("encoder.image", "decoder.image"),
            "data": JointConfig(
                images=ImagesConfig(path=bundled.photos("train"), size=64, scale=(0.35, 0.7), in_memory=64),
                videos=base.data.replace({"frames": 17}),
                share=0.1,
            ),
            "still_frames": 17,
            "last_frame_weight": 2.0,
            "batch_size": 3,
            "entropy_boost": 9.0,
            "entropy_boost_steps": max(1, steps // 2),
            "optimizer": OptimizerConfig(lr=2e-3, warmup=min(30, steps), muon=MuonConfig(turns=3)),
        }
    )


def image() -> TokenizerTraining:
    """Train our default for a GPU: 128 px, LPIPS from the start, a discriminator from step 20,000."""
    return TokenizerTraining(
        tokenizer=TokenizerConfig(
            quantizer=FSQConfig(levels=(8, 8, 8, 5, 5, 5)),
            patch=4,
            width=192,
            multipliers=(1, 2),
            strides=((1, 2),),
            depth=3,
            decoder_depth=4,
            middle=2,
        ),
        data=ImagesConfig(path=FOLDER, size=128),
        held_out=32,
        steps=200_000,
        batch_size=256,
        weights={"l1": 1.0, "lpips": 1.0},
        lpips=LPIPSConfig(net="vgg"),
        gan=GANConfig(discriminator=PatchConfig(), weight=0.1, adaptive=True, start=20_000, ramp=5_000, lecam=0.001),
        optimizer=OptimizerConfig(lr=4e-4, warmup=2_000),
        precision="bfloat16",
        workers=8,
        log_every=50,
        save_every=5_000,
        sample_every=5_000,
        eval_every=5_000,
    )


def video() -> TokenizerTraining:
    """Train our default for a GPU: 17x128x128; start it from an inflated image tokenizer with `--set init=FOLDER`."""
    base = image()
    return base.replace(
        {
            "tokenizer": base.tokenizer.replace({"time_kernel": 4, "strides": ((4, 2),)}),
            "data": VideosConfig(path=FOLDER, size=128, frames=17),
            "batch_size": 64,
            "lpips_frames": "random",
            "optimizer": OptimizerConfig(lr=2e-4, warmup=2_000),
            "workers": 12,
        }
    )


def finetune_image() -> TokenizerTraining:
    """Go on with the image tokenizer `init`, whose architecture the run takes: a tenth of the learning rate, no decay
    towards zero, and a discriminator that begins once it has seen some of the data."""
    base = image()
    assert base.gan is not None
    return base.replace(
        {
            "init": Path(START),
            "data": ImagesConfig(path=FOLDER, size=256),
            "steps": 20_000,
            "batch_size": 32,
            "gan": base.gan.replace({"start": 2_000, "ramp": 2_000}),
            "optimizer": OptimizerConfig(lr=4e-5, warmup=500, weight_decay=0.0),
            "save_every": 1_000,
            "sample_every": 1_000,
            "eval_every": 1_000,
        }
    )


def finetune_video() -> TokenizerTraining:
    """Go on with the video tokenizer `init`, as `finetune_image`, on 17 frames of 128 px."""
    base = finetune_image()
    return base.replace(
        {
            "tokenizer": video().tokenizer,
            "data": VideosConfig(path=FOLDER, size=128, frames=17),
            "batch_size": 8,
            "lpips_frames": "random",
            "workers": 12,
        }
    )


def finetune_tiny(base: Callable[[int], TokenizerTraining], start: str) -> TokenizerTraining:
    """Go on for 60 steps with a tokenizer that ships with smalti, on the media that it was trained on."""
    return base(60).replace({"init": Path(start), "optimizer": OptimizerConfig(lr=2e-4, warmup=5, weight_decay=0.0)})


def paper_image(size: int = 128) -> TokenizerTraining:
    """Train MAGVIT-v2's image tokenizer at 128, 256 or 512 px: 16x16 tokens, LFQ 2^18 (arXiv 2310.05737, appendix A).

    What the paper does not say is as in MAGVIT's released code; `differs` of the recipe has what remains. No gradient
    is clipped, R1 is taken at every step, the learning rate ends at 0, and the EMA has its whole decay at once.
    """
    multipliers = {128: (1, 2, 2, 4), 256: (1, 1, 2, 2, 4), 512: (1, 1, 2, 2, 4, 4)}[size]
    epoch = IMAGENET // 256
    optimizer = OptimizerConfig(lr=1e-4, betas=(0.0, 0.99), weight_decay=0.0, warmup=epoch, final=0.0, clip=None)
    return TokenizerTraining(
        tokenizer=TokenizerConfig(
            quantizer=LFQConfig(bits=18, temperature=0.01),
            width=128,
            multipliers=multipliers,
            strides=((1, 2),) * (len(multipliers) - 1),
            depth=4,
            decoder_depth=4,
            middle=4,
            norm="frame",
        ),
        initialisation="flax",
        data=ImagesConfig(path=FOLDER, size=size),
        steps=270 * epoch,
        batch_size=256,
        weights={"l2": 1.25, "logits": 0.1, "token_entropy": 0.1, "batch_entropy": -0.1, "commitment": 0.25},
        entropy_boost=2.0,
        logits=LogitsConfig(net="resnet50"),
        gan=GANConfig(
            discriminator=Magvit2DConfig(grid=size // 32),
            loss="non_saturating",
            weight=0.1,
            penalty="r1",
            penalty_weight=40.0,
            lecam=0.001,
            optimizer=optimizer,
        ),
        optimizer=optimizer,
        ema_rise="none",
        precision="bfloat16",
        workers=8,
        save_every=10_000,
        sample_every=10_000,
        eval_every=10_000,
    )


def paper_video() -> TokenizerTraining:
    """Train MAGVIT-v2's video tokenizer on Kinetics-600, 17x128x128, with its 3-D discriminator (appendix A).

    As `paper_image`; start it from the inflated image tokenizer, as the paper does, with `init`.
    """
    base = paper_image()
    assert base.gan is not None
    late = ((1, 2), (2, 2), (2, 2))  # the first reduction is in space alone
    epoch = KINETICS_600 // 256
    optimizer = base.optimizer.replace({"warmup": epoch})
    discriminator = Magvit3DConfig(initialisation="xavier")
    return base.replace(
        {
            "tokenizer": base.tokenizer.replace({"time_kernel": 3, "past_kernel": "full", "strides": late}),
            "data": VideosConfig(path=FOLDER, size=128, frames=17),
            "steps": 190 * epoch,
            "gan": base.gan.replace({"discriminator": discriminator, "optimizer": optimizer}),
            "optimizer": optimizer,
            "workers": 12,
        }
    )
