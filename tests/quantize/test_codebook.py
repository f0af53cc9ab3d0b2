"""A table of codes: the row of every law, in bounded memory, and the gradients of its two ways to learn."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from smalti.errors import ConfigError
from smalti.generation.factorize import Factorization
from smalti.metrics.codebook import Usage
from smalti.quantize import CodebookConfig
from smalti.tokenizer import Tokenizer, TokenizerConfig, VQGANConfig

LAWS = ("euclidean", "cosine", "inner")


def built(dtype=torch.float32, **fields):
    torch.manual_seed(1)
    quantizer = CodebookConfig(**fields).build()
    torch.nn.init.normal_(quantizer.codebook)
    with torch.no_grad():
        quantizer.codebook *= torch.rand(len(quantizer.codebook), 1) + 0.5  # lengths tell the laws apart
    return quantizer.to(dtype)


def scores(z, table, by):
    """The law as it is written, one matrix of everything, in float64."""
    z, table = z.double(), table.double()
    if by == "euclidean":
        return -torch.cdist(z, table)
    return z @ (F.normalize(table, dim=1) if by == "cosine" else table).T


@pytest.mark.parametrize("by", LAWS)
@pytest.mark.parametrize(("size", "dim"), [(2, 1), (7, 3), (1024, 256), (8192, 8), (8193, 8), (20_000, 4)])
def test_the_row_is_the_best_of_all_by_the_law(by, size, dim):
    quantizer = built(size=size, dim=dim, by=by)
    z = torch.randn(257, dim, generator=torch.Generator().manual_seed(2))
    every = scores(z, quantizer.codebook, by)
    ids = quantizer.encode(z)
    best = every.max(1).values
    off = best - every.gather(1, ids[:, None])[:, 0]
    # Equal in float64, or a tie within the rounding of float32, which is rare.
    assert off.max() < 1e-5 * (1 + best.abs().max())
    assert (ids != every.argmax(1)).sum() <= 2
    rows = quantizer.codebook[ids]
    assert torch.equal(quantizer.decode(ids), F.normalize(rows, dim=1) if by == "cosine" else rows)


def test_the_laws_name_different_rows():
    tables = {by: built(size=512, dim=4, by=by) for by in LAWS}
    z = torch.randn(1000, 4, generator=torch.Generator().manual_seed(3))
    found = [table.encode(z) for table in tables.values()]
    assert all((a != b).sum() > 100 for a, b in ((found[0], found[1]), (found[1], found[2]), (found[0], found[2])))


@pytest.mark.parametrize("by", LAWS)
@pytest.mark.parametrize("size", [2, 7, 20_000])
def test_codes_are_recognised_as_the_nearest_row_whatever_the_law_and_how_far_off_they_are_is_told(by, size):
    """The nearest two rows of all, and the share of the way between them, as one matrix of distances has them."""
    quantizer = built(torch.float64, size=size, dim=4, by=by)
    table = quantizer.table().detach()
    between = 0.7 * table[-1] + 0.3 * table[0]  # for 20,000 rows, the nearest two may lie in other pieces of the table
    z = torch.randn(40, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    codes = torch.cat([z, table[:2] + 0.01, between[None]])
    rows, share = quantizer.recognise(codes)
    near = torch.cdist(codes, table).topk(2, largest=False)
    assert torch.equal(rows[:, 0], near.indices[:, 0])
    assert torch.allclose(share, near.values[:, 0] / near.values.sum(1), rtol=1e-6, atol=1e-9)
    assert share.min() >= 0
    assert share.max() <= 0.5


@pytest.mark.parametrize(("nearest", "second"), [(3, 8192), (8192, 3), (8192, 8193), (16_384, 8192)])
def test_the_second_nearest_row_is_found_in_any_piece_of_the_table(nearest, second):
    """The first row of a piece, and rows on both sides of it."""
    quantizer = built(torch.float64, size=20_000, dim=2)
    with torch.no_grad():
        quantizer.codebook[nearest], quantizer.codebook[second] = torch.tensor([50.0, 0.0]), torch.tensor([54.0, 0.0])
    rows, share = quantizer.recognise(torch.tensor([[51.0, 0.0]], dtype=torch.float64))
    assert rows.item() == nearest
    assert share.item() == pytest.approx(0.25)


def test_of_equal_rows_the_first_is_taken():
    quantizer = built(size=20_000, dim=2)
    with torch.no_grad():
        quantizer.codebook[[17, 9000, 19_999]] = torch.tensor([30.0, 30.0])
    assert quantizer.encode(torch.full((1, 2), 30.0)).item() == 17


class Largest(TorchDispatchMode):
    """Remembers the most numbers that any operation has returned."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return out


@pytest.mark.parametrize("gradient", ["straight", "indices"])
def test_no_matrix_of_all_latents_and_all_rows_is_ever_made(gradient):
    """4,096 latents and 65,536 rows are 268 million scores."""
    quantizer = built(size=65_536, dim=2, gradient=gradient)
    z = torch.randn(4096 if gradient == "straight" else 128, 2, requires_grad=True)
    with Largest() as seen:
        ids = quantizer.encode(z.detach())
        codes, _, losses = quantizer(z)
        (codes.sum() + sum(losses.values())).backward()
    assert seen.numbers <= 1 << 22
    assert torch.equal(quantizer.decode(ids), codes)


