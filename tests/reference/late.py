"""A CPU in the place of a device that decides by itself which steps are skipped."""

import pytest

from smalti.training import optimizer, task


def device_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let optimizers that are made from now on be those of a CUDA device, and runs be read as they are there."""
    for module in (optimizer, task):
        monkeypatch.setattr(module, "decides_alone", lambda device: True)
