"""Vector quantization: a code is a row of a learned table."""

from typing import Literal

Lookup = Literal["euclidean", "cosine", "inner"]
"""Law that finds the row of a latent: the smallest distance, the largest cosine, or the largest inner product."""
