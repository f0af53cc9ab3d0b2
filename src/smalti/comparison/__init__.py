"""Contenders that learn side by side at an equal budget: one order of data, several seeds, one judge."""

from smalti.comparison.data import Material, Media, gather, held_out
from smalti.comparison.evaluator import Judge, Point
from smalti.comparison.learner import Learner, Learnt, Ours
from smalti.comparison.runner import Entry, Run, Terms, race, read_points
from smalti.comparison.summary import Effect, Summary, summarise
from smalti.comparison.variants import Contender, Contenders, contender, shipped

__all__ = [
    "Contender",
    "Contenders",
    "Effect",
    "Entry",
    "Judge",
    "Learner",
    "Learnt",
    "Material",
    "Media",
    "Ours",
    "Point",
    "Run",
    "Summary",
    "Terms",
    "contender",
    "gather",
    "held_out",
    "race",
    "read_points",
    "shipped",
    "summarise",
]
