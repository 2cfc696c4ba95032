"""What to try next: islands of one knowledge each, then their combinations; ask and tell, reproducible to the byte."""

from detkds_core.evolution.search import Evolution, replay
from detkds_core.evolution.spec import Proposal, Result, Spec, Stage

__all__ = ["Evolution", "Proposal", "Result", "Spec", "Stage", "replay"]
