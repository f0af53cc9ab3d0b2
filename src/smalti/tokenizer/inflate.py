"""From an image tokenizer to a video tokenizer that starts as the image tokenizer on every frame."""

import torch

from smalti.errors import ConfigError
from smalti.nn.blocks import NormKind
from smalti.nn.causal import PastKernel
from smalti.tokenizer.cnn import TokenizerConfig
from smalti.tokenizer.conditional import ConditionalConfig
from smalti.tokenizer.tokenizer import Tokenizer


def inflate(
    image: Tokenizer,
    time_strides: tuple[int, ...],
    *,
    time_kernel: int = 3,
    past_kernel: PastKernel | None = None,
    norm: NormKind | None = None,
) -> Tokenizer:
    """Make a video tokenizer with the weights of `image`.

    Its 2-D kernels become the taps of the current frame, and the taps of past frames are zero (the "last slice" rule;
    the only one that is exact on moving video).

    `time_strides` has one time stride for each spatial one, from the pixels inwards: (1, 2, 2) is MAGVIT-v2's late
    reduction. Laws: latent i of a video is the image latent of frame s*i, and every decoded frame is the image that its
    latent decodes to; with time strides of 1 the video is reconstructed frame by frame as the image tokenizer does.
    `norm` exchanges the norms: group norms `frame` for `clip` is mindone's way, and of all laws only that of a still
    (one frame, or one frame again and again) then holds; with `start="grey"` and time strides above 1, as mindone has
    it, not even that, for the grey frames enter the statistics.

    Raises ConfigError for a clip norm that is not requested, for a video tokenizer, a VQGAN, and a wrong number of
    strides.
    """
    old = image.config
    if not isinstance(old, TokenizerConfig):
        raise ConfigError(f"inflate: a tokenizer of kind {old.kind!r} has no video form; train one of kind causal-cnn")
    if old.time_kernel != 1:
        raise ConfigError(f"inflate: this is a video tokenizer already (time_kernel={old.time_kernel})")
    if not image.is_causal and norm is None:
        raise ConfigError(
            f"inflate: norm={old.norm!r} mixes the frames of a clip; inflation is exact for position, frame"
        )
    if len(time_strides) != len(old.strides):
        raise ConfigError(f"inflate: {len(old.strides)} time strides are needed (found {len(time_strides)})")
    strides = tuple((t, s) for t, (_, s) in zip(time_strides, old.strides, strict=True))
    changes: dict[str, object] = {"time_kernel": time_kernel, "strides": strides}
    changes |= {name: value for name, value in (("past_kernel", past_kernel), ("norm", norm)) if value is not None}
    config = TokenizerConfig.parse({**old.plain(), **changes}, where="inflate")
    video = Tokenizer(config).to(image.dtype)
    weights = video.state_dict()
    with torch.no_grad():
        for name, weight in image.state_dict().items():
            target = weights[name]
            # A time upsampler has its channels once per time phase, phase first: every phase starts as the image's.
            target.copy_(weight.repeat(target.shape[0] // weight.shape[0], *[1] * (weight.dim() - 1)))
    return video


def start_conditional(image: Tokenizer, group: int = 4, *, width: int = 96) -> Tokenizer:
    """Make a conditional video tokenizer with the weights of `image`, of so many frames a token and channels.

    Laws: the first token frame of a video is that of the image tokenizer, and until it is trained all frames after the
    first are the first, held. Weights of the networks after the first frame are random, from torch's global rng.

    Raises ConfigError for what is no image tokenizer of kind causal-cnn.
    """
    old = image.config
    if not isinstance(old, TokenizerConfig):
        raise ConfigError(f"conditional tokens start from an image tokenizer of kind causal-cnn (found {old.kind!r})")
    config = ConditionalConfig.parse({"image": old.plain(), "group": group, "width": width}, where="conditional")
    video = Tokenizer(config).to(image.dtype)
    take_image_part(video, image)
    return video


def with_quarters(tokenizer: Tokenizer) -> Tokenizer:
    """Return a trained conditional tokenizer with `quarters` switched on: the same weights, one digit more in its ids.

    Raises ConfigError for a tokenizer of another kind, and for one whose image tokenizer has no FSQ.
    """
    if not isinstance(tokenizer.config, ConditionalConfig):
        kind = tokenizer.config.kind
        raise ConfigError(f"quarters are of conditional tokens, of kind conditional-cnn (found {kind!r})")
    video = Tokenizer(tokenizer.config.replace({"quarters": True})).to(tokenizer.device, tokenizer.dtype)
    video.load_state_dict(tokenizer.state_dict())
    return video.train(tokenizer.training)


def take_image_part(video: Tokenizer, image: Tokenizer) -> None:
    """Copy the weights of an image tokenizer into the part of a conditional one that makes the first frame."""
    video.encoder.get_submodule("image").load_state_dict(image.encoder.state_dict())
    video.decoder.get_submodule("image").load_state_dict(image.decoder.state_dict())
    video.quantizer.load_state_dict(image.quantizer.state_dict())
