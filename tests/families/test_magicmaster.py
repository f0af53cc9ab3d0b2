"""MagicMaster's generators, imported: ids, latents, pixels and gradients of its own runs (tests/goldens)."""

import json

import pytest
import torch

from smalti.errors import ConfigError, IntegrityError
from smalti.families import magicmaster
from smalti.families.links import assemble
from smalti.recipes import find
from smalti.tokenizer import Tokenizer
from smalti.training.distributed import Part
from smalti.training.tokenizer_state import start_tokenizer
from smalti.training.tokenizer_step import accumulate
from tests.discriminators.test_goldens import round_gains, stylegan2_key
from tests.goldens.rule import FOLDER, fill, grad_stats, key_hash, load, randn, rule
from tests.reference.plain_step import ALONE

ROW = "magicmaster-imagenet-style2-64000-128-8x8-ep20"

BINS = {
    "FDQ": (("lqt_8", 3, 7), ("lqt_5", 3, 4)),
    "FDQ_15360": (("lqt_8", 2, 7), ("lqt_5", 1, 4), ("lqt_4", 2, 3), ("lqt_3", 1, 2)),
}
NEVER_RUN = {"encoder.encoder_layers.10", "decoder.decoder_layers.14"}
GOLDENS = [
    "mm2d_fsq15360_w32_32px",
    "mm2d_fsq64000_w32_64px",
    "mm3d_dsq15360_w32_t5_32px",
    "mm3d_dsq64000_w32_t5_32px",
    "mm3d_fsq64000_w32_t1_32px",
    "mm3d_fsq64000_w32_t9_32px",
    "mmvqgan_fsq64000_w128_64px",
]


def listed(name, scale=1.0):
    """Names and shapes of a generator, its widths scaled."""
    rows = (line.split("\t") for line in (FOLDER / f"{name}.keys.txt").read_text().splitlines() if line[0] != "#")
    # Widths are 64 and more; kernels, levels and pixels are less.
    return {key: tuple(int(n * scale) if n >= 64 else n for n in json.loads(shape)) for key, shape in rows}


def shapes_of(config):
    """Names and shapes of the generator of a golden."""
    if config.get("family") == "VQGAN":
        return listed("magicmaster_vqgan")
    dims = config["dims"]
    shapes = listed(f"magicmaster_{dims}d", config["width"] / (128 if dims == 2 else 64))
    for group, channels, bins in BINS.get(config["quantizer"], ()):
        parts = {"start": (1, channels), "a": (channels, bins), "scale1": (1, channels), "scale2": (1, channels)}
        parts["bias"] = (1, 1, 1, channels)
        shapes |= {f"quantizer.{group}.{part}": shape for part, shape in parts.items()}
    return shapes


def recognised(shapes, levels):
    return magicmaster.recognise_generator(shapes, levels, "here")


def imported(name, dtype=torch.float32):
    """(tokenizer, found, the peer's tensors, the golden) of one golden."""
    golden = load(name)
    shapes = shapes_of(golden.metadata["config"])
    assert key_hash(shapes) == golden.metadata["key_hash"]
    tensors = {key: rule(key, shape).to(dtype) for key, shape in shapes.items()}
    found = recognised(shapes, tuple(golden.metadata["config"]["levels"]))
    tokenizer = Tokenizer(found.config).to(dtype).eval()
    tokenizer.load_state_dict(assemble(tokenizer, found.links, tensors, name))
    return tokenizer, found, tensors, golden


def five(x):
    """Latents and pixels of images with a time axis."""
    return x if x.dim() == 5 else x.unsqueeze(2)


