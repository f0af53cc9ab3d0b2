"""The common part of the configs of tokenizers: what is true of a network unless its own config says other."""

from smalti.config import C, Config
from smalti.quantize import QuantizerConfig

NOT_CAUSAL = "not causal (norms or convolutions let a frame see those after it)"
"""Reason for which a tokenizer has no streams, for messages."""


class AutoencoderConfig(Config):
    """The networks of a tokenizer. By default they are causal, see the whole frame and no later latent."""

    @property
    def is_causal(self) -> bool:
        """Whether ids and pixels up to a frame are independent of what comes after it, but for `lookahead`."""
        return True

    @property
    def lookahead(self) -> int:
        """Latents after a frame's own on which its pixels depend; ids depend on none."""
        return 0

    @property
    def first_frames(self) -> int:
        """Frames of the first latent: 1, so that an image is a video of one frame, or as many as those of each other
        one where groups are whole from the start."""
        return 1

    @property
    def is_tile_exact(self) -> bool:
        """Whether a large frame can be cut into tiles without changing a token: no where norms or attention see it
        all."""
        return False

    @property
    def is_contiguous_on_cpu(self) -> bool:
        """Whether the memory of a CPU should hold the channels apart: no where attention, or norms over channels, are
        faster with the channels last."""
        return False

    def with_quantizer(self: C, quantizer: QuantizerConfig) -> C:
        """Return the same networks around another quantizer."""
        return self.replace({"quantizer": quantizer})
