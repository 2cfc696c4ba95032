"""Which detectors, pairs and schedules there are. No torch."""

from detkds_core.catalogue.detectors import DETECTORS, DetectorEntry
from detkds_core.catalogue.pairs import PAIRS, Exchange, Pair, builtin_checkpoint, detector, exchange
from detkds_core.catalogue.recipe import Recipe

__all__ = ["DETECTORS", "PAIRS", "DetectorEntry", "Exchange", "Pair", "Recipe", "builtin_checkpoint", "detector", "exchange"]
