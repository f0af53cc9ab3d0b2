"""The batch entropy over two processes is that of the joined batch, and so is its gradient."""

import os

import pytest
import torch
from safetensors.torch import load_file

from smalti.quantize import FSQConfig, LFQConfig
from tests import programs

CONFIGS = {"lfq": LFQConfig(bits=10, temperature=0.1), "fsq": FSQConfig(levels=(5, 4, 3), losses=("batch_entropy",))}
RANK = """
import sys, torch
import torch.distributed as dist
from safetensors.torch import save_file
from tests.quantize.test_entropy_ranks import CONFIGS, latents
torch.set_num_threads(1)
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
found = {}
for name, config in CONFIGS.items():
    z = latents(name)[rank].requires_grad_()
    entropy = config.build().double()(z).losses["batch_entropy"]
    entropy.backward()
    found |= {f"{name}.entropy": entropy.detach(), f"{name}.gradient": z.grad}
save_file(found, f"{folder}/{rank}.safetensors")
dist.destroy_process_group()
"""


def latents(name):
    """What each of the two ranks sees; of different sizes, as when a file is bad."""
    rng = torch.Generator().manual_seed(5)
    dim = len(CONFIGS[name].digit_levels)
    return [torch.randn(n, dim, 1, 3, 3, generator=rng, dtype=torch.float64) for n in (2, 1)]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_ranks_have_the_entropy_and_the_gradient_of_the_joined_batch(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [programs.Program("-c", RANK, rank, tmp_path, env=environment) for rank in range(2)]
    ended = [rank.wait(120) for rank in ranks]
    assert [rank.returncode for rank in ended] == [0, 0], ended
    for name, config in CONFIGS.items():
        joined = torch.cat(latents(name)).requires_grad_()
        entropy = config.build().double()(joined).losses["batch_entropy"]
        entropy.backward()
        found = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(2)]
        for one in found:
            assert torch.allclose(one[f"{name}.entropy"], entropy, rtol=1e-12)
        # Each rank's own gradient counts the losses of both; DDP's mean over ranks halves that again.
        gradients = torch.cat([one[f"{name}.gradient"] for one in found]) / 2
        assert torch.allclose(gradients, joined.grad, rtol=1e-9, atol=1e-15)
