"""Hostile and damaged files: nothing runs, nothing hangs or unfolds, and every fault is one line with path and mend."""

import io
import json
import os
import pickle
import pickletools
import random
import struct
import subprocess
import sys
import zipfile

import pytest
import torch

from smalti.cli.main import run
from smalti.errors import InputError, IntegrityError
from smalti.foreign import read_checkpoint, tensors
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
    "two sizes of one storage": (archive(storage(), step("POP"), storage(count=3)), "two sizes"),
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
    "a negative storage": (archive(storage(count=-4)), "outside of it"),
    "a storage that is absent": (archive(tensor(), members=[("data/0", None)]), "'data/0' is missing"),
    "numbers of the other byte order": (archive(tensor(), members=[("byteorder", b"big")]), "byte order"),
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
    "an empty stack": (archive(step("TUPLE2")), "damaged"),
    "a mark that is absent": (archive(step("TUPLE")), "damaged"),
    "a value that was never kept": (archive(step("BINGET", b"\7")), "not found"),
    "a registered extension": (archive(step("EXT1", b"\1")), "damaged"),
    "a buffer from elsewhere": (archive(step("NEXT_BUFFER")), "out-of-band"),
    "a call of a text": (archive(call(text("os.system"), text("x"))), "calls a str"),
    "arguments that are no tuple": (archive(name("os", "system"), text("x"), step("REDUCE")), "with a str"),
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
    "a text encoded over and over": (
        archive(
            text("x" * 9999),
            step("BINPUT", b"\1"),
            *[call(name("_codecs", "encode"), step("BINGET", b"\1"), text("latin1"))] * 99,
        ),
        "unfold to more",
    ),
}


def tuple_of_itself():
    """A tuple that holds a list that holds the tuple."""
    memo = step("EMPTY_LIST") + step("BINPUT", b"\0") + step("TUPLE1") + step("BINPUT", b"\1")
    return archive(
        memo, step("BINGET", b"\0"), step("BINGET", b"\1"), step("APPEND"), step("POP"), step("BINGET", b"\1")
    )


def memoized(count):
    """A tuple of 2^count parts, each level kept once; torch's own reader takes 2^count steps to hash it."""
    again = step("BINGET", b"\0") * 2 + step("TUPLE2") + step("BINPUT", b"\0")
    return step("EMPTY_TUPLE") + step("BINPUT", b"\0") + again * count


def pair_as_key(n):
    """An entry of a dict, as two values on the stack."""
    return number(n) + number(-n) + step("TUPLE2") + step("NONE")


MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2)


def old_file(*pickles, version=None):
    """A file of torch.save before 1.6 of these pickles, and no storage."""
    start = [MAGIC, version or pickle.dumps(1001, 2), pickle.dumps({"little_endian": True}, 2)]
    return b"".join([*start, *(step("PROTO", b"\2") + body + step("STOP") for body in pickles)])


REFUSED |= {
    "a key kept over and over": (
        archive(memoized(60), step("EMPTY_DICT"), step("BINGET", b"\0"), step("NONE"), step("SETITEM")),
        "too deep",
    ),
    "pairs as keys without end": (
        archive(step("EMPTY_DICT"), step("MARK"), *map(pair_as_key, range(20_000)), step("SETITEMS")),
        "too long",
    ),
    "values kept under numbers that collide": (
        archive(step("NONE"), *[step("PUT", b"%d\n" % (k * (2**61 - 1))) for k in range(1, 99)]),
        "32 bits",
    ),
    "a bytearray of 2^36 bytes": (archive(step("BYTEARRAY8", struct.pack("<Q", 2**36))), "damaged"),
    "old: storages that take forever to sort": (
        old_file(step("NONE"), step("MARK") + DOUBLED + DOUBLED + step("LIST")),
        "list of storages",
    ),
    "old: a storage of 2^40 values": (
        old_file(tensor(storage(count=2**40)), step("EMPTY_LIST")),
        "unfold to more",
    ),
    "old: a storage that is not there": (
        old_file(tensor(), step("MARK") + text("0") + step("LIST")),
        "damaged",
    ),
    "old: a version that takes forever to tell": (
        old_file(step("NONE"), version=step("PROTO", b"\2") + DOUBLED + step("STOP")),
        "another version",
    ),
}
EITHER = {
    "a tuple of itself": tuple_of_itself(),
    "a set that takes forever": archive(step("MARK"), DOUBLED, step("FROZENSET")),
    "a list made a set over and over": archive(
        *(step("MARK"), step("NEWTRUE") * 9999, step("LIST"), step("BINPUT", b"\1")),
        *[call(name("builtins", "set"), step("BINGET", b"\1"))] * 999,
    ),
    "a bytearray of 2^36 zeros": archive(call(name("builtins", "bytearray"), number(2**36))),
    "a value kept under a high number": archive(step("NONE"), step("LONG_BINPUT", struct.pack("<I", 2**31 - 1))),
    "a depth of 100,000 tuples": archive(nested(10**5, step("NONE"), step("TUPLE1"))),
    "a depth of 20,000 dicts": archive(
        nested(20_000, step("NONE"), step("EMPTY_DICT") + text("k") + step("NONE") + step("SETITEM") + step("TUPLE2"))
    ),
    "a depth of calls": archive(nested(20_000, name("a", "b"), step("EMPTY_TUPLE") + step("REDUCE"))),
    "a billion laughs of tensors": archive(nested(60, tensor(), step("DUP") + step("TUPLE2"))),
    "six million steps": archive(step("NONE") * 6_000_000),
}
"""Read or refused, as it comes; what counts is that it is soon, in little memory, and in one line."""


