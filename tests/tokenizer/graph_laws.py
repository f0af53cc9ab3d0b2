"""Trace every kind of tokenizer at one size and run the graph at others; run as a process of its own, for the tests'
checks of annotations are no part of a graph. Prints a line of JSON per tokenizer and program."""

import json
import sys
import time

import torch

from smalti.quantize import CodebookConfig, DSQConfig, FSQConfig, LFQConfig
from smalti.tokenizer import (
    ConditionalConfig,
    CosmosConfig,
    OpenMagvit2Config,
    TokenizerConfig,
    VidTokConfig,
    VQGANConfig,
)
from smalti.tokenizer.graphs import graph_of, programs
from tests.randomise import random_tokenizer

SMALL = {"width": 8, "depth": 1}
CNN = {**SMALL, "decoder_depth": 1, "middle": 1, "multipliers": (1, 2)}
BITS = LFQConfig(bits=10)
VIDTOK = {**SMALL, "quantizer": FSQConfig(levels=(8, 8, 8)), "multipliers": (1, 2, 2)}
LATER = {"start": "repeat", "interpolation": "linear", "multipliers": (1, 1, 2, 2)}
COSMOS = {**SMALL, "latent": 6}

CONFIGS = {
    "image lfq": TokenizerConfig(**CNN, quantizer=BITS, strides=((1, 2),)),
    "image frame codebook": TokenizerConfig(
        **CNN, norm="frame", groups=4, quantizer=CodebookConfig(size=64, dim=5), strides=((1, 2),)
    ),
    "video point fsq": TokenizerConfig(**CNN, time_kernel=3, strides=((2, 2),), patch=2),
    "video full dsq": TokenizerConfig(
        **CNN, quantizer=DSQConfig(levels=(5, 4, 3)), time_kernel=3, strides=((2, 1),), past_kernel="full", start="zero"
    ),
    "video frame grey": TokenizerConfig(
        **CNN, quantizer=BITS, norm="frame", groups=4, adaptive="frame", time_kernel=3, strides=((2, 2),), start="grey"
    ),
    "video clip": TokenizerConfig(
        **CNN, quantizer=BITS, norm="clip", groups=4, adaptive="clip", time_kernel=3, strides=((2, 2),)
    ),
    "groups alone": TokenizerConfig(**CNN, quantizer=BITS, time_kernel=2, strides=((2, 2),)),
    "vqgan": VQGANConfig(
        **SMALL, decoder_depth=1, middle=1, latent=8, multipliers=(1, 2),
        quantizer=CodebookConfig(size=64, dim=5, by="cosine"),
    ),
    "vqgan mean": VQGANConfig(
        **SMALL, decoder_depth=1, multipliers=(1, 2), projections=0, downsample="average", shortcut="output",
        quantizer=BITS, pixels="unit",
    ),
    "open-magvit2 image": OpenMagvit2Config(**SMALL, quantizer=BITS, multipliers=(1, 2)),
    "open-magvit2 video": OpenMagvit2Config(
        **SMALL, quantizer=BITS, multipliers=(1, 2), time_kernel=3, time_strides=(2,)
    ),
    "vidtok 1.0": VidTokConfig(**VIDTOK, time_down=(0, 1), time_up=(1, 2)),
    "vidtok 1.1": VidTokConfig(**VIDTOK | LATER, time_down=(1, 2), time_up=(1, 2)),
    "conditional": ConditionalConfig(
        image=TokenizerConfig(**CNN, quantizer=BITS, strides=((1, 2),)), group=3, width=8, decoder_depth=(1, 1)
    ),
    "quarters": ConditionalConfig(
        image=TokenizerConfig(**CNN, quantizer=FSQConfig(levels=(8, 5, 4)), strides=((1, 2),)), group=3, width=8,
        decoder_depth=(1, 1), quarters=True,
    ),
    "cosmos image": CosmosConfig(**COSMOS, strides=((1, 2), (1, 1)), patch=2),
    "cosmos video": CosmosConfig(**COSMOS, time_kernel=3, patch=4),
}  # fmt: skip


