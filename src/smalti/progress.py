"""How long work says how far it has come."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """A callback of long work, called after each piece: `progress(done, total, note)`."""

    def __call__(self, done: int, total: int | None = None, note: str = "") -> None:
        """Take note that `done` of `total` pieces are done (None: not known), with a few words."""
