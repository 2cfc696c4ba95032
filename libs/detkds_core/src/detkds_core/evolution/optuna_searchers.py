"""Optuna's samplers as searchers: the tree-structured Parzen estimator and NSGA-II, over which knowledge is on and the genes of its term.

A study is made anew for every proposal from the results that are visible, in memory and with a seed of its own, so that a decision is a
function of the history like all others. Optuna is an extra: `pip install 'detkds_core[optuna]'`.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, fields
from types import ModuleType
from typing import Any

from detkds_core.evolution.history import History, generator
from detkds_core.policy import Policy, Term

ATTEMPTS = 50
OPTIONS = tuple(one.name for one in fields(Term) if one.name not in ("knowledge", "transforms", "distance", "weight"))


def sampled_policy(name: str, history: History, rng: random.Random) -> Policy | None:
    """A new policy from a sampler, `tpe` or `nsga2`; None where it draws none that is legal and new."""
    optuna = imported(name)
    spec = history.spec
    catalogues = {island: catalogue(history, island) for island in spec.knowledge}
    study = rebuilt(optuna, name, history, catalogues, rng.getrandbits(32))
    for _ in range(ATTEMPTS):
        trial = study.ask()
        terms: list[Term | None] = []
        for island, one in catalogues.items():
            on = trial.suggest_categorical(island, (True, False))
            if on or name == "nsga2":  # which inherits nothing but what every trial has
                chosen = tuple(trial.suggest_categorical(f"{island} {gene}", values) for gene, values in one.genes.items())
                terms += [one.terms.get(chosen)] if on else []
        if not terms or None in terms:
            continue
        policy = spec.space.admits(Policy(tuple(term for term in terms if term is not None)))
        if policy is not None and history.is_new(policy):
            return policy
    return None


def imported(name: str) -> ModuleType:
    """Optuna, silent. Raises RuntimeError that names the extra where it is missing."""
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise RuntimeError(f"the algorithm {name!r} needs Optuna: pip install 'detkds_core[optuna]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


@dataclass(frozen=True)
class Catalogue:
    """The terms of an island by their genes, and the values of each gene: every transform, distance, weight, and what options there are."""

    genes: Mapping[str, tuple[Any, ...]]
    terms: Mapping[tuple[Hashable, ...], Term]


def catalogue(history: History, island: str) -> Catalogue:
    """All terms of an island, listed once in a search."""

    def found() -> Catalogue:
        terms = {genes_of(term): term for term in history.spec.space.terms(island)}
        width = max(map(len, terms))
        columns = zip(*(key for key in terms if len(key) == width), strict=True)
        names = [*(f"transform {place}" for place in range(width - 3)), "distance", "options", "weight"]
        return Catalogue({gene: tuple(dict.fromkeys(column)) for gene, column in zip(names, columns, strict=True)}, terms)

    return history.remembered(("catalogue", island), found, forever=True)


def genes_of(term: Term) -> tuple[Hashable, ...]:
    """A term as the values of its genes; of its options the text, since a choice has to be plain."""
    options = " ".join(f"{name}={getattr(term, name)}" for name in OPTIONS)
    return (*term.transforms, term.distance, options, term.weight)


def rebuilt(optuna: Any, name: str, history: History, catalogues: Mapping[str, Catalogue], seed: int) -> Any:
    """The study of all visible results, policies outside of its parameters left out. What could not be trained has the worst value."""
    spec = history.spec
    if name == "tpe":
        sampler = optuna.samplers.TPESampler(seed=seed)
    else:
        sampler = optuna.samplers.NSGAIISampler(seed=seed, population_size=spec.population)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    choices = {island: optuna.distributions.CategoricalDistribution((True, False)) for island in catalogues}
    for island, one in catalogues.items():
        choices |= {f"{island} {gene}": optuna.distributions.CategoricalDistribution(values) for gene, values in one.genes.items()}
    worst = min((mine[spec.top] for mine in history.means.values() if spec.top in mine), default=0.0)
    trials: list[Any] = []
    for index in sorted(history.outcomes):
        parameters = parameters_of(name, history, catalogues, index)
        if parameters is None:
            continue
        trials.append(
            optuna.trial.create_trial(
                value=history.means.get(index, {}).get(spec.top, worst),
                params=parameters,
                distributions={parameter: choices[parameter] for parameter in parameters},
                system_attrs={"NSGAIISampler:generation": len(trials) // spec.population},  # as it would have been told one by one
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study.add_trials(trials)
    return study


def parameters_of(name: str, history: History, catalogues: Mapping[str, Catalogue], index: int) -> dict[str, Any] | None:
    """A candidate as parameters; None where it has a term that the samplers cannot draw.

    NSGA-II also has genes for knowledge that is off, which do nothing: they are drawn for the candidate, the same every time.
    """
    policy = history.candidates[index].policy
    terms = {term.knowledge: term for term in policy.terms}
    if policy.distillers or not set(terms) <= set(catalogues):
        return None
    rng = generator(history.spec.seed, "off", index)
    parameters: dict[str, Any] = {}
    for island, one in catalogues.items():
        parameters[island] = island in terms
        if island in terms:
            chosen = genes_of(terms[island])
            if chosen not in one.terms:
                return None
            parameters |= {f"{island} {gene}": value for gene, value in zip(one.genes, chosen, strict=True)}
        elif name == "nsga2":
            parameters |= {f"{island} {gene}": rng.choice(values) for gene, values in one.genes.items()}
    return parameters
