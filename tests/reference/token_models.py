"""Runs of token models without a token set on disk: their rows are random ids."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from smalti.generation import AutoregressiveConfig, MaskedConfig
from smalti.quantize import FSQConfig
from smalti.tokenizer import Tokenizer, TokenizerConfig
from smalti.tokenizer_info import TokenizerInfo
from smalti.tokens.dataset import TokenBatch
from smalti.training.distributed import World
from smalti.training.generator_config import GeneratorTraining
from smalti.training.generator_rows import GridRows, _Row
from smalti.training.generator_task import GeneratorState, start_generator
from tests.randomise import random_tokenizer

LEVELS, GRID = (4, 3, 5, 2), (3, 4, 4)
SMALL = {"levels": LEVELS, "groups": ((0, 2), (1, 3)), "grid": GRID, "width": 16, "depth": 1, "heads": 2}
KINDS = ("generation", "prediction")
MODELS = {
    "masked": MaskedConfig(**SMALL, tasks=KINDS),
    "sub-tokens": MaskedConfig(**SMALL, unit="part", part_layers=2, attention_dropout=0.1, position="rotary"),
    "classes": MaskedConfig(**SMALL, classes=3, hints=True),
    "autoregressive": AutoregressiveConfig(**SMALL, attention_dropout=0.1),
    "autoregressive, classes": AutoregressiveConfig(**SMALL, classes=3, part_layers=0, position="rotary"),
}

HINTED = [
    {"task": {"kind": "prediction", "frames": 2}},
    {"task": {"kind": "interpolation"}},
    {"task": {"kind": "outpainting"}},
    {"task": {"kind": "inpainting", "region": "moving"}},
]


class Set(list):
    """What a run needs to know of a token set but its rows; of any tokenizer."""

    tokenizer_info = TokenizerInfo(fingerprint="0" * 64, levels=LEVELS, codebook_size=120, strides=(4, 8, 8))

    def check(self, tokenizer: Tokenizer) -> None:
        pass


class NoRows(GridRows):
    """Rows that are in no file, of some classes."""

    def __init__(self, labels: Sequence[int] = ()) -> None:
        self.tokens, self.classes = Set(), ()
        self.rows = [_Row(number, np.zeros(GRID, np.uint8), label) for number, label in enumerate(labels)]


def save_tokenizer(folder: Path) -> Path:
    """Write a tokenizer with these levels and strides, and random weights."""
    shape = {"width": 8, "multipliers": (1, 2), "depth": 1, "decoder_depth": 1, "middle": 0, "patch": 4}
    config = TokenizerConfig(**shape, strides=((4, 2),), time_kernel=4, quantizer=FSQConfig(levels=LEVELS))
    random_tokenizer(config).save(folder)
    return folder


def training(model: str, **changes: object) -> GeneratorTraining:
    """Return a config of one of MODELS; a masked one learns two tasks, with a tokenizer those with hints."""
    generator = MODELS[model]
    kinds = KINDS if isinstance(generator, MaskedConfig) else KINDS[:1]
    tasks = HINTED if changes.get("tokenizer") else [{"task": {"kind": kind}} for kind in kinds]
    fields = {"generator": generator.plain(), "data": str(Path("nowhere")), "steps": 50, "tasks": tasks}
    return GeneratorTraining.parse({**fields, "optimizer": {"lr": 1e-3, "warmup": 2}, **changes})


def started(config: GeneratorTraining, world: World) -> GeneratorState:
    """Return a fresh state."""
    return start_generator(config, NoRows(), world)


def batch(count: int = 5) -> TokenBatch:
    """Return rows of random ids, with classes."""
    ids = torch.randint(120, (count, *GRID), generator=torch.Generator().manual_seed(1))
    return TokenBatch(ids, torch.arange(count) % 3, torch.arange(count), 0)
