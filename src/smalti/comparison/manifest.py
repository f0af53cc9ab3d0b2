"""What a bench was asked for, kept in its folder, and the machine that it ran on."""

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from smalti.errors import ConfigError
from smalti.files import read_json, write_json
from smalti.training.config import TokenizerTraining
from smalti.version import __version__

ASKED = "asked.json"


def begin(out: Path, asked: Mapping[str, Any], *, resume: bool) -> None:
    """Keep what was asked in a fresh folder, or see that a folder to go on in was asked the same.

    `asked` holds `contenders`, by name, and `terms`. A bench that goes on may have more contenders and more seeds than
    before: neither changes what another run learns.
    Raises ConfigError where anything else differs, or where there is a bench and `resume` is not set.
    """
    path, plain = out / ASKED, {**asked, "format": 1}
    if path.is_file():
        if not resume:
            raise ConfigError(f"{out}: holds a bench already; give --resume to go on with it, or another --out")
        before = _grown(_in_present_names(read_json(path), str(path)), plain)
        changed = sorted(name for name in {*before, *plain} if before.get(name) != plain.get(name))
        if changed:
            raise ConfigError(f"{out}: was begun with other {', '.join(changed)}; give the same, or another --out")
    write_json(path, plain)


def _in_present_names(before: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return what an earlier version wrote with the names that fields of configs have now."""
    configs = {name: TokenizerTraining.parse(config, where).plain() for name, config in before["contenders"].items()}
    return {**before, "contenders": configs}


def _grown(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked before, with the contenders and the seeds that only `now` has."""
    terms = {**before["terms"], "seeds": max(before["terms"]["seeds"], now["terms"]["seeds"])}
    return {**before, "contenders": {**now["contenders"], **before["contenders"]}, "terms": terms}


def machine(device: torch.device) -> dict[str, Any]:
    """What times depend on."""
    return {
        "smalti": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": str(device),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
