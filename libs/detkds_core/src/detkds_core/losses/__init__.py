"""What a policy computes: transforms, distances, regions and the loss of a policy."""

from detkds_core.losses.policy import needs, policy_losses
from detkds_core.losses.signals import Scene, Signals

__all__ = ["Scene", "Signals", "needs", "policy_losses"]
