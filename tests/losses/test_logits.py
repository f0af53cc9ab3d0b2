"""Distances between logits against torchvision's networks, and every way in which weights come or fail to come."""

import pytest
import torch
from safetensors.torch import save_file

from smalti.errors import IntegrityError, MachineError
from smalti.losses import weigh
from smalti.losses.logits import LogitDistance, LogitsConfig, find_logit_weights, logit_shapes, read_logit_weights
from smalti.recipes import find
from smalti.training.distributed import Part
from smalti.training.tokenizer_state import start_tokenizer
from smalti.training.tokenizer_step import accumulate
from tests.goldens.rule import load, rule
from tests.reference.plain_step import ALONE

NETS = ("resnet50", "convnext_small")
COUNTED = {"resnet50": 25_557_032, "convnext_small": 50_223_688}
"""torchvision's parameters; the running statistics of batch norms come on top."""


@pytest.fixture(scope="module", params=NETS)
def net(request):
    return request.param


@pytest.fixture(scope="module")
def weights(net):
    return {name: rule(name, shape) for name, shape in logit_shapes(net).items()}


@pytest.fixture(scope="module")
def distance(net, weights):
    return LogitDistance(net, weights)


@pytest.fixture(scope="module")
def resnet():
    return {name: rule(name, shape) for name, shape in logit_shapes("resnet50").items()}


def test_there_are_torchvisions_parameters(net):
    shapes = {name: shape for name, shape in logit_shapes(net).items() if ".running_" not in name}
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == COUNTED[net]


def test_logits_loss_and_gradient_equal_torchvisions(net, distance):
    golden = load("metrics_logits").tensors
    a, b = (golden[name].float() / 127.5 - 1 for name in ("a_u8", "b_u8"))
    torch.testing.assert_close(
        torch.cat([distance.logits(a), distance.logits(b)]), golden[f"{net}.logits"], rtol=1e-4, atol=1e-4
    )
    found = distance(b.requires_grad_(), a).mean()
    (gradient,) = torch.autograd.grad(found, b)
    expected = golden[f"{net}.gradient_f64"].float()
    torch.testing.assert_close(found, golden[f"{net}.loss_f64"].float()[0], rtol=2e-3, atol=0)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=5e-3 * expected.abs().max().item())


def test_equal_images_have_no_distance_and_an_image_of_its_own_size_is_not_resized(resnet):
    distance = LogitDistance("resnet50", resnet)
    image = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        assert distance(image, image).tolist() == [0.0]
        own = distance.network((image - distance.shift) / distance.scale)
        assert torch.equal(distance.logits(image), own)


def test_it_is_frozen_has_no_modes_and_takes_no_random_number(resnet):
    before = torch.get_rng_state()
    distance = LogitDistance("resnet50", resnet)
    assert torch.equal(torch.get_rng_state(), before)
    assert not [name for name, parameter in distance.named_parameters() if parameter.requires_grad]
    image = torch.zeros(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(distance.train().logits(image), distance.eval().logits(image))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_state_dict_of_torchvision_is_read_with_or_without_the_counts_of_batches(resnet, suffix, tmp_path):
    net, weights = "resnet50", resnet
    counted = dict(weights)
    counted |= {n.replace("running_mean", "num_batches_tracked"): torch.tensor(7) for n in weights if "_mean" in n}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(counted, path)
    else:
        save_file(counted, path)
    read = read_logit_weights(path, net)
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[name], weights[name]) for name in weights)


def test_faults_are_named(resnet, tmp_path, monkeypatch):
    net, weights = "resnet50", resnet
    monkeypatch.delenv(f"SMALTI_{net.upper()}", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(MachineError, match=f"no weights for '{net}'"):
        LogitsConfig(net=net).build()
    monkeypatch.setenv(f"SMALTI_{net.upper()}", str(tmp_path / "gone.pt"))
    assert find_logit_weights(net) == tmp_path / "gone.pt"
    with pytest.raises(MachineError, match=r"gone\.pt: no such file"):
        LogitsConfig(net=net).build()
    last = list(weights)[-1]
    for name, spoilt in (
        ("missing", {k: v for k, v in weights.items() if k != last}),
        ("expected", weights | {last: weights[last][:7]}),
        ("finite", weights | {last: weights[last] * torch.nan}),
        ("unexpected", weights | {"head.weight": torch.zeros(1)}),
    ):
        save_file(spoilt, tmp_path / "weights.safetensors")
        with pytest.raises(IntegrityError, match=name):
            read_logit_weights(tmp_path / "weights.safetensors", net)


def test_a_step_adds_the_gradient_of_the_logits_to_that_of_the_pixels(resnet):
    """Against the weighted sum differentiated through one plain forward."""
    config = find("tiny-video", tiny=True).replace({"weights": {"l2": 1.0, "batch_entropy": -0.001}})
    state = start_tokenizer(config, ALONE)
    state.logits = LogitDistance("resnet50", resnet)
    state.config = config.replace({"logits": LogitsConfig(), "weights": config.weights | {"logits": 0.1}})
    video = torch.rand(1, 3, 2, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    made = state.tokenizer(video)
    frames = [v.transpose(1, 2).flatten(0, 1) for v in (made.video, video)]
    named = {"l2": (made.video - video).square().mean(), "logits": state.logits(*frames).mean(), **made.losses}
    total = weigh(named, state.config.weights)
    wanted = torch.autograd.grad(total, list(state.tokenizer.parameters()))
    losses, _ = accumulate(state, Part(video, (0,), torch.tensor([0]), 1.0, 1))
    assert losses["logits"].item() == pytest.approx(named["logits"].item(), rel=1e-4)
    assert losses["logits"] > 0.001
    for parameter, gradient in zip(state.tokenizer.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=1e-4 * gradient.abs().max().item() + 1e-9)
