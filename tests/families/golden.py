"""The model of a golden: its project's tensors by the rule, through its family's links."""

import json

import torch

from smalti.families.checkpoint import FAMILIES
from smalti.families.family import Checkpoint, ImportOptions
from smalti.families.links import assemble
from smalti.tokenizer import Tokenizer
from tests.goldens.rule import FOLDER, key_hash, load, rule


def listed(name):
    """Names and shapes of a listing `NAME.keys.txt` of the goldens."""
    lines = (FOLDER / f"{name}.keys.txt").read_text().splitlines()
    rows = (line.split("\t")[:2] for line in lines if line[0] != "#")
    return {key: tuple(json.loads(shape)) for key, shape in rows}


def family(name):
    """The family of that name."""
    return next(family for family in FAMILIES if family.name == name)


def read_shapes(shapes, tensors=None, config=None, **options):
    """(family, model) of a state dict by its names and shapes, recognised as a file is."""
    checkpoint = Checkpoint("there", "there.pt", tensors or {}, shapes, {}, config or {}, None)
    found = next(family for family in FAMILIES if family.recognises(checkpoint))
    return found, found.read(checkpoint, ImportOptions(**options))


def golden_model(name, keys, *, dtype=torch.float32, config=None, **options):
    """(tokenizer, family, model, golden) of one golden; its names are those of the listing `keys`."""
    golden = load(name)
    shapes = listed(keys)
    assert key_hash(shapes) == golden.metadata["key_hash"]
    found, model = read_shapes(shapes, config=config, **options)
    tensors = {key: rule(key, shape) for key, shape in shapes.items()}
    tensors = {key: tensor.to(dtype) for key, tensor in tensors.items() if tensor is not None} | dict(model.constants)
    tokenizer = Tokenizer(model.config).to(dtype).eval()
    tokenizer.load_state_dict(assemble(tokenizer, model.links, tensors, name))
    told = {link.source for link in model.links} | set(model.constants) | set(model.unused)
    assert told == set(shapes)
    return tokenizer, found, model, golden
