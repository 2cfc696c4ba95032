"""Where the candidates of a job start, what is seen of them there, and which of them are not trained."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import Any

from detkds_core.catalogue import Recipe
from detkds_core.datasets import default_cache
from detkds_core.datasets.kept import FORKS
from detkds_core.evolution.spec import GATES
from detkds_core.policy import Policy, acts_throughout
from detkds_core.policy.distillers import DISTILLERS
from detkds_core.training.batches import Batches
from detkds_core.training.forks import Fork, branch, branch_recipe, branch_seed, cached_trunk
from detkds_core.training.gates import OF_UNKNOWN, Known, Rejection, descent, judge
from detkds_core.training.group import Progress, Start, TrainingError, batches_for, fitting, new_learner
from detkds_core.training.learner import Learner
from detkds_core.training.probe import Finding, probe

Report = Callable[..., None]  # done, total, message, best_ap


@dataclass(frozen=True)
class Ground:
    """Where candidates start. fork: the trunk's end, None for the common start. recipe, seed: of their training.

    Where they are looked at is the fork where there is one, also if they train from the common start: a candidate weighs the same in all
    its rungs. share: how long their training is, of the one that it stands for.
    """

    fork: Fork | None
    rung: int | None
    recipe: Recipe
    seed: int
    share: float = 1.0

    def learner(self, start: Start, policy: Policy, on_token_step: Progress | None = None) -> Learner:
        """A candidate that is to be trained."""
        policy = in_proportion(policy, self.share)
        if self.fork is not None and self.rung is not None:
            return branch(start, self.fork, policy, self.recipe, self.seed, on_token_step=on_token_step)
        return new_learner(start, policy, self.recipe, self.seed, on_token_step)

    def standpoint(self, start: Start, seed: int) -> tuple[Learner, Batches]:
        """A learner without a policy where candidates are looked at, and what it sees there. seed: the job's."""
        assert start.train is not None
        if self.fork is None:
            learner = new_learner(start, Policy(()), self.recipe, seed)
        else:
            seed = branch_seed(seed)
            learner = branch(start, self.fork, Policy(()), self.recipe, seed)
        return learner, batches_for(learner, start.train, self.recipe, seed)


def ground_of(spec: Mapping[str, Any], start: Start, recipe: Recipe, report: Report) -> tuple[Ground, dict[str, Any] | None]:
    """Where the job's candidates start, and what the trunk cost. Raises TrainingError when there is none to be had."""
    steps, rung, seed = spec.get("fork") or 0, spec.get("rung"), spec["seed"]
    share = min(1.0, (rung or recipe.iterations) / (spec.get("stands_for") or recipe.iterations))
    if rung is not None and not steps:
        raise TrainingError("bad_data", f"rung: {rung} iterations from a fork, but there is no fork; give its steps")
    if not steps:
        return Ground(None, None, recipe, seed, share), None
    if steps > recipe.iterations:
        raise TrainingError("bad_data", f"fork: {steps} steps of a training that has {recipe.iterations}")
    began = time.monotonic()
    report(0, recipe.iterations + len(spec["candidates"]), f"the trunk: {steps} steps without distillation")
    try:
        fork, grown = cached_trunk(start, recipe, steps, seed, default_cache() / FORKS)
    except RuntimeError as error:
        raise TrainingError("not_finite", str(error)) from error
    trunk = {"steps": steps, "grown": grown, "seconds": time.monotonic() - began}
    if rung is None:
        return Ground(fork, None, recipe, seed, share), trunk
    return Ground(fork, rung, branch_recipe(recipe, rung), branch_seed(seed), share), trunk


