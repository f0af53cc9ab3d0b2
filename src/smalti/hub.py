"""Faults of the Hugging Face hub in words."""

from pathlib import Path

_LIBRARIES = ("httpx", "httpx2", "requests", "hf_xet", "huggingface_hub")
"""Libraries whose errors the hub's client lets through: it has another one for HTTP in each of its great versions."""
_BROKEN = ("RemoteProtocolError", "ReadError", "ReadTimeout", "ChunkedEncodingError", "ContentDecodingError")
"""Kinds of error in the middle of a transfer, of all these libraries."""


def is_hub_fault(error: Exception) -> bool:
    """Tell an error of the hub, of the network or of the hub's cache from one of the program.

    A transfer that breaks off raises an error of the library for HTTP as it is, which is neither an OSError nor one of
    the hub's client; older versions of hf_xet raise RuntimeError."""
    library = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or type(error) is RuntimeError or library in _LIBRARIES


def hub_fault(error: Exception) -> str:
    """Return the end of a sentence that begins "the hub"; the error's own text is several lines about its cache."""
    from huggingface_hub.constants import HF_HUB_OFFLINE

    response = getattr(error, "response", None)
    if response is not None:
        return f"answered with error {response.status_code}"
    if HF_HUB_OFFLINE:
        return "was not asked, because HF_HUB_OFFLINE is set"
    kind = type(error.__cause__ or error).__name__
    if kind in _BROKEN or "Consistency check failed" in str(error):
        return f"broke off the transfer ({kind}); try again"
    if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError | TimeoutError):
        place = Path(error.filename).parent if error.filename else "its cache"
        return f"sent files that cannot be written to {place} ({error.strerror}); HF_HUB_CACHE names another folder"
    return f"could not be reached ({kind}); check the network"
