"""Who is causal in truth: networks of other projects with the goldens' weights, in float64.

    python benchmarks/causality.py

Of each, a video of 9 frames is encoded and decoded; then its last 4 frames are changed. Printed are the ids of the
latents before the change that are others then, the largest change of a pixel that belongs to those, and the ids of the
first frame that an image of it alone does not have. Of a causal network all are 0; pixels may see `lookahead` latents.
An image network takes a video frame by frame.
"""

from collections.abc import Callable
from typing import Any

import torch

from smalti.families import cosmos, open_magvit2, vidtok
from smalti.families.links import assemble
from smalti.tokenizer import Tokenizer
from tests.families.golden import golden_model, listed
from tests.families.test_families import ROWS, config_of
from tests.families.test_magicmaster import imported
from tests.goldens.rule import rule

VIDEO: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "Open-MAGVIT2 video": (
        "om2_video_w32_t9_32px",
        lambda shapes: open_magvit2.open_magvit2_network(shapes, "here"),
    ),
    "VidTok 1.0": ("vidtok_v10_fsq488_w32_t9_32px", lambda shapes: vidtok.vidtok_network(shapes, "1.0", "here")),
    "VidTok 1.0, not causal": (
        "vidtok_v10_noncausal488_w32_t8_32px",
        lambda shapes: vidtok.vidtok_network(shapes, "1.0", "here"),
    ),
    "VidTok 1.1": ("vidtok_v10_fsq488_w32_t9_32px", lambda shapes: vidtok.vidtok_network(shapes, "1.1", "here")),
    "VidTok 1.1, 8x8x8": (
        "vidtok_v11_fsq888_w16_t9_32px",
        lambda shapes: vidtok.vidtok_network(shapes, "1.1", "here"),
    ),
    "Cosmos DV4x8x8": (
        "cosmos_dv4x8x8_w32_t9_48px",
        lambda shapes: cosmos.cosmos_network(shapes, (4, 8, 8), cosmos.COSMOS_LEVELS, "here"),
    ),
    "Cosmos DV8x8x8": (
        "cosmos_dv4x8x8_w32_t9_48px",
        lambda shapes: cosmos.cosmos_network(shapes, (8, 8, 8), cosmos.COSMOS_LEVELS, "here"),
    ),
    "Cosmos DI8x8": (
        "cosmos_di8x8_w32_64px",
        lambda shapes: cosmos.cosmos_network(shapes, None, cosmos.COSMOS_LEVELS, "here"),
    ),
    "Open-MAGVIT2 image": (
        "om2_image256L_w32_64px",
        lambda shapes: open_magvit2.open_magvit2_network(shapes, "here"),
    ),
}
"""Name -> the listing of its tensors in the goldens, and what makes its network of that."""
CLAIMS = {
    "Open-MAGVIT2 video": "causal 3-D convolutions",
    "VidTok 1.0, not causal": "not causal",
    "VidTok": "causal",
    "Cosmos DV": "causal",
    "MagicMaster 3-D": "causal 3-D convolutions",
}
"""Words of the projects, by the beginnings of the names; the others are of images and claim nothing."""


def networks() -> dict[str, Callable[[], Tokenizer]]:
    """Return what makes each network, by name."""
    made = {name: lambda name=name: video_network(*VIDEO[name]) for name in VIDEO}
    made["MagicMaster 3-D FSQ"] = lambda: imported("mm3d_fsq64000_w32_t9_32px", torch.float64)[0]
    made["MagicMaster 3-D DSQ"] = lambda: imported("mm3d_dsq64000_w32_t5_32px", torch.float64)[0]
    made["MagicMaster 2-D"] = lambda: imported("mm2d_fsq64000_w32_64px", torch.float64)[0]
    for row in ROWS:
        name = f"{row.family}: {row.golden.rsplit('_', 1)[0]}"
        made[name] = lambda row=row: golden_model(
            row.golden, row.keys, dtype=torch.float64, config=config_of(row), **row.options
        )[0]
    return made


def video_network(keys: str, read: Callable[[Any], Any]) -> Tokenizer:
    """Build a network with the weights of its golden."""
    shapes = listed(keys)
    model = read(shapes)
    tokenizer = Tokenizer(model.config).double().eval()
    tensors = {key: rule(key, shape).double() for key, shape in shapes.items()}
    tokenizer.load_state_dict(assemble(tokenizer, model.links, tensors, "here"))
    return tokenizer


@torch.inference_mode()
def main() -> None:
    """Print one row per network."""
    noise = torch.Generator().manual_seed(0)
    video = torch.rand(1, 3, 9, 32, 32, dtype=torch.float64, generator=noise) * 2 - 1
    changed = video.clone()
    changed[:, :, 5:] = torch.rand(1, 3, 4, 32, 32, dtype=torch.float64, generator=noise) * 2 - 1
    columns = ("network", "its project says", "label", "ids before the change that change")
    print(f"| {' | '.join(columns)} | pixels before it change by | ids of the image that differ |")
    print("|---|---|---|--:|--:|--:|")
    for name, build in networks().items():
        tokenizer = build()
        ids, others, image = (tokenizer.encode(x) for x in (video, changed, video[:, :, :1]))
        first = tokenizer.first_frames
        latents = 1 + (5 - first) // tokenizer.strides[0]  # of the 5 frames before the change, without later ones
        early = ids[:, :latents] != others[:, :latents]
        seen = first + (latents - 1 - tokenizer.lookahead) * tokenizer.strides[0]
        moved = (tokenizer.decode(ids) - tokenizer.decode(others))[:, :, : max(0, seen)]
        alone = image != ids[:, :1]
        label = "causal" if tokenizer.is_causal else "not causal"
        label += ", lookahead 1" if tokenizer.lookahead else ""
        claim = next((words for start, words in CLAIMS.items() if name.startswith(start)), "–")
        change = f"{moved.abs().max():.1e}" if moved.numel() else "–"
        print(
            f"| {name} | {claim} | {label} | {int(early.sum())} of {early.numel()} | {change} |"
            f" {int(alone.sum())} of {alone.numel()} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
