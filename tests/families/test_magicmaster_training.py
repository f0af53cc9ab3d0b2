"""A run that goes on with a training of MagicMaster: live weights, discriminator and both optimizers of its file."""

import copy

import pytest
import torch

import smalti
from smalti.discriminators import PatchConfig
from smalti.errors import ConfigError, IntegrityError
from smalti.families import import_checkpoint
from smalti.families.links import assemble
from smalti.families.magicmaster import recognise_generator
from smalti.foreign import read_checkpoint
from smalti.recipes import find
from smalti.training.tokenizer_state import start_tokenizer
from smalti.training.tokenizer_step import step
from tests.discriminators.test_goldens import patch_key
from tests.goldens.rule import FOLDER, randn
from tests.reference.plain_step import ALONE

FILE = FOLDER / "mm_envelope_tiny2d.pth"
LIVE = "generator.module."
LEVELS = (8, 5, 5, 5)
JUDGED, BUFFERS = "discriminator.module.", ("_mean", "_var", "_tracked")
GAN = (
    "gan={discriminator: {kind: patch, width: 4, norm: batch}, optimizer: {schedule: constant, warmup: 0, clip: null}}"
)


def config_of(path, *changes):
    settings = [f"init={path}", "init_training=true", "optimizer={lr: 0.01, warmup: 0, weight_decay: 0, clip: null}"]
    config = find("tiny", tiny=True).override([*settings, "weights={l2: 1.0}", "validation=null", GAN, *changes])
    return config.replace({"tokenizer": import_checkpoint(path).tokenizer.config})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The golden's file with the moments of every parameter that is run, as the trainer writes them."""
    tree = copy.deepcopy(read_checkpoint(FILE))
    names = [name for name in tree["state_dict"] if name.startswith(LIVE)]
    model = recognise_generator({n.removeprefix(LIVE): tree["state_dict"][n].shape for n in names}, LEVELS, "here")
    run = {LIVE + link.source for link in model.links}
    assert len(run) < len(names)  # what is never run has none
    others = [name for name in tree["state_dict"] if name.startswith(JUDGED) and not name.endswith(BUFFERS)]
    for part, parameters, trained in (("generator", names, run), ("discriminator", others, {*others})):
        tree["optimizer"][part]["state"] = {
            number: {
                "step": torch.tensor(7.0),
                "exp_avg": 0.1 * randn(f"first/{name}", tree["state_dict"][name].shape),
                "exp_avg_sq": randn(f"second/{name}", tree["state_dict"][name].shape).square(),
            }
            for number, name in enumerate(parameters)
            if name in trained
        }
    content = {key: tree[key] for key in ("state_dict", "optimizer")} | {"meta": {"cfg": tree["meta"]["cfg"]}}
    path = tmp_path_factory.mktemp("trainer") / "iter_2.pth"
    torch.save(content, path)
    return path, content, model


def test_the_next_step_of_adam_is_that_of_magicmasters_own_tensors(whole, monkeypatch, tmp_path):
    """With any gradient: the same update, in their layout and in ours."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path, content, model = whole
    state = start_tokenizer(config_of(path), ALONE)
    names = [name for name in content["state_dict"] if name.startswith(LIVE)]
    run = {link.source: names.index(LIVE + link.source) for link in model.links}
    theirs = {source: content["state_dict"][names[number]].clone().requires_grad_() for source, number in run.items()}
    adam = torch.optim.Adam(theirs.values(), lr=0.01, betas=state.config.optimizer.betas)
    for source, tensor in theirs.items():
        adam.state[tensor] = {k: v.clone() for k, v in content["optimizer"]["generator"]["state"][run[source]].items()}
        tensor.grad = randn(f"gradient/{source}", tensor.shape)
    gradients = assemble(state.tokenizer, model.links, {s: t.grad for s, t in theirs.items()}, "here")
    before = assemble(state.tokenizer, model.links, {s: t.detach().clone() for s, t in theirs.items()}, "here")
    for name, parameter in state.tokenizer.named_parameters():
        assert torch.equal(parameter.detach(), before[name]), name  # the live weights
        parameter.grad = gradients[name].clone()
    for group in state.optimizer.param_groups:
        group["lr"] = 0.01
    adam.step()
    state.optimizer.step()
    after = assemble(state.tokenizer, model.links, {s: t.detach() for s, t in theirs.items()}, "here")
    for name, parameter in state.tokenizer.named_parameters():
        torch.testing.assert_close(parameter.detach(), after[name], rtol=1e-6, atol=1e-8)
        assert not torch.equal(after[name], before[name])
    averaged = smalti.load(path).state_dict()
    assert all(torch.equal(tensor, averaged[name]) for name, tensor in state.ema.state_dict().items())


def test_the_discriminator_and_its_moments_are_those_of_the_file(whole, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path, content, _ = whole
    state = start_tokenizer(config_of(path), ALONE)
    for name, tensor in state.gan.discriminator.state_dict().items():
        assert torch.equal(tensor, content["state_dict"][JUDGED + patch_key(name)])
    learned = [n for n in content["state_dict"] if n.startswith(JUDGED) and not n.endswith(BUFFERS)]
    for name, parameter in state.gan.discriminator.named_parameters():
        stored = content["optimizer"]["discriminator"]["state"][learned.index(JUDGED + patch_key(name))]
        moments = state.gan.optimizer.state[parameter]
        assert moments.keys() == stored.keys()
        assert all(torch.equal(value, stored[kind]) for kind, value in moments.items())
    assert not step(state, torch.rand(2, 3, 1, 32, 32) * 2 - 1).skipped


def test_what_the_file_lacks_is_said_and_what_does_not_fit_is_refused(whole, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path, content, _ = whole
    state = start_tokenizer(config_of(FILE), ALONE)  # moments of two parameters alone
    assert not state.optimizer.state
    assert "has no moments of the tokenizer's optimizer, no moments of the discriminator's" in capsys.readouterr().err
    other = config_of(path).replace({"gan": config_of(path).gan.replace({"discriminator": PatchConfig(width=8)})})
    with pytest.raises(ConfigError, match="patch with norm batch"):
        start_tokenizer(other, ALONE)
    wider = PatchConfig(width=8, norm="batch")
    with pytest.raises(ConfigError, match="has other tensors"):
        start_tokenizer(other.replace({"gan": other.gan.replace({"discriminator": wider})}), ALONE)
    torch.save(
        {n.removeprefix(LIVE): t for n, t in content["state_dict"].items() if n.startswith(LIVE)}, tmp_path / "a.pth"
    )
    with pytest.raises(IntegrityError, match="one copy of its weights, and no training"):
        start_tokenizer(config_of(path).replace({"init": tmp_path / "a.pth:levels=8x5x5x5"}), ALONE)
    with pytest.raises(ConfigError, match="is not of MagicMaster's trainer"):
        start_tokenizer(config_of(FOLDER / "showo_tiny"), ALONE)
    with pytest.raises(ConfigError, match="of the training of `init`, which is null"):
        find("tiny").override(["init_training=true"])
