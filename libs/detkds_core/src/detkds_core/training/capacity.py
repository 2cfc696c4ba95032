"""How many students a trainer holds at once, from what one of them is seen to need.

A candidate's figures do not depend on its company, so a job whose candidates do not fit in memory together trains them in several passes
and comes to the same rows.
"""

import contextlib
import os
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from detkds_core.training import parallel
from detkds_core.training.batches import Batches
from detkds_core.training.group import Start, train
from detkds_core.training.learner import Learner, state_of

PLANNED = 0.8  # of the free memory: images differ in size, policies in what they keep for the backward pass
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Need:
    """Bytes that a student takes. kept: between steps (weights, moments, average); passing: during its step, given back after it.

    The students of a group take their steps one after the other, so that `passing` is needed once.
    """

    kept: int
    passing: int

    def students(self, free: int) -> int:
        """How many fit into so many bytes with room to spare; one is always tried.

        >>> Need(kept=100, passing=200).students(free=1000)
        6
        """
        return max(1, int((PLANNED * free - self.passing) // max(1, self.kept)))


def measured_need(start: Start, learner: Learner, batches: Batches) -> Need:
    """What a learner needs, seen over its first step; it must not be trained any further. Raises DoesNotFitError."""
    on_gpu = start.device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(start.device)
    train([learner], start, batches, last_step=1)
    kept = sum(tensor.untyped_storage().nbytes() for tensor in _tensors(state_of(learner)))
    if on_gpu:  # with what torch holds back for each of its streams
        return Need(kept, max(0, torch.cuda.max_memory_reserved(start.device) - torch.cuda.memory_allocated(start.device)))
    # The highest mark of the whole process: where the looks before needed more, it is too high, and fewer are taken together.
    return Need(kept, max(0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - _resident()))


def free_memory(device: torch.device) -> int:
    """Bytes that this process may still take: on a GPU those that torch or anybody else could allocate, else those of host or container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    with contextlib.suppress(OSError, KeyError):
        free = _named(Path("/proc/meminfo"))["MemAvailable"] * 1024
    with contextlib.suppress(OSError, KeyError, ValueError):  # no container, or one without a limit ("max")
        used = int((CGROUP / "memory.current").read_text()) - _named(CGROUP / "memory.stat")["inactive_file"]
        free = min(free, int((CGROUP / "memory.max").read_text()) - used)
    return max(0, free)


def together(start: Start, make: Callable[[], Learner], batches: Callable[[Learner], Batches]) -> int:
    """How many learners like the one that `make` gives fit beside the teacher; the same in all processes of a job."""
    learner = make()
    need = measured_need(start, learner, batches(learner))
    del learner
    if start.device.type == "cuda":
        torch.cuda.empty_cache()
    count = torch.tensor(need.students(free_memory(start.device)), device=start.device)
    if parallel.devices() > 1:
        dist.all_reduce(count, dist.ReduceOp.MIN)
    return int(count)


def _named(path: Path) -> dict[str, int]:
    """The numbers of a file of lines `name value` or `name: value unit`."""
    words = (line.replace(":", "").split() for line in path.read_text().splitlines())
    return {name: int(value) for name, value, *_ in words}


def _resident() -> int:
    """Bytes of this process in memory now."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for one in value:
            yield from _tensors(one)
