"""What a group of candidates costs beside the same candidates one after another: `python benchmarks/group.py`.

The parts of a step are measured in the same run: D, a batch from its files to the device; T, the teacher's forward; S, a student's forward,
losses, backward and update. Alone a candidate costs T + D + S a step; in a group of K they cost T + D + S_1 + ... + S_K, with a T of all
that any of them needs. Repeats are interleaved; ratios are of one repeat each, and figures are medians over repeats. Seconds are the
process's own on a CPU and the clock's on a GPU. `--looks`: what a look and a descent (`training.probe`, `training.gates`) cost
in steps of a student, S.
"""

import argparse
import copy
import gc
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

POLICIES = ("pkd", "cwd", "dist", "fitnets", "detkds_gfl", "defeat", "cwd_logits", "ld_main")
SIZES = (1, 2, 4, 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--looks", action="store_true")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # read when torch is first imported
    from detkds_core.detectors.runtime import prepare_mmdet

    prepare_mmdet()
    bench = Bench(arguments.steps)
    if arguments.looks:
        print(bench.looks())
        return
    repeats: list[dict[str, float]] = []
    for repeat in range(-1, arguments.repeats):  # the first warms up
        found = bench.parts()
        alone = {name: bench.seconds(bench.training((name,))) for name in POLICIES}
        for size in SIZES:
            found[f"group {size}"] = bench.seconds(bench.training(POLICIES[:size])) / arguments.steps
            found[f"apart {size}"] = sum(alone[name] for name in POLICIES[:size]) / arguments.steps
        if repeat >= 0:
            repeats.append(found)
    print(table(repeats))


class Bench:
    """The pair digits_gfl and its named policies."""

    def __init__(self, steps: int) -> None:
        import torch

        from detkds_core.catalogue import PAIRS
        from detkds_core.datasets import default_cache, load_dataset
        from detkds_core.policy import named_policies
        from detkds_core.training.group import prepare

        pair = PAIRS["digits_gfl"]
        self.recipe = replace(pair.proxy, iterations=steps)
        dataset = load_dataset(pair.dataset, default_cache()).to_json()
        teacher = {"detector": pair.teacher, "checkpoint": pair.teacher_checkpoint}
        job = {"dataset": dataset, "teacher": teacher, "student": {"detector": pair.student}, "inherit": pair.inherit}
        self.start = prepare(job, seed=0)
        self.on_gpu = torch.cuda.is_available()
        self.policies = {name: named_policies()[name].policy for name in POLICIES}

    def learners(self, names: tuple[str, ...]) -> list[Any]:
        from detkds_core.training.group import new_learner

        return [new_learner(self.start, self.policies[name], self.recipe, 0) for name in names]

    def training(self, names: tuple[str, ...]) -> Callable[[], None]:
        """A group's steps; its students are made and the annotations read before the clock runs, and nothing is left to collect."""
        from detkds_core.training.group import batches_for, train

        learners = self.learners(names)
        batches = batches_for(learners[0], self.start.train, self.recipe, 0)
        gc.collect()  # else one run in three has a quarter of a second more
        return lambda: train(learners, self.start, batches)

    def parts(self) -> dict[str, float]:
        """Seconds a step of D, of T for the needs of each policy and of each group, and of S under each policy."""
        from detkds_core.losses import needs
        from detkds_core.training.group import batches_for, shown, teacher_signals
        from detkds_core.training.steps import study, update

        learners = dict(zip(POLICIES, self.learners(POLICIES), strict=True))
        preprocess = learners[POLICIES[0]].student.model.data_preprocessor
        batches = batches_for(learners[POLICIES[0]], self.start.train, self.recipe, 0)
        wanted = {name: needs(policy) for name, policy in self.policies.items()}
        wanted |= {f"{size}": frozenset().union(*(wanted[name] for name in POLICIES[:size])) for size in SIZES}
        spent = {"D": 0.0, **{f"T {name}": 0.0 for name in wanted}, **{f"S {name}": 0.0 for name in POLICIES}}
        said: dict[str, Any] = {}
        seen: list[Any] = []

        def look(step: int) -> None:
            batch = batches[step]
            seen[:] = batch, *shown(self.start, preprocess, batches, batch, step, 0, True)

        def teach(name: str, needed: frozenset[str], batch: Any, inputs: Any) -> None:
            said[name] = teacher_signals(self.start, preprocess, batch, inputs, needed)

        def learn(name: str, learner: Any, step: int, now: Any) -> None:
            inputs, samples, scene = now
            study(learner, inputs, copy.deepcopy(samples), said[name], scene, self.recipe, self.start.teacher, 0)
            update(learner, step, self.recipe)

        for step in range(self.recipe.iterations):
            spent["D"] += self.seconds(partial(look, step))
            batch, inputs, samples, scene = seen
            for name, needed in wanted.items():
                spent[f"T {name}"] += self.seconds(partial(teach, name, needed, batch, inputs))
            for name, learner in learners.items():
                spent[f"S {name}"] += self.seconds(partial(learn, name, learner, step, (inputs, samples, scene)))
        return {name: seconds / self.recipe.iterations for name, seconds in spent.items()}

    def looks(self) -> str:
        """What it costs to look at one balanced policy alone and at eight together, and the descent of each on a batch."""
        from detkds_core.policy import Policy
        from detkds_core.training.gates import descent
        from detkds_core.training.ground import Ground
        from detkds_core.training.probe import probe

        step = median([self.parts()[f"S {POLICIES[0]}"] for _ in range(3)])
        balanced = [Policy(tuple(replace(term, balanced=True) for term in self.policies[name].terms)) for name in POLICIES]
        learner, batches = Ground(None, None, self.recipe, 0).standpoint(self.start, 0)
        found: list[Any] = []
        lines = []
        for policies in (balanced[:1], balanced[:1], balanced):  # the first warms up
            taken = self.seconds(lambda policies=policies: found.append(probe(self.start, learner, batches, policies)))  # type: ignore[misc]
            lines.append(f"a look at {len(policies)}: {taken / len(policies) / step:.1f} steps each")
        findings, stills = found[-1]
        for name, finding in zip(POLICIES, findings, strict=True):
            taken = self.seconds(partial(descent, finding.resolved, learner.student, stills[0], self.recipe))
            lines.append(f"the descent of {name}: {taken / step:.1f} steps")
        return "\n".join(lines[1:])

    def seconds(self, work: Callable[[], Any]) -> float:
        import torch

        if self.on_gpu:
            torch.cuda.synchronize()
        clock = time.perf_counter if self.on_gpu else time.process_time
        began = clock()
        work()
        if self.on_gpu:
            torch.cuda.synchronize()
        return clock() - began


def table(repeats: list[dict[str, float]]) -> str:
    """Milliseconds a step, and the group over one after another: measured and expected."""

    def middle(of: Callable[[dict[str, float]], float]) -> float:
        return median(map(of, repeats))

    spans = [spread([middle(lambda one, key=f"{kind} {name}": one[key]) for name in POLICIES]) for kind in ("T", "S")]  # type: ignore[misc]
    lines = [f"D {1000 * middle(lambda one: one['D']):.1f} ms, T {spans[0]} ms, S {spans[1]} ms a step", ""]
    lines += ["| K | in a group, ms | one after another, ms | ratio | expected | off by |", "|---|---|---|---|---|---|"]
    for size in SIZES:
        group, apart = (middle(lambda one, key=f"{kind} {size}": one[key]) for kind in ("group", "apart"))  # type: ignore[misc]
        ratio = middle(lambda one, size=size: one[f"group {size}"] / one[f"apart {size}"])  # type: ignore[misc]
        wanted = middle(lambda one, size=size: expected(one, size))  # type: ignore[misc]
        lines.append(
            f"| {size} | {1000 * group:.0f} | {1000 * apart:.0f} | {ratio:.3f} | {wanted:.3f} | {100 * (ratio / wanted - 1):+.1f} % |"
        )
    return "\n".join(lines)


def expected(parts: dict[str, float], size: int) -> float:
    """The ratio that the parts of one repeat make."""
    students, teachers = (sum(parts[f"{kind} {name}"] for name in POLICIES[:size]) for kind in ("S", "T"))
    return (parts["D"] + parts[f"T {size}"] + students) / (size * parts["D"] + teachers + students)


def spread(seconds: list[float]) -> str:
    return f"{1000 * min(seconds):.1f} to {1000 * max(seconds):.1f}"


if __name__ == "__main__":
    main()
