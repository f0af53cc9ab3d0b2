"""Feature networks: their graphs against goldens, one law for all, and files that are not what they should be."""

import hashlib

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from smalti.errors import InputError, IntegrityError, MachineError
from smalti.foreign import read_checkpoint, read_program, tensors
from smalti.metrics.conv_graph import Branches, ConvLayer, PoolLayer, convolutions, run_layers, weight_shapes
from smalti.metrics.features import Features
from smalti.metrics.i3d import weights_in_graph_order
from smalti.metrics.inception import INCEPTION_STAGES, inception_input
from smalti.metrics.weights import NETWORKS, find_weights_file, read_features, weights_variable
from tests.goldens.rule import FOLDER, load, rule

INCEPTION, I3D, EFFICIENTNET, _ = NETWORKS.values()
NAMES = list(NETWORKS)


@pytest.fixture(scope="module")
def weights():
    """The weights of each network by the rule, made once."""
    made = {}

    def of(network):
        if network.name not in made:
            made[network.name] = {name: rule(name, shape) for name, shape in network.shapes.items()}
        return made[network.name]

    return of


def published(name):
    """{name: shape} of the other implementation's state dict."""
    lines = (FOLDER / f"metrics_{name}.keys.txt").read_text().splitlines()
    rows = (line.split("\t") for line in lines if not line.startswith("#"))
    return {key: tuple(int(n) for n in shape.strip("[]").split(",") if n.strip()) for key, shape in rows}


def still(pictures):
    """Pictures `n 3 h w` as clips of one frame."""
    return pictures.unsqueeze(2)


@pytest.mark.parametrize("name", ["inception", "i3d"])
def test_names_and_shapes_are_those_of_the_published_files(name):
    network, wanted = NETWORKS[name], published(name)
    used = {key: shape for key, shape in wanted.items() if not key.endswith("num_batches_tracked")}
    assert network.shapes == {key: shape for key, shape in used.items() if not key.startswith(network.ignored or "?")}


def test_inception_equals_the_golden(weights):
    golden = load("metrics_fid").tensors
    pictures, w = golden["images_u8"][:1], weights(INCEPTION)
    found = Features(INCEPTION, w, "")(still(pictures))
    torch.testing.assert_close(found, golden["features"][:1], rtol=1e-5, atol=2e-6)
    x, doubled = inception_input(pictures.double()), {name: value.double() for name, value in w.items()}
    for stage, mean in zip(INCEPTION_STAGES, golden["tap_means"][0], strict=True):
        x = run_layers(stage, doubled, x)
        assert x.mean().item() == pytest.approx(mean.item(), rel=1e-5)
    torch.testing.assert_close(x.mean((2, 3)), golden["features_f64_first2"][:1], rtol=1e-9, atol=1e-12)


def test_i3d_equals_the_golden(weights):
    golden = load("metrics_i3d").tensors
    found = Features(I3D, weights(I3D), "")(golden["video_u8"][:1])
    torch.testing.assert_close(found, golden["logits"][:1], rtol=1e-5, atol=1e-5)


