"""Hostile and damaged files: nothing runs, nothing unfolds, and every fault is one line with a path and a mend."""

import io
import os
import pickle
import pickletools
import random
import struct
import subprocess
import sys
import time
import zipfile

import pytest
import torch

from smalti.cli.main import run
from smalti.errors import InputError, IntegrityError
from smalti.inert import open_torch, read_torch, tensors
from smalti.inert import tree as tree_of_inert
from tests.goldens import rule
from tests.rules.tree import ROOT

STEPS = {step.name: step.code.encode("latin-1") for step in pickletools.opcodes}


def step(name, arg=b""):
    return STEPS[name] + arg


def text(value):
    return step("BINUNICODE", struct.pack("<I", len(value)) + value.encode())


def number(value):
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return step("LONG1", bytes([len(raw)]) + raw)


def name(module, attribute):
    return step("GLOBAL", f"{module}\n{attribute}\n".encode())


def group(*parts):
    return step("MARK") + b"".join(parts) + step("TUPLE")


def call(what, *args):
    return what + group(*args) + step("REDUCE")


def storage(key="0", count=4, kind="FloatStorage"):
    return group(text("storage"), name("torch", kind), text(key), text("cpu"), number(count)) + step("BINPERSID")


def sizes(*values):
    return group(*map(number, values))


def tensor(source=None, offset=0, shape=(4,), strides=(1,)):
    rest = [step("NEWFALSE"), call(name("collections", "OrderedDict"))]
    source = storage() if source is None else source
    return call(
        name("torch._utils", "_rebuild_tensor_v2"), source, number(offset), sizes(*shape), sizes(*strides), *rest
    )


def archive(*parts, members=(), method=zipfile.ZIP_STORED, folder="a/"):
    """A zip as torch writes it, around a pickle of `parts`, with right checksums; `members` replace the usual ones."""
    raw = io.BytesIO()
    content = {"data.pkl": step("PROTO", b"\2") + b"".join(parts) + step("STOP"), "data/0": bytes(16), **dict(members)}
    with zipfile.ZipFile(raw, "w", method) as file:
        for member, data in content.items():
            if data is not None:
                file.writestr(folder + member, data)
    return raw.getvalue()


def nested(count, inner, wrap):
    return inner + wrap * count


CANARY = "canary-of-smalti"
DOUBLED = nested(60, step("EMPTY_TUPLE"), step("DUP") + step("TUPLE2"))

INERT = {
    "a shell": archive(call(name("os", "system"), text(f"touch {CANARY}"))),
    "an evaluation": archive(call(name("builtins", "eval"), text(f"open('{CANARY}', 'w')"))),
    "python 2's evaluation": archive(call(name("__builtin__", "eval"), text(f"open('{CANARY}', 'w')"))),
    "a module that is not loaded": archive(call(name("antigravity", "geohash"), number(1))),
    "a chain of getattr": archive(
        call(call(name("builtins", "getattr"), name("os", "path"), text("os")), text("system")),
        step("POP"),
        text("end"),
    ),
    "a dotted name": archive(
        text("os"), text("path.os.system"), step("STACK_GLOBAL"), step("EMPTY_TUPLE"), step("REDUCE")
    ),
    "a state for __setstate__": archive(call(name("smalti.files", "write_bytes")), text(CANARY), step("BUILD")),
    "a state for a class": archive(
        name("os", "environ"), step("EMPTY_DICT"), text("a"), text("b"), step("SETITEM"), step("BUILD")
    ),
    "a new object": archive(name("subprocess", "Popen"), group(text(f"touch {CANARY}")), step("NEWOBJ")),
    "a new object with names": archive(
        *(name("subprocess", "Popen"), group(text("touch"))),
        *(step("EMPTY_DICT"), text("shell"), step("NEWTRUE"), step("SETITEM"), step("NEWOBJ_EX")),
    ),
    "an old instance": archive(step("MARK"), text(f"touch {CANARY}"), step("INST", b"os\nsystem\n")),
    "an old object": archive(step("MARK"), name("os", "system"), text(f"touch {CANARY}"), step("OBJ")),
    "torch.load in torch.load": archive(
        call(name("torch.storage", "_load_from_bytes"), call(name("_codecs", "encode"), text("x" * 99), text("latin1")))
    ),
    "torch.load of a path": archive(call(name("torch", "load"), text("/etc/passwd"))),
    "another codec": archive(call(name("_codecs", "encode"), text("x"), text("zlib_codec"))),
    "an array of objects": archive(call(name("numpy.core.multiarray", "_reconstruct"), name("numpy", "ndarray"))),
    "numpy's loader": archive(call(name("numpy", "load"), text("/etc/passwd"))),
    "a billion laughs": archive(DOUBLED),
    "a billion laughs of lists": archive(nested(60, step("EMPTY_LIST"), step("DUP") + step("TUPLE2") + step("TUPLE1"))),
    "a list of itself": archive(step("EMPTY_LIST"), step("DUP"), step("APPEND")),
    "a member outside of its folder": archive(text("fine"), members=[("../../../x", b"1")]),
}

