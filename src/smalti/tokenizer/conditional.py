"""Conditional tokens: a group of frames is coded against what the decoder has made so far.

    r                the frame decoded last, pixels in [-1, 1]; at first the image tokenizer's
    encode(g, r)     the next `group` frames -> one token frame that says what is new in them
    decode(codes, r) the token frame -> `group` frames = r + residual; the last of them is the next r

The first token frame is that of an image tokenizer, so an image is a video of one frame. The decoder is given ids and
its own past; the encoder runs the decoder to know that past, and never sees how the original was before. In training
the past of each group is found first, without gradients, and then all groups are learnt from at once: each clip of a
batch carries its own r, and no gradient runs back from a group to those before it.

With `quarters` a token frame has a mode. In the first it says what is new, as above; in the others its tokens are those
of one quarter of the frame at double size, by the image tokenizer, and the rest of the frame stays as it was. The
encoder decodes all and takes the one with the least squared error, so a scene that stands still gains detail over its
first groups. A constant channel of the codes holds the mode; its digit is the most significant of the ids (0 in the
first token frame), so the ids of the first mode are those of the same tokenizer without `quarters`.

Where nothing is new a token may be **held**: it has no id, its code is zero, and its pixels stay those of r. Which
tokens are held is said beside the ids; `smalti.codec.search` chooses them, and training at random thresholds
(`hold_below`) teaches a decoder to do without their codes.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from smalti.config import Two
from smalti.errors import ConfigError
from smalti.nn.blocks import AdaptiveNorm, Norm, ResidualBlock, from_patches, to_patches
from smalti.nn.causal import CausalConv, CausalUpsample, Stream, Window, silu
from smalti.quantize import FSQConfig, QuantizerConfig
from smalti.tokenizer.cnn import AutoencoderConfig, Decoder, Encoder, TokenizerConfig

QUARTERS = 4
"""Quarters of a frame, modes 1 to 4: top left, top right, bottom left, bottom right."""


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
    quarters: bool = False
    """Whether a token frame may hold one quarter of the frame at double size in place of what is new in all of it, for
    scenes that stand still. Ids then have a digit of five values more; needs an image tokenizer with FSQ. It has no
    weights of its own: a tokenizer is trained without, and `with_quarters` switches it on."""

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
        if self.quarters and not isinstance(self.image.quantizer, FSQConfig):
            raise ValueError(f"quarters needs an image tokenizer with FSQ (found {self.image.quantizer.kind})")
        try:
            _ = self.quantizer
        except ConfigError as error:
            raise ValueError(f"quarters: with a digit for the mode {error}") from None
        return self

    @property
    def quantizer(self) -> QuantizerConfig:
        """Quantizer of all token frames: that of the image tokenizer, with `quarters` one more channel for the mode."""
        own = self.image.quantizer
        if not (self.quarters and isinstance(own, FSQConfig)):
            return own
        return own.replace({"levels": (*own.levels, self.modes)})

    def with_quantizer(self, quantizer: QuantizerConfig) -> "ConditionalConfig":
        """Return the same networks around another quantizer."""
        if self.quarters and isinstance(quantizer, FSQConfig):
            quantizer = quantizer.replace({"levels": quantizer.levels[:-1]})
        return self.replace({"image": self.image.replace({"quantizer": quantizer})})

    @property
    def modes(self) -> int:
        """Ways to code a token frame."""
        return 1 + QUARTERS if self.quarters else 1

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
        own = dim - self.quarters
        return ConditionalEncoder(self, own), ConditionalDecoder(self, own)


class ConditionalEncoder(nn.Module):
    """Patches of a group's differences from the past, of their tanh and of the past; blocks and one halving; norm,
    SiLU, 1x1 convolution. The differences are given twice, so that large and small ones both tell."""

    def __init__(self, config: ConditionalConfig, dim: int) -> None:
        super().__init__()
        self.group, self.patch, self.scale = config.group, config.patch, config.residual_scale
        self.quarters = config.quarters
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

    @property
    def replayable(self) -> tuple[Callable[..., Tensor], ...]:
        """Calls that do the same for any values: those around the choice of a mode."""
        return self.forward, self.image.forward

    def first(self, frame: Float[Tensor, "1 b 3 h w"]) -> Float[Tensor, "1 b d h2 w2"]:
        """Encode the first frame of a video."""
        return self._in_mode(self.image(frame), 0)

    def forward(
        self, groups: Float[Tensor, "n b c h w"], pasts: Float[Tensor, "n b 3 h w"]
    ) -> Float[Tensor, "n b d h2 w2"]:
        """Encode groups, their frames as channels, each given its past."""
        new = self.scale * (groups - held_for(pasts, self.group))
        x: Tensor = self.stem(to_patches(torch.cat([new, torch.tanh(4 * new), pasts], 2), self.patch))
        for layer in self.layers:
            x = layer(x)
        return self._in_mode(self.to_latent(silu(self.norm(x))), 0)

    def quarter_latents(
        self, groups: Float[Tensor, "1 b c h w"], modes: Int[Tensor, " m"]
    ) -> Float[Tensor, "m b d h2 w2"]:
        """Encode quarters of a group's mean frame, enlarged to the size of the frame, as images: of some modes."""
        wide = groups if groups.dtype == torch.float64 else groups.float()
        mean = wide.unflatten(2, (self.group, 3)).mean(2)
        quarters = (
            mean.unflatten(-2, (2, -1)).unflatten(-1, (2, -1)).permute(0, 3, 5, 1, 2, 4, 6).flatten(0, 2)[modes - 1]
        )
        large = F.interpolate(quarters.flatten(0, 1), scale_factor=2.0, mode="bicubic").to(groups.dtype)
        # As one frame of a larger batch: a first layer may see several.
        return self._in_mode(self.image(large[None])[0].unflatten(0, (len(modes), -1)), modes)

    def _in_mode(self, z: Float[Tensor, "n b d h w"], modes: Int[Tensor, " n"] | int) -> Float[Tensor, "n b d2 h w"]:
        """Append the channel whose digit is the mode."""
        if not self.quarters:
            return z
        # Between the thresholds of five levels, which are -0.97, -0.26, 0.26 and 0.97.
        numbers = modes if isinstance(modes, Tensor) else torch.full((), modes, device=z.device)
        latent = 0.6 * (numbers.to(z.dtype) - 2)
        return torch.cat([z, latent.view(-1, 1, 1, 1, 1).expand_as(z[:, :, :1])], 2)


