"""What a distilling step costs beside training and the teacher's forward, in one run, side by side.

`python benchmarks/step.py` (full architectures), `--small` (the catalogue's r18 detectors), `--pairs retinanet gfl`, `--named` (every
hand-designed distiller too), `--repeats 0 --policies "l2(global)"` (the memory of one policy alone, in a minute).

For each pair: (a) the student's step alone: forward, loss, backward, SGD; (b) the teacher's forward alone, with its dense head and its RoI
head (on the student's proposals) only where the policy needs them; (c) the distilling step under each released policy of the pair, under
every named policy that suits it (`--named`; MasKD with tokens as they are drawn) and under random policies; (d) the official scheme under
the same released policies: the student's backbone, neck and head a second time, the teacher's head always, FGD's masks by loops over boxes
on the CPU, and a graph of everything. Repeats are interleaved; figures are medians, with half the spread between quartiles in percent.
Times are the process's own on a CPU, where other work does not count, and the clock's on a GPU.
(c) compares what the pyramid and the dense head say before the detector's own loss, as training does; `--orders` also times it after.
`--kernels` says, on a GPU, for how long the device was busy with (c) beyond (a) and (b), with how many launches, and with which kernels.
Memory is the peak of (c) above that of (a) and (b) together, and above the larger of the two alone (for the teacher's forward is over
before the student's begins), in bytes of the signals captured of both detectors.
"""

import argparse
import json
import os
import random
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from statistics import median, quantiles
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

# teacher, student, released policies
FULL = {
    "retinanet": ("retinanet_r101_fpn", "retinanet_r50_fpn", ("detkds_retinanet", "detkds_retinanet_x101")),
    "gfl": ("gfl_r101_fpn", "gfl_r50_fpn", ("detkds_gfl",)),
    "fcos": ("fcos_r101_fpn", "fcos_tricks_r50_fpn", ("detkds_fcos",)),
    "faster_rcnn": ("faster_rcnn_r101_fpn", "faster_rcnn_r50_fpn", ("detkds_faster_rcnn",)),
    "reppoints": ("reppoints_gn_x101_dcn_fpn", "reppoints_gn_r50_fpn", ("detkds_reppoints",)),
}
SMALL = {name: (f"{name}_r18w32_fpn32", f"{name}_r18w16_fpn32", policies) for name, (_, _, policies) in FULL.items()}
MOST_KERNELS = 25  # listed of a policy
CLASSES = tuple(f"class {i}" for i in range(80))


