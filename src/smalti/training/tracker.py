"""A run shown by Weights & Biases or Trackio too, beside log.jsonl and TensorBoard."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from smalti.errors import MachineError

TrackerName = Literal["trackio", "wandb"]


class Tracker:
    """A run of the project `smalti` there, under the name of the run folder; a resumed run goes on where it was.

    Where the service keeps its data, and whether it uses the network, is its own setting: `WANDB_MODE=offline`,
    `TRACKIO_DIR`. Raises MachineError where it is not installed.
    """

    def __init__(self, name: TrackerName, folder: Path, config: Mapping[str, Any]) -> None:
        place = str(folder.resolve())
        common = {"project": "smalti", "name": folder.name, "config": dict(config), "resume": "allow"}
        try:
            if name == "wandb":
                import wandb as service

                number = hashlib.sha256(place.encode()).hexdigest()[:16]  # the same for a run that is resumed
                service.init(**common, id=number, dir=place)
            else:
                import trackio as service

                service.init(**common)
        except ImportError:
            raise MachineError(f"tracker {name}: is not installed; `pip install {name}`") from None
        self._service: Any = service

    def write(self, values: Mapping[str, Any], step: int) -> None:
        """Send numbers by name."""
        self._service.log(dict(values), step=step)

    def show(self, name: str, image: Image.Image, step: int) -> None:
        """Send an image."""
        self._service.log({name: self._service.Image(image)}, step=step)

    def close(self) -> None:
        """Send what is left."""
        self._service.finish()