class ConditionalDecoder(nn.Module):
    """Features of the past at both resolutions, modulated by the codes; a fresh decoder holds the past."""

    def __init__(self, config: ConditionalConfig, dim: int) -> None:
        super().__init__()
        self.group, self.patch, self.scale = config.group, config.patch, config.residual_scale
        self.dim, self.quarters = dim, config.quarters
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

    @property
    def replayable(self) -> tuple[Callable[..., Tensor], ...]:
        """Calls that do the same for any values, as of the encoder."""
        return self._new, self.image.forward

    def forward(
        self,
        codes: Float[Tensor, "t b d h w"],
        stream: Stream | None = None,
        held: Bool[Tensor, "t b h w"] | None = None,
    ) -> Float[Tensor, "t2 b 3 h2 w2"]:
        """Decode codes (time first), or the next chunk of them, to video, a token frame at a time; tokens that are
        `held` leave their pixels as they were. None is in the first token frame, or in one of a quarter."""
        past = None if stream is None else stream.get(self)
        decoded = []
        for number, one in enumerate(codes.split(1)):
            mine = None if held is None else held[number : number + 1]
            if mine is not None and past is not None and mine.all():
                frames = past.expand(self.group, -1, -1, -1, -1)
            else:
                frames = self.after(one, past, mine)
            past = past_of(frames)
            decoded.append(frames.to(codes.dtype))
        if stream is not None and past is not None:
            stream.put(self, past)
        return torch.cat(decoded)

    def after_pasts(
        self,
        codes: Float[Tensor, "t b d h w"],
        pasts: Float[Tensor, "n b 3 h2 w2"],
        held: Bool[Tensor, "n b h w"] | None = None,
    ) -> Float[Tensor, "t2 b 3 h2 w2"]:
        """Decode codes from the start of a video, all groups at once, each given its past: what `forward` does one
        after the other, with a gradient that stays within a group. `held` are tokens of the groups."""
        first = self.first(codes[:1])
        if not len(pasts):
            return first
        later = _to_frames(self.groups(codes[1:], pasts, held), self.group)
        return torch.cat([first, later.to(first.dtype)])

    def after(
        self,
        codes: Float[Tensor, "1 b d h w"],
        past: Float[Tensor, "1 b 3 h2 w2"] | None,
        held: Bool[Tensor, "1 b h w"] | None = None,
    ) -> Tensor:
        """Decode one token frame to the frames after `past`, or at the start of a video to its first frame."""
        if past is None:
            return self.first(codes)
        return _to_frames(self.groups(codes, past, held), self.group)

    def first(self, codes: Float[Tensor, "1 b d h w"]) -> Float[Tensor, "1 b 3 h2 w2"]:
        """Decode the first token frame of a video."""
        frame: Tensor = self.image(codes[:, :, : self.dim])
        return frame

    def groups(
        self,
        codes: Float[Tensor, "n b d h w"],
        pasts: Float[Tensor, "n b 3 h2 w2"],
        held: Bool[Tensor, "n b h w"] | None = None,
    ) -> Tensor:
        """Decode token frames, each given its past, to groups `n b c h2 w2` with their frames as channels."""
        if held is not None:
            # The mode is that of the tokens that are not held; a held one has the first digit of all.
            new, mode = codes[:, :, : self.dim].masked_fill(held[:, :, None], 0), codes[:, :, self.dim :]
            made = self._coded(torch.cat([new, mode], 2), pasts)
            past = held_for(pasts, self.group).to(made.dtype)
            return torch.where(_to_pixels(held, self.patch)[:, :, None], past, made)
        return self._coded(codes, pasts)

    def _coded(self, codes: Float[Tensor, "n b d h w"], pasts: Float[Tensor, "n b 3 h2 w2"]) -> Tensor:
        """Decode token frames in their modes."""
        if not self.quarters:
            return self._new(codes, pasts)
        is_known = codes[:, :, -1].flatten(2).isfinite().all(2)
        modes, codes = modes_of(codes).flatten(), codes[:, :, : self.dim].flatten(0, 1)[None]
        flat = pasts.flatten(0, 1)[None]
        if torch.compiler.is_compiling():
            is_new = (modes == 0).view(1, -1, 1, 1, 1)
            made = torch.where(is_new, self._new(codes, flat), self._quarter(codes, flat, modes))
        else:
            made = flat.new_empty(1, len(modes), 3 * self.group, *flat.shape[-2:])
            is_new = modes == 0
            if is_new.any():
                made[:, is_new] = self._new(codes[:, is_new], flat[:, is_new])
            if not is_new.all():
                made[:, ~is_new] = self._quarter(codes[:, ~is_new], flat[:, ~is_new], modes[~is_new])
        made = made.view(*pasts.shape[:2], *made.shape[2:])
        return made.masked_fill(~is_known[:, :, None, None, None], torch.nan)

    def _quarter(
        self, codes: Float[Tensor, "1 n d h w"], pasts: Float[Tensor, "1 n 3 h2 w2"], modes: Int[Tensor, " n"]
    ) -> Tensor:
        """Decode a quarter at double size, shrink it, and hold it and the rest of the past for the group."""
        large: Tensor = self.image(codes)
        small = F.avg_pool2d(large[0].to(pasts.dtype), 2)
        is_mine = window(modes, pasts.shape[-2:])
        return held_for(torch.where(is_mine[:, None], small.repeat(1, 1, 2, 2), pasts[0])[None], self.group)

    def _new(self, codes: Float[Tensor, "n b d h w"], pasts: Float[Tensor, "n b 3 h2 w2"]) -> Tensor:
        """Decode what is new in groups, and add it to the past."""
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
        held = held_for(pasts, self.group)
        return held + residual.to(held.dtype) / self.scale


