"""Errors that a user can fix, each with the exit code of the command line.

A message is one line: what is wrong, where (file, field, row), and how to fix it.
"""

from smalti.text import escape


class SmaltiError(Exception):
    """A fault with a one-line message and a fixed exit code."""

    exit_code = 70

    def __str__(self) -> str:
        """Return the message on one line, also where it shows a name from a file that has line breaks in it."""
        return escape(super().__str__())


class ConfigError(SmaltiError):
    """Wrong usage: an unknown or ill-typed field, contradicting options. Exit code 2."""

    exit_code = 2


class InputError(SmaltiError):
    """Input data that cannot be used: missing, unreadable, too small. Exit code 3."""

    exit_code = 3


class IntegrityError(SmaltiError):
    """A checkpoint or shard whose content is not what it claims to be. Exit code 4."""

    exit_code = 4


class MachineError(SmaltiError):
    """Something that this machine lacks: disk full, device absent, package missing, permission denied. Exit code 5."""

    exit_code = 5


class PeerFailed(MachineError):
    """Another process of this run has ended or does not answer. Empty where another process tells of it."""


class BadTensor(InputError, ValueError):
    """A tensor that cannot be right: its type, shape or device, its range, NaN. Also a ValueError, as torch's own."""


class BadFile(InputError):
    """One input file that cannot be used. Callers name and count it, and go on with the rest."""

    def __init__(self, path: object, code: str, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = str(path)
        self.code = code
        """Short kind of the fault, stable across versions: `truncated`, `empty`, `bomb`, `no-video`, ..."""
        self.message = message

    def bare(self) -> "BadFile":
        """Return the fault without its traceback, to be kept: the frames there hold images and tensors."""
        self.__traceback__ = self.__context__ = None
        return self

    def plain(self) -> dict[str, str]:
        """Return path, code and message as plain data."""
        return {"path": self.path, "code": self.code, "message": self.message}

    def __reduce__(self) -> tuple[type["BadFile"], tuple[str, str, str]]:
        return type(self), (self.path, self.code, self.message)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that there is no memory left, on a CPU or another device."""
    # torch is not imported for the name of its error; on a CPU it raises a RuntimeError that names its allocator, and
    # oneDNN cannot create its primitives.
    words = ("DefaultCPUAllocator", "could not create a ", "out of memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and (type(error).__name__ == "OutOfMemoryError" or any(word in str(error) for word in words))
    )
