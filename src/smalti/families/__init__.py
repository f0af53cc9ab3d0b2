"""Tokenizers by name, ours and those of other projects: one file a family."""

from smalti.families.checkpoint import Imported, ImportReport, import_checkpoint, load
from smalti.families.published import ZooRow, zoo

__all__ = ["ImportReport", "Imported", "ZooRow", "import_checkpoint", "load", "zoo"]
