"""The networks of the goldens as tokenizers of ours: their projects' tensors by the rule, through the links."""

import json
import warnings
from typing import NamedTuple

import torch

from smalti.families.checkpoint import FAMILIES
from smalti.families.family import Checkpoint, ImportOptions
from smalti.families.links import ForeignModel, assemble
from smalti.tokenizer import Tokenizer
from tests.goldens.rule import FOLDER, Golden, grad_stats, key_hash, load, randn, rule


def listed(name):
    """Names and shapes of a listing `NAME.keys.txt` of the goldens."""
    lines = (FOLDER / f"{name}.keys.txt").read_text().splitlines()
    rows = (line.split("\t")[:2] for line in lines if line[0] != "#")
    return {key: tuple(json.loads(shape)) for key, shape in rows}


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


class Peer(NamedTuple):
    tokenizer: Tokenizer
    model: ForeignModel
    tensors: dict
    golden: Golden


class _Part(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def write_torchscript(tensors, path):
    """Write a TorchScript archive whose modules have buffers of these names: the peer's layout, another program."""
    root = _Part()
    for name, tensor in tensors.items():
        part, steps = root, name.split(".")
        for step in steps[:-1]:
            if not hasattr(part, step):
                part.add_module(step, _Part())
            part = getattr(part, step)
        part.register_buffer(steps[-1], tensor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.15's name for it
        torch.jit.save(torch.jit.script(root), path)


def never_run(name):
    """Names of the tensors that the peer stores but does not run."""
    rows = (line.split("\t") for line in (FOLDER / f"{name}.keys.txt").read_text().splitlines() if line[0] != "#")
    return {row[0] for row in rows if "unused" in row[3:]}


def imported(name, recognise, keys=None, dtype=torch.float32):
    """The peer of golden `name`; `keys` names the listing of its tensors, if another golden has the same."""
    golden, shapes = load(name), listed(keys or name)
    assert key_hash(shapes) == golden.metadata["key_hash"]
    tensors = {key: rule(key, shape).to(dtype) for key, shape in shapes.items()}
    model = recognise(shapes)
    tokenizer = Tokenizer(model.config).to(dtype).eval()
    tokenizer.load_state_dict(assemble(tokenizer, model.links, tensors, name))
    return Peer(tokenizer, model, tensors, golden)


def five(x):
    """Images with a time axis; videos as they are."""
    return x if x.dim() == 5 else x.unsqueeze(2)


def pixels_of(golden, dtype=torch.float32):
    return five(golden.tensors["input_u8"].to(dtype) / 127.5 - 1)


def check_forward(peer, tolerance=5e-5):
    """Latents, ids and pixels are the peer's; ids may differ where z lies within 1e-5 of a threshold, and the golden
    has no such place."""
    tokenizer, golden = peer.tokenizer, peer.golden
    video, numbers = pixels_of(golden), golden.tensors
    with torch.inference_mode():
        z = tokenizer.latents(video)
        ids = tokenizer.encode(video)
        wanted = numbers["ids"].reshape(ids.shape).long()
        made = tokenizer.decode(wanted)
    torch.testing.assert_close(z, five(numbers["z"]), rtol=1e-5, atol=tolerance)
    assert torch.equal(ids, wanted)
    assert torch.equal(tokenizer.quantizer.encode(five(numbers["z"])), wanted)
    recon = five(numbers["recon"])[:, :, -made.shape[2] :]
    torch.testing.assert_close(made, recon, rtol=1e-5, atol=tolerance)


def gradients(peer):
    """(tensors of the peer as leaves, our state made of them, the probe of the golden's scalar)."""
    leaves = {key: tensor.clone().requires_grad_() for key, tensor in peer.tensors.items()}
    state = assemble(peer.tokenizer, peer.model.links, leaves, "here")
    return leaves, state, randn("probe.recon", peer.golden.tensors["recon"].shape).double()


def check_gradients(peer, leaves, loss):
    """Norms of the gradients in the peer's own layout, and their products with fixed directions, are the golden's."""
    loss.backward()
    made = {key: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for key, leaf in leaves.items()}
    expected = peer.golden.tensors["grad_stats"]
    assert (grad_stats(made) - expected).abs().max() < 1e-6 * expected.abs().max()
