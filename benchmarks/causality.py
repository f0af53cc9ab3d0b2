"""Who is causal in truth: networks of other projects with the goldens' weights, in float64.

    python benchmarks/causality.py

Of each, a video of 9 frames is encoded and decoded; then its last 4 frames are changed. Printed are the ids of the
latents before the change that are others then, the largest change of a pixel that belongs to those, and the ids of the
first frame that an image of it alone does not have. Of a causal network all are 0; pixels may see `lookahead` latents.
"""

from typing import Any

import torch

from smalti.families import cosmos, open_magvit2, vidtok
from smalti.families.links import assemble
from smalti.tokenizer import Tokenizer
from tests.families.golden import listed
from tests.goldens.rule import rule

KEYS = {
    "Open-MAGVIT2 video": "om2_video_w32_t9_32px",
    "VidTok 1.0": "vidtok_v10_fsq488_w32_t9_32px",
    "VidTok 1.1": "vidtok_v10_fsq488_w32_t9_32px",
    "Cosmos DV4x8x8": "cosmos_dv4x8x8_w32_t9_48px",
}


def network(name: str) -> Tokenizer:
    """Build the network of that name with the weights of its golden."""
    shapes = listed(KEYS[name])
    model: Any
    if name.startswith("Open"):
        model = open_magvit2.open_magvit2_network(shapes, name)
    elif name.startswith("VidTok"):
        model = vidtok.vidtok_network(shapes, "1.0" if name.endswith("0") else "1.1", name)
    else:
        model = cosmos.cosmos_network(shapes, (4, 8, 8), cosmos.COSMOS_LEVELS, name)
    tokenizer = Tokenizer(model.config).double().eval()
    tensors = {key: rule(key, shape).double() for key, shape in shapes.items()}
    tokenizer.load_state_dict(assemble(tokenizer, model.links, tensors, name))
    return tokenizer


@torch.inference_mode()
def main() -> None:
    """Print one row per network."""
    noise = torch.Generator().manual_seed(0)
    video = torch.rand(1, 3, 9, 32, 32, dtype=torch.float64, generator=noise) * 2 - 1
    changed = video.clone()
    changed[:, :, 5:] = torch.rand(1, 3, 4, 32, 32, dtype=torch.float64, generator=noise) * 2 - 1
    columns = ("network", "label", "ids before the change that change", "pixels before it change by")
    print(f"| {' | '.join(columns)} | ids of the image that differ |")
    print("|---|---|--:|--:|--:|")
    for name in KEYS:
        tokenizer = network(name)
        ids, others, image = (tokenizer.encode(x) for x in (video, changed, video[:, :, :1]))
        early = ids[:, :2] != others[:, :2]
        seen = 1 + (1 - tokenizer.lookahead) * tokenizer.strides[0]
        moved = (tokenizer.decode(ids) - tokenizer.decode(others))[:, :, :seen].abs().max()
        first = image != ids[:, :1]
        label = "causal" if tokenizer.is_causal else "not causal"
        label += ", lookahead 1" if tokenizer.lookahead else ""
        print(
            f"| {name} | {label} | {int(early.sum())} of {early.numel()} | {moved:.1e} |"
            f" {int(first.sum())} of {first.numel()} |"
        )


if __name__ == "__main__":
    main()
