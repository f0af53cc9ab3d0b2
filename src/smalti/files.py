"""Files that are whole or absent, and known by their content.

A file or folder is written under a temporary name beside its target, flushed to the disk, and renamed: a reader sees
the old one or the new one. A folder ends with a manifest of sizes and sha256, written last.
"""

import ctypes
import errno
import hashlib
import json
import os
import platform
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

import safetensors.torch
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from torch import Tensor

from smalti.errors import ConfigError, InputError, IntegrityError, MachineError

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
_LARGEST_HEADER = 8 << 20
_LONGEST_NAME = 255
"""Bytes of the name of a file: the limit of the usual file systems."""
_REMEDIES = {
    errno.ENOSPC: "Free some space and run again",
    errno.EDQUOT: "Free some of your quota and run again",
    errno.EFBIG: "Raise the limit on file sizes (ulimit -f) or write elsewhere",
    errno.EACCES: "Check its permissions",
    errno.EPERM: "Check its permissions",
    errno.EROFS: "Write elsewhere",
}


def failpoint(name: str) -> None:
    """Die here by SIGKILL if SMALTI_FAULT asks for it: NAME, or NAME@N for the N-th time that a process comes here. The
    fault tests kill at exact places this way."""
    wanted, _, times = os.environ.get("SMALTI_FAULT", "").partition("@")
    if wanted == name:
        if times in ("", "1"):
            os.kill(os.getpid(), signal.SIGKILL)
        os.environ["SMALTI_FAULT"] = f"{name}@{int(times) - 1}"


@contextmanager
def naming_os_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals into one line that names the file and how to fix it."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "Check the path and the disk")
        raise MachineError(f"{path}: {error.strerror or error}. {remedy}.") from error


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that appears at `path` whole when the block ends without an error, or not at all."""
    with naming_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = _beside(path, "part")
        try:
            with part.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            failpoint("write_bytes:before-rename")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        _sync_folder(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    with new_file(path) as file:
        file.write(data)


def write_json(path: Path, data: object) -> None:
    """Write JSON whole or not at all."""
    write_bytes(path, (json.dumps(data, indent=2) + "\n").encode())


def unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of JSON, as `object_pairs_hook`. Raises ValueError for a key that is there twice, of which Python
    takes the last."""
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a key is there twice")
    return result


def read_json(path: Path) -> Any:
    """Read JSON; IntegrityError if it is not, or an object has a key twice."""
    try:
        with naming_os_errors(path):
            return json.loads(path.read_bytes(), object_pairs_hook=unique_keys)
    except MachineError as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            raise InputError(f"{path}: no such file") from None
        raise
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{path}: not valid JSON ({error}); the file is damaged or of another program") from None


