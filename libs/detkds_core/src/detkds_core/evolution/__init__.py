"""What to try next: islands of one knowledge each, then their combinations, over rungs; ask and tell, reproducible to the byte."""

from detkds_core.evolution.search import Evolution, dumped, replay
from detkds_core.evolution.spec import ALGORITHMS, Candidate, Job, Outcome, Spec, Stage

__all__ = ["ALGORITHMS", "Candidate", "Evolution", "Job", "Outcome", "Spec", "Stage", "dumped", "replay"]
