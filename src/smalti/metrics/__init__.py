"""Scores of reconstructions, each under a named protocol."""

from smalti.metrics.codebook import CodebookUse, Usage
from smalti.metrics.contact_sheet import contact_sheet
from smalti.metrics.evaluate import Scores, evaluate
from smalti.metrics.features import Features
from smalti.metrics.folders import compare_folders
from smalti.metrics.frechet import FrechetDistance, Moments, frechet_distance
from smalti.metrics.generation import score_generated
from smalti.metrics.generation_report import (
    NAMED_GENERATION,
    SMALTI_GENERATION,
    SMALTI_GENERATION_VIDEO,
    SMALTI_GFID,
    SMALTI_GFVD,
    GeneratedSet,
    GenerationProtocol,
    GenerationReport,
    Spread,
    generation_by_name,
)
from smalti.metrics.inception_score import InceptionScore, inception_score
from smalti.metrics.perceptual import Perceptual
from smalti.metrics.precision_recall import Balls, density_coverage, precision_recall
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
from smalti.metrics.weights import find_features, read_features

__all__ = [
    "MAGICMASTER_FID",
    "MAGICMASTER_FVD",
    "MAGICMASTER_PSNR",
    "MINDONE_PSNR",
    "MINDONE_PSNR_IMAGES",
    "NAMED",
    "NAMED_GENERATION",
    "OPEN_MAGVIT2",
    "SMALTI",
    "SMALTI_FID",
    "SMALTI_FRECHET",
    "SMALTI_FVD",
    "SMALTI_GENERATION",
    "SMALTI_GENERATION_VIDEO",
    "SMALTI_GFID",
    "SMALTI_GFVD",
    "Balls",
    "CodebookUse",
    "Features",
    "Frechet",
    "FrechetDistance",
    "GeneratedSet",
    "GenerationProtocol",
    "GenerationReport",
    "InceptionScore",
    "Moments",
    "Perceptual",
    "Protocol",
    "Report",
    "Row",
    "Scores",
    "Spread",
    "Usage",
    "by_name",
    "compare_folders",
    "contact_sheet",
    "density_coverage",
    "evaluate",
    "find_features",
    "frechet_distance",
    "generation_by_name",
    "inception_score",
    "precision_recall",
    "read_features",
    "score_generated",
]
