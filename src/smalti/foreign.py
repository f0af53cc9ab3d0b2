"""Somebody else's file of weights as data: nothing in it is imported, looked up or called.

Read are the zip files of torch.save and TorchScript archives, the format before torch 1.6, bare pickles of plain data
and numpy arrays, and safetensors. Names of foreign classes and functions become `Foreign` records that do nothing.

A tree of dicts, lists and tensors comes back; what a file says of itself is checked before anything is taken from it.
"""

import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from math import prod
from mmap import ACCESS_COPY, mmap
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from smalti.errors import InputError, IntegrityError, MachineError
from smalti.files import load_tensors, naming_os_errors
from smalti.unpickler import Foreign, Unpickler, are_sizes, shown

DIRECTORY = 32 << 20
"""Bytes of the largest zip directory that is read: about half a million members."""
PROGRAM = 16 << 20
"""Bytes of the longest TorchScript program that is read."""
DEPTH, VISITS, REPEATS = 128, 1_000_000, 100_000
"""Levels of the deepest tree that is named, most entries of it, and most of those in parts that were named before."""

_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001  # how files of torch.save before 1.6 begin


def read_checkpoint(path: Path | str) -> Any:
    """Read a file of weights as dicts, lists, tuples, numbers, texts, bytes, CPU tensors and `Foreign` records.

    Tensors of zip files and safetensors are private maps of the file: they cost memory once their values are used. The
    zip's CRC-32 is checked for all of them, if it has any. Raises InputError if there is no such file, MachineError
    if it cannot be opened, IntegrityError if it is damaged or something else.
    """
    path = Path(path)
    with naming_file(path):
        data = _mapped(path)
        head = data[:512]
        _refuse_other_files(head)
        if head[8:10] == b'{"' or path.suffix == ".safetensors":
            return load_tensors(path)
        return _Archive(data).read() if head[:2] == b"PK" else _read_old(data)


def read_program(path: Path | str) -> str:
    """Read the text of the program in a TorchScript archive, empty for other files: to look a number up, never to run.

    Raises as `read_checkpoint` does.
    """
    path = Path(path)
    with naming_file(path):
        data = _mapped(path)
        return _Archive(data).program() if data[:2] == b"PK" else ""


@contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Turn every fault of a file's content within the block into one IntegrityError with the path and how to fix it."""
    try:
        yield
        return
    except IntegrityError as error:
        text = str(error).removeprefix(f"{path}: ")
    except (InputError, MachineError):
        raise
    except MemoryError:
        raise MachineError(f"{path}: there is not enough memory to read it; free some") from None
    except Exception as error:  # whatever the standard library and torch say of damaged bytes
        text = f"damaged, or no file of torch.save ({type(error).__name__}: {shown(error)})"
    raise IntegrityError(f"{path}: {text}{'' if '; ' in text else '; fetch or save it again'}")


def leaves(tree: object) -> list[tuple[str, object]]:
    """List all that is no dict, list or tuple by dotted name: tensors, numbers, texts, numpy arrays (of numbers, as
    views that cannot be written to), records. The parts of a module saved whole are named as its state dict does.

    Raises IntegrityError for a tree that is too deep, or whose parts hold each other over and over.
    """
    entries: list[tuple[str, object]] = []
    above, before = set[int](), set[int]()
    left, left_of_repeats = VISITS, REPEATS

    def collect(node: object, name: str) -> None:
        nonlocal left, left_of_repeats
        array = _array(node) if isinstance(node, Foreign) else None
        parts = [] if array is not None else _branches(node)
        if not parts and not isinstance(node, dict | list | tuple):
            entries.append((name, node if array is None else array))
        cost = len(parts) * (1 + len(name) // 100)
        left -= cost
        if parts and id(node) in before:  # by these a small file grows without end
            left_of_repeats -= cost
        before.add(id(node))
        if min(left, left_of_repeats) < 0:
            raise IntegrityError("its parts hold each other over and over; read one part alone")
        if len(above) >= DEPTH:
            raise IntegrityError(f"nested deeper than {DEPTH} levels; read one part alone")
        above.add(id(node))
        for part, value in parts:
            if id(value) not in above:
                collect(value, f"{name}.{part}" if name else part)
        above.discard(id(node))

    collect(tree, "")
    return entries


def tensors(tree: object) -> dict[str, Tensor]:
    """Collect the tensors of a tree by dotted name. Raises as `leaves` does, and where two have one name."""
    result: dict[str, Tensor] = {}
    for name, leaf in leaves(tree):
        if isinstance(leaf, Tensor) and result.setdefault(name, leaf) is not leaf:
            raise IntegrityError(f"two tensors have the name {shown(name)!r}; read one part alone")
    return result


def _branches(node: object) -> list[tuple[str, object]]:
    if isinstance(node, dict):
        return [(str(name), value) for name, value in node.items() if isinstance(name, str | int)]
    if isinstance(node, list | tuple):
        return [(str(index), value) for index, value in enumerate(node)]
    if not isinstance(node, Foreign):
        return []
    if isinstance(node.state, dict) and isinstance(node.state.get("_modules"), dict):
        parts = [node.state.get(part) for part in ("_parameters", "_buffers", "_modules")]
        return [pair for part in parts for pair in _branches(part)]
    return _branches(node.state) + _branches(node.items)


def _mapped(path: Path) -> mmap:
    with naming_os_errors(path):
        try:
            mode = path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"{path}: no such file; check the path") from None
        if not stat.S_ISREG(mode):
            raise InputError(
                f"{path}: {'a folder' if stat.S_ISDIR(mode) else 'no regular file'}; give the file of weights"
            )
        if path.stat().st_size == 0:
            raise IntegrityError("it is empty; fetch it again")
        with path.open("rb") as file:
            return mmap(file.fileno(), 0, access=ACCESS_COPY)


