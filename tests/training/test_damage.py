"""Damaged files: one flipped bit, a cut, a stranger is found, and the line names the file."""

import json
import random
from pathlib import Path

import pytest
import torch

from smalti.errors import InputError, IntegrityError, MachineError, SmaltiError
from smalti.files import (
    MANIFEST,
    check_manifest,
    fingerprint,
    load_tensors,
    new_folder,
    read_json,
    save_tensors,
    write_bytes,
    write_json,
)


def one_line(fault: pytest.ExceptionInfo[SmaltiError], path: Path) -> str:
    message = str(fault.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder as a checkpoint is: files, a folder inside that has its own manifest, an empty file."""
    path = tmp_path_factory.mktemp("whole") / "step-1"
    with new_folder(path) as part:
        save_tensors(part / "model.safetensors", {"w": torch.arange(50.0), "b": torch.arange(6).view(2, 3)})
        write_json(part / "state.json", {"step": 3, "name": "ünï"})
        with new_folder(part / "tokenizer") as inner:
            write_bytes(inner / "weights", bytes(range(256)))
        write_bytes(part / "empty", b"")
    return path


def flip(file: Path, rng: random.Random) -> bytes:
    """Flip one random bit of a file; gives what was there."""
    before = file.read_bytes()
    bit = rng.randrange(8 * len(before))
    after = bytearray(before)
    after[bit // 8] ^= 1 << bit % 8
    file.write_bytes(after)
    return before


def test_one_flipped_bit_in_any_file_is_found_and_the_file_is_named(whole):
    check_manifest(whole)
    rng = random.Random(1)
    targets = [p for p in whole.rglob("*") if p.is_file() and p.stat().st_size]
    assert {p.name for p in targets} == {"model.safetensors", "state.json", "weights", MANIFEST}
    for trial in range(100):
        file = targets[trial % len(targets)]
        before = flip(file, rng)
        with pytest.raises(IntegrityError) as fault:
            check_manifest(whole)
        # A flipped bit of the outer manifest may change the name or the digest of another file, which is then named.
        one_line(fault, whole if file == whole / MANIFEST else file)
        file.write_bytes(before)
    check_manifest(whole)


def test_missing_cut_grown_and_unlisted_files_are_found(whole):
    for file in [p for p in whole.rglob("*") if p.is_file()]:
        before = file.read_bytes()
        for after in (None, before + b"!", before[:-2] if before else b"!"):
            file.unlink()
            if after is not None:
                file.write_bytes(after)
            with pytest.raises(IntegrityError):
                check_manifest(whole)
            file.write_bytes(before)
    stray = whole / "tokenizer" / "notes.md"
    stray.write_text("mine")
    with pytest.raises(IntegrityError, match=r"notes\.md: is not listed in manifest\.json"):
        check_manifest(whole)
    check_manifest(whole, extra=True)
    stray.unlink()
    check_manifest(whole)


@pytest.mark.parametrize("content", [b"", b"[", b"[1]", b"null", b"\xff\xfe", b'"x"', b"[" * 100_000])
def test_a_manifest_that_is_none_is_an_integrity_error(content, tmp_path):
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(IntegrityError) as fault:
        check_manifest(tmp_path)
    one_line(fault, tmp_path / MANIFEST)


def test_tensors_come_back_bit_for_bit(tmp_path):
    rng = torch.Generator().manual_seed(0)
    tensors = {
        f"{dtype}": torch.randn(3, 4, generator=rng).mul(100).to(dtype)
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
    }
    tensors |= {"scalar": torch.tensor(1.5), "none": torch.zeros(0, 3), "turned": torch.randn(4, 3, generator=rng).T}
    save_tensors(tmp_path / "t.safetensors", tensors)
    back = load_tensors(tmp_path / "t.safetensors")
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)
    assert fingerprint({}, back) == fingerprint({}, tensors)


def test_damaged_tensors_are_one_line_or_other_tensors_never_a_crash(tmp_path):
    path = tmp_path / "t.safetensors"
    tensors = {"w": torch.arange(40.0).view(5, 8), "ids": torch.arange(7)}
    save_tensors(path, tensors)
    content, known, rng = path.read_bytes(), fingerprint({}, tensors), random.Random(2)
    header = int.from_bytes(content[:8], "little")
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(IntegrityError) as fault:
            load_tensors(path)
        one_line(fault, path)
    for _ in range(200):
        damaged = bytearray(content)
        damaged[rng.randrange(8 + header)] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            found = load_tensors(path)
        except IntegrityError as error:
            message = str(error)
        else:
            message = "" if fingerprint({}, found) != known else "the same tensors"
        assert "\n" not in message


@pytest.mark.parametrize("content", [b"", b"x", b"\x00" * 8, b"\xff" * 8, b"PK\x03\x04", b"\x80\x02}q\x00."])
def test_a_file_of_another_kind_is_not_tensors(content, tmp_path):
    path = tmp_path / "t.safetensors"
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match="not a whole safetensors file"):
        load_tensors(path)


def test_a_pointer_of_git_lfs_is_told_apart(tmp_path):
    path = tmp_path / "t.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(IntegrityError, match="run `git lfs pull`"):
        load_tensors(path)


def test_an_absent_file_is_an_input_error(tmp_path):
    for read in (load_tensors, read_json):
        with pytest.raises(InputError) as fault:
            read(tmp_path / "absent")
        one_line(fault, tmp_path / "absent")
    with pytest.raises(InputError):
        load_tensors(tmp_path)
    with pytest.raises(MachineError):
        read_json(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"{'a': 1}", b"\xff", b"[" * 100_000, b"\x00"])
def test_what_is_not_json_is_an_integrity_error(content, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(IntegrityError) as fault:
        read_json(path)
    one_line(fault, path)


def test_a_fingerprint_names_content_and_nothing_else():
    rng = torch.Generator().manual_seed(3)
    tensors = {"a": torch.randn(4, 6, generator=rng), "b": torch.arange(5)}
    config = {"x": 1, "y": [1.0, None]}
    known = fingerprint(config, tensors)
    alike = {"b": tensors["b"].clone().requires_grad_(False), "a": tensors["a"].T.contiguous().T}
    assert fingerprint(json.loads(json.dumps(config)), alike) == known
    assert fingerprint({"y": [1.0, None], "x": 1}, tensors) == known
    others = [
        tensors | {"a": tensors["a"].view(6, 4)},
        tensors | {"a": tensors["a"].double()},
        tensors | {"a": tensors["a"].view(torch.int32)},
        tensors | {"c": torch.zeros(0)},
        {"b": tensors["b"], "c": tensors["a"]},
        {"a": tensors["a"]},
    ]
    for bit in range(0, 32 * 24, 41):
        bits = tensors["a"].clone().view(torch.int32)
        bits.view(-1)[bit // 32] ^= torch.tensor(1 << bit % 32).to(torch.int32)
        others.append(tensors | {"a": bits.view(torch.float32)})
    prints = [fingerprint(config, other) for other in others] + [fingerprint({"x": 1, "y": [1, None]}, tensors)]
    assert len({known, *prints}) == len(prints) + 1
