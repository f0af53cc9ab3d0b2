"""`smalti.inert` gives what torch.load gives, of every form of torch.save, and reads only what is asked for."""

import pickle
import tracemalloc
import warnings
import zlib
from collections import Counter, OrderedDict, defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from smalti.errors import IntegrityError
from smalti.inert import Foreign, Stored, open_torch, read_torch, tensors
from tests.goldens import rule

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
]
NEWER = [torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2]


def save(value, path, zipped):
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


def trusted(path):
    """What torch's own reader makes of a file that this test wrote."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(path, weights_only=False)


def same(a, b):
    if isinstance(b, torch.Tensor):
        equal = isinstance(a, torch.Tensor) and (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
        flags = equal and (a.is_conj(), a.is_neg(), a.storage_offset()) == (b.is_conj(), b.is_neg(), b.storage_offset())
        return flags and bits(a) == bits(b)
    if isinstance(b, np.ndarray):
        return isinstance(a, np.ndarray) and (a.dtype, a.shape) == (b.dtype, b.shape) and a.tobytes() == b.tobytes()
    if isinstance(b, dict):
        return isinstance(a, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in b)
    if isinstance(b, list | tuple):
        kinds = isinstance(a, list if isinstance(b, list) else tuple)
        return kinds and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(b, np.generic):
        b = b.item()
    return type(a) is type(b) and (a == b or (a != a and b != b))


def bits(tensor):
    """The values as bytes, so that NaN equals NaN."""
    values = tensor.detach().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format).view(-1)
    return values.view(torch.uint8).numpy().tobytes() if values.numel() else b""


@st.composite
def some_tensors(draw):
    """A tensor with the strides, offsets and flags that slicing gives."""
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    dtype = draw(st.sampled_from(DTYPES))
    seed = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    tensor = (torch.randn(shape, generator=seed) * 50).to(dtype)
    for form in draw(
        st.lists(st.sampled_from(["slice", "step", "transpose", "expand", "conj", "parameter"]), max_size=3)
    ):
        if form == "slice" and tensor.ndim and tensor.shape[0] > 1:
            tensor = tensor[1:]
        elif form == "step" and tensor.ndim:
            tensor = tensor[..., ::2]
        elif form == "transpose" and tensor.ndim > 1:
            tensor = tensor.transpose(0, -1)
        elif form == "expand":
            tensor = tensor.expand(3, *tensor.shape)
        elif form == "conj" and dtype.is_complex:
            tensor = tensor.conj()
        elif form == "parameter" and dtype.is_floating_point:
            tensor = nn.Parameter(tensor.detach())
    return tensor


NUMBERS = (
    st.none() | st.booleans() | st.integers() | st.integers(-(2**300), 2**300) | st.floats() | st.complex_numbers()
)
TEXTS = st.text(max_size=9) | st.binary(max_size=9) | st.binary(max_size=9).map(bytearray)
KEYS = (
    st.text(max_size=5)
    | st.integers(-(2**63), 2**63 - 1)
    | st.binary(max_size=5)
    | st.tuples(st.integers(0, 9), st.text())
)
LEAVES = (
    NUMBERS
    | TEXTS
    | st.sampled_from(DTYPES)
    | st.frozensets(KEYS, max_size=3)
    | st.sets(KEYS, max_size=3)
    | st.lists(st.integers(0, 9), max_size=3).map(torch.Size)
    | some_tensors()
)
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.dictionaries(KEYS, inner, max_size=4).map(OrderedDict)
        | st.dictionaries(KEYS, inner, max_size=4).map(lambda entries: defaultdict(list, entries))
    ),
    max_leaves=12,
)


@FORMATS
@given(tree=TREES)
@settings(max_examples=250)
def test_every_tree_reads_as_torch_reads_it(tree, zipped, tmp_path_factory):
    path = save(tree, tmp_path_factory.getbasetemp() / "tree.pth", zipped)
    assert same(read_torch(path), trusted(path))


@pytest.mark.parametrize("protocol", range(6))
@given(tree=st.recursive(NUMBERS | TEXTS, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner), max_leaves=8))
@settings(max_examples=60)
def test_bare_pickles_of_every_protocol_read_as_pickle_reads_them(tree, protocol, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "tree.pkl"
    path.write_bytes(pickle.dumps(tree, protocol=protocol))
    assert same(read_torch(path), pickle.loads(path.read_bytes()))


@pytest.mark.parametrize("dtype", DTYPES + NEWER, ids=str)
def test_every_type_of_number_keeps_its_bits(dtype, tmp_path):
    raw = torch.arange(64, dtype=torch.uint8) * 4 + 3
    raw = raw % 2 if dtype is torch.bool else raw
    path = save({"a": raw.view(dtype), "b": raw.view(dtype)[1:2]}, tmp_path / "a.pth", True)
    assert same(read_torch(path), trusted(path))


@FORMATS
def test_what_shared_its_values_shares_them_still(zipped, tmp_path):
    base = torch.arange(12.0)
    found = read_torch(save({"a": base, "b": base[4:].view(2, 4), "c": base.clone()}, tmp_path / "a.pth", zipped))
    found["a"][4] = -1
    assert found["b"][0, 0] == -1
    assert found["c"][4] == 4


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", ">f4", "i8", "u1", "bool", "c16"])
def test_arrays_and_numbers_of_numpy(dtype, protocol, tmp_path):
    array = (np.arange(24) - 7).reshape(2, 3, 4).astype(dtype)
    tree = {"c": array, "f": np.asfortranarray(array), "0": array[1, 1, 1], "e": array[:0], "s": array[:, ::2]}
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(tree, protocol=protocol))
    found = read_torch(path)
    for name, value in tree.items():
        assert np.array_equal(found[name], value), name
    assert found["c"].dtype == array.dtype.newbyteorder("=")
    torch.save(tree, tmp_path / "a.pth", pickle_protocol=protocol)
    assert np.array_equal(read_torch(tmp_path / "a.pth", "f"), array)


def test_arrays_of_texts_and_of_objects_stay_records(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps([np.array(["a", "b"]), np.array([{}, None], dtype=object)], protocol=2))
    assert all(isinstance(value, Foreign) for value in read_torch(path))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.parts = nn.ModuleDict({"a": nn.Linear(2, 3), "b": nn.Identity()})
        self.register_buffer("scale", torch.tensor(2.5, dtype=torch.float64))
        self.tied = self.parts["a"]

    def forward(self, x):
        return self.first(x) * self.scale


def equal_states(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert same(found[name], value.detach()), name


@FORMATS
def test_a_module_saved_whole_gives_its_state_dict(zipped, tmp_path):
    net = Net()
    path = save({"model": net, "step": 3}, tmp_path / "net.pth", zipped)
    equal_states(tensors(read_torch(path, "model")), net.state_dict())
    equal_states(open_torch(path).tensors("model"), net.state_dict())
    assert open_torch(path).at("model").name == f"{__name__}.Net"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_torchscript_file_gives_its_state_dict(tmp_path):
    net = Net().eval()
    for name, script in {
        "trace": torch.jit.trace(net, torch.zeros(1, 3, 8, 8)),
        "script": torch.jit.script(net),
    }.items():
        torch.jit.save(script, tmp_path / f"{name}.pt")
        equal_states(open_torch(tmp_path / f"{name}.pt").tensors(), script.state_dict())
    assert read_torch(tmp_path / "script.pt").name.startswith("__torch__.")
    assert read_torch(tmp_path / "script.pt", "first", "0", "training") is False


@FORMATS
def test_a_checkpoint_of_a_training_run(zipped, tmp_path):
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    tree = {
        "state_dict": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "counts": Counter("aab"),
        "rng": torch.get_rng_state(),
    }
    path = save(tree, tmp_path / "run.pth", zipped)
    assert same(read_torch(path), trusted(path))
    assert read_torch(path, "optimizer", "param_groups", 0, "lr") == 1e-3


def test_bare_storages_read_as_their_values(tmp_path):
    path = save([torch.arange(5.0).untyped_storage()], tmp_path / "a.pth", True)
    assert read_torch(path)[0].view(torch.float32).tolist() == [0, 1, 2, 3, 4]


def test_names_of_a_tree():
    a, b, c = torch.zeros(1), torch.ones(1), torch.ones(2)
    tree = {"x": [a, {"y": b}], 7: {"z": Foreign("m.C", state={"w": c, "n": 1})}, "none": None, "again": a}
    found = tensors(tree)
    assert found == {"x.0": a, "x.1.y": b, "7.z.w": c, "again": a}
    with pytest.raises(IntegrityError, match=r"two tensors have the name 'a\.b'"):
        tensors({"a.b": a, "a": {"b": b}})
    loop = {"a": a}
    loop["self"] = loop
    assert list(tensors(loop)) == ["a"]


def test_an_absent_part_is_named_with_what_is_there(tmp_path):
    path = save({"state_dict": {"a": torch.zeros(2)}, "meta": {}}, tmp_path / "a.pth", True)
    with pytest.raises(IntegrityError, match=r"a\.pth: no 'ema' in its root, which has: state_dict, meta"):
        read_torch(path, "ema")
    with pytest.raises(IntegrityError, match=r"no 'b' in state_dict, which has: a"):
        open_torch(path).at("state_dict", "b")


def test_what_is_not_asked_for_is_not_read(tmp_path):
    """Damage in one tensor is seen by those who read it, and by them alone: the other reading never touched it."""
    path = save({"ema": torch.full((999,), 3.0), "live": torch.full((999,), 5.0)}, tmp_path / "a.pth", True)
    data = path.read_bytes()
    place = data.index(torch.full((999,), 5.0).numpy().tobytes())
    path.write_bytes(data[: place + 7] + bytes([data[place + 7] ^ 1]) + data[place + 8 :])
    file = open_torch(path)
    assert file.stored() == {"ema": file.tree["ema"], "live": file.tree["live"]}
    assert isinstance(file.tree["live"], Stored)
    assert file.tree["live"].shape == (999,)
    assert file.read(file.tree["ema"]).eq(3).all()
    with pytest.raises(
        IntegrityError, match=r"a\.pth: the bytes of its member 'data/1' are not those that were written"
    ):
        file.tensors("live")
    assert open_torch(path, check=False).tensors()["live"].ne(5).sum() == 1


def test_files_without_checksums_are_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        path = save({"a": torch.arange(3)}, tmp_path / "a.pth", True)
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_torch(path, "a").tolist() == [0, 1, 2]


def test_a_file_that_changes_between_looking_and_reading_is_refused(tmp_path):
    path = save({"a": torch.zeros(3)}, tmp_path / "a.pth", True)
    file = open_torch(path)
    save({"a": torch.zeros(300)}, path, True)
    with pytest.raises(IntegrityError, match="it changed while it was read"):
        file.tensors()


def test_the_envelope_of_a_magicmaster_run():
    """Its averaged generator was filled by the rule; see tests/goldens."""
    file = open_torch(rule.FOLDER / "mm_envelope_tiny2d.pth")
    assert list(file.tree) == ["meta", "state_dict", "message_hub", "optimizer"]
    assert file.read(file.at("meta", "cfg")).startswith("default_scope = 'magicmaster'")
    key = "encoder.conv_in.conv.weight"
    found = file.tensors("state_dict")
    assert same(found[f"generator_ema.module.{key}"], rule.rule(key, (32, 3, 7, 7)).float())
    history = file.read(file.at("message_hub", "log_scalars", "train/generator.lr"))
    assert history.name == "mmengine.logging.history_buffer.HistoryBuffer"
    assert history.state["_log_history"].tolist() == [5.4e-05, 5.4e-05]
    assert history.state["statistics_methods"]["mean"].name == "builtins.getattr"


def test_the_envelope_with_all_keys_of_the_3d_model():
    file = open_torch(rule.FOLDER / "mm_envelope_fullkeys_3d.pth")
    shapes = {name: stored.shape for name, stored in file.stored("state_dict").items()}
    assert len(shapes) == 801
    found = file.tensors("state_dict")
    for name, value in found.items():
        assert value.shape == shapes[name]
        if value.is_floating_point():
            number = (zlib.crc32(f"gold-v1/{name}".encode()) % 2001 - 1000) / 1000
            assert value.untyped_storage().nbytes() == value.element_size()  # one number, shown everywhere
            assert value.flatten()[:1].tolist() == pytest.approx([number]), name


def test_the_reader_takes_no_more_memory_than_the_part(tmp_path):
    """A 40 MB file, of which 4 kB are asked for: what Python holds, and the storage that torch holds."""
    path = save({"big": torch.zeros(10_000_000), "small": torch.ones(1000)}, tmp_path / "a.pth", True)
    tracemalloc.start()
    try:
        found = open_torch(path).tensors("small")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found[""].untyped_storage().nbytes() == 4000
    assert peak < 2_000_000
    assert path.stat().st_size > 40_000_000
