"""Variants of a config that learn side by side at an equal budget: one order of data, several seeds, one evaluator."""

from smalti.comparison.data import ComparisonData, DataParts, is_held_out, load_parts
from smalti.comparison.evaluator import Evaluator, Point
from smalti.comparison.learner import Learner, LearnerStep, TokenizerLearner
from smalti.comparison.runner import Budget, LearnerSource, VariantRun, compare_variants, read_points
from smalti.comparison.summary import Effect, VariantSummary, summarise_runs
from smalti.comparison.variants import Variant, VariantList, find_variants, variant_groups

__all__ = [
    "Budget",
    "ComparisonData",
    "DataParts",
    "Effect",
    "Evaluator",
    "Learner",
    "LearnerSource",
    "LearnerStep",
    "Point",
    "TokenizerLearner",
    "Variant",
    "VariantList",
    "VariantRun",
    "VariantSummary",
    "compare_variants",
    "find_variants",
    "is_held_out",
    "load_parts",
    "read_points",
    "summarise_runs",
    "variant_groups",
]