@dataclass
class Row:
    """A policy on a pair. times: seconds of each repeat of a, b, c and d; of `after`, that is c in the other order."""

    pair: str
    policy: str
    formula: str
    times: dict[str, list[float]] = field(default_factory=dict)
    memory: float | None = None  # of (c) above (a) + (b), in captured signals
    above_larger: float | None = None  # of (c) above the larger of (a) and (b)
    launches: int | None = None  # of (c) beyond those of (a) and (b)
    busy: float | None = None  # seconds of the device with (c) beyond those with (a) and (b)
    kernels: list[tuple[str, int, float]] = field(default_factory=list)  # what is most of it: name, launches, seconds

    def seconds(self, name: str) -> float:
        return median(self.times[name]) if self.times[name] else nan

    def ratio(self, above: str, *below: str) -> float:
        return self.seconds(above) / sum(map(self.seconds, below))

    def spread(self, name: str) -> float:
        """Half the distance of the quartiles, in percent of the median."""
        if len(self.times[name]) < 2:
            return 0.0
        low, _, high = quantiles(self.times[name], n=4)
        return 50 * (high - low) / self.seconds(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="the catalogue's r18 detectors on 8 images of 128 px")
    parser.add_argument("--pairs", nargs="+", choices=FULL, default=list(FULL))
    parser.add_argument("--policies", nargs="*", default=None, help="names or formulas in place of the released policies")
    parser.add_argument("--named", action="store_true", help="every named policy that suits a pair, those with learned parts included")
    parser.add_argument("--random", type=int, default=2, help="random policies of 1 to --terms terms a pair")
    parser.add_argument("--terms", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=None)
    parser.add_argument("--size", type=int, nargs=2, default=None, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--boxes", type=int, default=8, help="ground-truth boxes an image")
    parser.add_argument("--repeats", type=int, default=5, help="0 for memory alone")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--no-official", action="store_true")
    parser.add_argument("--orders", action="store_true", help="time (c) also with everything compared after the detector's own loss")
    parser.add_argument("--kernels", action="store_true", help="what the device does for (c) beyond (a) and (b)")
    parser.add_argument("--out", type=Path, default=None, help="figures as JSON")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # read when torch is first imported
    on_gpu = _has_gpu()
    if arguments.images is None:
        arguments.images = 8 if arguments.small else 4 if on_gpu else 2
    if arguments.size is None:
        arguments.size = (128, 128) if arguments.small else (800, 1216) if on_gpu else (256, 320)
    rows: list[Row] = []
    for name in arguments.pairs:
        rows += measure(name, arguments)
        print(f"{name}: done", flush=True)
        if arguments.out:
            arguments.out.write_text(json.dumps([vars(row) for row in rows], indent=1))
    print(table(rows))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def measure(name: str, arguments: argparse.Namespace) -> list[Row]:
    """All rows of a pair, on one pair of detectors and one batch."""
    import torch

    from detkds_core.policy import formula

    torch.set_num_threads(arguments.threads)
    bench = Bench(*(SMALL if arguments.small else FULL)[name], arguments)
    rows = [Row(name, title, formula(policy)) for title, policy in bench.policies]
    steps: dict[tuple[int, str], Callable[[], Any]] = {}
    for number, (_, policy) in enumerate(bench.policies):
        steps[number, "c"] = bench.distilling(policy)
        if arguments.repeats and arguments.orders:
            steps[number, "after"] = bench.distilling_after(policy)
        if arguments.repeats and not arguments.no_official and rows[number].policy in bench.released and not policy.distillers:
            steps[number, "d"] = bench.official(policy)
    kinds = [bench.of_teacher(policy) for _, policy in bench.policies]
    alone: dict[Any, Callable[[], Any]] = {"a": bench.training, **{kind: bench.teaching(kind) for kind in kinds}}
    times: dict[Any, list[float]] = {key: [] for key in (*alone, *steps)}
    for repeat in range(-1, arguments.repeats):  # the first warms up
        for key, step in {**alone, **steps}.items():
            seconds = bench.seconds(step)
            if repeat >= 0:
                times[key].append(seconds)
    measured = {**alone, **{key: step for key, step in steps.items() if key[1] == "c"}}
    peaks = {} if arguments.no_memory else {key: bench.peak(step) for key, step in measured.items()}
    for number, (row, (_, policy)) in enumerate(zip(rows, bench.policies, strict=True)):
        b = kinds[number]
        row.times = {"a": times["a"], "b": times[b], "c": times[number, "c"]}
        row.times |= {kind: times[number, kind] for kind in ("d", "after") if (number, kind) in times}
        if arguments.kernels:
            row.launches, row.busy, row.kernels = beyond(*map(bench.kernels, (steps[number, "c"], alone["a"], alone[b])))
        if peaks:
            captured = bench.captured(policy)
            row.memory = (peaks[number, "c"] - peaks["a"] - peaks[b]) / captured
            row.above_larger = (peaks[number, "c"] - max(peaks["a"], peaks[b])) / captured
    return rows


class Bench:
    """A teacher, a student, its optimiser and a batch of random images with random boxes."""

    def __init__(self, teacher: str, student: str, released: tuple[str, ...], arguments: argparse.Namespace) -> None:
        import torch

        from detkds_core.catalogue import detector, exchange
        from detkds_core.catalogue.exchange import pair_facts
        from detkds_core.detectors.build import build_detector
        from detkds_core.detectors.pair import Student, Teacher, match_levels
        from detkds_core.losses.signals import Scene
        from detkds_core.policy import Policy, SearchSpace, named_policies, parse_formula, unscheduled
        from detkds_core.policy.named import suiting
        from detkds_core.training.batches import Batch
        from detkds_core.training.group import Start, model_inputs

        entries = detector(teacher), detector(student)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(arguments.seed)
        levels = match_levels(*entries)
        self.teacher = Teacher(build_detector(teacher, CLASSES).to(self.device), levels.teacher)
        self.student = Student(build_detector(student, CLASSES).to(self.device).train(), levels.student)
        # A rate of 0, so that every step has the same work; the optimiser does not know.
        self.optimizer = torch.optim.SGD(self.student.parameters(), lr=0.0, momentum=0.9, weight_decay=1e-4)
        height, width = arguments.size
        corners = torch.rand(arguments.images, arguments.boxes, 2) * torch.tensor([width * 0.6, height * 0.6])
        sizes = 8 + torch.rand(arguments.images, arguments.boxes, 2) * torch.tensor([width * 0.4 - 8, height * 0.4 - 8])
        batch = Batch(
            list(torch.randint(0, 256, (arguments.images, 3, height, width), dtype=torch.uint8)),
            list(torch.cat([corners, corners + sizes], dim=-1)),
            list(torch.randint(0, len(CLASSES), (arguments.images, arguments.boxes))),
        )
        inputs, self.samples = model_inputs(self.student.model.data_preprocessor, batch, self.device)
        self.inputs = inputs.contiguous(memory_format=torch.channels_last)
        boxes = tuple(sample.gt_instances.bboxes for sample in self.samples)
        self.scene = Scene(boxes, (inputs.shape[-2], inputs.shape[-1]))
        known = named_policies()
        offer = exchange(*entries)
        facts = pair_facts(offer, entries[1], len(CLASSES), arguments.images)
        self.start = Start(self.teacher, *entries, {}, CLASSES, levels, self.device)
        self.released = released if arguments.policies is None else tuple(arguments.policies)
        suited = suiting(offer, facts, (entries[0].family, entries[1].family), entries[1].stages) if arguments.named else ()
        asked = {text: known[text].policy if text in known else parse_formula(text) for text in dict.fromkeys((*self.released, *suited))}
        # A warm-up begins with nothing, which costs nothing.
        self.policies = [
            (text, Policy(tuple(map(unscheduled, policy.terms)), tuple(map(unscheduled, policy.distillers))))
            for text, policy in asked.items()
        ]
        space = SearchSpace.of(facts, knowledge=offer.knowledge, breadth="full")
        rng = random.Random(arguments.seed)
        for number in range(arguments.random):
            self.policies.append((f"random {number}", self._random(space, rng, arguments.terms)))

    def _random(self, space: Any, rng: random.Random, most: int) -> Any:
        from detkds_core.policy import Policy

        # The largest policies are what the bar is about: the first has all terms, the others any number of them.
        count = most if not any(title.startswith("random") for title, _ in self.policies) else rng.randint(1, most)
        return Policy(tuple(space.sample(rng, rng.choice(space.knowledge)) for _ in range(count)))

    def training(self) -> None:
        """(a) A step without distillation."""
        import copy

        self._update(_total(self.student.model.loss(self.inputs, copy.deepcopy(self.samples))))

    def teaching(self, needs: frozenset[str]) -> Callable[[], Any]:
        """(b) The teacher's forward; of its RoI head on proposals that the student made before."""
        import copy

        from detkds_core.losses.signals import OF_ROIS

        shared = self.student.losses(self.inputs, copy.deepcopy(self.samples), needs)[1].rois if needs & OF_ROIS else None

        def step() -> None:
            self.teacher.signals(self.inputs, needs)
            if shared is not None:
                self.teacher.regard(shared, needs)

        return step

    def distilling(self, policy: Any) -> Callable[[], None]:
        """(c) A step under the policy, as in training."""
        import copy

        from detkds_core.training.steps import losses_of

        learner = self._learner(policy)

        def step() -> None:
            said = self.teacher.signals(self.inputs, learner.needs)
            task, distill = losses_of(learner, self.inputs, copy.deepcopy(self.samples), said, self.scene, self.teacher)
            self._update(_total(task) + sum(distill.values()), learner.optimizer)

        return step

    def distilling_after(self, policy: Any) -> Callable[[], None]:
        """(c) in the other order: everything is compared after the detector's own loss."""
        import copy
        from dataclasses import replace

        from detkds_core.distillers import distiller_losses
        from detkds_core.losses import policy_losses
        from detkds_core.losses.signals import OF_ROIS

        learner = self._learner(policy)
        wanted = learner.needs

        def step() -> None:
            said = self.teacher.signals(self.inputs, wanted)
            task, signals = self.student.losses(self.inputs, copy.deepcopy(self.samples), wanted)
            if signals.rois is not None and wanted & OF_ROIS:
                said = replace(said, rois=self.teacher.regard(signals.rois, wanted))
            distill = policy_losses(policy, signals, said, self.scene)
            distill |= distiller_losses(policy, learner.distillers, signals, said, self.scene)
            self._update(_total(task) + sum(distill.values()), learner.optimizer)

        return step

    def _learner(self, policy: Any) -> Any:
        import torch

        from detkds_core import distillers
        from detkds_core.distillers.maskd import MasKD
        from detkds_core.losses import needs
        from detkds_core.training.group import distiller_context
        from detkds_core.training.learner import Learner

        channels = [self.start.teacher_entry.channels] * len(self.start.levels.teacher)
        count, _ = distillers.token_settings(policy) or (1, 0)
        context = distiller_context(self.start, policy, 0, MasKD(channels, channels, num_tokens=count).mask_modules.state_dict())
        modules = distillers.build(policy, context)
        learnt = [p for p in modules.parameters() if p.requires_grad]
        optimizer = self.optimizer
        if learnt:
            optimizer = torch.optim.SGD([*self.student.parameters(), *learnt], lr=0.0, momentum=0.9, weight_decay=1e-4)
        return Learner(self.student, policy, optimizer, torch.amp.GradScaler(enabled=False), modules, needs(policy))

    def official(self, policy: Any) -> Callable[[], None]:
        """(d) A step of the official scheme under the policy."""
        import copy

        import torch

        from detkds_core.detectors.tap import dense_head

        def step() -> None:
            task = self.student.model.loss(self.inputs, copy.deepcopy(self.samples))
            ours = self.student.model.extract_feat(self.inputs)
            our_outputs = dense_head(self.student.model)(ours)
            with torch.no_grad():
                theirs = self.teacher.model.extract_feat(self.inputs)
                their_outputs = dense_head(self.teacher.model)(theirs)
            loss = _total(task)
            for term in policy.terms:
                pairs = zip(our_outputs[0], their_outputs[0], strict=True) if term.knowledge == "logits" else zip(ours, theirs, strict=True)
                loss = loss + term.weight * sum(official_term(term, s, t, self.scene) for s, t in pairs)
            self._update(loss)

        return step

    def _update(self, loss: Any, optimizer: Any = None) -> None:
        optimizer = optimizer or self.optimizer
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def of_teacher(self, policy: Any) -> frozenset[str]:
        """What of the teacher's forward the policy needs."""
        from detkds_core.detectors.tap import OF_DENSE_HEAD
        from detkds_core.losses import needs
        from detkds_core.losses.signals import OF_ROIS

        wanted = needs(policy)
        return frozenset({"features", *(["logits"] if wanted & OF_DENSE_HEAD else []), *(wanted & OF_ROIS)})

    def captured(self, policy: Any) -> int:
        """Bytes of the signals of both detectors that the policy is computed from."""
        from detkds_core.losses import needs

        said = self.teacher.signals(self.inputs, needs(policy) | {"features"})
        dense = [x for level in (said.features, said.logits, said.boxes, said.edges, said.points) for x in level]
        return 2 * sum(x.numel() * x.element_size() for x in dense)

    def seconds(self, step: Callable[[], Any]) -> float:
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize()
            began = time.perf_counter()
            step()
            torch.cuda.synchronize()
            return time.perf_counter() - began
        began = time.process_time()
        step()
        return time.process_time() - began

    def kernels(self, step: Callable[[], Any]) -> dict[str, tuple[int, float]]:
        """Launches and seconds of each kernel, and of copies, in a step."""
        import torch
        from torch.profiler import ProfilerActivity, profile

        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            step()
            torch.cuda.synchronize()
        found: dict[str, tuple[int, float]] = {}
        for event in seen.events():
            if event.device_type == torch.autograd.DeviceType.CUDA:
                count, seconds = found.get(event.name, (0, 0.0))
                found[event.name] = count + 1, seconds + event.device_time * 1e-6
        return found

    def peak(self, step: Callable[[], Any]) -> int:
        """Bytes that the step holds at most, above what there is before it."""
        import torch

        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            step()
            return torch.cuda.max_memory_allocated() - before
        with counter() as count:
            step()
        return count.most


def _total(losses: Any) -> Any:
    from detkds_core.training.steps import total_loss

    return total_loss(losses)


def counter() -> Any:
    """Counts the bytes of the tensors that are made within it and still there; the workspace of a single operation is not seen."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Count(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.now = self.most = 0
            self.seen: set[int] = set()

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            import torch

            given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
            out = func(*args, **(kwargs or {}))
            for x in tree_leaves(out):
                if isinstance(x, torch.Tensor):
                    self.add(x.untyped_storage(), given)
            return out

        def add(self, storage: Any, given: set[int]) -> None:
            key = storage._cdata
            if key in given or key in self.seen:
                return
            self.seen.add(key)
            size = storage.nbytes()
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self.gone, key, size)

        def gone(self, key: int, size: int) -> None:
            self.seen.discard(key)
            self.now -= size

    return Count()


def official_term(term: Any, student: Any, teacher: Any, scene: Any) -> Any:
    """A term on one level as the official code computes it: everything again for each term, masks by loops, autograd keeps it all."""
    import torch
    from torchvision.ops import roi_align

    from detkds_core.losses.attention import ATTENTION, DRAWS
    from detkds_core.losses.distances import DISTANCES
    from detkds_core.losses.regions import boxes_in_cells
    from detkds_core.losses.transforms import NORMALISATION, SCALE

    H, W = student.shape[2:]

    def through(feat: Any) -> Any:
        if term.knowledge == "logits":
            return NORMALISATION[term.transforms[0]](feat.sigmoid())
        attention, scale, norm = term.transforms
        guide = DRAWS[attention](feat, (0, 0, 0, 0)) if attention in DRAWS else None
        return NORMALISATION[norm](SCALE[scale](ATTENTION[attention](feat, guide)))

    distance = DISTANCES[term.distance]
    if term.knowledge in ("global", "logits"):
        return distance(through(student), through(teacher))
    cells = [boxes_in_cells(boxes.cpu(), (H, W), scene.batch_shape) for boxes in scene.boxes]
    if term.knowledge == "instance":
        rois = [boxes.to(student.device) for boxes in cells]
        return distance(*(roi_align(through(x), rois, (14, 14), 1.0, sampling_ratio=0, aligned=False) for x in (student, teacher)))
    foreground, background = torch.zeros(len(cells), H, W), torch.ones(len(cells), H, W)
    for image, boxes in enumerate(cells):
        for box in boxes:
            x1, y1, x2, y2 = (int(side.item()) for side in box)
            part = foreground[image, max(y1, 0) : y2 + 1, max(x1, 0) : x2 + 1]
            foreground[image, max(y1, 0) : y2 + 1, max(x1, 0) : x2 + 1] = part.clamp_min(1 / (y2 - y1 + 1) / (x2 - x1 + 1))
        background[image] = torch.where(foreground[image] > 0, 0, background[image])
        if background[image].sum().item() > 0:
            background[image] /= background[image].sum()
    masks = [mask[:, None].to(student.device) for mask in (foreground, background)]
    inside, outside = (distance(through(student * mask), through(teacher * mask)) for mask in masks)
    return inside + term.background * outside


def beyond(step: dict[str, tuple[int, float]], *parts: dict[str, tuple[int, float]]) -> tuple[int, float, list[tuple[str, int, float]]]:
    """Launches and seconds of a step beyond those of its parts, in all and of the kernels with most of it."""
    more = []
    for name in {name for one in (step, *parts) for name in one}:
        (count, seconds), below = step.get(name, (0, 0.0)), [part.get(name, (0, 0.0)) for part in parts]
        more.append((name, count - sum(n for n, _ in below), seconds - sum(t for _, t in below)))
    more.sort(key=lambda one: -abs(one[2]))
    return sum(count for _, count, _ in more), sum(seconds for *_, seconds in more), more[:MOST_KERNELS]


def table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    columns = ["pair", "policy", "a, s", "b, s", "c, s", "c/(a+b)", "d, s", "d/c", "memory above a + b", "above the larger"]
    orders, kernels = any("after" in row.times for row in rows), any(row.launches is not None for row in rows)
    columns += ["c/(a+b), compared after"] * orders + ["launches beyond a + b", "device, ms"] * kernels
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for row in rows:
        a, b, c = (f"{row.seconds(name):.3f} ± {row.spread(name):.1f} %" if row.times[name] else "-" for name in "abc")
        d = f"{row.seconds('d'):.3f} ± {row.spread('d'):.1f} % | {row.ratio('d', 'c'):.2f}" if "d" in row.times else "- | -"
        memory = "- | -" if row.memory is None else f"{row.memory:.2f} | {row.above_larger:.2f}"
        policy = row.policy if row.policy == row.formula else f"{row.policy}: `{row.formula}`"
        more = f" {row.ratio('after', 'a', 'b'):.3f} |" if "after" in row.times else ""
        if row.busy is not None:
            more += f" {row.launches} | {row.busy * 1e3:.1f} |"
        lines.append(f"| {row.pair} | {policy} | {a} | {b} | {c} | {row.ratio('c', 'a', 'b'):.3f} | {d} | {memory} |{more}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
