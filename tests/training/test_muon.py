"""Muon: the update is orthogonal, it is torch's on a matrix, kernels are matrices, and a run resumes bit for bit."""

import pytest
import torch
from torch import nn

from smalti.pipeline.train import train
from smalti.recipes import find
from smalti.training.config import MuonConfig, OptimizerConfig
from smalti.training.optimizer import OptimizerState, make_optimizer, orthogonalize, set_lr
from tests.training.test_run import final_digests

SHAPES = [(1, 5), (5, 1), (12, 12), (7, 40), (40, 7)]


def matrix(shape, seed=0):
    """A matrix whose singular values are between 1 and 3, and its singular vectors."""
    rng = torch.Generator().manual_seed(seed)
    u, values, v = torch.linalg.svd(torch.randn(shape, generator=rng), full_matrices=False)
    return (u * (1 + 2 * values / values.max())) @ v, u @ v


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_update_has_the_singular_vectors_of_the_momentum_and_singular_values_near_one(shape, dtype):
    given, polar = matrix(shape)
    update = orthogonalize(given, 5, dtype).float()
    values = torch.linalg.svdvals(update)
    assert values.min() > 0.65
    assert values.max() < 1.25
    assert torch.nn.functional.cosine_similarity(update.ravel(), polar.ravel(), 0) > 0.97
    assert torch.equal(orthogonalize(torch.zeros(shape), 5, dtype), torch.zeros(shape, dtype=dtype))
    assert torch.allclose(orthogonalize(given * 1e4, 5, dtype).float(), update, atol=0.02)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9 has no Muon to compare with")
@pytest.mark.parametrize("shape", SHAPES)
def test_on_a_matrix_steps_are_those_of_torch(shape):
    layers = [nn.Linear(*shape[::-1], bias=False) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    config = OptimizerConfig(lr=1.0, weight_decay=0.1, muon=MuonConfig(lr=0.02, precision="bfloat16"))
    ours = make_optimizer(layers[0], config)
    reference = torch.optim.Muon(layers[1].parameters(), lr=0.02, weight_decay=0.1, momentum=0.95)
    rng = torch.Generator().manual_seed(1)
    for _ in range(4):
        gradient = torch.randn(shape, generator=rng)
        for layer, optimizer in zip(layers, (ours, reference), strict=True):
            layer.weight.grad = gradient.clone()
            optimizer.step()
        assert torch.equal(layers[0].weight, layers[1].weight)


def test_a_kernel_is_the_matrix_of_its_outputs_and_the_rest_is_adamws():
    conv, flat = nn.Conv2d(3, 8, 3), nn.Linear(27, 8)
    norm = nn.LayerNorm(8)
    with torch.no_grad():
        flat.weight.copy_(conv.weight.flatten(1))
        flat.bias.copy_(conv.bias)
    config = OptimizerConfig(lr=0.1, weight_decay=0.0, muon=MuonConfig())
    rng = torch.Generator().manual_seed(1)
    adam = torch.optim.AdamW([nn.Parameter(conv.bias.detach().clone())], lr=0.1, betas=config.betas, weight_decay=0.0)
    models = [nn.Sequential(conv, norm), nn.Sequential(flat)]
    optimizers = [make_optimizer(model, config) for model in models]
    for step in range(3):
        kernel, bias = torch.randn(8, 3, 3, 3, generator=rng), torch.randn(8, generator=rng)
        conv.weight.grad, flat.weight.grad = kernel, kernel.flatten(1)
        conv.bias.grad, flat.bias.grad, norm.weight.grad = bias, bias, bias
        adam.param_groups[0]["params"][0].grad = bias
        for optimizer in optimizers:
            set_lr(optimizer, config, 0.1 / (1 + step))
            optimizer.step()
        adam.param_groups[0]["lr"] = 0.1 / (1 + step)
        adam.step()
    assert torch.equal(conv.weight.flatten(1), flat.weight)
    assert torch.equal(conv.bias, adam.param_groups[0]["params"][0])
    assert [g["lr"] for g in optimizers[0].param_groups] == pytest.approx([0.01 / 3, 0.1 / 3])
    kept = {key for key in OptimizerState(optimizers[0], models[0]).state_dict() if "weight" in key}
    assert kept == {"momentum/0.weight", "step/1.weight", "exp_avg/1.weight", "exp_avg_sq/1.weight"}


@pytest.mark.parametrize("name", ["tiny", pytest.param("tiny-video-conditional", marks=pytest.mark.slow)])
def test_a_run_resumes_bit_for_bit(tmp_path, name):
    """Momentum is part of a checkpoint; the past of a clip is not, for a step begins and ends with its clips."""
    small = ["batch_size=2", "save_every=2", "eval_every=9", "sample_every=9", "validation=null"]
    small += ["optimizer.muon={turns: 3}", "optimizer.schedule=constant"]
    joint = name != "tiny"
    small += ["data.videos.size=16", "data.videos.frames=9", "data.images.size=16"] if joint else ["data.size=16"]
    config = find(name, tiny=True).override(small)
    train(config.override(["steps=4"]), tmp_path / "whole")
    train(config.override(["steps=2"]), tmp_path / "parts")
    train(config.override(["steps=4"]), tmp_path / "parts", resume=True)
    assert final_digests(tmp_path / "whole") == final_digests(tmp_path / "parts")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_matrices_made_orthogonal_together_are_those_made_so_alone(shape, count):
    given = torch.stack([matrix(shape, seed)[0] * 10.0**seed for seed in range(count)])
    alone = torch.stack([orthogonalize(one, 4, torch.float32) for one in given])
    assert torch.allclose(orthogonalize(given, 4, torch.float32), alone, atol=2e-5)


def test_layers_of_one_shape_move_as_each_would_alone():
    """And by a learning rate that is a tensor as by the same number."""
    config = OptimizerConfig(lr=1.0, weight_decay=0.1, muon=MuonConfig(lr=0.02, momentum=0.8))
    shapes = [(8, 12), (12, 8), (8, 12), (8, 12)]
    for as_tensor in (False, True):
        together = nn.ModuleList(nn.Linear(*shape, bias=False) for shape in shapes)
        alone = [nn.ModuleList([nn.Linear(*shape, bias=False)]) for shape in shapes]
        for one, layer in zip(alone, together, strict=True):
            one[0].load_state_dict(layer.state_dict())
        optimizers = [make_optimizer(module, config) for module in (together, *alone)]
        if as_tensor:
            optimizers[0].param_groups[0]["lr"] = torch.tensor(0.02)
        rng = torch.Generator().manual_seed(2)
        for _ in range(3):
            for one, layer in zip(alone, together, strict=True):
                layer.weight.grad = one[0].weight.grad = torch.randn(layer.weight.shape, generator=rng)
            for optimizer in optimizers:
                optimizer.step()
        for one, layer in zip(alone, together, strict=True):
            assert torch.allclose(layer.weight, one[0].weight, atol=1e-5)


def test_a_kernel_without_a_gradient_stays():
    layers = nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(2))
    before = layers[1].weight.detach().clone()
    optimizer = make_optimizer(layers, OptimizerConfig(lr=1.0, muon=MuonConfig()))
    layers[0].weight.grad = torch.ones(4, 4)
    optimizer.step()
    assert torch.equal(layers[1].weight, before)
    assert not optimizer.state[layers[1].weight]
