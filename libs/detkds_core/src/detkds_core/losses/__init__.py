"""What a policy computes: transforms, distances, regions and the loss of a policy."""

from detkds_core.losses.policy import policy_losses
from detkds_core.losses.signals import Scene, Signals
from detkds_core.policy.signals import needs

__all__ = ["Scene", "Signals", "needs", "policy_losses"]