def _refuse_other_files(head: bytes) -> None:
    """Tell what often lies in place of the weights, by its first bytes."""
    if head.startswith(b"version https://git-lfs"):
        raise IntegrityError("a git-lfs pointer, not the file; run `git lfs pull`, or fetch the file itself")
    if re.match(rb"\s*<(!doctype|html|\?xml|head)", head, re.IGNORECASE):
        raise IntegrityError("a web page, not the file; fetch the file itself, perhaps after a login")
    if head[257:262] == b"ustar":
        raise IntegrityError("a tar archive: torch.save before 0.1.10, or packed files; unpack it")
    if head[:2] == b"\x1f\x8b":
        raise IntegrityError("packed by gzip; unpack it with gunzip")


class _Archive:
    """A zip file as torch writes it: members stored as they are, one after the other, in one folder.

    All else (duplicates, overlaps, compression, members out of place) is refused, so none unfolds to more than itself.
    """

    def __init__(self, data: mmap) -> None:
        self.data = data
        self.members: dict[str, tuple[zipfile.ZipInfo, int]] = {}
        """Line of the directory and first byte, by name, in the order of the bytes."""
        end, wide = data[-22:], data[-98:-42]
        if end[:4] != b"PK\5\6" or end[-2:] != b"\0\0":
            raise IntegrityError("its zip directory is missing: the file is cut short, or goes on behind its end")
        length = struct.unpack_from("<Q", wide, 40) if wide[:4] == b"PK\6\6" else struct.unpack_from("<I", end, 12)
        if length[0] > DIRECTORY:
            raise IntegrityError(f"its zip directory has {length[0]:,} bytes, more than any saved weights need")
        with zipfile.ZipFile(cast("IO[bytes]", data)) as file:
            place, lines = 0, sorted(file.infolist(), key=lambda line: line.header_offset)
            for line in lines:
                start = self._start(line)
                if line.header_offset < place:
                    raise IntegrityError("its zip members overlap")
                place = start + line.compress_size
                if line.filename in self.members:
                    raise IntegrityError(f"its zip member {shown(line.filename)!r} is there twice")
                self.members[line.filename] = (line, start)
            if place > file.start_dir:
                raise IntegrityError("its zip members reach beyond their end")
        # torch.serialization.set_crc32_options(False) writes 0 for every checksum.
        self.has_checksums = any(line.CRC for line in lines)
        folders = [name[: -len("data.pkl")] for name in self.members if name.endswith("/data.pkl")]
        if len(folders) != 1 or folders[0].count("/") != 1:
            if any(name.endswith("/model.json") for name in self.members):
                raise IntegrityError("a TorchScript file from before torch 1.4; load and save it with a newer torch")
            raise IntegrityError(f"a zip archive with {len(folders)} data.pkl: not written by torch.save")
        self.folder = folders[0]

    def _start(self, line: zipfile.ZipInfo) -> int:
        """Find the first byte of a member, behind its own header."""
        header = self.data[line.header_offset : line.header_offset + 30]
        name_length, extra = struct.unpack_from("<HH", header, 26)
        name = self.data[line.header_offset + 30 : line.header_offset + 30 + name_length]
        encoding = "utf-8" if line.flag_bits & 0x800 else "cp437"
        if header[:4] != b"PK\3\4" or name.decode(encoding) != line.orig_filename:
            raise IntegrityError(f"its member {shown(line.filename)!r} is not where the zip directory says")
        return line.header_offset + 30 + name_length + int(extra)

    def _verify(self, line: zipfile.ZipInfo, content: memoryview | bytes) -> None:
        if len(content) != line.file_size:
            raise IntegrityError(f"its member {shown(line.filename)!r} has another size than the zip directory says")
        if self.has_checksums and zlib.crc32(content) != line.CRC:
            raise IntegrityError(f"the bytes of its member {shown(line.filename)!r} are not those that were written")

    def member(self, name: str) -> memoryview:
        """View the bytes of a member that is stored as it is."""
        if self.folder + name not in self.members:
            raise IntegrityError(f"its member {shown(name)!r} is missing")
        line, start = self.members[self.folder + name]
        if line.compress_type or line.flag_bits & 1 or line.compress_size != line.file_size:
            raise IntegrityError(f"its member {shown(name)!r} is compressed or encrypted, which torch never does")
        content = memoryview(self.data)[start : start + line.file_size]
        self._verify(line, content)
        return content

    def storage(self, key: str, nbytes: int) -> Tensor:
        """View the bytes of a storage. The key is only ever compared with names of members: no path is made of it."""
        content = self.member(f"data/{key}")
        if len(content) != nbytes:
            raise IntegrityError(f"its storage {shown(key)!r} has {len(content)} bytes, its pickle says {nbytes}")
        values = torch.frombuffer(content, dtype=torch.uint8) if nbytes else torch.empty(0, dtype=torch.uint8)
        return values if values.data_ptr() % 64 == 0 else values.clone()  # torch aligns them; others may not

    def read(self) -> Any:
        """Read the tree with its tensors."""
        if self.folder + "byteorder" in self.members and bytes(self.member("byteorder")) != b"little":
            raise IntegrityError("its numbers have another byte order than 'little'; convert it")
        pickled = BytesIO(self.member("data.pkl"))
        size = len(pickled.getbuffer())
        tree = Unpickler(pickled, size, self.storage).load()
        if pickled.tell() != size:
            raise IntegrityError("its pickle has something behind its end")
        return tree

    def program(self) -> str:
        """Read the files of a TorchScript program, one after the other, as text."""
        texts, left = [], PROGRAM
        for name, (line, start) in self.members.items():
            if not (name.startswith(self.folder + "code/") and name.endswith(".py")):
                continue
            left -= max(line.file_size, line.compress_size)
            if line.compress_type not in (0, 8) or line.flag_bits & 1 or left < 0:
                raise IntegrityError(
                    f"its member {shown(name)!r} is encrypted, too large or packed in a way that torch never has"
                )
            content = self.data[start : start + line.compress_size]
            if line.compress_type == 8:  # at most one byte more than promised, so that nothing unfolds without end
                content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, line.file_size + 1)
            self._verify(line, content)
            texts.append(content.decode("utf-8", "replace"))
        return "\n".join(texts)


