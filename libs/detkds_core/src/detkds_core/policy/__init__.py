"""What a policy is: terms and distillers, rules, canonical form, formula, JSON, search space, named policies. Imports no torch."""

from detkds_core.policy.canonical import canonical
from detkds_core.policy.formula import formula, parse_formula, readable
from detkds_core.policy.named import NamedPolicy, named_policies
from detkds_core.policy.pair import PairFacts, images_needed, pair_legality
from detkds_core.policy.rules import check, legality
from detkds_core.policy.schema import canonical_json, from_json, json_schema, to_json
from detkds_core.policy.space import SearchSpace
from detkds_core.policy.terms import Distiller, Policy, PolicyError, Reason, Term, acts_throughout, unscheduled

__all__ = [
    "Distiller",
    "NamedPolicy",
    "PairFacts",
    "Policy",
    "PolicyError",
    "Reason",
    "SearchSpace",
    "Term",
    "acts_throughout",
    "canonical",
    "canonical_json",
    "check",
    "formula",
    "from_json",
    "images_needed",
    "json_schema",
    "legality",
    "named_policies",
    "pair_legality",
    "parse_formula",
    "readable",
    "to_json",
    "unscheduled",
]
