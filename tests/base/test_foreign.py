"""`read_checkpoint` gives what torch.load gives, of every form of torch.save, and the text of TorchScript programs."""

import pickle
import sys
import warnings
import zipfile
import zlib
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from smalti.errors import IntegrityError
from smalti.foreign import leaves, read_checkpoint, read_program, tensors
from smalti.unpickler import Foreign
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
    if isinstance(b, dict):
        return isinstance(a, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in b)
    if isinstance(b, list | tuple):
        kinds = isinstance(a, list if isinstance(b, list) else tuple)
        return kinds and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(b, set | frozenset):  # a list, so that nothing is hashed
        return isinstance(a, list) and len(a) == len(b) and all(value in b for value in a)
    if isinstance(b, bytearray):
        return a == bytes(b)
    if isinstance(b, complex):
        return isinstance(a, Foreign) and a.name == "builtins.complex" and same(a.args, (b.real, b.imag))
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
    assert same(read_checkpoint(path), trusted(path))


@pytest.mark.parametrize("protocol", range(6))
@given(tree=st.recursive(NUMBERS | TEXTS, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner), max_leaves=8))
@settings(max_examples=60)
def test_bare_pickles_of_every_protocol_read_as_pickle_reads_them(tree, protocol, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "tree.pkl"
    path.write_bytes(pickle.dumps(tree, protocol=protocol))
    assert same(read_checkpoint(path), pickle.loads(path.read_bytes()))


@pytest.mark.parametrize("dtype", DTYPES + NEWER, ids=str)
def test_every_type_of_number_keeps_its_bits(dtype, tmp_path):
    raw = torch.arange(64, dtype=torch.uint8) * 4 + 3
    raw = raw % 2 if dtype is torch.bool else raw
    path = save({"a": raw.view(dtype), "b": raw.view(dtype)[1:2]}, tmp_path / "a.pth", True)
    assert same(read_checkpoint(path), trusted(path))


@FORMATS
def test_what_shared_its_values_shares_them_still(zipped, tmp_path):
    base = torch.arange(12.0)
    found = read_checkpoint(save({"a": base, "b": base[4:].view(2, 4), "c": base.clone()}, tmp_path / "a.pth", zipped))
    found["a"][4] = -1
    assert found["b"][0, 0] == -1
    assert found["c"][4] == 4


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "i8", "u1", "bool", "c16"])
def test_arrays_of_numpy_are_leaves(dtype, protocol, tmp_path):
    array = (np.arange(24) - 7).reshape(2, 3, 4).astype(dtype)
    tree = {"c": array, "f": np.asfortranarray(array), "again": array, "e": array[:0], "s": array[:, ::2]}
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(tree, protocol=protocol))
    found = dict(leaves(read_checkpoint(path)))
    assert found.keys() == tree.keys()
    for name, value in tree.items():
        assert found[name].dtype == value.dtype, name
        assert np.array_equal(found[name], value), name


def test_other_arrays_and_numbers_of_numpy_stay_records(tmp_path):
    values = [np.array(["a", "b"]), np.array([{}, None], dtype=object), np.arange(3, dtype=">f4"), np.float32(2)]
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(values, protocol=2))
    found = read_checkpoint(path)
    assert all(isinstance(value, Foreign) for value in found)
    assert found[3].name.endswith("multiarray.scalar")
    assert not any(isinstance(leaf, np.ndarray) for _, leaf in leaves(found))


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
    tree = read_checkpoint(path)
    equal_states(tensors(tree["model"]), net.state_dict())
    assert tree["model"].name == f"{__name__}.Net"
    assert tree["step"] == 3


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_torchscript_file_gives_its_state_dict(tmp_path):
    net = Net().eval()
    for name, script in {
        "trace": torch.jit.trace(net, torch.zeros(1, 3, 8, 8)),
        "script": torch.jit.script(net),
    }.items():
        torch.jit.save(script, tmp_path / f"{name}.pt")
        equal_states(tensors(read_checkpoint(tmp_path / f"{name}.pt")), script.state_dict())
    tree = read_checkpoint(tmp_path / "script.pt")
    assert tree.name.startswith("__torch__.")
    assert tree.state["first"].state["0"].state["training"] is False
    assert "batch_norm" in read_program(tmp_path / "script.pt")


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
    assert same(read_checkpoint(path), trusted(path))
    assert read_checkpoint(path)["optimizer"]["param_groups"][0]["lr"] == 1e-3


def test_bare_storages_read_as_their_values(tmp_path):
    path = save([torch.arange(5.0).untyped_storage()], tmp_path / "a.pth", True)
    assert read_checkpoint(path)[0].view(torch.float32).tolist() == [0, 1, 2, 3, 4]


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