def _no_storage(key: str, nbytes: int) -> Tensor:
    raise IntegrityError(f"its pickle refers to a storage of {nbytes} bytes, and the file has none")


def _read_old(data: mmap) -> Any:
    """Read a file of torch.save before 1.6: five pickles one after the other, then every storage. Or a bare pickle."""
    size = len(data)
    first = Unpickler(data, size, _no_storage).load()
    if type(first) is not int or first != _MAGIC:
        if data.tell() != size:
            raise IntegrityError("a pickle that was not written by torch.save")
        return first
    version, system = (Unpickler(data, size, _no_storage).load() for _ in range(2))
    if version != _VERSION:
        raise IntegrityError(f"an old torch file of another version than {_VERSION}")
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise IntegrityError("its numbers are not little-endian, or it does not say so; convert it")

    def allocate(key: str, nbytes: int) -> Tensor:
        unpickler.spend(nbytes)  # the file must hold them all
        return torch.empty(nbytes, dtype=torch.uint8)

    unpickler = Unpickler(data, size, allocate)
    tree = unpickler.load()
    keys = Unpickler(data, size, _no_storage).load()
    if not (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
        raise IntegrityError("its list of storages is damaged")
    if sorted(keys) != sorted(unpickler.storages):
        raise IntegrityError("its list of storages is not that of its tensors")
    for key in keys:
        values = unpickler.storages[key]
        (count,) = struct.unpack("<q", data.read(8))
        start, nbytes = data.tell(), values.numel() * values.itemsize
        if count != values.numel():
            raise IntegrityError(f"its storage {shown(key)!r} has {count} values, its pickle says {values.numel()}")
        if nbytes:
            content = torch.frombuffer(memoryview(data)[start : start + nbytes], dtype=torch.uint8)
            values.view(torch.uint8).copy_(content)
        data.seek(start + nbytes)
    if data.tell() != size:
        raise IntegrityError("it has something behind its last storage")
    return tree


def _array(record: Foreign) -> np.ndarray | None:
    """View the numbers of a record of numpy's; None for texts, objects and the byte order of other machines."""
    match record.name.rpartition(".")[2], record.args, record.state:
        case "_reconstruct", (Foreign(name="numpy.ndarray"), *_), (_, shape, dtype, fortran, data):
            order: Literal["F", "C"] = "F" if fortran else "C"
        case "_frombuffer", (data, dtype, shape, "F" | "C" as order), None:
            pass
        case _:
            return None
    match dtype:
        case Foreign(name="numpy.dtype", args=(str(code), *_), state=(_, "<" | "|", *_)):
            pass
        case _:
            return None
    raw = data.encode("latin-1") if isinstance(data, str) else data
    if not re.fullmatch("b1|[iu][1248]|f[248]|c8|c16", code) or not isinstance(raw, bytes) or not are_sizes(shape):
        return None
    kind = np.dtype(f"<{code}")
    if prod(shape) * kind.itemsize != len(raw):
        raise IntegrityError(f"it has an array of shape {shown(shape)} whose bytes do not fill it")
    return np.frombuffer(raw, kind).reshape(shape, order=order)
