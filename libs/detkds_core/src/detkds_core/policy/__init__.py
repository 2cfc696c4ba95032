"""What a policy is: terms, rules, canonical form, formula, JSON, search space, named policies. Imports no torch."""

from detkds_core.policy.rules import check, legality
from detkds_core.policy.terms import Policy, PolicyError, Reason, Term

__all__ = ["Policy", "PolicyError", "Reason", "Term", "check", "legality"]
