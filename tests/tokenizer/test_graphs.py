"""An exported or compiled tokenizer is one graph for all sizes: it gives what the tokenizer gives, or it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from smalti.tokenizer.graphs import graph_of, programs
from tests.randomise import random_tokenizer
from tests.tokenizer.graph_laws import CONFIGS

QUICK: list[str] = []
"""Those traced in the quick suite: none, for each takes half a minute to a minute."""
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]


def rows(law, name):
    """The lines of `graph_laws.py`, run as a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("graph_laws.py")), law, name]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return [json.loads(line) for line in ended.stdout.splitlines()]


@pytest.mark.parametrize("name", NAMES)
def test_a_graph_gives_the_same_at_every_size_or_refuses(name):
    found = rows("graphs", name)
    causal = CONFIGS[name].is_causal and CONFIGS[name].time_kernel > 1
    steps = {f"{run}_step" for run in ("encode", "decode")} if causal else set()
    assert {row["program"] for row in found} >= {"encode", "decode"} | steps
    for row in found:
        assert not row["wrong"], row
        # Not by refusing all: two sizes at least are none of those that torch sets apart, of one on some axis.
        assert row["equal"] >= 2, row


@pytest.mark.parametrize("name", CONFIGS)
def test_all_that_goes_in_and_comes_out_is_contiguous(name):
    """AOTInductor reads the memory of an input by the strides of the example: a state of others gives other ids."""
    for program in programs(random_tokenizer(CONFIGS[name])):
        with torch.no_grad():
            outputs = program.module(*program.example)
        assert all(x.is_contiguous() for x in (*program.example, *outputs)), program.name


@pytest.mark.parametrize("name", CONFIGS)
def test_a_state_that_grows_is_free_to_grow(name):
    """The past of attention over time is longer after each step: a runtime refuses it where the axis is fixed."""
    for program in programs(random_tokenizer(CONFIGS[name])):
        states = dict(zip(program.inputs, program.example, strict=True))
        with torch.no_grad():
            outputs = dict(zip(program.outputs, program.module(*program.example), strict=True))
        for state, axes in list(program.inputs.items())[1:]:
            before, after = states[state].shape, outputs.get(state.replace("_in_", "_out_"), states[state]).shape
            assert {axis for axis in range(len(before)) if before[axis] != after[axis]} <= set(axes), (
                program.name,
                state,
            )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vidtok 1.1", "cosmos video"])
def test_no_axis_of_the_first_input_is_fixed_by_the_trace(name):
    """Of three latents a decoder that looks ahead by two computes one, and torch fixed the three in every graph."""
    for program in programs(random_tokenizer(CONFIGS[name])):
        if program.name.startswith("decode"):
            graph = graph_of(program)
            (first, axes), *_ = zip(graph.graph_signature.user_inputs, program.inputs.values(), strict=True)
            (node,) = (node for node in graph.graph.nodes if node.name == first)
            fixed = {word for axis, word in axes.items() if isinstance(node.meta["val"].shape[axis], int)}
            assert not fixed, (program.name, fixed)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_encode_decode_and_forward_compile_to_one_graph(name):
    found = rows("compiled", name)
    assert [row["compiled"] for row in found] == ["encode", "decode", "forward"]
    assert all(row["equal"] == 2 for row in found), found
