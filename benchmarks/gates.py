"""Whether the gates refuse what would have been good, where they refuse most: random policies with the paper's own weights.

`python benchmarks/gates.py --pair digits_gfl --policies 64 --more 256` searches at random (`"algorithm": "random"`, `"weights":
"published"`), lets every gate but the one against doubles look at each policy, and prints the funnel as a search's report has it. Of the
first 64 all are trained at the full proxy whatever was said, of the 256 more all that were refused: the first say what good is, the others
give the audit its number. A search audits one refused policy in twenty; here all are. Nothing is kept: the last lines are the figures.
"""

import argparse
import os
from collections import Counter
from statistics import median
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

from tabular import evaluation

from detkds_core.catalogue import DETECTORS, PAIRS, Pair, Recipe, exchange, pair_facts
from detkds_core.datasets import default_cache, load_dataset
from detkds_core.evolution import Evolution, Outcome, Spec
from detkds_core.evolution.spec import GATES
from detkds_core.policy import Policy, SearchSpace, formula, from_json, to_json
from detkds_core.report import GATE_HEADINGS, false_rejects, gate_lines

GROUP = 8
NOT_TRAINED = {"kind": "not_trained", "detail": "it passed"}


def specification(pair: Pair, policies: int, seed: int) -> Spec:
    """A random search over the pair's space that trains every candidate in full; no distillation is its first."""
    teacher, student = DETECTORS[pair.teacher], DETECTORS[pair.student]
    offer = exchange(teacher, student)
    facts = pair_facts(offer, student, len(load_dataset(pair.dataset, default_cache()).classes), pair.proxy.batch)
    full = pair.proxy.iterations
    return Spec(
        knowledge=offer.knowledge,
        budget=full * (policies + 1),
        candidates=policies + 1,
        seed=seed,
        references=(Policy(()),),
        space=SearchSpace.of(facts, knowledge=offer.knowledge),
        rungs=(full,),
        algorithm="random",
        group=GROUP,
    )


def outcome(row: dict[str, Any]) -> Outcome:
    """A row of a job's result as the search is told it."""
    failure = row["failure"] and row["failure"]["kind"]
    return Outcome(row["ap"], failure, row["rejected"] and row["rejected"]["gate"])


def run(pair: Pair, policies: int, more: int, seed: int) -> tuple[Evolution, list[dict[str, Any]]]:
    """Train what is to be; one line a policy. And what each of them took."""
    from detkds_core.training.jobs import measure_candidates

    evolution, costs = Evolution(specification(pair, policies + more, seed)), []
    while (job := evolution.ask()) is not None:
        members = {one.index: to_json(one.policy) for one in job.new}
        told = evaluation(pair, members, seed=seed, rung=None, gates=[gate for gate in GATES if gate != "duplicate"])
        rows = looked_at_only(told, beyond=policies) + measure_candidates(told, lambda *_args, **_more: None)["candidates"]
        for row in rows:
            said = row["rejected"] or row["failure"] or {}
            why = f"{said.get('gate') or said.get('kind')}: {said['detail']}" if said else ""
            ap = "none" if row["ap"] is None else f"{row['ap']:.1f}"
            print(f"{row['index']:3} {ap:>6} {formula(evolution.candidate(row['index']).policy)}  {why}", flush=True)
        evolution.tell(job.index, {row["index"]: outcome(row) for row in rows})
        costs += [row["cost"] for row in rows]
    return evolution, costs


def looked_at_only(told: dict[str, Any], beyond: int) -> list[dict[str, Any]]:
    """Rows of the job's candidates after the first so many that pass the gates. They leave the job: they need not be trained."""
    from detkds_core.training.ground import ground_of, looked_at
    from detkds_core.training.group import prepare

    policies = {one["index"]: from_json(one["policy"]) for one in told["candidates"] if one["index"] > beyond}
    if not policies:
        return []
    start = prepare(told, told["seed"])
    ground, _ = ground_of(told, start, Recipe.from_json(told["recipe"]), lambda *_args, **_more: None)
    looked = looked_at(told, start, ground, policies, lambda *_args, **_more: None)
    passed = [index for index in policies if index not in looked.refused]
    told["candidates"] = [one for one in told["candidates"] if one["index"] not in passed]
    return [{"index": index, "ap": None, "rejected": None, "failure": dict(NOT_TRAINED), "cost": looked.cost(index)} for index in passed]


def report(pair: Pair, evolution: Evolution, costs: list[dict[str, Any]]) -> None:
    """How many were refused by what, how these do beside the others, and how many were refused wrongly."""
    outcomes = {index: one for told in evolution.results.values() for index, one in told.items()}
    alone, *others = (outcomes[index] for index in range(evolution.count))
    unneeded = sum(one.failure == NOT_TRAINED["kind"] for one in others)
    by_gate = Counter(one.rejected for one in others if one.rejected is not None)
    refused = [one.ap for one in others if one.rejected is not None and one.ap is not None]
    passed = [one.ap for one in others if one.rejected is None and one.ap is not None]
    print(f"\n{pair.name}: {len(others)} policies at {pair.proxy.iterations} iterations, seed {evolution.spec.seed}, ", end="")
    print(f"{pair.proxy.eval_images} images; no distillation {alone.ap or 0:.1f} AP")
    print("refused: " + (", ".join(f"{count} by {gate}" for gate, count in by_gate.most_common()) or "none"))
    for name, values in (("refused", refused), ("passed", passed)):
        if values:
            print(f"{name}: {len(values)} trained, AP {min(values):.1f} to {max(values):.1f}, median {median(values):.1f}")
    failed = sum(one.ap is None for one in others) - unneeded
    print(f"passed and not trained: {unneeded}; could not be trained: {failed}, of which refused {sum(by_gate.values()) - len(refused)}")
    funnel = evolution.summary(costs)["funnel"]
    print(f"false-reject rate of the gates: {false_rejects(funnel)}")
    for line in (GATE_HEADINGS, *gate_lines(funnel)):
        print("{:16} {:>8} {:>8} {:>22} {:>8}".format(*line))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", default="digits_gfl", choices=[name for name, pair in PAIRS.items() if pair.dataset != "coco"])
    parser.add_argument("--policies", type=int, default=64, help="of which all are trained")
    parser.add_argument("--more", type=int, default=0, help="of which those are trained that a gate refuses")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    from detkds_core.detectors.runtime import prepare_mmdet

    prepare_mmdet()
    pair = PAIRS[arguments.pair]
    report(pair, *run(pair, arguments.policies, arguments.more, arguments.seed))


if __name__ == "__main__":
    main()