def in_proportion(policy: Policy, share: float) -> Policy:
    """The policy as a training learns it that is this share of the one that it stands for: warm-ups, in steps, are as much shorter.

    What ends or decays does so after a share of the training in any case.
    """
    if share == 1:
        return policy

    def shorter(steps: float) -> int:
        return max(1, round(steps * share)) if steps else 0

    terms = tuple(replace(term, warm_up=shorter(term.warm_up)) for term in policy.terms)
    distillers = []
    for one in policy.distillers:
        settings = {name: setting.default for name, setting in DISTILLERS[one.name].settings.items()} | dict(one.settings)
        if "masks_from" in settings:
            settings["masks_from"] = shorter(settings["masks_from"])
        distillers.append(replace(one, settings=tuple(sorted(settings.items())), warm_up=shorter(one.warm_up)))
    return Policy(terms, tuple(distillers))


@dataclass
class Looked:
    """What was found out of the candidates before any was trained: of those that were looked at, by index.

    seconds: what that took, an equal share of what all did together and the candidate's own gates. gate_seconds: of these each one's.
    """

    findings: dict[int, Finding] = field(default_factory=dict)
    refused: dict[int, Rejection] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)
    gate_seconds: dict[int, dict[str, float]] = field(default_factory=dict)

    def resolved(self, index: int, policy: Policy) -> Policy:
        return self.findings[index].resolved if index in self.findings else policy

    def cost(self, index: int) -> dict[str, Any]:
        """What looking at the candidate took, as its row has it."""
        return {"probe_seconds": self.seconds.get(index, 0.0), "gate_seconds": self.gate_seconds.get(index, {})}

    def tell(self, index: int, row: dict[str, Any]) -> None:
        """Write it into the candidate's row."""
        row["seconds"] += self.seconds.get(index, 0.0)
        row["cost"] |= self.cost(index)
        if index in self.findings:
            finding = self.findings[index]
            # A look leaves schedules out: whoever acts for a part of the training only is nobody's double.
            sketch = finding.look.sketch if acts_throughout(finding.policy) else ()
            row["look"] = replace(finding.look, sketch=sketch).to_json()
        if index in self.refused:
            refusal = self.refused[index]
            row["rejected"] = refusal.to_json()
            if refusal.same_as is not None:
                row["same_as"] = refusal.same_as


def looked_at(spec: Mapping[str, Any], start: Start, ground: Ground, policies: Mapping[int, Policy], report: Report) -> Looked:
    """Look at the candidates and let those that are measured for the first time pass the job's gates.

    Jobs that name neither a fork nor gates nor known candidates look at none; nobody looks at policies without terms or with learned parts.
    A reference need not show that it can teach: `first_loss` refuses FitNets now and then, whose scale is its author's.
    """
    found = Looked()
    gates = spec.get("gates") or ()
    if unknown := set(gates) - set(GATES):
        raise TrainingError("bad_data", f"gates: {', '.join(sorted(unknown))}: none of {', '.join(GATES)}")
    references = {one["index"] for one in spec["candidates"] if one.get("reference")}
    looking = {index: policy for index, policy in policies.items() if policy.terms and not policy.distillers}
    if not looking or not (ground.fork or "gates" in spec or "known" in spec):
        return found
    report(0, ground.recipe.iterations + len(policies), f"looking at {len(looking)} candidates")
    began = time.perf_counter()
    with fitting():
        at, batches = ground.standpoint(start, spec["seed"])
        findings, stills = probe(start, at, batches, list(looking.values()))
        share = (time.perf_counter() - began) / len(looking)
        known = [Known(one["index"], tuple(one["sketch"]), one.get("ratio")) for one in spec.get("known") or ()]
        for index, finding in zip(looking, findings, strict=True):
            others = [one for one in known if one.index != index]
            descents = map(descent, repeat(finding.resolved), repeat(at.student), stills, repeat(ground.recipe))
            met = [gate for gate in gates if gate not in OF_UNKNOWN] if index in references else gates
            refusal, took = judge(finding, met, others, descents)
            found.findings[index] = finding
            if refusal is not None:
                found.refused[index] = refusal
            if acts_throughout(finding.policy) and finding.look.failure is None:
                known.append(Known(index, finding.look.sketch, finding.look.ratio))
            found.seconds[index] = share + sum(took.values())
            found.gate_seconds[index] = took
    return found
