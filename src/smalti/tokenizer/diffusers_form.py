"""A tokenizer in the form of an autoencoder of diffusers, for pipelines that were written for one. Needs no diffusers.

    vae = DiffusersForm(smalti.load("smalti/tiny-image"))
    latents = vae.encode(images).latents
    images = vae.decode(latents).sample

Here as there `encode` gives the latents before quantization, and `decode` quantizes them. Ids are the tokenizer's own.
"""

from types import SimpleNamespace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from smalti.tokenizer.tokenizer import Tokenizer


class Latents(NamedTuple):
    """Result of `encode`; as a tuple it has one element, as with `return_dict=False` in diffusers."""

    latents: Float[Tensor, "b d *t h w"]


class Sample(NamedTuple):
    """Result of `decode` and of a call; as a tuple it has one element, as with `return_dict=False` in diffusers."""

    sample: Float[Tensor, "b 3 *t h w"]


class DiffusersForm(nn.Module):
    """A tokenizer with the methods and attributes of `VQModel`: images `b 3 h w` or video `b 3 t h w`, in [-1, 1]."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        time, height, _ = tokenizer.strides
        self.config = SimpleNamespace(
            in_channels=3,
            out_channels=3,
            latent_channels=tokenizer.quantizer.dim,
            num_vq_embeddings=tokenizer.codebook_size,
            scaling_factor=1.0,
            spatial_compression_ratio=height,
            temporal_compression_ratio=time,
        )
        """Settings by the names of diffusers; latents are on the scale of the quantizer, so the factor is 1."""

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.tokenizer.device

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the weights."""
        return self.tokenizer.dtype

    def encode(self, x: Float[Tensor, "b 3 *t h w"], return_dict: bool = True) -> Latents:
        """Encode images or video to latents. The result is a tuple either way. Raises as `Tokenizer.latents` does."""
        return Latents(self.tokenizer.latents(x))

    def decode(
        self, z: Float[Tensor, "b d *t h w"], force_not_quantize: bool = False, return_dict: bool = True
    ) -> Sample:
        """Quantize latents and decode them; with `force_not_quantize`, z holds codes and is decoded as it is.

        The sample has whole strides: crop it to the size of what was encoded. Raises BadTensor for another shape.
        """
        codes = z if force_not_quantize else self.tokenizer.quantizer.decode(self.tokenizer.quantizer.encode(z))
        return Sample(self.tokenizer.decode_codes(codes))

    def forward(self, sample: Float[Tensor, "b 3 *t h w"], return_dict: bool = True) -> Sample:
        """Encode and decode images or video; the sample has their size."""
        return Sample(self.tokenizer(sample).video)