REFUSED = {
    "a path as a key": (archive(tensor(storage("/etc/passwd"))), "is missing"),
    "a key above its folder": (archive(tensor(storage("../../../../etc/passwd"))), "is missing"),
    "a reference that is a text": (archive(step("PERSID", b"/etc/passwd\n")), "outside of it"),
    "a reference to something else": (archive(group(text("file"), text("/etc/passwd")), step("BINPERSID")), "outside"),
    "an unknown kind of storage": (archive(storage(kind="SecretStorage")), "unknown kind"),
    "two sizes of one storage": (archive(storage(), step("POP"), storage(count=3)), "declared with"),
    "a negative offset": (archive(tensor(offset=-1)), "no sizes"),
    "negative strides": (archive(tensor(strides=(-1,))), "no sizes"),
    "an offset beyond the end": (archive(tensor(offset=1)), "reaches value 5 of a storage of 4"),
    "strides beyond the end": (archive(tensor(strides=(2,))), "reaches value 7"),
    "a size beyond 64 bits": (archive(tensor(shape=(2**70,), strides=(0,))), "no sizes"),
    "a product beyond 64 bits": (archive(tensor(shape=(2**60, 2**60), strides=(0, 0))), "over and over"),
    "one value shown 2^40 times": (archive(tensor(shape=(2**40,), strides=(0,))), "over and over"),
    "too few strides": (archive(tensor(strides=())), "no sizes"),
    "a storage shorter than declared": (archive(tensor(storage(count=5))), "has 16 bytes, its pickle says 20"),
    "a storage of 2^61 values": (archive(tensor(storage(count=2**61))), "its pickle says"),
    "a negative storage": (archive(storage(count=-4)), "unknown kind"),
    "a storage that is absent": (archive(tensor(), members=[("data/0", None)]), "'data/0' is missing"),
    "numbers of the other byte order": (archive(tensor(), members=[("byteorder", b"big")]), "byte order 'big'"),
    "no byte order at all": (archive(tensor(), members=[("byteorder", b"\xff\n")]), "byte order"),
    "a compressed bomb": (
        archive(tensor(storage(count=2**24)), members=[("data/0", bytes(2**26))], method=zipfile.ZIP_DEFLATED),
        "compressed",
    ),
    "no pickle": (archive(members=[("data.pkl", None)]), "0 data.pkl"),
    "an old TorchScript file": (archive(members=[("data.pkl", None), ("model.json", b"{}")]), "before torch 1.4"),
    "an unfinished pickle": (archive(members=[("data.pkl", step("NONE"))]), "damaged"),
    "an empty pickle": (archive(members=[("data.pkl", b"")]), "damaged"),
    "bytes after the pickle": (archive(step("NONE"), step("STOP"), b"more"), "behind its end"),
    "an empty stack": (archive(step("TUPLE2")), "not there"),
    "a mark that is absent": (archive(step("TUPLE")), "mark"),
    "a value that was never kept": (archive(step("BINGET", b"\7")), "never kept"),
    "a registered extension": (archive(step("EXT1", b"\1")), "EXT1"),
    "a buffer from elsewhere": (archive(step("NEXT_BUFFER")), "NEXT_BUFFER"),
    "a call of a text": (archive(call(text("os.system"), text("x"))), "calls a str"),
    "arguments that are no tuple": (archive(name("os", "system"), text("x"), step("REDUCE")), "no tuple"),
    "a list of 2^31 bytes": (archive(step("BINBYTES8", struct.pack("<Q", 2**62) + b"x")), "damaged"),
    "a text of 2^31 bytes": (archive(step("BINUNICODE", struct.pack("<I", 2**31) + b"x")), "damaged"),
    "a million digits": (archive(step("LONG", b"1" * 1_000_000 + b"L\n")), "damaged"),
    "a key that takes forever to hash": (
        archive(step("EMPTY_DICT"), DOUBLED, step("NONE"), step("SETITEM")),
        "too deep",
    ),
    "a key that is a list": (
        archive(step("EMPTY_DICT"), step("EMPTY_LIST"), step("NONE"), step("SETITEM")),
        "is a list",
    ),
    "keys that collide": (
        archive(step("EMPTY_DICT"), number(2**61 - 1 << 9), step("NONE"), step("SETITEM")),
        "64 bits",
    ),
    "a set that takes forever": (archive(step("MARK"), DOUBLED, step("FROZENSET")), "too deep"),
    "a text encoded over and over": (
        archive(
            text("x" * 9999),
            step("BINPUT", b"\1"),
            *[call(name("_codecs", "encode"), step("BINGET", b"\1"), text("latin1"))] * 99,
        ),
        "unfold to more",
    ),
    "a list made a set over and over": (
        archive(
            *(step("MARK"), step("NEWTRUE") * 9999, step("LIST"), step("BINPUT", b"\1")),
            *[call(name("builtins", "set"), step("BINGET", b"\1"))] * 999,
        ),
        "unfold to more",
    ),
    "a depth of 100,000 tuples": (archive(nested(10**5, step("NONE"), step("TUPLE1"))), "nested"),
    "a depth of 20,000 dicts": (
        archive(
            nested(
                20_000, step("NONE"), step("EMPTY_DICT") + text("k") + step("NONE") + step("SETITEM") + step("TUPLE2")
            )
        ),
        "nested",
    ),
    "a depth of calls": (archive(nested(20_000, name("a", "b"), step("EMPTY_TUPLE") + step("REDUCE"))), "nested"),
}