@pytest.mark.parametrize("by", LAWS)
def test_straight_through_gives_the_latent_the_gradient_of_its_code_and_the_table_none(by):
    quantizer = built(torch.float64, size=40, dim=3, by=by, losses=())
    z = torch.randn(50, 3, dtype=torch.float64, requires_grad=True)
    probe = torch.randn(50, 3, dtype=torch.float64)
    (quantizer(z).codes * probe).sum().backward()
    assert quantizer.codebook.grad is None
    expected = probe
    if by == "cosine":  # the latent is normalised on the way
        (expected,) = torch.autograd.grad((F.normalize(z, dim=1) * probe).sum(), z)
    torch.testing.assert_close(z.grad, expected)


@pytest.mark.parametrize("by", LAWS)
def test_index_back_propagation_is_that_of_the_dense_formula(by):
    """IBQ, equation 5: onehot + softmax - sg(softmax), times the table; by autograd, with everything in one matrix."""
    quantizer = built(torch.float64, size=30, dim=3, by=by, gradient="indices", losses=())
    z = torch.randn(50, 3, dtype=torch.float64, requires_grad=True)
    probe = torch.randn(50, 3, dtype=torch.float64)
    (quantizer(z).codes * probe).sum().backward()
    table, latent = quantizer.codebook.detach().clone().requires_grad_(), z.detach().clone().requires_grad_()
    rows = F.normalize(table, dim=1) if by == "cosine" else table
    seen = F.normalize(latent, dim=1) if by == "cosine" else latent
    logits = seen @ rows.T - (rows.square().sum(1) / 2 if by == "euclidean" else 0)
    soft = logits.softmax(1)
    hard = F.one_hot(logits.argmax(1), 30).double()
    ((hard + soft - soft.detach()) @ rows * probe).sum().backward()
    torch.testing.assert_close(z.grad, latent.grad)
    torch.testing.assert_close(quantizer.codebook.grad, table.grad)
    assert (quantizer.codebook.grad.abs().sum(1) > 0).all()  # every row learns


@pytest.mark.parametrize("by", LAWS)
def test_losses_are_the_two_squared_distances_each_with_its_own_gradient(by):
    quantizer = built(torch.float64, size=40, dim=3, by=by)
    z = torch.randn(50, 3, dtype=torch.float64, requires_grad=True)
    codes, _, losses = quantizer(z)
    seen = F.normalize(z, dim=1) if by == "cosine" else z
    distance = (seen - codes.detach()).square().mean()
    assert losses["codebook"].item() == losses["commitment"].item() == pytest.approx(distance.item(), rel=1e-12)
    to_table = torch.autograd.grad(losses["codebook"], [quantizer.codebook, z], retain_graph=True, allow_unused=True)
    to_latent = torch.autograd.grad(losses["commitment"], [quantizer.codebook, z], allow_unused=True)
    assert [g is None for g in (*to_table, *to_latent)] == [False, True, True, False]


def test_a_table_finds_clusters_by_its_own_loss():
    centres = 3 * torch.randn(16, 4, generator=torch.Generator().manual_seed(5))
    torch.manual_seed(0)
    quantizer = CodebookConfig(size=64, dim=4, gradient="indices").build()
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.05)
    first = 0.0
    for step in range(200):
        rng = torch.Generator().manual_seed(step)
        points = centres[torch.randint(16, (256,), generator=rng)] + 0.1 * torch.randn(256, 4, generator=rng)
        optimizer.zero_grad()
        loss = quantizer(points.requires_grad_()).losses["codebook"]
        loss.backward()
        optimizer.step()
        first = loss.item() if step == 0 else first
    assert loss < first / 4


@pytest.mark.parametrize("network", [TokenizerConfig(), VQGANConfig(width=32, latent=64)], ids=lambda c: c.kind)
@pytest.mark.parametrize("dim", [8, 256])
def test_fresh_rows_lie_among_fresh_latents(network, dim):
    """Where they are all at one place, as VQGAN's within 1/size of zero, a handful of them takes every latent."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(network.replace({"quantizer": CodebookConfig(size=1024, dim=dim)}))
    with torch.no_grad():
        z = tokenizer.latents(torch.rand(2, 3, 1, 64, 64) * 2 - 1)
    assert 0.5 < tokenizer.quantizer.codebook.std() / z.std() < 4


def test_one_digit_is_a_vocabulary_and_a_histogram_like_any_other():
    quantizer = built(size=1000, dim=4)
    assert (quantizer.levels, quantizer.codebook_size, quantizer.dim) == ((1000,), 1000, 4)
    ids = torch.randint(1000, (2, 3, 4))
    factorization = Factorization(quantizer.levels)
    assert factorization.sizes == (1000,)
    assert torch.equal(factorization.join(factorization.split(ids)), ids)
    usage = Usage(quantizer.levels)
    usage.update(ids)
    assert sum(usage.histograms()[0]) == 24


def test_a_wrong_law_is_one_line():
    with pytest.raises(ConfigError, match=r"by: .*'euclidean'"):
        CodebookConfig.parse({"kind": "codebook", "by": "dot"})