def assert_one_line(path, line):
    assert line.startswith(f"{path}: "), line
    assert line.isprintable(), line
    assert "; " in line, line
    assert len(line) < 400, line


def refused(path, message=""):
    """Reading gives one line: path, what, mend; exit code 4."""
    with pytest.raises(IntegrityError) as fault:
        read_checkpoint(path)
    assert_one_line(path, str(fault.value))
    assert message in str(fault.value)
    assert fault.value.exit_code == 4


def repeated(data, member):
    """The archive with one more line in its directory: a second member of that name."""
    raw = io.BytesIO(data)
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(raw, "a") as file:
        file.writestr(member, b"other")
    return raw.getvalue()


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


CHILD = """
import json, pickle, resource, sys, time
from pathlib import Path
from smalti.errors import IntegrityError
from smalti.foreign import naming_file, read_checkpoint, tensors
folder = Path(sys.argv[1])
def read(path):
    try:
        tree = read_checkpoint(path)
        with naming_file(path):
            tensors(tree)
        return "read"
    except IntegrityError as error:
        return str(error)
for path in sorted(folder.glob("warm*")):  # codecs are imported when they are first used
    read(path)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30),) * 2)
events, current = [], None
def watch(event, args):
    if current is not None and event not in ("builtins.id", "mmap.__new__"):
        if not (event == "open" and str(args[0]) == str(current)):
            events.append(f"{event} {args}"[:200])
sys.addaudithook(watch)
report = {}
for path in sorted(folder.glob("*.pth")):
    began, events, current = time.process_time(), [], path
    said = read(path)
    current = None
    report[path.name] = [said, time.process_time() - began, events]
print(json.dumps(report))
"""


def in_child(files, tmp_path, program=CHILD):
    """What reading each of these files did in a process of its own: words, CPU seconds, and Python's audit events but
    for the opening of the file itself. 1 GB of addresses is all it gets."""
    torch.save({"a": torch.zeros(3), "b": {1: [None]}}, tmp_path / "warm.zip")
    for protocol in (0, 2, 5):
        (tmp_path / f"warm.{protocol}").write_bytes(pickle.dumps({"é": b"\xff", 2**70: [1.5, "a"]}, protocol))
    (tmp_path / "warm.names").write_bytes(archive(step("NONE")))
    for index, data in enumerate(files.values()):
        (tmp_path / f"{index:03}.pth").write_bytes(data)
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    return dict(zip(files, json.loads(ended.stdout.splitlines()[-1]).values(), strict=True))


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_no_import_no_call_no_other_file_no_hang_and_little_memory(tmp_path):
    hostile = INERT | {kind: data for kind, (data, _) in REFUSED.items()} | EITHER
    report = in_child(hostile, tmp_path)
    for index, (kind, (said, seconds, events)) in enumerate(report.items()):
        assert not events, (kind, events)
        assert seconds < 20, (kind, seconds)
        if said != "read":
            assert_one_line(tmp_path / f"{index:03}.pth", said)
    for kind, (_, message) in REFUSED.items():
        assert message in report[kind][0], (kind, report[kind])
    # What only names code is data: a reader that refuses everything is no reader.
    assert {kind for kind in INERT if report[kind][0] != "read"} <= {"a billion laughs", "a billion laughs of lists"}
    assert not (tmp_path / CANARY).exists()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_the_watch_would_see_a_shell_and_an_import(tmp_path):
    """The same watch around pickle itself sees what the files of this module do there."""
    program = CHILD.replace("tree = read_checkpoint(path)", "tree = pickle.loads(path.read_bytes())")
    program = program.replace("except IntegrityError", "except Exception")
    shell = call(name("os", "system"), text(f"touch {CANARY}")) + step("STOP")
    ((_, _, events),) = in_child({"a shell": shell}, tmp_path, program).values()
    assert any(event.startswith("os.system") for event in events), events
    assert any(event.startswith("pickle.find_class") for event in events), events
    assert (tmp_path / CANARY).exists()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("count", [450, pytest.param(100_000, marks=pytest.mark.slow)])
