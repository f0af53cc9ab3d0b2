"""Scores of reconstructions, each under a named protocol."""

from smalti.metrics.codebook import CodebookUse, Usage
from smalti.metrics.evaluate import Scores, compare_folders, evaluate
from smalti.metrics.frechet import FrechetDistance, Moments, frechet_distance
from smalti.metrics.perceptual import Perceptual
from smalti.metrics.protocols import MINDONE, MINDONE_IMAGE, OPEN_MAGVIT2, SMALTI, Protocol, by_name
from smalti.metrics.report import Report, Row
from smalti.metrics.sheet import contact_sheet

__all__ = [
    "MINDONE",
    "MINDONE_IMAGE",
    "OPEN_MAGVIT2",
    "SMALTI",
    "CodebookUse",
    "FrechetDistance",
    "Moments",
    "Perceptual",
    "Protocol",
    "Report",
    "Row",
    "Scores",
    "Usage",
    "by_name",
    "compare_folders",
    "contact_sheet",
    "evaluate",
    "frechet_distance",
]
