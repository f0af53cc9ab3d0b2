"""Checkpoints of other projects, as tokenizers of ours."""

from smalti.families.checkpoint import Imported, Report, import_checkpoint

__all__ = ["Imported", "Report", "import_checkpoint"]
