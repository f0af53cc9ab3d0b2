"""The format of torch.save before 1.6: pickles one after the other, then every storage. And bare pickles."""

import struct
from io import BufferedReader

from smalti.inert.known import Known
from smalti.inert.machine import Machine, Window
from smalti.inert.records import Fault, Place, shown

MAGIC = 0x1950A86A20F9469CFC6C
VERSION = 1001


def read_legacy(file: BufferedReader, size: int) -> tuple[object, dict[str, Place]]:
    """The tree of an old file or of a bare pickle, and where its storages are. Raises Fault."""
    window = Window(file, size)
    file.seek(0)
    known = Known(size)
    try:
        first = Machine(known).run(window)
    except Fault as fault:
        raise Fault(f"no file of torch.save, or a damaged one: {fault.what}", fault.mend) from None
    if first != MAGIC or isinstance(first, bool):
        if known.storages or file.tell() != size:
            raise Fault("a pickle that was not written by torch.save")
        return first, {}
    version, system, tree, keys = (Machine(known).run(window) for _ in range(4))
    if version != VERSION:
        raise Fault(f"an old torch file of version {shown(version)}, not {VERSION}")
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Fault("its numbers are not little-endian, or it does not say so", "convert it")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise Fault("its list of storages is damaged")
    return tree, _places(file, size, known, keys)


def _places(file: BufferedReader, size: int, known: Known, keys: list[str]) -> dict[str, Place]:
    if len(set(keys)) != len(keys) or set(keys) != set(known.storages):
        raise Fault("its list of storages is not that of its tensors")
    places = {}
    for key in keys:
        header = file.read(8)
        storage = known.storages[key]
        start = file.tell()
        if len(header) < 8 or start + storage.nbytes > size:
            raise Fault(f"it ends before its storage {shown(key)!r} does: the file is cut short", "fetch it again")
        count = struct.unpack("<q", header)[0]
        if count * storage.dtype.itemsize != storage.nbytes:
            raise Fault(f"its storage {shown(key)!r} has {count} values, its pickle says another number")
        places[key] = Place(start, storage.nbytes, None)
        file.seek(start + storage.nbytes)
    if file.tell() != size:
        raise Fault("it has something behind its last storage")
    return places
