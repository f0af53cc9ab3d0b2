"""The text of a TorchScript program is read as data, and never unfolds to more than its archive says."""

import zipfile

import pytest
import torch

from smalti.errors import IntegrityError
from smalti.inert import read_program


def archive(path, members, compression=zipfile.ZIP_DEFLATED):
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
    assert read_program(archive(tmp_path / "a.pt", members)) == "import os\nz"
    assert read_program(archive(tmp_path / "b.pt", members, zipfile.ZIP_STORED)) == "import os\nz"


def test_a_member_that_unfolds_to_more_than_it_says_is_refused(tmp_path):
    path = archive(tmp_path / "a.pt", {"code/a.py": b"0" * 1_000_003})
    small = replaced(path, (1_000_003).to_bytes(4, "little"), (7).to_bytes(4, "little"))
    with pytest.raises(IntegrityError, match=r"a\.pt: .*'code/a\.py' is cut short"):
        read_program(small)


def test_a_large_program_and_a_damaged_one_are_refused(tmp_path):
    with pytest.raises(IntegrityError, match="encrypted, too large"):
        read_program(archive(tmp_path / "a.pt", {"code/a.py": b"0" * ((16 << 20) + 1)}))
    path = archive(tmp_path / "b.pt", {"code/a.py": bytes(torch.arange(256, dtype=torch.uint8).tolist()) * 9})
    data = bytearray(path.read_bytes())
    place = data.index(b"code/a.py") + 20
    data[place] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"b\.pt: "):
        read_program(path)
