"""What a candidate costs the evolution of many searches at once, with Python's own collector of garbage and with the evolver's.

`python benchmarks/many_searches.py --searches 10 50` drives so many searches of one pair in turns, each in memory alone, and prints
processor time a proposed candidate. Nothing is trained: AP follows from policy and seed, and one candidate in ten is refused. Each
figure is of a process of its own; `--repeats` of them are interleaved.
"""

import argparse
import heapq
import subprocess
import sys
import time
from random import Random
from statistics import median

from load import share
from tabular import PAIR, offered

from detkds_core.evolution import Evolution, Job, Outcome, Spec
from detkds_core.policy import Policy, SearchSpace, canonical_json, named_policies
from detkds_evolver.main import collect_rarely

RUNGS = (PAIR.proxy.iterations // 4, PAIR.proxy.iterations)
REFERENCES = ("pkd", "fitnets", "cwd", "cwd_logits", "defeat", "dist")
BUDGET = 500  # full proxies: more than is spent here
LATEST = 20  # jobs that may end before an earlier one


class Course:
    """A search and the jobs that it waits for."""

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self.evolution = Evolution(
            Spec(
                knowledge=space.knowledge,
                budget=BUDGET * RUNGS[-1],
                seed=seed,
                references=(Policy(()), *(named_policies()[name].policy for name in REFERENCES)),
                space=space,
                rungs=RUNGS,
                group=8,
                parallelism=32,
            )
        )
        self.rng = Random(seed)
        self.waiting: list[tuple[float, int, Job]] = []

    def step(self) -> None:
        """One job ends, and what is asked for then begins."""
        if self.waiting:
            _, _, job = heapq.heappop(self.waiting)
            self.evolution.tell(job.index, {member: self.measured(job, member) for member in job.members})
        while (job_or_none := self.evolution.ask()) is not None:
            heapq.heappush(self.waiting, (job_or_none.index + LATEST * self.rng.random(), job_or_none.index, job_or_none))

    def measured(self, job: Job, member: int) -> Outcome:
        words = canonical_json(self.evolution.candidate(member).policy)
        if job.new and share(f"refused {words}") < 0.1:
            return Outcome(None, rejected="descent")
        return Outcome(20 + 19 * share(words) + share(f"{words} {job.rung} {job.replicate} {self.evolution.spec.seed}"))


def milliseconds(searches: int, candidates: int) -> float:
    """Processor time a candidate, until the first search has proposed so many; the first jobs of all are left out."""
    offer, facts, _ = offered()
    space = SearchSpace.of(facts, knowledge=offer.knowledge, balanced=True)
    courses = [Course(space, seed) for seed in range(searches)]
    for course in courses:
        course.step()
    before, began = sum(course.evolution.count for course in courses), time.process_time()
    while courses[0].evolution.count < candidates:
        for course in courses:
            course.step()
    return (time.process_time() - began) / (sum(course.evolution.count for course in courses) - before) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--candidates", type=int, default=450, help="of each search")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rarely", action="store_true", help="of --alone: with the thresholds of the evolver")
    parser.add_argument("--alone", action="store_true", help="one figure, in this process")
    arguments = parser.parse_args()
    if arguments.alone:
        if arguments.rarely:
            collect_rarely()
        print(milliseconds(arguments.searches[0], arguments.candidates))
        return
    found: dict[tuple[int, bool], list[float]] = {}
    for _ in range(arguments.repeats):
        for searches in arguments.searches:
            for rarely in (False, True):
                command = [sys.executable, __file__, "--alone", "--searches", str(searches), "--candidates", str(arguments.candidates)]
                said = subprocess.run([*command, *(["--rarely"] if rarely else [])], check=True, capture_output=True, text=True).stdout
                found.setdefault((searches, rarely), []).append(float(said))
    print("| searches | Python's own thresholds, ms a candidate | the evolver's |\n|---|---|---|")
    for searches in arguments.searches:
        columns = [f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})" for key, values in found.items() if key[0] == searches]
        print(f"| {searches} | {' | '.join(columns)} |")


if __name__ == "__main__":
    main()