def test_mutations_run_nothing_hang_nowhere_and_have_typed_errors(count, tmp_path):
    """In a process of its own: an audit hook stays for good. `python -m tests.base.mutations` does it in pieces."""
    command = [sys.executable, "-m", "tests.base.mutations", str(tmp_path / "files"), "--count", str(count)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    done = subprocess.run(
        [*command, "--seconds", "1e9"], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    state = json.loads(done.stdout)
    assert state["done"] == sum(state["outcomes"].values()) == count
    assert not state["faults"], state["faults"][:5]
    assert not state["canary"]
    assert state["slowest"] < 5
    assert state["grown_mb"] < 1000  # 360 MB in 100,000; no file gets more than 1 GB of addresses


def test_absent_files_and_folders(tmp_path):
    with pytest.raises(InputError, match=r"none\.pth: no such file; "):
        read_checkpoint(tmp_path / "none.pth")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="no such file"):
        read_checkpoint(tmp_path / "file" / "below.pth")
    with pytest.raises(InputError, match="a folder; "):
        read_checkpoint(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="no regular file"):
        read_checkpoint(tmp_path / "pipe")


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
        (b"hello, world", "damaged"),
        (bytes(5000), "damaged"),
        (pickle.dumps({"a": 1}) + b"more", "not written by torch.save"),
        (b"PK\x03\x04" + bytes(99), "directory is missing"),
        (b"PK\x05\x06" + bytes(18), "damaged"),
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


def read_or_refused(path, wanted=None):
    """Whether it was read, and then with the values of `wanted`; else it is refused in one line."""
    try:
        tree = read_checkpoint(path)
    except IntegrityError as error:
        assert_one_line(path, str(error))
        return False
    if wanted is not None:
        assert tree["meta"] == wanted["meta"]
        names = tensors(tree)
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
    data, dice = small_file(path), random.Random(0)
    wanted = torch.load(path, weights_only=True)
    count = 0
    for _ in range(600):
        path.write_bytes(mutated(data, dice))
        count += read_or_refused(path, wanted)
    assert 10 < count < 300  # the changes that are read hit what nobody reads: times, padding, other members


def test_a_changed_old_file_gives_a_tree_or_is_refused(tmp_path):
    """The old format has no checksums, so values may differ; nothing else may happen."""
    path = tmp_path / "a.pth"
    data, dice = small_file(path, zipped=False), random.Random(1)
    count = 0
    for _ in range(400):
        path.write_bytes(mutated(data, dice))
        count += read_or_refused(path)
    assert 30 < count < 350


@pytest.mark.parametrize("file", ["small", pytest.param("mm_envelope_fullkeys_3d.pth", marks=pytest.mark.slow)])
def test_a_changed_pickle_with_the_right_checksum_gives_a_tree_or_is_refused(file, tmp_path):
    """Mutations that no checksum tells: an attacker writes the checksum too."""
    path = tmp_path / "a.pth"
    raw = small_file(path) if file == "small" else (rule.FOLDER / file).read_bytes()
    with zipfile.ZipFile(io.BytesIO(raw)) as whole:
        members = {entry.filename: whole.read(entry) for entry in whole.infolist()}
    key = next(entry for entry in members if entry.endswith("/data.pkl"))
    pickled, dice = members[key], random.Random(6)
    rounds = 600 if file == "small" else 15
    count = 0
    for _ in range(rounds):
        changed = pickled
        for _ in range(dice.choice([1, 1, 2, 5])):
            changed = mutated(changed, dice) or pickled
        with zipfile.ZipFile(path, "w") as target:
            for entry, content in members.items():
                target.writestr(entry, changed if entry == key else content)
        count += read_or_refused(path)
    assert 0 < count < rounds


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
        b"M\xe9\x03.": (b"M\xe8\x03.", "another version"),
    }
    for old, (new, message) in cases.items():
        assert data.count(old) == 1
        path.write_bytes(data.replace(old, new))
        refused(path, message)
    path.write_bytes(data + b"more")
    refused(path, "behind its last storage")