@pytest.mark.parametrize("name", GOLDENS)
def test_latents_ids_and_pixels_are_magicmasters(name):
    tokenizer, _, _, (numbers, _) = imported(name)
    seen = {}
    tokenizer.encoder.to_latent.register_forward_pre_hook(lambda _, inputs: seen.update(z=inputs[0]))
    tokenizer.decoder.from_codes.register_forward_hook(lambda _, __, output: seen.update(codes=output))
    video = five(numbers["input_u8"].float() / 127.5 - 1)
    with torch.no_grad():
        ids = tokenizer.encode(video)
        made = tokenizer.decode(ids, size=tuple(video.shape[2:]))
    assert torch.equal(ids.flatten(), numbers.get("ids", numbers.get("ids_correct")).flatten())
    digits = numbers.get("digits", numbers.get("digits_correct"))
    assert torch.equal(tokenizer.quantizer.digits(ids).movedim(1, -1).reshape(digits.shape), digits.long())
    z, codes = (seen[part].permute(1, 2, 0, 3, 4) for part in ("z", "codes"))
    torch.testing.assert_close(z, five(numbers["z"]), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(codes, five(numbers["codes"]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(made, five(numbers["recon"]), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        name if "15360" in name else pytest.param(name, marks=pytest.mark.slow)  # 7 to 23 s each
        for name in GOLDENS
        if "_t1_" not in name
    ],
)
def test_gradients_in_float64_are_magicmasters(name):
    """Taken in the peer's own layout, through the links: norm, and product with a fixed random direction."""
    tokenizer, found, tensors, (numbers, about) = imported(name, torch.float64)
    leaves = {key: tensor.clone().requires_grad_() for key, tensor in tensors.items()}
    state = assemble(tokenizer, found.links, leaves, name)
    made = torch.func.functional_call(tokenizer, state, five(numbers["input_u8"].double() / 127.5 - 1)).video
    probe = randn("probe.recon", numbers["recon"].shape).double().view_as(made)
    loss = (made * probe).sum() / made.numel() ** 0.5
    # Their VQGAN upsamples in float32 even in a float64 run.
    assert loss.item() == pytest.approx(about["grad_loss"], rel=1e-6 if "vqgan" in name else 1e-9)
    loss.backward()
    gradients = {k: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for k, leaf in leaves.items()}
    expected = numbers["grad_stats"]
    assert (grad_stats(gradients) - expected).abs().max() < 1e-6 * expected.abs().max()
    assert [key for key in sorted(leaves) if leaves[key].grad is None] == about["grad_none"]


def test_the_weighted_loss_and_its_gradients_in_float64_are_magicmasters():
    """Our step, which differentiates each loss once, at the pixels; gradients in the peer's layout as above."""
    numbers, about = load("mm_adaptive_weight_32px")
    # Its generator is that of this golden.
    tokenizer, found, tensors, _ = imported("mm2d_fsq64000_w32_64px", torch.float64)
    adversary = {"weight": 0.75, "adaptive": True, "discriminator": {"kind": "stylegan2", "size": 32}}
    config = find(ROW, tiny=True).replace({"tokenizer": found.config, "gan": adversary})
    state = start_tokenizer(config, ALONE)
    state.tokenizer.double().load_state_dict(tokenizer.state_dict())
    fill(state.gan.discriminator.double(), stylegan2_key)
    round_gains(state.gan.discriminator)
    video = five(numbers["input_u8"].double() / 127.5 - 1)
    n = len(video)
    losses, ids = accumulate(state, Part(video, tuple(range(n)), torch.zeros(n, dtype=torch.long), 1.0, n))
    reconstruction, adversarial, _, _, weight = numbers["scalars"]
    assert torch.equal(ids.flatten(), numbers["ids"].flatten())
    for name, wanted in (("l1", reconstruction), ("adversarial", adversarial), ("gan_weight", weight)):
        assert losses[name].item() == pytest.approx(wanted.item(), rel=1e-7), name
    parameters = dict(state.tokenizer.named_parameters())
    leaves = {key: tensor.clone().requires_grad_() for key, tensor in tensors.items()}
    placed = assemble(tokenizer, found.links, leaves, "there")
    # A link is linear, so what it makes of a gradient is the gradient in the peer's layout.
    torch.autograd.backward([placed[n] for n in parameters], [p.grad for p in parameters.values()])
    gradients = {k: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for k, leaf in leaves.items()}
    expected = numbers["grad_stats"]
    assert (grad_stats(gradients) - expected).abs().max() < 1e-6 * expected.abs().max()
    assert [key for key in sorted(leaves) if leaves[key].grad is None] == about["grad_none"]


@pytest.mark.parametrize("name", GOLDENS)
def test_every_tensor_is_used_or_said_to_be_unused(name):
    _, found, tensors, (_, about) = imported(name)
    used = {link.source for link in found.links}
    assert used | set(found.unused) == set(tensors)
    assert not used & set(found.unused)
    # What never got a gradient there is what we leave out.
    assert sorted(found.unused) == sorted(about.get("grad_none", found.unused))


@pytest.mark.parametrize("name", ["mm2d_fsq64000_w32_64px", "mm3d_dsq15360_w32_t5_32px", "mmvqgan_fsq64000_w128_64px"])
def test_a_missing_or_misshapen_tensor_is_named(name):
    tokenizer, found, tensors, _ = imported(name)
    key = next(link.source for link in found.links[len(found.links) // 2 :] if "_residual.2" in link.source)
    without = {k: v for k, v in tensors.items() if k != key}
    with pytest.raises(IntegrityError, match=r"1 tensors are missing \(" + key.replace(".", r"\.")):
        assemble(tokenizer, found.links, without, "there")
    wrong = tensors | {key: tensors[key][..., None]}
    with pytest.raises(IntegrityError, match="another shape"):
        assemble(tokenizer, found.links, wrong, "there")


@pytest.mark.parametrize(
    ("listing", "scale", "published", "never_run"),
    [
        ("magicmaster_2d", 1, 113_756_041, 263_680 + 256),
        ("magicmaster_3d", 1, 93_111_881, 66_304 + 128),
        ("magicmaster_3d", 2, 372_214_921, 263_680 + 256),
        ("magicmaster_vqgan", 1, 71_882_889, 0),
    ],
)
def test_parameters_are_as_many_as_published_less_those_that_never_run(listing, scale, published, never_run):
    found = recognised(listed(listing, scale), (8, 8, 8, 5, 5, 5))
    with torch.device("meta"):
        tokenizer = Tokenizer(found.config)
    assert sum(p.numel() for p in tokenizer.parameters()) == published - never_run


def test_three_dimensional_models_are_labelled_not_causal_and_two_dimensional_ones_are_image_models():
    video, image = (recognised(listed(f"magicmaster_{d}d", 0.25), (8, 8, 8, 5, 5, 5)).config for d in (3, 2))
    assert (video.is_causal, video.time_kernel, video.total_strides) == (False, 3, (4, 8, 8))
    assert (image.is_causal, image.is_tile_exact, image.total_strides) == (True, False, (1, 8, 8))


def test_the_bins_of_dsq_15360_are_25600_codes_and_the_report_says_so():
    _, found, _, (_, about) = imported("mm3d_dsq15360_w32_t5_32px")
    assert list(found.config.quantizer.levels) == about["correct_levels"] == [8, 8, 5, 4, 4, 5]
    assert any("25,600" in note for note in found.notes)


def test_fsq_levels_are_asked_for_and_checked():
    shapes = listed("magicmaster_2d", 0.25)
    with pytest.raises(ConfigError, match="`levels`"):
        recognised(shapes, None)
    with pytest.raises(ConfigError, match="6 channels"):
        recognised(shapes, (8, 8))
    text = "quantizer=dict(dim=256, levels=[\n            8,\n            5,\n            5,\n        ], type='FSQ'),"
    assert magicmaster.fsq_levels(text) == (8, 5, 5)
    assert magicmaster.fsq_levels("quantizer=dict(dim=256, type='FDQ')") is None