def modes_of(codes: Float[Tensor, "n b d h w"]) -> Int[Tensor, "n b"]:
    """Return the mode of each token frame: that of most of its tokens, the first of several."""
    levels = torch.arange(1 + QUARTERS, device=codes.device)
    digits = (2 * codes[:, :, -1].flatten(2) + 2).round().unsqueeze(-1)
    counts = (digits == levels).sum(2)
    return ((1 + QUARTERS) * counts - levels).argmax(-1)


def window(modes: Int[Tensor, " n"], size: Sequence[int]) -> Bool[Tensor, "n h w"]:
    """Return which pixels of frames of this size a mode codes: of 1 to 4 a quarter, of 0 none."""
    lower, right = (torch.arange(length, device=modes.device) >= length // 2 for length in size)
    return 1 + 2 * lower[:, None] + right.int() == modes.view(-1, 1, 1)


def past_of(frames: Float[Tensor, "t b 3 h w"]) -> Float[Tensor, "1 b 3 h w"]:
    """Return the past of what comes after some frames: the last of them, within the range of pixels.

    It is never less than float32, in which the rounding of many groups does not add up to be seen.
    """
    last = frames[-1:].clamp(-1, 1)
    return last.float() if last.dtype in (torch.bfloat16, torch.float16) else last


def _blocks(channels: int, depth: int) -> Iterator[ResidualBlock]:
    return (ResidualBlock(channels, channels, Window(), norm="position") for _ in range(depth))


def _to_pixels(tokens: Bool[Tensor, "n b h w"], patch: int) -> Bool[Tensor, "n b h2 w2"]:
    """Repeat flags of tokens for their pixels, two patches a side."""
    return tokens.repeat_interleave(2 * patch, -2).repeat_interleave(2 * patch, -1)


def held_for(pasts: Float[Tensor, "n b 3 h w"], group: int) -> Float[Tensor, "n b c h w"]:
    """Repeat each past for the frames of its group."""
    return pasts.repeat(1, 1, group, 1, 1)


def to_groups(frames: Float[Tensor, "t b 3 h w"], group: int) -> Float[Tensor, "n b c h w"]:
    """Return the frames of each group as channels: first those of its first frame."""
    return frames.unflatten(0, (-1, group)).transpose(1, 2).flatten(2, 3)


def _to_frames(groups: Float[Tensor, "n b c h w"], group: int) -> Float[Tensor, "t b 3 h w"]:
    """Return the frames of groups, the inverse of `to_groups`."""
    return groups.unflatten(2, (group, 3)).transpose(1, 2).flatten(0, 1)
