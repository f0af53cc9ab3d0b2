"""Contenders that learn side by side at an equal budget: one order of data, several seeds, one judge."""

from smalti.bench.contenders import Contender, Contenders, contender, shipped
from smalti.bench.judge import Judge, Point
from smalti.bench.learner import Learner, Learnt, Ours
from smalti.bench.material import Material, Media, gather, held_out
from smalti.bench.race import Entry, Run, Terms, race, read_points
from smalti.bench.summary import Effect, Summary, summarise

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