def test_efficientnet_equals_the_golden(weights):
    golden = load("metrics_efficientnet").tensors
    doubled = {name: value.double() for name, value in weights(EFFICIENTNET).items()}
    found = EFFICIENTNET.features(doubled, golden["images_u8"].double())
    torch.testing.assert_close(found, golden["features"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_one_vector_for_each_frame_or_clip_in_their_order(weights, name):
    network = NETWORKS[name]
    features = Features(network, weights(network), "")
    frames = network.fewest_frames if network.per == "clip" else 2
    clips = torch.randint(0, 256, (2, 3, frames, 20, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = features(clips)
    assert found.shape == ((2 if network.per == "clip" else 2 * frames), network.dim)
    assert found.dtype == torch.float32
    alone = features(clips[1:])
    torch.testing.assert_close(alone, found[-len(alone) :], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found[0], found[-1], rtol=1e-7, atol=0)


def test_a_clip_too_short_for_i3d_is_refused(weights):
    with pytest.raises(ValueError, match="needs clips of 9 frames or more"):
        Features(I3D, weights(I3D), "")(torch.zeros(1, 3, 8, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize("size", [7, 8, 9, 16, 17])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2), (5, 2), (7, 2), (2, 2)])
def test_padding_as_tensorflow_does_gives_one_output_for_each_stride(size, kernel, stride):
    conv = ConvLayer("c", None, (1, 1, kernel, kernel), (stride, stride), None, activation="none")
    w = {"c.weight": torch.ones(conv.shape), "c.bias": torch.zeros(1)}
    out = run_layers((conv,), w, torch.ones(1, 1, size, size))
    assert out.shape[-1] == -(-size // stride)
    # The odd zero lies at the end: the first window holds as many ones as it may.
    room = max(0, (out.shape[-1] - 1) * stride + kernel - size)
    assert out[0, 0, 0, 0] == min(size, kernel - room // 2) ** 2


def test_a_mean_leaves_the_padding_out():
    ones = torch.ones(1, 1, 4, 4)
    assert torch.equal(run_layers((PoolLayer("mean", (3, 3), (1, 1), (1, 1)),), {}, ones), ones)


def test_a_table_lists_its_tensors_in_the_order_of_the_graph():
    a, b = (ConvLayer(name, f"{name}_bn", (2, 2, 1, 1), (1, 1), (0, 0)) for name in "ab")
    steps = (Branches(((a,), (b,))), a._replace(name="c", norm=None))
    assert [conv.name for conv in convolutions(steps)] == ["a", "b", "c"]
    assert list(weight_shapes(steps))[:2] == ["a.weight", "a_bn.weight"]
    assert list(weight_shapes(steps))[-2:] == ["c.weight", "c.bias"]


def test_wrong_tensors_are_refused_by_name(weights):
    w = weights(EFFICIENTNET)
    for change, message in [
        ({"more": torch.zeros(1)}, "unexpected tensor 'more'; is this efficientnet-lite0-57934424.pth"),
        ({"_bn0.bias": None}, "the tensor '_bn0.bias' is missing"),
        ({"_bn0.bias": torch.zeros(31)}, r"_bn0.bias has shape \(31,\), expected \(32,\)"),
        ({"_bn0.bias": torch.full((32,), float("nan"))}, "_bn0.bias holds values that are not finite"),
    ]:
        changed = {name: value for name, value in {**w, **change}.items() if value is not None}
        with pytest.raises(IntegrityError, match=message):
            Features(EFFICIENTNET, changed, "")
    Features(EFFICIENTNET, {**w, "_fc.bias": torch.zeros(3), "_bn0.num_batches_tracked": torch.tensor(1)}, "")


def test_another_file_than_the_published_one_is_refused(weights, tmp_path):
    path = tmp_path / INCEPTION.file
    save_file(weights(EFFICIENTNET), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(IntegrityError, match=f"not {INCEPTION.file}: its sha256 begins with {digest[:8]}, .* 6726825d"):
        read_features(INCEPTION, path)
    with pytest.raises(MachineError, match=r"none.pth: no such file; it should be pt_inception"):
        read_features(INCEPTION, tmp_path / "none.pth")


def test_files_are_found_in_the_order_of_the_docs(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for network in (INCEPTION, I3D):
        monkeypatch.delenv(weights_variable(network), raising=False)
        with pytest.raises(MachineError, match=rf"no {network.file}.*`features` FILE, set SMALTI_\w+, or put it into"):
            find_weights_file(network)
        cached = tmp_path / "smalti" / network.file
        cached.parent.mkdir(exist_ok=True)
        cached.touch()
        assert find_weights_file(network) == cached
        monkeypatch.setenv(weights_variable(network), str(tmp_path / "named.pt"))
        assert find_weights_file(network) == tmp_path / "named.pt"
    package = tmp_path / "site" / EFFICIENTNET.package
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "models" / EFFICIENTNET.file).touch()
    monkeypatch.delenv(weights_variable(EFFICIENTNET), raising=False)
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert find_weights_file(EFFICIENTNET) == package / "models" / EFFICIENTNET.file


def test_a_network_is_the_same_from_safetensors_and_from_a_torch_file(weights, tmp_path):
    any_file = EFFICIENTNET._replace(sha256="")
    named = tmp_path / "a.safetensors", tmp_path / "a.pt"
    save_file(weights(EFFICIENTNET), named[0])
    torch.save(weights(EFFICIENTNET), named[1])
    picture = torch.randint(0, 256, (1, 3, 1, 30, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    one, two = (read_features(any_file, path) for path in named)
    assert torch.equal(one(picture), two(picture))
    assert one.digest == hashlib.sha256(named[0].read_bytes()).hexdigest() != two.digest
    named[1].write_bytes(named[1].read_bytes()[:-1000])
    with pytest.raises(IntegrityError, match=r"a\.pt: "):
        read_features(any_file, named[1])


class Unit(nn.Module):
    """A convolution with its norm, by other names than ours."""

    def __init__(self, conv, eps):
        super().__init__()
        out, into, *kernel = conv.shape
        self.filter = nn.Conv3d(into, out, kernel, bias=False)
        self.batch_norm = nn.BatchNorm3d(out, eps=eps)

    def forward(self, x):
        return self.batch_norm(self.filter(x))


class Port(nn.Module):
    """The layers of I3D in the order of the graph; what they compute is not asked for."""

    def __init__(self, convs, eps):
        super().__init__()
        *trunk, head = convs
        self.trunk = nn.ModuleList([Unit(conv, eps) for conv in trunk])
        self.classifier = nn.Conv3d(head.shape[1], head.shape[0], 1)

    def forward(self, x):
        return self.trunk[0](x)


def i3d_convolutions():
    """The table that the names and shapes follow from."""
    units = [name.removesuffix(".conv3d.weight") for name in I3D.shapes if name.endswith(".conv3d.weight")]
    return [ConvLayer(unit, None, I3D.shapes[f"{unit}.conv3d.weight"], (1, 1, 1), None) for unit in units]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("way", ["script", "trace"])
def test_a_torchscript_file_of_other_names_is_read_by_the_order_of_its_graph(way, tmp_path):
    torch.manual_seed(0)
    port = Port(i3d_convolutions(), eps=1e-3).eval()
    program = torch.jit.script(port) if way == "script" else torch.jit.trace(port, torch.zeros(1, 3, 7, 7, 7))
    path = tmp_path / "i3d_torchscript.pt"
    torch.jit.save(program, path)
    found = weights_in_graph_order(tensors(read_checkpoint(path)), read_program(path))
    assert {name: tuple(value.shape) for name, value in found.items()} == I3D.shapes
    assert torch.equal(found["logits.conv3d.weight"], port.classifier.weight)
    assert torch.equal(found["Mixed_5c.b3b.conv3d.weight"], port.trunk[-1].filter.weight)
    # Its norms add 1e-3 to variances, ours 1e-5: what is added in all is the same.
    assert found["Mixed_5c.b3b.bn.running_var"].tolist() == pytest.approx([1 + 1e-3 - 1e-5] * 128, rel=1e-12)
    assert read_features(I3D, path).digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_tensors_that_are_no_i3d_are_refused_with_the_mend(weights):
    program = "    _0 = torch.batch_norm(x, a, b, c, d, False, 0.1, 0.001, True)\n"
    whole = weights(I3D)
    renamed = {name.replace("conv3d", "filter"): value for name, value in whole.items()}
    assert weights_in_graph_order(renamed, program).keys() == I3D.shapes.keys()
    for others, text in [
        ({}, program),
        (renamed, ""),
        (renamed, program + program.replace("0.001", "1e-05")),
        ({name: value for name, value in renamed.items() if "b3b" not in name}, program),
        ({name: value for name, value in renamed.items() if name != "Mixed_3b.b0.bn.running_var"}, program),
    ]:
        with pytest.raises(
            IntegrityError, match=r"no I3D that can be recognised by its tensors .* save its weights as"
        ):
            weights_in_graph_order(others, text)


def test_a_torchscript_program_is_text_and_other_files_have_none(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pt")
    assert read_program(tmp_path / "a.pt") == ""
    (tmp_path / "b.pt").write_bytes(b"no zip")
    assert read_program(tmp_path / "b.pt") == ""


def test_features_of_short_clips_are_an_input_error(weights):
    from smalti.metrics.statistics import FeatureMoments

    moments = FeatureMoments(Features(I3D, weights(I3D), ""))
    with pytest.raises(InputError, match="clip7: has 3 frames, i3d needs clips of 9 or more"):
        moments.add_original("clip7", torch.zeros(1, 3, 3, 8, 8, dtype=torch.uint8))
