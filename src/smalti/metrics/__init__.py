"""Scores of reconstructions and of generated sets, each under a named protocol."""

from smalti.metrics.bjontegaard import bd_rate
from smalti.metrics.codebook import CodebookUse, Usage
from smalti.metrics.contact_sheet import contact_sheet, difference
from smalti.metrics.evaluate import Pair, Scores, evaluate_pairs, pairs_of, pairs_of_folders
from smalti.metrics.features import Features, Perceptual
from smalti.metrics.frechet import Moments, frechet_distance, frechet_interval
from smalti.metrics.generation import score_generated
from smalti.metrics.inception import inception_score
from smalti.metrics.precision_recall import Neighbourhoods, density_coverage, precision_recall
from smalti.metrics.protocols import (
    GENERATION_PROTOCOLS,
    MAGICMASTER_FID,
    MAGICMASTER_FVD,
    MAGICMASTER_PSNR,
    MINDONE_PSNR,
    MINDONE_PSNR_IMAGES,
    OPEN_MAGVIT2,
    PROTOCOLS,
    SMALTI,
    SMALTI_FID,
    SMALTI_FRECHET,
    SMALTI_FVD,
    SMALTI_GENERATION,
    SMALTI_GENERATION_VIDEO,
    SMALTI_GFID,
    SMALTI_GFVD,
    GenerationProtocol,
    Protocol,
    find_protocol,
)
from smalti.metrics.report import ClipScores, GenerationReport, Report
from smalti.metrics.side_by_side import Contender, Leaderboard, leaderboard
from smalti.metrics.statistics import GivenMoments, read_published_statistics
from smalti.metrics.weights import find_features, find_lpips, read_features

__all__ = [
    "GENERATION_PROTOCOLS",
    "MAGICMASTER_FID",
    "MAGICMASTER_FVD",
    "MAGICMASTER_PSNR",
    "MINDONE_PSNR",
    "MINDONE_PSNR_IMAGES",
    "OPEN_MAGVIT2",
    "PROTOCOLS",
    "SMALTI",
    "SMALTI_FID",
    "SMALTI_FRECHET",
    "SMALTI_FVD",
    "SMALTI_GENERATION",
    "SMALTI_GENERATION_VIDEO",
    "SMALTI_GFID",
    "SMALTI_GFVD",
    "ClipScores",
    "CodebookUse",
    "Contender",
    "Features",
    "GenerationProtocol",
    "GenerationReport",
    "GivenMoments",
    "Leaderboard",
    "Moments",
    "Neighbourhoods",
    "Pair",
    "Perceptual",
    "Protocol",
    "Report",
    "Scores",
    "Usage",
    "bd_rate",
    "contact_sheet",
    "density_coverage",
    "difference",
    "evaluate_pairs",
    "find_features",
    "find_lpips",
    "find_protocol",
    "frechet_distance",
    "frechet_interval",
    "inception_score",
    "leaderboard",
    "pairs_of",
    "pairs_of_folders",
    "precision_recall",
    "read_features",
    "read_published_statistics",
    "score_generated",
]