def hostile_tuple_of_itself():
    """A tuple that holds a list that holds the tuple."""
    memo = step("EMPTY_LIST") + step("BINPUT", b"\0") + step("TUPLE1") + step("BINPUT", b"\1")
    return archive(
        memo, step("BINGET", b"\0"), step("BINGET", b"\1"), step("APPEND"), step("POP"), step("BINGET", b"\1")
    )


REFUSED["a tuple of itself"] = (hostile_tuple_of_itself(), "holds itself")


def refused(path, message=""):
    """Reading gives one line: path, what, mend; exit code 4."""
    with pytest.raises(IntegrityError) as fault:
        read_torch(path)
    told(path, fault.value)
    assert message in str(fault.value)


def told(path, fault):
    line = str(fault)
    assert line.startswith(f"{path}: "), line
    assert line.isprintable(), line  # so it is one line
    assert "; " in line, line
    assert len(line) < 400, line
    assert fault.exit_code == 4


def repeated(data, member):
    """The archive with one more line in its directory: a second member of that name."""
    raw = io.BytesIO(data)
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(raw, "a") as file:
        file.writestr(member, b"other")
    return raw.getvalue()


@pytest.mark.parametrize("kind", REFUSED)
def test_bombs_and_lies_are_refused_in_one_line(kind, tmp_path):
    data, message = REFUSED[kind]
    path = tmp_path / "a.pth"
    path.write_bytes(data)
    start = time.process_time()
    refused(path, message)
    assert time.process_time() - start < 20


