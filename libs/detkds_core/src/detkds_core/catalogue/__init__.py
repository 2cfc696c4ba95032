"""Which detectors, pairs and schedules there are, and what a pair can exchange. No torch."""

from detkds_core.catalogue.detectors import BUILT_IN, DETECTORS, OWN_FAULTS, UnknownDetectorError, detector
from detkds_core.catalogue.entry import DetectorEntry, Inputs
from detkds_core.catalogue.exchange import Exchange, exchange, lacking_regions, pair_facts
from detkds_core.catalogue.pairs import PAIRS, Pair, builtin_checkpoint
from detkds_core.catalogue.recipe import Recipe
from detkds_core.catalogue.schedules import base_recipe

__all__ = [
    "BUILT_IN",
    "DETECTORS",
    "OWN_FAULTS",
    "PAIRS",
    "DetectorEntry",
    "Exchange",
    "Inputs",
    "Pair",
    "Recipe",
    "UnknownDetectorError",
    "base_recipe",
    "builtin_checkpoint",
    "detector",
    "exchange",
    "lacking_regions",
    "pair_facts",
]
