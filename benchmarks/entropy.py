"""The exact entropies of LFQ against vector-quantize-pytorch's LFQ, forward and backward; and the memory they take.

The peer makes one probability per position and code (n x 2^K); ours makes two factors of n x 2^(K/2). Both give the
token entropy, the batch entropy and their gradients. Equality is against the textbook formula over all codes in
float64; the peer itself differs from that by its clamp of probabilities at 1e-5.

    python -m benchmarks entropy
    python -m benchmarks.entropy 18 16384      # one measurement of peak memory, as JSON
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from benchmarks.measure import CPU, child, fastest, growth_mb
from smalti.quantize import LFQ, LFQConfig

SIZES = ((10, 256), (10, 1024), (14, 256), (14, 1024), (18, 256))
LARGEST = (18, 16384)
TEMPERATURE = 1.0


def latent(bits: int, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers, one latent frame: 1 K 1 1 n."""
    rng = torch.Generator().manual_seed(bits * 100_000 + count)
    return torch.randn(1, bits, 1, 1, count, generator=rng, dtype=dtype)


def ours(bits: int) -> LFQ:
    """LFQ that gives the two entropies."""
    return LFQConfig(bits=bits, temperature=TEMPERATURE, losses=("token_entropy", "batch_entropy")).build()


def our_step(bits: int, count: int, device: torch.device = CPU) -> Callable[[], object]:
    """One forward and backward pass."""
    quantizer, z = ours(bits).to(device), latent(bits, count).to(device).requires_grad_()

    def step() -> None:
        z.grad = None
        losses = quantizer(z).losses
        (losses["token_entropy"] - losses["batch_entropy"]).backward()

    return step


def peer_step(bits: int, count: int, device: torch.device = CPU) -> Callable[[], object]:
    """The same of the peer, at the same temperature: its distance has the -2 z c of |z - c|^2."""
    from vector_quantize_pytorch import LFQ as PeerLFQ  # type: ignore[import-untyped]

    quantizer = PeerLFQ(dim=bits, codebook_size=2**bits, entropy_loss_weight=1.0).train().to(device)
    z = latent(bits, count).view(bits, count).T[None].contiguous().to(device).requires_grad_()

    def step() -> None:
        z.grad = None
        quantizer(z, inv_temperature=1 / TEMPERATURE).entropy_aux_loss.backward()

    return step


def textbook(z: Tensor) -> tuple[Tensor, Tensor]:
    """Token and batch entropy over all 2^K codes: softmax of -|z - c|^2 / temperature, no clamp."""
    bits = z.shape[1]
    codes = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=z.dtype)] * bits)
    rows = z.reshape(bits, -1).T
    log_p = (2 * rows @ codes.T / TEMPERATURE).log_softmax(1)
    p = log_p.exp()
    mean = p.mean(0)
    return -(p * log_p).sum(1).mean(), -torch.special.xlogy(mean, mean).sum()


def largest_difference(bits: int, count: int) -> float:
    """Ours against the textbook in float64: the largest relative difference of the entropies and of their gradients."""
    z = latent(bits, count, torch.float64).requires_grad_()
    losses = ours(bits).double()(z).losses
    worst = 0.0
    for mine, exact in zip((losses["token_entropy"], losses["batch_entropy"]), textbook(z), strict=True):
        (a,) = torch.autograd.grad(mine, z, retain_graph=True)
        (b,) = torch.autograd.grad(exact, z, retain_graph=True)
        worst = max(worst, abs(mine.item() / exact.item() - 1), ((a - b).abs().max() / b.abs().max()).item())
    return worst


def measure(device: torch.device = CPU) -> tuple[str, Sequence[Mapping[str, object]]]:
    """One row a size; the last one is of a size that the peer cannot reach (it would take 120 GB)."""
    rows: list[dict[str, object]] = []
    for bits, count in SIZES:
        calls = {"ours": our_step(bits, count, device), "peer": peer_step(bits, count, device)}
        best = fastest(calls, rounds=9 if bits < 18 else 3, device=device)
        rows.append(
            {
                "K": bits,
                "n": count,
                "ours_ms": best["ours"] * 1e3,
                "peer_ms": best["peer"] * 1e3,
                "ratio": best["peer"] / best["ours"],
                "float64_difference": largest_difference(bits, min(count, 256)),
                "peak_mb": memory(bits, count, device),
            }
        )
    bits, count = LARGEST
    alone = fastest({"ours": our_step(bits, count, device)}, rounds=3, device=device)
    rows.append(
        {
            "K": bits,
            "n": count,
            "ours_ms": alone["ours"] * 1e3,
            "peer_ms": None,
            "ratio": None,
            "float64_difference": None,
            "peak_mb": memory(bits, count, device),
        }
    )
    return "LFQ entropies forward + backward; peer: vector-quantize-pytorch; peak_mb: ours, above the imports", rows


def memory(bits: int, count: int, device: torch.device) -> float:
    """What one step takes: on a CPU in a fresh process."""
    if device.type == "cpu":
        return child("benchmarks.entropy", bits, count)["mb"]
    return growth_mb(our_step(bits, count, device), device)


def main(bits: int, count: int) -> None:
    """Print the memory of one step above what the process held before it."""
    torch.set_num_threads(1)
    our_step(6, 16)()
    print(json.dumps({"mb": growth_mb(lambda: our_step(bits, count)())}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
