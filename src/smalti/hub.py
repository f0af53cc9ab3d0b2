"""Faults of the Hugging Face hub in words."""


def hub_fault(error: Exception) -> str:
    """Return the end of a sentence that begins "the hub"; the error's own text is several lines about its cache."""
    from huggingface_hub.constants import HF_HUB_OFFLINE

    response = getattr(error, "response", None)
    if response is not None:
        return f"answered with error {response.status_code}"
    if HF_HUB_OFFLINE:
        return "was not asked, because HF_HUB_OFFLINE is set"
    return f"could not be reached ({type(error.__cause__ or error).__name__}); check the network"
