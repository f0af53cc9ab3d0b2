"""Discriminators: 2-D ones on frames, a 3-D one on clips, all with the same call `video -> logits`."""

from typing import Annotated

from pydantic import Field

from smalti.discriminators.frames import (
    Discriminator,
    PatchConfig,
    PatchDiscriminator,
    StyleGAN2Config,
    StyleGAN2Discriminator,
)
from smalti.discriminators.magvit import Magvit2DConfig, Magvit2DDiscriminator, Magvit3DConfig, Magvit3DDiscriminator

DiscriminatorConfig = Annotated[
    PatchConfig | StyleGAN2Config | Magvit2DConfig | Magvit3DConfig, Field(discriminator="kind")
]

__all__ = [
    "Discriminator",
    "DiscriminatorConfig",
    "Magvit2DConfig",
    "Magvit2DDiscriminator",
    "Magvit3DConfig",
    "Magvit3DDiscriminator",
    "PatchConfig",
    "PatchDiscriminator",
    "StyleGAN2Config",
    "StyleGAN2Discriminator",
]
