"""A quantizer is a layer for z of any layout: the ids and codes of a position depend on that position alone."""

import subprocess
import sys

import pytest
import torch

from smalti.errors import BadTensor, SmaltiError
from smalti.quantize import DSQConfig, FSQConfig, LFQConfig
from tests.quantize.test_quantizers import built, each_quantizer

LAYOUTS = {"b d": (), "b d n": (5,), "b d h w": (3, 4), "b d t h w": (2, 3, 4)}
INTEGERS = [torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32, torch.int64]


def latent_of(quantizer, rest, batch):
    """A latent `b d ...`, not contiguous, as a network's output is."""
    rng = torch.Generator().manual_seed(len(rest))
    return torch.randn(batch, *rest, quantizer.dim, generator=rng).movedim(-1, 1)


@each_quantizer
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_position_is_quantized_as_if_it_were_alone(config, layout):
    """With b = d, the shape in which a wrong axis broadcasts without an error."""
    quantizer = built(config)
    z = latent_of(quantizer, LAYOUTS[layout], quantizer.dim)
    codes, ids, losses = quantizer(z)
    assert codes.shape == z.shape
    assert ids.shape == (z.shape[0], *z.shape[2:])
    rows = z.movedim(1, -1).reshape(-1, quantizer.dim)
    every = list(zip(rows, ids.flatten(), codes.movedim(1, -1).reshape(rows.shape), strict=True))
    for row, number, code in every[:: max(1, len(every) // 40)]:
        alone = quantizer.encode(row.view(1, -1, 1, 1, 1))
        assert int(alone) == int(number)
        assert torch.equal(quantizer.decode(alone).flatten(), code)
    assert torch.equal(quantizer.encode(z), ids)
    assert torch.equal(quantizer.decode(ids), codes)
    assert torch.equal(quantizer.indices_to_codes(ids), codes)
    assert torch.equal(quantizer.ids(quantizer.digits(ids)), ids)
    assert quantizer.digits(ids).shape == (z.shape[0], len(quantizer.levels), *z.shape[2:])
    one_layout = quantizer(rows.T[None, :, None, None]).losses
    assert all(torch.allclose(losses[name], one_layout[name], rtol=1e-5) for name in losses)


@each_quantizer
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_are_those_of_one_layout(config, layout):
    quantizer = built(config, torch.float64)
    z = latent_of(quantizer, LAYOUTS[layout], 2).double().requires_grad_()
    probe = torch.randn(z.shape, dtype=z.dtype, generator=torch.Generator().manual_seed(9))
    (gradient,) = torch.autograd.grad((quantizer(z).codes * probe).sum(), z)
    rows = z.detach().movedim(1, -1).reshape(-1, quantizer.dim).T[None, :, None, None].requires_grad_()
    (expected,) = torch.autograd.grad(
        (quantizer(rows).codes[0, :, 0, 0].T * probe.movedim(1, -1).flatten(0, -2)).sum(), rows
    )
    assert torch.allclose(gradient.movedim(1, -1).flatten(0, -2), expected[0, :, 0, 0].T, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_ids_of_any_integer_type_are_taken(dtype, layout):
    quantizer = FSQConfig(levels=(5, 4, 3)).build()
    ids = torch.randint(60, (2, *LAYOUTS[layout]), generator=torch.Generator().manual_seed(0))
    assert torch.equal(quantizer.decode(ids.to(dtype)), quantizer.decode(ids))


@each_quantizer
def test_ids_of_codes(config):
    quantizer = built(config)
    rng = torch.Generator().manual_seed(4)
    ids = torch.randint(quantizer.codebook_size, (2, 3, 4), generator=rng)
    codes = quantizer.indices_to_codes(ids)
    assert torch.equal(quantizer.codes_to_indices(codes), ids)
    if config.kind != "dsq":  # learned scales may be as small as the rounding of bfloat16
        assert torch.equal(quantizer.codes_to_indices(codes.bfloat16()), ids)


def test_latents_are_not_taken_for_codes():
    with pytest.raises(BadTensor, match="encode takes latents"):
        LFQConfig(bits=4).build().codes_to_indices(torch.full((1, 4), 0.3))


LAYER = FSQConfig(levels=(5, 4, 3)).build()
NAN = torch.full((2, 3), float("nan"))
LATENTS = {
    "too few axes": (torch.zeros(3), "b d, b d n, b d h w or b d t h w"),
    "too many axes": (torch.zeros(1, 3, 1, 1, 1, 1), "b d, b d n, b d h w or b d t h w"),
    "wrong channels": (torch.zeros(2, 4, 5), "3 channels in axis 1"),
    "channels last": (torch.zeros(2, 5, 5, 3), "z.movedim(-1, 1)"),
    "integers": (torch.zeros(2, 3, dtype=torch.int64), "floating-point"),
    "not a tensor": ([[0.0, 0.0, 0.0]], "found list"),
    "empty": (torch.zeros(0, 3, 4), "empty"),
    "NaN": (NAN, "6 values that are not finite"),
    "infinite": (NAN.nan_to_num(float("inf")), "not finite"),
}
IDS = {
    "no axes": (torch.tensor(3), "b, b n, b h w or b t h w"),
    "too many axes": (torch.zeros(1, 1, 1, 1, 1, dtype=torch.int64), "b, b n, b h w or b t h w"),
    "floats": (torch.zeros(2, 3), "must be integers (found float32)"),
    "booleans": (torch.zeros(2, 3, dtype=torch.bool), "must be integers (found bool)"),
    "a list": ([1, 2], "found list"),
    "empty": (torch.zeros(2, 0, dtype=torch.int64), "none"),
    "negative": (torch.tensor([3, -1]), "-1 is outside [0, 60)"),
    "too large": (torch.tensor([3, 60]), "60 is outside [0, 60)"),
    "too large for int64": (torch.tensor([2**63 + 5], dtype=torch.uint64), "9223372036854775813 is outside [0, 60)"),
}


@pytest.mark.parametrize("case", LATENTS)
@pytest.mark.parametrize("method", ["forward", "encode", "codes_to_indices"])
@pytest.mark.usefixtures("unchecked_types")
def test_latents_that_cannot_be_right_are_refused_in_one_line(case, method):
    wrong, said = LATENTS[case]
    with pytest.raises(SmaltiError) as error, torch.no_grad():
        getattr(LAYER, method)(wrong)
    assert said.replace("z.", "codes." if method == "codes_to_indices" else "z.") in str(error.value)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, ValueError)


@pytest.mark.parametrize("case", IDS)
@pytest.mark.parametrize("method", ["decode", "digits", "indices_to_codes"])
@pytest.mark.usefixtures("unchecked_types")
def test_ids_that_cannot_be_right_are_refused_in_one_line(case, method):
    wrong, said = IDS[case]
    with pytest.raises(SmaltiError) as error:
        getattr(LAYER, method)(wrong)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("unchecked_types")
def test_digits_of_another_shape_or_type_are_refused():
    for wrong in (torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64)):
        with pytest.raises(BadTensor):
            LAYER.ids(wrong)


@pytest.mark.parametrize("config", [LFQConfig(bits=4, losses=()), FSQConfig(levels=(5, 3)), DSQConfig(levels=(5, 3))])
def test_a_latent_that_is_not_finite_shows_in_the_loss_where_gradients_are_recorded(config):
    """A training step skips such a batch; nothing may look as if all were well."""
    quantizer = config.build()
    z = torch.zeros(3, quantizer.dim)
    z[1, 0] = torch.nan
    codes = quantizer(z.requires_grad_()).codes
    assert torch.isfinite(codes[[0, 2]]).all()
    assert codes[1].isnan().all()


GRAPHS = """
import torch
from smalti.quantize import DSQConfig

layer, z = DSQConfig(levels=(8, 5)).build(), torch.randn(3, 2, 4, 5)
for method, x in ((layer.encode, z), (layer.decode, layer.encode(z))):
    graph = torch.compile(method, fullgraph=True, backend="eager", dynamic=True)
    assert torch.equal(graph(x), method(x)), method
"""


@pytest.mark.slow
def test_encode_and_decode_are_one_graph():
    """In a process of its own: the tests' checks of annotations are no part of a graph."""
    found = subprocess.run([sys.executable, "-c", GRAPHS], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
