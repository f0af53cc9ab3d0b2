"""Conditional tokens: a group of frames is coded against what the decoder has made so far.

    r                the frame decoded last, pixels in [-1, 1]; at first the image tokenizer's
    encode(g, r)     the next `group` frames -> one token frame that says what is new in them
    decode(codes, r) the token frame -> `group` frames = r + residual; the last of them is the next r

The first token frame is that of an image tokenizer, so an image is a video of one frame. The decoder is given ids and
its own past; the encoder runs the decoder to know that past, and never sees how the original was before. In training
the past of each group is found first, without gradients, and then all groups are learnt from at once: each clip of a
batch carries its own r, and no gradient runs back from a group to those before it.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from smalti.config import Two
from smalti.nn.blocks import AdaptiveNorm, Norm, ResidualBlock, from_patches, to_patches
from smalti.nn.causal import CausalConv, CausalUpsample, Stream, Window, silu, time_first
from smalti.quantize import QuantizerConfig
from smalti.quantize.quantizer import Quantizer
from smalti.tokenizer.cnn import AutoencoderConfig, Decoder, Encoder, TokenizerConfig


class ConditionalConfig(AutoencoderConfig):
    """A video tokenizer whose tokens say what is new: an image tokenizer for the first frame, and networks that encode
    and decode each further group of frames given the last reconstructed frame."""

    kind: Literal["conditional-cnn"] = "conditional-cnn"
    image: TokenizerConfig = TokenizerConfig()
    """Image tokenizer of the first frame; its quantizer and its pixels a token are those of all token frames."""
    group: int = Field(4, ge=1)
    """Frames of a token frame, after the first."""
    width: int = Field(96, ge=1)
    """Channels at half the side of a token."""
    multiplier: int = Field(2, ge=1)
    """Channels at the side of a token, as a multiple of `width`."""
    depth: Two[int] = (1, 1)
    """Residual blocks of the encoder at half the side of a token, and at its side."""
    decoder_depth: Two[int] = (2, 1)
    """Residual blocks of the decoder at half the side of a token, and at its side."""
    residual_scale: float = Field(3.0, gt=0)
    """Factor of the differences from the past inside the networks: what is left of a frame after its past is small."""

    @model_validator(mode="after")
    def _consistent(self) -> "ConditionalConfig":
        time, side, _ = self.image.total_strides
        if self.image.time_kernel != 1 or time != 1:
            raise ValueError("image must be an image tokenizer: time_kernel 1 and no time stride")
        if not self.image.is_causal:
            raise ValueError("image.norm and image.adaptive must see one frame alone: position or frame, not clip")
        if side % 2:
            raise ValueError(f"image must have an even number of pixels a side of a token (found {side})")
        if min(*self.depth, *self.decoder_depth) < 0:
            raise ValueError("depth and decoder_depth must be 0 or more")
        return self

    @property
    def quantizer(self) -> QuantizerConfig:
        """Quantizer of all token frames: that of the image tokenizer."""
        return self.image.quantizer

    def with_quantizer(self, quantizer: QuantizerConfig) -> "ConditionalConfig":
        """Return the same networks around another quantizer."""
        return self.replace({"image": self.image.replace({"quantizer": quantizer})})

    @property
    def patch(self) -> int:
        """Side in pixels of the patches that are folded into channels: half that of a token."""
        return self.total_strides[1] // 2

    @property
    def time_kernel(self) -> int:
        """Frames that a token sees: its own and the last reconstructed one."""
        return 1 + self.group

    @property
    def total_strides(self) -> tuple[int, int, int]:
        """Frames, height and width in pixels of one token."""
        _, height, width = self.image.total_strides
        return self.group, height, width

    def networks(self, dim: int) -> "tuple[ConditionalEncoder, ConditionalDecoder]":
        """Build the encoder and the decoder around a quantizer of `dim` channels."""
        return ConditionalEncoder(self, dim), ConditionalDecoder(self, dim)


class ConditionalEncoder(nn.Module):
    """Patches of a group's differences from the past, of their tanh and of the past; blocks and one halving; norm,
    SiLU, 1x1 convolution. The differences are given twice, so that large and small ones both tell."""

    def __init__(self, config: ConditionalConfig, dim: int) -> None:
        super().__init__()
        self.group, self.patch, self.scale = config.group, config.patch, config.residual_scale
        self.image = Encoder(config.image, dim)
        width, deep = config.width, config.width * config.multiplier
        self.stem = CausalConv(3 * (2 * config.group + 1) * config.patch**2, width, kernel=1)
        self.layers = nn.ModuleList(
            [
                *_blocks(width, config.depth[0]),
                CausalConv(width, deep, strides=(1, 2)),
                *_blocks(deep, config.depth[1]),
            ]
        )
        self.norm = Norm("position", deep)
        self.to_latent = CausalConv(deep, dim, kernel=1)
        self.reach: int | None = None
        """The whole frame: the past reaches further with every group."""

    def forward(
        self, groups: Float[Tensor, "n b c h w"], pasts: Float[Tensor, "n b 3 h w"]
    ) -> Float[Tensor, "n b d h2 w2"]:
        """Encode groups, their frames as channels, each given its past."""
        new = self.scale * (groups - _held(pasts, self.group))
        x: Tensor = self.stem(to_patches(torch.cat([new, torch.tanh(4 * new), pasts], 2), self.patch))
        for layer in self.layers:
            x = layer(x)
        z: Tensor = self.to_latent(silu(self.norm(x)))
        return z


class ConditionalDecoder(nn.Module):
    """Features of the past at both resolutions, modulated by the codes; a fresh decoder holds the past."""

    def __init__(self, config: ConditionalConfig, dim: int) -> None:
        super().__init__()
        self.group, self.patch, self.scale = config.group, config.patch, config.residual_scale
        self.image = Decoder(config.image, dim)
        width, deep = config.width, config.width * config.multiplier
        self.from_past = CausalConv(3 * config.patch**2, width)
        self.past = nn.ModuleList(_blocks(width, 1))
        self.past_down = CausalConv(width, deep, strides=(1, 2))
        self.from_codes = CausalConv(dim, deep)
        self.deep_norm = AdaptiveNorm("position", deep, dim)
        self.deep = nn.ModuleList(_blocks(deep, config.decoder_depth[1]))
        self.up = CausalUpsample(deep, width, Window(), strides=(1, 2))
        self.wide_norm = AdaptiveNorm("position", width, dim)
        self.wide = nn.ModuleList(_blocks(width, config.decoder_depth[0]))
        self.norm = Norm("position", width)
        self.to_pixels = CausalConv(width, 3 * config.group * config.patch**2)
        nn.init.zeros_(self.to_pixels.now.weight)
        if self.to_pixels.now.bias is not None:
            nn.init.zeros_(self.to_pixels.now.bias)
        self.reach: int | None = None
        """The whole frame, as of the encoder."""

    @property
    def last_weight(self) -> Tensor:
        """The weight of the last convolution, at which the adaptive GAN weight compares gradients."""
        return self.to_pixels.now.weight

    def forward(self, codes: Float[Tensor, "t b d h w"], stream: Stream | None = None) -> Float[Tensor, "t2 b 3 h2 w2"]:
        """Decode codes (time first), or the next chunk of them, to video, a token frame at a time."""
        past = None if stream is None else stream.get(self)
        decoded = []
        for one in codes.split(1):
            frames = self.after(one, past)
            past = past_of(frames)
            decoded.append(frames.to(codes.dtype))
        if stream is not None and past is not None:
            stream.put(self, past)
        return torch.cat(decoded)

    def after_pasts(
        self, codes: Float[Tensor, "t b d h w"], pasts: Float[Tensor, "n b 3 h2 w2"]
    ) -> Float[Tensor, "t2 b 3 h2 w2"]:
        """Decode codes from the start of a video, all groups at once, each given its past: what `forward` does one
        after the other, with a gradient that stays within a group."""
        first: Tensor = self.image(codes[:1])
        if not len(pasts):
            return first
        later = _to_frames(self.groups(codes[1:], pasts), self.group)
        return torch.cat([first, later.to(first.dtype)])

    def after(self, codes: Float[Tensor, "1 b d h w"], past: Float[Tensor, "1 b 3 h2 w2"] | None) -> Tensor:
        """Decode one token frame to the frames after `past`, or at the start of a video to its first frame."""
        if past is None:
            first: Tensor = self.image(codes)
            return first
        return _to_frames(self.groups(codes, past), self.group)

    def groups(self, codes: Float[Tensor, "n b d h w"], pasts: Float[Tensor, "n b 3 h2 w2"]) -> Tensor:
        """Decode token frames, each given its past, to groups `n b c h2 w2` with their frames as channels."""
        like = self.to_pixels.now.weight.dtype
        past: Tensor = self.from_past(to_patches(pasts.to(like), self.patch))
        for layer in self.past:
            past = layer(past)
        x = self.deep_norm(self.from_codes(codes) + self.past_down(past), codes)
        for layer in self.deep:
            x = layer(x)
        x = self.wide_norm(self.up(x) + past, codes)
        for layer in self.wide:
            x = layer(x)
        residual = from_patches(self.to_pixels(silu(self.norm(x))), self.patch)
        held = _held(pasts, self.group)
        return held + residual.to(held.dtype) / self.scale


class Loop(NamedTuple):
    """Encoding of a video, or of its next chunk, in a closed loop."""

    z: Float[Tensor, "b d t h2 w2"]
    """Latents, with gradients if they are recorded."""
    ids: Int[Tensor, "b t h2 w2"]
    pasts: Float[Tensor, "n b 3 h w"]
    """The past of each group, without gradients."""


def closed_loop(
    encoder: ConditionalEncoder,
    decoder: ConditionalDecoder,
    quantizer: Quantizer,
    video: Float[Tensor, "t b 3 h w"],
    stream: Stream | None = None,
) -> Loop:
    """Encode 1 + s*n frames, or the next s*n of a stream, each group against what the decoder makes of those before.

    Raises BadTensor for latents that are not finite, but not while gradients are recorded: what follows is then NaN.
    """
    past, recorded = None if stream is None else stream.get(encoder), torch.is_grad_enabled()
    latents, ids, pasts = [], [], []
    for frames in _cut(video, encoder.group, is_start=past is None):
        if past is None:
            z = encoder.image(frames)
        else:
            pasts.append(past)
            z = encoder(_to_groups(frames, encoder.group), past.to(frames.dtype))
        latents.append(z)
        with torch.no_grad():
            numbers, codes = _quantize(quantizer, z, recorded=recorded)
            ids.append(numbers)
            past = past_of(decoder.after(time_first(codes, decoder.last_weight.dtype), past))
    if recorded:
        # Autocast keeps its copies of weights, and those of the loop have no gradients.
        torch.clear_autocast_cache()
    if stream is not None and past is not None:
        stream.put(encoder, past)
    z = torch.cat(latents).permute(1, 2, 0, 3, 4)
    return Loop(z, torch.cat(ids, 1), torch.cat(pasts) if pasts else video[:0])


def follow(encoder: nn.Module, encoding: Stream, decoder: nn.Module, decoding: Stream) -> None:
    """Let the stream of an encoding go on from the frames that another has decoded, not from those of its own ids.

    With conditional tokens that is their past, so whoever changes ids between two chunks calls it; encoders of other
    kinds have seen frames alone, and nothing changes."""
    if isinstance(encoder, ConditionalEncoder) and (past := decoding.get(decoder)) is not None:
        encoding.put(encoder, past)


def past_of(frames: Float[Tensor, "t b 3 h w"]) -> Float[Tensor, "1 b 3 h w"]:
    """Return the past of what comes after some frames: the last of them, within the range of pixels.

    It is never less than float32, in which the rounding of many groups does not add up to be seen.
    """
    last = frames[-1:].clamp(-1, 1)
    return last.float() if last.dtype in (torch.bfloat16, torch.float16) else last


def _quantize(quantizer: Quantizer, z: Float[Tensor, "t b d h w"], *, recorded: bool) -> tuple[Tensor, Tensor]:
    """Return the ids `b t h w` and codes `b d t h w` of latents; NaN in a training step gives codes that are NaN."""
    z = z.detach().permute(1, 2, 0, 3, 4)
    if not recorded:
        ids = quantizer.encode(z)
        return ids, quantizer.decode(ids)
    finite = z.isfinite().all(1, keepdim=True)
    ids = quantizer.encode(z.where(finite, 0))
    return ids, quantizer.decode(ids).masked_fill(~finite, torch.nan)


def _blocks(channels: int, depth: int) -> Iterator[ResidualBlock]:
    return (ResidualBlock(channels, channels, Window(), norm="position") for _ in range(depth))


def _cut(video: Tensor, group: int, *, is_start: bool) -> Iterator[Tensor]:
    """Cut frames into groups, at the start of a video after a first frame of its own."""
    if is_start:
        yield video[:1]
    for at in range(1 if is_start else 0, len(video), group):
        yield video[at : at + group]


def _held(pasts: Float[Tensor, "n b 3 h w"], group: int) -> Float[Tensor, "n b c h w"]:
    """Repeat each past for the frames of its group."""
    return pasts.repeat(1, 1, group, 1, 1)


def _to_groups(frames: Float[Tensor, "t b 3 h w"], group: int) -> Float[Tensor, "n b c h w"]:
    """Return the frames of each group as channels: first those of its first frame."""
    return frames.unflatten(0, (-1, group)).transpose(1, 2).flatten(2, 3)


def _to_frames(groups: Float[Tensor, "n b c h w"], group: int) -> Float[Tensor, "t b 3 h w"]:
    """Return the frames of groups, the inverse of `_to_groups`."""
    return groups.unflatten(2, (group, 3)).transpose(1, 2).flatten(0, 1)
