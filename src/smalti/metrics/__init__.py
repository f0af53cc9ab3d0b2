"""Scores of reconstructions, each under a named protocol."""

from smalti.metrics.codebook import CodebookUse, Usage
from smalti.metrics.evaluate import Scores, evaluate
from smalti.metrics.features import Features
from smalti.metrics.folders import compare_folders
from smalti.metrics.frechet import FrechetDistance, Moments, frechet_distance
from smalti.metrics.perceptual import Perceptual
from smalti.metrics.protocols import (
    MAGICMASTER_FID,
    MAGICMASTER_FVD,
    MAGICMASTER_PSNR,
    MINDONE_PSNR,
    MINDONE_PSNR_IMAGES,
    NAMED,
    OPEN_MAGVIT2,
    SMALTI,
    SMALTI_FID,
    SMALTI_FRECHET,
    SMALTI_FVD,
    Protocol,
    by_name,
)
from smalti.metrics.report import Frechet, Report, Row
from smalti.metrics.sheet import contact_sheet
from smalti.metrics.weights import find_features, read_features

__all__ = [
    "MAGICMASTER_FID",
    "MAGICMASTER_FVD",
    "MAGICMASTER_PSNR",
    "MINDONE_PSNR",
    "MINDONE_PSNR_IMAGES",
    "NAMED",
    "OPEN_MAGVIT2",
    "SMALTI",
    "SMALTI_FID",
    "SMALTI_FRECHET",
    "SMALTI_FVD",
    "CodebookUse",
    "Features",
    "Frechet",
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
    "find_features",
    "frechet_distance",
    "read_features",
]
