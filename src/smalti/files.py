"""Files that are whole or absent, and known by their content.

A file or folder is written under a temporary name beside its target, flushed to the disk, and renamed: a reader sees
the old one or the new one. A folder ends with a manifest of sizes and sha256, written last.
"""

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from smalti.errors import ConfigError, EnvironmentFault, InputError, IntegrityError

MANIFEST = "manifest.json"
FORMAT_VERSION = 1


def fault(name: str) -> None:
    """Die here by SIGKILL if the environment asks for it; the fault tests kill at exact places this way."""
    if os.environ.get("SMALTI_FAULT") == name:
        os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals into one line that names the file and the mend."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        mend = {28: "free some space and run again", 13: "check its permissions", 30: "write elsewhere"}
        raise EnvironmentFault(f"{path}: {reason}. {mend.get(error.errno or 0, 'Check the path and the disk')}.") from error


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    with told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            fault("write_bytes:before-rename")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        _sync_folder(path.parent)


def write_json(path: Path, data: object) -> None:
    """Write JSON whole or not at all."""
    write_bytes(path, (json.dumps(data, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read JSON; IntegrityError if it is not."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{path}: not valid JSON ({error}); the file is damaged or of another program") from None


@contextmanager
def new_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """A folder that appears at `path` whole, with its manifest, when the block ends without an error.

    Raises ConfigError where `path` is there and `replace` is not set.
    """
    if path.exists() and not replace:
        raise ConfigError(f"{path}: is there already; choose another name")
    with told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
    try:
        yield part
        with told(path):
            fault("new_folder:before-manifest")
            write_json(part / MANIFEST, manifest(part))
            for file in part.rglob("*"):
                _sync(file)
            _sync_folder(part)
            fault("new_folder:before-rename")
            if path.exists():
                old = path.with_name(f".{path.name}.{os.getpid()}.old")
                path.rename(old)
                part.rename(path)
                shutil.rmtree(old)
            else:
                part.rename(path)
            _sync_folder(path.parent)
            fault("new_folder:after-rename")
    finally:
        shutil.rmtree(part, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed writer left under temporary names in `folder`, unless the writer is alive."""
    for part in (*folder.glob(".*.part"), *folder.glob(".*.old")):
        process = part.name.rsplit(".", 2)[-2]
        if process.isdigit() and not _alive(int(process)):
            shutil.rmtree(part, ignore_errors=True)
            with suppress(OSError):
                part.unlink(missing_ok=True)


def manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every file in `folder` but the manifest itself."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {str(p.relative_to(folder)): {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in files}


def check_manifest(folder: Path) -> None:
    """Raise IntegrityError, naming the file, unless `folder` holds exactly what its manifest says."""
    if not (folder / MANIFEST).is_file():
        raise IntegrityError(f"{folder}: has no {MANIFEST}: it was never finished; use an earlier one")
    wanted, found = read_json(folder / MANIFEST), manifest(folder)
    if not isinstance(wanted, dict):
        raise IntegrityError(f"{folder / MANIFEST}: not a manifest")
    for name in sorted({*wanted, *found}):
        if wanted.get(name) != found.get(name):
            what = "is missing" if name not in found else "is not listed" if name not in wanted else "has changed"
            raise IntegrityError(f"{folder / name}: {what} since it was written; use another copy")


def sha256(path: Path) -> str:
    """The digest of a file's bytes."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, whole or not at all."""
    write_bytes(path, safetensors.torch.save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read safetensors; InputError if absent, IntegrityError if it is not a whole safetensors file. Runs no code."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.stat().st_size < 1024 and path.read_bytes().startswith(b"version https://git-lfs"):
        raise IntegrityError(f"{path}: a git-lfs pointer, not the weights; run `git lfs pull`")
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, ValueError, KeyError, OSError) as error:
        raise IntegrityError(f"{path}: not a whole safetensors file ({error})") from None


def fingerprint(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """The sha256 of a config and of every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # a folder cannot be opened elsewhere
        _sync(folder)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