def test_the_command_refuses_bombs_and_lies_and_writes_nothing(tmp_path, capsys):
    path, out = tmp_path / "a.pth", tmp_path / "out"
    for data, _ in REFUSED.values():
        path.write_bytes(data)
        assert run(["import", str(path), "--out", str(out), "--levels", "8,5,5,5"]) == 4
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith(f"error: {path}: ")
        assert said.err.count("\n") == 1
        assert not out.exists()


def test_a_member_that_is_there_twice_is_refused(tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(repeated(archive(tensor()), "a/data/0"))
    refused(path, "'a/data/0' is there twice")


def test_members_that_overlap_are_refused(tmp_path):
    """Three names for the same 100,000 bytes: a small file that would unfold to a large one."""
    raw = bytearray(archive(tensor(), members=[(f"data/{i}", bytes(100_000 if i == 1 else 4)) for i in range(4)]))
    lines = [place for place in range(len(raw)) if raw[place : place + 4] == b"PK\x01\x02"]
    whole = next(place for place in lines if raw[place + 46 :].startswith(b"a/data/1"))
    for place in lines[-2:]:
        raw[place + 16 : place + 28] = raw[whole + 16 : whole + 28]  # checksum and both sizes
    path = tmp_path / "a.pth"
    path.write_bytes(bytes(raw))
    refused(path, "overlap")


@pytest.mark.parametrize("kind", INERT)
def test_what_would_run_elsewhere_is_a_record_here(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.pth"
    path.write_bytes(INERT[kind])
    read_torch(path)
    assert [file.name for file in tmp_path.iterdir()] == ["a.pth"]


WATCHED = """
import sys
from pathlib import Path
from smalti.errors import IntegrityError
from smalti.inert import read_torch, tensors
from smalti.inert.torchfile import open_torch
folder = Path(sys.argv[1])
paths = sorted(folder.glob("*.pth"))
def read(path):
    try:
        tree = read_torch(path)
        tensors(tree)
    except IntegrityError:
        return
read(folder / "warm.pth")
events, current = [], None
def watch(event, args):
    if current is None or event == "builtins.id":
        return
    if not (event == "open" and str(args[0]) == str(current)):
        events.append((current.name, event, str(args)[:200]))
sys.addaudithook(watch)
for path in paths:
    current = path
    read(path)
current = None
print(events or f"{len(paths)} files, nothing but themselves opened")
"""


def test_no_import_no_call_and_no_other_file(tmp_path):
    """Python's audit events while every file of this module is read: one `open` of that file each, and nothing else."""
    torch.save({"a": torch.zeros(3), "b": {1: [None]}}, tmp_path / "warm.pth")
    files = {**INERT, **{kind: data for kind, (data, _) in REFUSED.items()}}
    for number, data in enumerate(files.values()):
        (tmp_path / f"{number:03}.pth").write_bytes(data)
    command = [sys.executable, "-c", WATCHED, str(tmp_path)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == f"{len(files) + 1} files, nothing but themselves opened"


def test_the_watch_would_see_a_shell_and_an_import(tmp_path):
    """The same watch around pickle itself sees what the files of this module do there."""
    (tmp_path / "warm.pth").write_bytes(INERT["a shell"])
    (tmp_path / "a.pth").write_bytes(call(name("os", "system"), text(f"touch {CANARY}")) + step("STOP"))
    program = WATCHED.replace("tree = read_torch(path)", "import pickle; tree = pickle.loads(path.read_bytes())")
    program = program.replace("except IntegrityError", "except Exception")
    command = [sys.executable, "-c", program, str(tmp_path)]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=with_tests())
    assert "os.system" in found.stdout, found
    assert "pickle.find_class" in found.stdout, found
    assert (tmp_path / CANARY).exists()


def with_tests():
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_a_billion_laughs_without_tensors_have_no_names(tmp_path):
    (tmp_path / "a.pth").write_bytes(INERT["a billion laughs"])
    assert tensors(read_torch(tmp_path / "a.pth")) == {}


@pytest.mark.parametrize("inner", [b"", step("EMPTY_LIST"), step("NONE") * 9], ids=["", "list", "values"])
def test_names_of_a_billion_laughs_of_tensors_are_refused(inner, tmp_path, monkeypatch):
    monkeypatch.setattr(tree_of_inert, "VISITS", 20_000)  # a million take half a minute where types are checked
    path = tmp_path / "a.pth"
    path.write_bytes(
        archive(nested(60, tensor(), step("DUP") + step("MARK") + inner + step("POP_MARK") + step("TUPLE2")))
    )
    tree = read_torch(path)
    with pytest.raises(IntegrityError, match="over and over"):
        tensors(tree)
    with pytest.raises(IntegrityError, match=r"a\.pth: .*over and over"):
        open_torch(path).tensors()
    assert len(repr(open_torch(path))) < 1000


def test_absent_files_and_folders(tmp_path):
    with pytest.raises(InputError, match=r"none\.pth: no such file; "):
        read_torch(tmp_path / "none.pth")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="no such file"):
        read_torch(tmp_path / "file" / "below.pth")
    with pytest.raises(InputError, match="a folder; "):
        read_torch(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="no regular file"):
        read_torch(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git lfs pull"),
        (b"<!DOCTYPE html><html><head><title>Sign in</title>", "a web page"),
        (b"\n\n<html>", "a web page"),
        (struct.pack("<Q", 20) + b'{"a":{"dtype":"F32"}', "safetensors"),
        (b"\x1f\x8b\x08" + bytes(99), "gzip"),
        (bytes(257) + b"ustar" + bytes(300), "tar"),
        (b"hello, world", "no file of torch.save"),
        (bytes(5000), "no file of torch.save"),
        (pickle.dumps({"a": 1}) + b"more", "not written by torch.save"),
        (b"PK\x03\x04" + bytes(99), "directory is missing"),
        (b"PK\x05\x06" + bytes(18), "0 data.pkl"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_things_in_place_of_the_file_are_told(data, message, tmp_path):
    (tmp_path / "a.pth").write_bytes(data)
    refused(tmp_path / "a.pth", message)


def small_file(path, zipped=True):
    tree = {
        "state_dict": {f"layer.{i}.weight": torch.randn(3, i + 1) for i in range(6)},
        "meta": {"cfg": "model = 1\n" * 9, "epoch": 7, "betas": (0.5, 0.9), "bytes": b"\x00\xff"},
    }
    torch.save(tree, path, _use_new_zipfile_serialization=zipped)
    return path.read_bytes()


def tree_or_none(path):
    """The tree, or None for an IntegrityError as it should be."""
    try:
        tree = read_torch(path)
        tensors(tree)
    except IntegrityError as error:
        fault = error
    else:
        return tree
    if "over and over" not in str(fault):  # `tensors` knows no path
        told(path, fault)
    return None


def known_or_refused(path, wanted):
    """Whether it gave the tree that was written; else IntegrityError: never another error, never other values."""
    found = tree_or_none(path)
    if found is None:
        return False
    assert found["meta"] == wanted["meta"]
    names = tensors(found)
    assert names.keys() == tensors(wanted).keys()
    assert all(torch.equal(names[key], value) for key, value in tensors(wanted).items())
    return True


def mutated(data, dice):
    """One of: a flipped bit, a byte of 0 or 255, a piece cut out, doubled, moved, or of noise; a short end."""
    start = dice.randrange(len(data))
    piece = slice(start, start + dice.choice([1, 2, 8, 64, 700]))
    kind = dice.randrange(7)
    if kind == 0:
        return data[:start] + bytes([data[start] ^ 1 << dice.randrange(8)]) + data[start + 1 :]
    if kind == 1:
        return data[:start] + bytes([dice.choice([0, 255])]) + data[start + 1 :]
    if kind == 2:
        return data[: piece.start] + data[piece.stop :]
    if kind == 3:
        return data[: piece.stop] + data[piece] + data[piece.stop :]
    if kind == 4:
        place = dice.randrange(len(data))
        rest = data[: piece.start] + data[piece.stop :]
        return rest[:place] + data[piece] + rest[place:]
    if kind == 5:
        return data[: piece.start] + dice.randbytes(len(data[piece])) + data[piece.stop :]
    return data[:start]


def test_a_changed_file_gives_what_was_written_or_is_refused(tmp_path):
    path = tmp_path / "a.pth"
    data = small_file(path)
    wanted = read_torch(path)
    dice = random.Random(0)
    outcomes = []
    for _ in range(600):
        path.write_bytes(mutated(data, dice))
        outcomes.append(known_or_refused(path, wanted))
    assert outcomes.count(False) > 300  # the rest hit what nobody reads: times, padding, other members


def test_a_changed_old_file_gives_a_tree_or_is_refused(tmp_path):
    """The old format has no checksums, so values may differ; nothing else may happen."""
    path = tmp_path / "a.pth"
    data = small_file(path, zipped=False)
    dice = random.Random(1)
    count = 0
    for _ in range(600):
        path.write_bytes(mutated(data, dice))
        count += tree_or_none(path) is None
    assert count > 100


@pytest.mark.parametrize("file", ["small", "mm_envelope_fullkeys_3d.pth"])
def test_a_changed_pickle_with_the_right_checksum_gives_a_tree_or_is_refused(file, tmp_path):
    """Mutations that no checksum tells: an attacker writes the checksum too."""
    path = tmp_path / "a.pth"
    raw = small_file(path) if file == "small" else (rule.FOLDER / file).read_bytes()
    with zipfile.ZipFile(io.BytesIO(raw)) as whole:
        members = {entry.filename: whole.read(entry) for entry in whole.infolist()}
    key = next(entry for entry in members if entry.endswith("/data.pkl"))
    pickled, dice = members[key], random.Random(2)
    for _ in range(1500 if file == "small" else 15):
        changed = pickled
        for _ in range(dice.choice([1, 1, 2, 5])):
            changed = mutated(changed, dice) or pickled
        with zipfile.ZipFile(path, "w") as target:
            for entry, content in members.items():
                target.writestr(entry, changed if entry == key else content)
        tree_or_none(path)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_file_cut_short_anywhere_is_refused(zipped, tmp_path):
    path = tmp_path / "a.pth"
    data = small_file(path, zipped)
    for length in range(0, len(data), 11 if zipped else 7):
        path.write_bytes(data[:length])
        refused(path)


def test_an_envelope_cut_short_is_refused(tmp_path):
    data = (rule.FOLDER / "mm_envelope_tiny2d.pth").read_bytes()
    path = tmp_path / "a.pth"
    for length in [1, 3, 4, 100, *range(5000, len(data), 20011), len(data) - 1]:
        path.write_bytes(data[:length])
        refused(path)


def test_old_files_that_lie_are_refused(tmp_path):
    path = tmp_path / "a.pth"
    torch.save([torch.arange(3), torch.arange(4.0)], path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    cases = {
        b"little_endianq\x02\x88": (b"little_endianq\x02\x89", "little-endian"),
        struct.pack("<q", 3) + struct.pack("<q", 0): (struct.pack("<qq", 2**60, 0), "has 1152921504606846976 values"),
        b"M\xe9\x03.": (b"M\xe8\x03.", "version 1000"),
    }
    for old, (new, message) in cases.items():
        assert data.count(old) == 1
        path.write_bytes(data.replace(old, new))
        refused(path, message)
    path.write_bytes(data + b"more")
    refused(path, "behind its last storage")