def read_rows(path: Path, *fields: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a .jsonl file, none where there is no file. A line that a kill cut short is passed over, and a
    row without one of `fields` or whose `step` is no whole number."""
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            row = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and row.keys() >= {*fields} and type(row.get("step", 0)) is int:
            yield row


@contextmanager
def new_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Open a folder that appears at `path` whole, with its manifest, when the block ends without an error.

    With `replace`, an existing folder is exchanged for the new one in one step, and only then deleted. Raises
    ConfigError if `path` exists and `replace` is not set, or if it is a file.
    """
    if path.exists() and not (replace and path.is_dir()):
        raise ConfigError(f"{path}: {'is a file' if path.is_file() else 'already exists'}; choose another name")
    target = path.resolve()  # a link stays a link to the new folder
    part = _beside(target, "part")
    with naming_os_errors(path):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
    try:
        yield part
        with naming_os_errors(path):
            failpoint("new_folder:before-manifest")
            write_json(part / MANIFEST, manifest(part))
            for file in part.rglob("*"):
                _sync(file)
            _sync_folder(part)
            failpoint("new_folder:before-rename")
            _put_in_place(part, target)
            _sync_folder(target.parent)
            failpoint("new_folder:after-rename")
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold the lock file `path` for the block; ConfigError where another process holds it. It ends with its holder,
    however that dies, and is not taken where the system has no such locks."""
    guard = FileLock(path, timeout=0)
    with naming_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            guard.acquire()
        except Timeout:
            raise ConfigError(
                f"{path.parent}: another process writes here now; wait for it, or choose another name"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):  # a network disk without locks
                raise
    try:
        yield
    finally:
        guard.release()


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed writer of this machine left under temporary names in `folder`, unless the writer is alive.

    An old folder whose replacement never came into place is put back.
    """
    for left in (*folder.glob(".*.part"), *folder.glob(".*.old")):
        name, _, writer = left.name.rpartition(".")[0].rpartition(".")
        host, _, process = writer.rpartition("-")
        if host not in (_host(), "") or not process.isdigit() or _alive(int(process)):
            continue
        target = left.with_name(name[1:])
        with suppress(OSError):
            if left.suffix == ".old" and not target.exists():
                left.rename(target)
            elif left.is_dir() and not left.is_symlink():
                shutil.rmtree(left)
            else:
                left.unlink()


def manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Return size and sha256 of every file in `folder` but the manifest itself."""
    names = sorted(_files(folder))
    return {name: _entry(folder / name) for name in names}


def check_manifest(folder: Path, *, extra: bool = False) -> None:
    """Raise IntegrityError, naming the file, unless `folder` holds what its manifest says.

    Files that are not listed are an error too unless `extra` allows them (a model card beside a model).
    """
    if not (folder / MANIFEST).is_file():
        raise IntegrityError(f"{folder}: has no {MANIFEST}: it was never finished; use an earlier one")
    wanted = read_json(folder / MANIFEST)
    if not isinstance(wanted, dict):
        raise IntegrityError(f"{folder / MANIFEST}: not a manifest")
    with naming_os_errors(folder):
        files = _files(folder)
        for name in sorted(wanted.keys() | (() if extra else files)):
            if name not in files:
                raise IntegrityError(f"{folder / name}: is missing since it was written; use another copy")
            if name not in wanted:
                raise IntegrityError(f"{folder / name}: is not listed in {MANIFEST}; move it elsewhere")
            if wanted[name] != _entry(folder / name):
                raise IntegrityError(f"{folder / name}: has changed since it was written; use another copy")


def _files(folder: Path) -> set[str]:
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    return files - {MANIFEST}


def _entry(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": sha256(file)}


def sha256(path: Path) -> str:
    """Return the digest of a file's bytes."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, Tensor], notes: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors, with `notes` in the header if there are any, whole or not at all."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, safetensors.torch.save(whole, notes))


def read_notes(path: Path) -> dict[str, str]:
    """Read the notes in the header of a safetensors file, as `save_tensors` wrote them. Runs no code."""
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise IntegrityError(f"{path}: not a whole safetensors file ({' '.join(str(error).split())[:160]})") from None


@contextmanager
def hold_interrupt() -> Iterator[None]:
    """Let Ctrl-C take effect at the end of the block, whatever error ends it.

    In safetensors it became a ValueError, as if the file were damaged (1 of 400 interrupted loads of 7 MB).
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    held: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: held.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if held:
            handler(*held[0])


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read safetensors; InputError if absent, IntegrityError if it is not a whole safetensors file or its header has
    more than 8 MiB (80,000 tensors), MachineError where it does not fit the memory. Runs no code."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with naming_os_errors(path), path.open("rb") as file:
        head = file.read(40)
    if head.startswith(b"version https://git-lfs"):
        raise IntegrityError(f"{path}: a git-lfs pointer, not the weights; run `git lfs pull`")
    if (length := int.from_bytes(head[:8], "little")) > _LARGEST_HEADER:
        raise IntegrityError(f"{path}: not a whole safetensors file (a header of {length:,} bytes)")
    try:
        with hold_interrupt():
            return safetensors.torch.load_file(path)
    except MemoryError:
        raise MachineError(f"{path}: there is not enough memory to read it; free some") from None
    except (SafetensorError, ValueError, KeyError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise IntegrityError(f"{path}: not a whole safetensors file ({reason})") from None


def cache_folder() -> Path:
    """Return the folder of files that a user has fetched once: `smalti` in XDG_CACHE_HOME, or in ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if Path(home).is_absolute() else Path.home() / ".cache") / "smalti"


def fingerprint(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 of a config and of every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _host() -> str:
    """Return this machine's name as a part of a file name, of up to 40 characters: on a shared disk, a process number
    alone names no writer."""
    return "".join(c for c in platform.node() if c.isalnum())[:40] or "here"


def _beside(path: Path, suffix: str) -> Path:
    """Return the temporary name of `path`, no longer than a name may be: of a long one the end is its digest."""
    writer, name = f"{_host()}-{os.getpid()}.{suffix}", path.name
    room = _LONGEST_NAME - len(writer) - 2
    if len(data := os.fsencode(name)) > room and suffix == "part":  # the name of an `old` one is needed to put it back
        name = data[: room - 9].decode(errors="ignore") + "~" + hashlib.sha256(data).hexdigest()[:8]
    return path.with_name(f".{name}.{writer}")


def _put_in_place(part: Path, target: Path) -> None:
    """Rename `part` to `target`; the folder that was there, if any, gets the name of `part`."""
    if not target.exists():
        part.rename(target)
    elif not _exchange(part, target):
        old = _beside(target, "old")
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        # Nothing is at `target` now; remove_leftovers would put the old one back.
        failpoint("new_folder:between-renames")
        try:
            part.rename(target)
        except OSError:
            old.rename(target)
            raise
        old.rename(part)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two names in one step, so that there is always something at both; False where the system cannot."""
    if sys.platform != "linux":
        return False
    try:
        swap = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # a C library before 2018
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    done: int = swap(here, os.fsencode(a), here, os.fsencode(b), exchange)
    return done == 0


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
