"""The settings of a comparison, kept in its folder, and the machine that it runs on."""

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from smalti.errors import ConfigError, IntegrityError
from smalti.files import read_json, write_json
from smalti.training.config import TokenizerTraining
from smalti.version import __version__

SETTINGS = "asked.json"


def prepare_comparison(out: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
    """Write the settings into a fresh folder, or check that a folder to resume in has the same.

    `settings` holds `contenders`, the configs of the variants by name, and `terms`, the budget. A resumed comparison
    may have more variants and more seeds than before: neither changes what another run learns.
    Raises ConfigError if anything else differs, or if there is a comparison and `resume` is not set, IntegrityError for
    a file of settings that is damaged.
    """
    path, plain = out / SETTINGS, {**settings, "format": 1}
    if path.is_file():
        if not resume:
            raise ConfigError(f"{out}: contains a comparison already; pass `resume` to continue it, or another `out`")
        before = read_json(path)
        if not _are_settings(before):
            raise IntegrityError(f"{path}: not the settings of a comparison; restore it, or give another `out`")
        before = _extended(_in_present_names(before, str(path)), plain)
        changed = sorted(name for name in {*before, *plain} if before.get(name) != plain.get(name))
        if changed:
            raise ConfigError(f"{out}: was started with other {', '.join(changed)}; give the same, or another `out`")
    write_json(path, plain)


def _are_settings(plain: object) -> bool:
    """Return whether JSON has the parts of settings that are read before all are compared."""
    if not isinstance(plain, dict) or not isinstance(terms := plain.get("terms"), dict):
        return False
    return isinstance(plain.get("contenders"), dict) and isinstance(terms.get("seeds"), int)


def _in_present_names(before: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return what an earlier version wrote with the present names of fields; a benchmark's variants have no config."""
    configs = {
        name: TokenizerTraining.parse(plain, where).plain() if plain else plain
        for name, plain in before["contenders"].items()
    }
    return {**before, "contenders": configs}


def _extended(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return the former settings, with the variants and the seeds that only `now` has."""
    terms = {**before["terms"], "seeds": max(before["terms"]["seeds"], now["terms"]["seeds"])}
    return {**before, "contenders": {**now["contenders"], **before["contenders"]}, "terms": terms}


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return the versions and hardware that times depend on."""
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
