"""Tokenizers by name, ours and those of other projects: one file a family."""

from smalti.families.checkpoint import Imported, ImportReport, import_checkpoint
from smalti.families.open import load

__all__ = ["ImportReport", "Imported", "import_checkpoint", "load"]
