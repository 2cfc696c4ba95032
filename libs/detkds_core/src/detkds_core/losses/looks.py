"""What the terms of one policy look at, computed once for all of them: nothing of it outlives a call of `policy_losses`."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from math import prod
from typing import Any

import torch
from torch import Tensor

from detkds_core.losses.attention import ATTENTION, ATTENTION_OF_BOTH, DRAWS, ROOTS, pooled_catt
from detkds_core.losses.regions import Regions, crop, masks_of_levels, regions_of_levels
from detkds_core.losses.signals import Scene, Signals, full
from detkds_core.losses.transforms import (
    NORMALISATION,
    NORMALISATION_OF_BOTH,
    POOL,
    SCALE,
    norm_C_where,
    predictions_apart,
    predictions_together,
)

# A level (None: proposals), a signal of it, and the steps that it passes. A step is the name of a transform, one of `REGIONS`, or a name
# with what it depends on: ("mask", index of the term), ("catt", "teacher"), ("crop", pool of its scale), ("apart", classes).
Path = tuple[Any, ...]
Pair = tuple[Tensor, Tensor]  # student, teacher

REGIONS = ("foreground", "background", "both")  # weights of the cells; a cell is in one of the first two
PREDICTIONS = {"apart": predictions_apart, "together": predictions_together}
STEPS = {**ATTENTION, **SCALE, **NORMALISATION}
OF_BOTH = {**ATTENTION_OF_BOTH, **NORMALISATION_OF_BOTH}


class Looks:
    """Student's and teacher's tensors along paths, in float32.

    The student's tensors are leaves of graphs of their own: what a term's backward leaves in them is its gradient. A tensor that several
    terms use is a leaf as well, so that each term's graph ends there and is gone after its backward; `forget` passes the sum on.
    """

    def __init__(self, student: Signals, teacher: Signals, scene: Scene, paths: Iterable[Path], learn: bool) -> None:
        self.student, self.teacher, self.scene, self.learn = student, teacher, scene, learn
        self.leaves: dict[Path, Tensor] = {}
        users: defaultdict[Path, set[Path]] = defaultdict(set)
        for user, path in enumerate(paths):
            for end in range(2, len(path)):
                users[path[:end]].add(path[: end + 1])
            users[path].add((user,))
        self._shared = {path for path, used in users.items() if len(used) > 1}
        self._left = {path: len(used) for path, used in users.items()}  # users to come
        self._pairs: dict[Path, Pair] = {}
        self._passed: list[tuple[Path, Tensor, Tensor]] = []  # a shared tensor with its graph, and the leaf in its place
        self._known: dict[Path, Any] = {}

    def pair(self, path: Path) -> Pair:
        """Both sides at the end of a path. Its last user has it alone."""
        found = self._pairs[path] = self._pairs.get(path) or self._made(path)
        self._left[path] -= 1
        if self._left[path] == 0:
            del self._pairs[path]
        return found

    def _made(self, path: Path) -> Pair:
        if len(path) == 2:
            return self.leaf(*path), full(read(self.teacher, *path).detach())
        student, teacher = self._after(path)
        if path in self._shared and student.requires_grad:
            whole, student = student, student.detach().requires_grad_()
            self._passed.append((path, whole, student))
        return student, teacher

    def _after(self, path: Path) -> Pair:
        """Both sides after the last step; some steps are done together with those before, where nobody else asks for these."""
        *_, before, last = path
        if last in POOL and before == "catt" and path[:-1] not in self._shared:
            return pooled_catt(last, *self.pair(path[:-2]))
        if last == "norm_C" and (weighed := self._weighed(path[:-1])):
            student, teacher = self.pair(path[: -1 - weighed])
            factors = [self.factor(path[0], path[1], step, teacher) for step in path[-1 - weighed : -1]]
            return norm_C_where(prod(factors[1:], start=factors[0]), student, teacher)
        student, teacher = self.pair(path[:-1])
        if last in OF_BOTH:
            return OF_BOTH[last](student, teacher)
        step = self._step(path, teacher)
        with torch.no_grad():
            teacher = step(teacher)
        return step(student), teacher

    def _weighed(self, path: Path) -> int:
        """How many steps at the end of a path do nothing but weigh positions, and lead to nobody else."""
        count = 0
        while len(path) > 2 and path not in self._shared and (path[-1] in REGIONS or path[-1][0] == "mask"):
            path, count = path[:-1], count + 1
        return count

    def leaf(self, level: int | None, signal: str) -> Tensor:
        """The student's tensor, from which its gradient is collected."""
        if (level, signal) not in self.leaves:
            source = read(self.student, level, signal)
            self.leaves[level, signal] = full(source.detach()).requires_grad_(self.learn and source.requires_grad)
        return self.leaves[level, signal]

    def gradient(self, level: int | None, signal: str) -> Tensor | None:
        """What the terms left in the student's tensor; None where none of them looked.

        Where the student is in float16, as large as that can be at most. A loss's scale may still lead out of it, as its scaler expects.
        """
        leaf = self.leaves.get((level, signal))
        if leaf is None or leaf.grad is None or read(self.student, level, signal).dtype != torch.float16:
            return None if leaf is None else leaf.grad
        most = torch.finfo(torch.float16).max
        return leaf.grad.clamp_(-most, most)

    def once(self, key: Path, make: Callable[[], Any]) -> Any:
        """What has no gradient, computed at the first request. key: a level first, or "all"."""
        if key not in self._known:
            with torch.no_grad():
                self._known[key] = make()
        return self._known[key]

    def masks(self, level: int, signal: str) -> Pair:
        """Foreground and background weights of the cells of a level of a signal."""
        shapes = _map_shapes(self.teacher, signal)
        return self.once(("all", "masks", shapes), lambda: masks_of_levels(self.scene.boxes, shapes, self.scene.batch_shape))[level]

    def factor(self, level: int | None, signal: str, step: Any, like: Tensor) -> Tensor:
        """What a step of `REGIONS`, or one that draws, multiplies both sides by: (N, 1, H, W) or (N, C, 1, 1) of maps like that."""
        if step in REGIONS:
            inside, outside = self.masks(level, signal)
            return self.once((level, signal, step), lambda: inside + outside) if step == "both" else (inside, outside)[step == "background"]
        # one draw a term and level, whatever it is applied to: student and teacher, foreground and background
        name, index = step
        seeds = (self.scene.seed, self.scene.step, index, level)
        return self.once((level, name, index, like.shape), lambda: DRAWS[name](like, seeds, self.scene.place))

    def regions(self, level: int, pool: int) -> Regions:
        """The ground-truth regions of a level's features, scaled by a pool."""
        shapes = _map_shapes(self.teacher, "features")
        return self.once(("all", "regions", pool), lambda: regions_of_levels(self.scene.boxes, shapes, self.scene.batch_shape, pool))[level]

    def forget(self, level: int | None) -> None:
        """Pass on the gradient of what terms share on a level, and let go of it."""
        while self._passed:
            _, whole, leaf = self._passed.pop()  # the last first: it may rest on those before
            if leaf.grad is not None:
                whole.backward(leaf.grad)
        self._pairs.clear()
        self._known = {key: value for key, value in self._known.items() if key[0] != level}

    def _step(self, path: Path, teacher: Tensor) -> Callable[[Tensor], Tensor]:
        """The last step of a path, for both sides; teacher: its tensor before the step."""
        level, step = path[0], path[-1]
        if step in STEPS:
            return STEPS[step]
        if step[0] == "crop":
            regions = self.regions(level, step[1])
            return lambda maps: crop(maps, regions)
        if step[0] in PREDICTIONS:
            return lambda maps: PREDICTIONS[step[0]](maps, step[1])
        if step[1] == "teacher":
            with torch.no_grad():
                factor = ROOTS[step[0]](teacher)
        else:
            factor = self.factor(level, path[1], step, teacher)
        return lambda maps: maps * factor


def read(signals: Signals, level: int | None, signal: str) -> Tensor:
    """A tensor of a level; with level None of the proposals."""
    return getattr(signals.rois, signal) if level is None else getattr(signals, signal)[level]


def _map_shapes(signals: Signals, signal: str) -> tuple[tuple[int, int], ...]:
    """Height and width of each level."""
    return tuple((maps.shape[2], maps.shape[3]) for maps in getattr(signals, signal))
