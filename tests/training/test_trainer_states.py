"""A checkpoint of MagicMaster's trainer goes on: its live weights, its discriminator and both averages of Adam."""

from pathlib import Path

import pytest
import torch

import smalti
from smalti.data import ImagesConfig
from smalti.data.bundled import photos
from smalti.discriminators import PatchConfig, StyleGAN2Config
from smalti.errors import ConfigError, IntegrityError
from smalti.families.trainer_states import read_trainer_states
from smalti.foreign import read_checkpoint
from smalti.training.config import GANConfig, OptimizerConfig, TokenizerTraining
from smalti.training.distributed import join_world
from smalti.training.tokenizer_state import start_tokenizer
from tests.discriminators.test_goldens import patch_key, stylegan2_key
from tests.goldens.rule import FOLDER

LIVE, DISCRIMINATOR = "generator.module.", "discriminator.module."
PLAIN = {"betas": (0.5, 0.9), "weight_decay": 0.0, "clip": None, "warmup": 0, "schedule": "constant"}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def networks(tree):
    """The names of the trained tensors of both networks, in the order of their optimizers."""
    state = tree["state_dict"]
    fixed = ("kernel", "running_mean", "running_var", "num_batches_tracked")
    found = ([n for n in state if n.startswith(p) and not n.endswith(fixed)] for p in (LIVE, DISCRIMINATOR))
    return dict(zip(("generator", "discriminator"), found, strict=True))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The file that its trainer wrote, with a state of Adam for every tensor: the file keeps those of the first."""
    tree = read_checkpoint(FOLDER / "mm_envelope_tiny2d.pth")
    for seed, (network, names) in enumerate(networks(tree).items()):
        states = {}
        for number, name in enumerate(names):
            shape, draws = tree["state_dict"][name].shape, rng(100 * seed + number)
            averages = (0.01 * torch.randn(shape, generator=draws), 1e-4 * torch.rand(shape, generator=draws) + 1e-6)
            states[number] = {"step": torch.tensor(7.0), "exp_avg": averages[0], "exp_avg_sq": averages[1]}
        tree["optimizer"][network]["state"] = states
    path = tmp_path_factory.mktemp("trainer") / "iter_7.pth"
    torch.save({name: tree[name] for name in ("meta", "state_dict", "optimizer")}, path)
    return path


def started(path, **changes):
    settings = {
        "tokenizer": smalti.load(path).config, "data": ImagesConfig(path=photos("train"), size=32), "steps": 4,
        "batch_size": 2, "weights": {"l1": 1.0}, "optimizer": OptimizerConfig(lr=5.4e-5, **PLAIN), "init": path,
        "init_states": True, "gan": GANConfig(
            discriminator=PatchConfig(width=4, norm="batch"), optimizer=OptimizerConfig(lr=4.32e-4, **PLAIN)
        ),
    }  # fmt: skip
    with join_world("cpu") as world:
        return start_tokenizer(TokenizerTraining(**(settings | changes)), world)


def test_a_step_of_both_optimizers_is_that_of_the_trainer(whole):
    """Each is torch's Adam on the foreign tensors with the file's state; gradients are random ones of the foreign form,
    which the links, linear and one to one, carry to ours."""
    state, tree = started(whole), read_checkpoint(whole)
    live = smalti.load(f"{whole}:weights=live")
    assert all(torch.equal(a, b) for a, b in zip(state.tokenizer.parameters(), live.parameters(), strict=True))
    averaged = smalti.load(whole)
    assert all(torch.equal(a, b) for a, b in zip(state.ema.parameters(), averaged.parameters(), strict=True))

    for network, lr in (("generator", 5.4e-5), ("discriminator", 4.32e-4)):
        names = networks(tree)[network]
        theirs = [torch.nn.Parameter(tree["state_dict"][name].clone()) for name in names]
        adam = torch.optim.Adam(theirs, lr=lr, betas=(0.5, 0.9))
        adam.load_state_dict(tree["optimizer"][network])
        for number, parameter in enumerate(theirs):
            parameter.grad = 0.01 * torch.randn(parameter.shape, generator=rng(number))
        gradients = {name: parameter.grad for name, parameter in zip(names, theirs, strict=True)}
        before = {name: parameter.detach().clone() for name, parameter in zip(names, theirs, strict=True)}
        adam.step()
        after = {name: parameter.detach() for name, parameter in zip(names, theirs, strict=True)}
        module = state.tokenizer if network == "generator" else state.gan.discriminator
        ours = (state if network == "generator" else state.gan).optimizer
        parameters = dict(module.named_parameters())
        for place, moved in placed(whole, network, gradients).items():
            parameters[place].grad = moved
        ours.step()
        wanted = placed(whole, network, after)
        assert wanted.keys() == parameters.keys()
        for name, parameter in parameters.items():
            torch.testing.assert_close(parameter.detach(), wanted[name], rtol=0, atol=1e-9)
        moved = placed(whole, network, before)
        assert [name for name in wanted if torch.equal(moved[name], wanted[name])] == []


def placed(path, network, tensors):
    """Tensors of the foreign form under our names."""
    if network == "discriminator":
        keys = dict(PatchConfig(width=4, norm="batch").build().named_parameters())
        return {key: tensors[DISCRIMINATOR + patch_key(key)] for key in keys}
    tree = read_checkpoint(path)
    tree["state_dict"] |= tensors
    found = read_trainer_states(saved(path.parent / "other.pth", tree)).tokenizer
    return {name: tensor.clone() for name, tensor in found.items()}  # the file is mapped, and written again


def saved(path, tree):
    torch.save(tree, path)
    return path


def test_a_run_goes_on_from_the_trainers_file(whole, tmp_path):
    state = started(whole)
    smalti.train(state.config.replace({"steps": 2}), tmp_path / "run", device="cpu")
    assert (tmp_path / "run" / "tokenizer" / "config.json").is_file()


@pytest.mark.parametrize("size", [16, 64])
def test_every_tensor_of_both_discriminators_has_its_place(size):
    """Names of the 3-D model's own file are those of the StyleGAN2 discriminator of 128 pixels."""
    from smalti.families.trainer_states import _our_name

    for config, key_of in (
        (StyleGAN2Config(size=size, width=8), stylegan2_key),
        (PatchConfig(norm="batch"), patch_key),
    ):
        for key in config.build().state_dict():
            assert _our_name(key_of(key), "file") == key


def test_what_cannot_go_on_is_one_line(whole, tmp_path):
    with pytest.raises(ConfigError, match=r"gan.discriminator is another network"):
        started(whole, gan=GANConfig(discriminator=PatchConfig(width=8, norm="batch")))
    with pytest.raises(ConfigError, match="give the file that MagicMaster's trainer wrote"):
        started(whole, init=None, initialisation="smalti")
    tree = read_checkpoint(whole)
    tree["optimizer"]["discriminator"]["param_groups"][0]["params"].append(10)
    with pytest.raises(IntegrityError, match="its optimizer has 11 parameters, its network 10"):
        read_trainer_states(saved(tmp_path / "more.pth", tree))
    bare = {n: t for n, t in tree["state_dict"].items() if not n.startswith(DISCRIMINATOR)}
    with pytest.raises(ConfigError, match="has no discriminator; set gan to null"):
        started(saved(Path(tmp_path / "bare.pth"), {"meta": tree["meta"], "state_dict": bare}))
    assert started(tmp_path / "bare.pth", gan=None).optimizer.state == {}