def sizes(strides):
    """(batch, groups, height, width) of other sizes than those of the trace, one of each axis among them."""
    _, h, w = strides
    ones = [(1, 0, h, w), (1, 1, 3 * h, 4 * w), (2, 0, 4 * h, 2 * w), (1, 2, h, 3 * w)]
    return [*ones, (3, 3, 2 * h + 1, 6 * w - 1), (2, 4, 3 * h, 2 * w)]


def same(found, wanted):
    """Whether ids are equal, and pixels but for sums in another order."""
    return found.shape == wanted.shape and torch.allclose(found, wanted, rtol=0, atol=1e-4 * found.is_floating_point())


def run(graph, inputs):
    """What a graph gives, or None where it refuses."""
    try:
        return graph(*inputs)
    except (RuntimeError, AssertionError) as error:
        if not ("Guard failed" in str(error) or "xpected" in str(error) or "equal" in str(error)):
            raise
        return None


@torch.no_grad()
def graphs(name, config):
    """Compare each program of a tokenizer with the tokenizer, at all sizes: (equal, refused, largest difference)."""
    tokenizer = random_tokenizer(config)
    for program in programs(tokenizer):
        start = time.process_time()
        graph = graph_of(program).module()
        row = {"tokenizer": name, "program": program.name, "equal": 0, "refused": 0, "wrong": []}
        for size in sizes(tokenizer.strides):
            inputs = inputs_of(tokenizer, program, size)
            found, wanted = run(graph, inputs), program.module(*inputs)
            if found is None:
                row["refused"] += 1
            elif all(map(same, found, wanted)):
                row["equal"] += 1
            else:
                row["wrong"].append(size)
        print(json.dumps({**row, "seconds": time.process_time() - start}), flush=True)


def inputs_of(tokenizer, program, size):
    """The inputs of a program for a video of some size, its past by running what comes before."""
    batch, groups, height, width = size
    run = program.name.partition("_")[0]
    if not program.name.endswith(("_step", "_last")):
        return (input_of(tokenizer, run, (batch, 0 if is_fixed(program) else groups, height, width)),)
    before = {p.name: p for p in programs(tokenizer)}
    start = before.get(f"{run}_start", before[run])
    first = input_of(tokenizer, run, (batch, 0 if is_fixed(start) else groups, height, width))
    later = input_of(tokenizer, run, (batch, 1 if is_fixed(program) else max(1, groups), height, width))
    chunk = later[:, :, 1:] if run == "encode" else later[:, 1:]
    return (chunk.contiguous(), *start.module(first)[1:])


def is_fixed(program):
    """Whether a program takes one number of frames alone."""
    (name, axes), *_ = program.inputs.items()
    return (2 if name == "video" else 1) not in axes


def input_of(tokenizer, run, size):
    """A video of a first frame and some groups, or its ids."""
    batch, groups, height, width = size
    video = torch.rand(batch, 3, 1 + groups * tokenizer.strides[0], height, width) * 2 - 1
    return tokenizer.encode(video) if run == "decode" else video


def compiled(name, config):
    """Compile encode, decode and forward as one graph each, and compare them at several sizes."""
    tokenizer = random_tokenizer(config)
    for call in ("encode", "decode", "forward"):
        start = time.process_time()
        graph = torch.compile(getattr(tokenizer, call), fullgraph=True, backend="eager", dynamic=True)
        row = {"tokenizer": name, "compiled": call, "equal": 0, "wrong": []}
        for batch, groups, height, width in sizes(tokenizer.strides)[1::3]:
            x = torch.rand(batch, 3, 1 + groups * tokenizer.strides[0], height, width) * 2 - 1
            with torch.set_grad_enabled(call == "forward"):
                x = tokenizer.encode(x) if call == "decode" else x
                found, wanted = graph(x), getattr(tokenizer, call)(x)
            pairs = [(found.ids, wanted.ids), (found.video, wanted.video)] if call == "forward" else [(found, wanted)]
            good = all(same(*pair) for pair in pairs)
            row["equal"] += good
            row["wrong"] += [] if good else [(batch, groups, height, width)]
        print(json.dumps({**row, "seconds": time.process_time() - start}), flush=True)


if __name__ == "__main__":
    law = {"graphs": graphs, "compiled": compiled}[sys.argv[1]]
    for name in sys.argv[2:] or CONFIGS:
        law(name, CONFIGS[name])
