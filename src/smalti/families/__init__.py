"""Checkpoints of other projects, as tokenizers of ours: one file a family."""

from smalti.families.checkpoint import Imported, ImportReport, import_checkpoint

__all__ = ["ImportReport", "Imported", "import_checkpoint"]