def test_a_flipped_bit_of_any_tensor_is_found(tmp_path):
    path = save({"ema": torch.full((999,), 3.0), "live": torch.full((999,), 5.0)}, tmp_path / "a.pth", True)
    data = path.read_bytes()
    place = data.index(torch.full((999,), 5.0).numpy().tobytes())
    path.write_bytes(data[: place + 7] + bytes([data[place + 7] ^ 1]) + data[place + 8 :])
    with pytest.raises(IntegrityError, match=r"a\.pth: the bytes of its member 'a/data/1' are not those that were"):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["a.safetensors", "a.bin"])
def test_safetensors_are_known_by_their_content(name, tmp_path):
    save_file({"a.b": torch.arange(6).view(2, 3)}, tmp_path / name)
    assert same(read_checkpoint(tmp_path / name), {"a.b": torch.arange(6).view(2, 3)})
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1])
    with pytest.raises(IntegrityError, match=f"{name}: not a whole safetensors file"):
        read_checkpoint(tmp_path / name)


def test_files_without_checksums_are_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        path = save({"a": torch.arange(3)}, tmp_path / "a.pth", True)
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_checkpoint(path)["a"].tolist() == [0, 1, 2]


def test_the_envelope_of_a_magicmaster_run():
    """Its averaged generator was filled by the rule; see tests/goldens."""
    tree = read_checkpoint(rule.FOLDER / "mm_envelope_tiny2d.pth")
    assert list(tree) == ["meta", "state_dict", "message_hub", "optimizer"]
    assert tree["meta"]["cfg"].startswith("default_scope = 'magicmaster'")
    key = "encoder.conv_in.conv.weight"
    found = tensors(tree["state_dict"])
    assert same(found[f"generator_ema.module.{key}"], rule.rule(key, (32, 3, 7, 7)).float())
    history = tree["message_hub"]["log_scalars"]["train/generator.lr"]
    assert history.name == "mmengine.logging.history_buffer.HistoryBuffer"
    assert dict(leaves(history))["_log_history"].tolist() == [5.4e-05, 5.4e-05]
    assert history.state["statistics_methods"]["mean"].name == "builtins.getattr"


def test_the_envelope_with_all_keys_of_the_3d_model():
    found = tensors(read_checkpoint(rule.FOLDER / "mm_envelope_fullkeys_3d.pth")["state_dict"])
    assert len(found) == 801
    for name, value in found.items():
        if value.is_floating_point():
            number = (zlib.crc32(f"gold-v1/{name}".encode()) % 2001 - 1000) / 1000
            assert value.untyped_storage().nbytes() == value.element_size()  # one number, shown everywhere
            assert value.flatten()[:1].tolist() == pytest.approx([number]), name


def own_memory():
    """Bytes of this process that are no pages of files."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_tensors_are_maps_of_the_file_and_stay_private(tmp_path):
    """A file of 200 MB is read in little memory, and writing to a tensor does not write to the file."""
    path = save({"big": torch.zeros(50_000_000), "small": torch.ones(1000)}, tmp_path / "a.pth", True)
    before = own_memory()
    found = read_checkpoint(path)
    assert own_memory() - before < 20_000_000
    found["small"][0] = 7
    assert found["small"][:2].tolist() == [7, 1]
    assert read_checkpoint(path)["small"].eq(1).all()


def program_archive(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", b"N.")
        for name, data in members.items():
            file.writestr(f"a/{name}", data, compression)
    return path


def replaced(path, old, new):
    data = path.read_bytes()
    assert data.count(old) == 2  # in the header of the member and in the directory
    path.write_bytes(data.replace(old, new))
    return path


def test_all_files_of_the_program_are_read_and_nothing_else(tmp_path):
    members = {"code/__torch__/b.py": "import os", "code/a.debug_pkl": "x", "other.py": "y", "code/c.py": "z"}
    assert read_program(program_archive(tmp_path / "a.pt", members)) == "import os\nz"
    assert read_program(program_archive(tmp_path / "b.pt", members, zipfile.ZIP_STORED)) == "import os\nz"


def test_a_member_that_unfolds_to_more_than_it_says_is_refused(tmp_path):
    path = program_archive(tmp_path / "a.pt", {"code/a.py": b"0" * 1_000_003})
    small = replaced(path, (1_000_003).to_bytes(4, "little"), (7).to_bytes(4, "little"))
    with pytest.raises(IntegrityError, match=r"a\.pt: .*'a/code/a\.py' has another size than the zip directory says"):
        read_program(small)


def test_a_large_program_and_a_damaged_one_are_refused(tmp_path):
    with pytest.raises(IntegrityError, match="encrypted, too large"):
        read_program(program_archive(tmp_path / "a.pt", {"code/a.py": b"0" * ((16 << 20) + 1)}))
    path = program_archive(tmp_path / "b.pt", {"code/a.py": bytes(torch.arange(256, dtype=torch.uint8).tolist()) * 9})
    data = bytearray(path.read_bytes())
    place = data.index(b"code/a.py") + 20
    data[place] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"b\.pt: "):
        read_program(path)
