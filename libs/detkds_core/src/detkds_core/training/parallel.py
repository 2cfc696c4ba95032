"""Several processes that train one student: how they start, meet, and agree on a gradient.

Every process holds the whole student, learns from its share of each batch, and averages gradients with the others before it updates; so
all hold the same weights. torch's DistributedDataParallel is not used: a group trains several students, whose losses come from
`student.losses` with hooks, and a step may leave parameters of one of them unused.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from detkds_core.training.launch import DEVICES, MEETING, RANK

BUCKET = 1 << 23  # values of gradient that travel together: large against the latency of a message, small against all of them
PATIENCE = timedelta(hours=12)  # a process may wait for another that measures; one that died is seen by who started it


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def devices() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def joined() -> Iterator[None]:
    """Meet the other processes that `launch.run_together` started; alone, nothing happens. NCCL between GPUs, gloo between CPUs."""
    if RANK not in os.environ:
        yield
        return
    number, count = int(os.environ[RANK]), int(os.environ[DEVICES])
    on_gpus = torch.cuda.is_available()
    if on_gpus and torch.cuda.device_count() < count:
        raise ValueError(f"recipe.devices: {count} devices are asked for, this machine has {torch.cuda.device_count()} GPUs")
    if on_gpus:
        torch.cuda.set_device(number)
    meeting = f"file://{os.environ[MEETING]}"
    dist.init_process_group("nccl" if on_gpus else "gloo", init_method=meeting, rank=number, world_size=count, timeout=PATIENCE)
    yield
    dist.destroy_process_group()  # not after a failure: it would wait for the others, who wait for this one


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace each gradient by its mean over all processes. A parameter without one here but elsewhere counts as 0 here."""
    if devices() == 1:
        return
    for bucket in _buckets(parameters):
        used = torch.tensor([float(p.grad is not None) for p in bucket], device=bucket[0].device)
        parts = [p.grad if p.grad is not None else torch.zeros_like(p) for p in bucket]
        flat = torch.cat([used, *(part.flatten() for part in parts)])
        dist.all_reduce(flat)
        flat /= devices()
        missing = any(p.grad is None for p in bucket)
        used_somewhere = flat[: len(bucket)].tolist() if missing else [1.0] * len(bucket)  # waits for the device only if it must
        for parameter, mean, somewhere in zip(bucket, flat[len(bucket) :].split([p.numel() for p in bucket]), used_somewhere, strict=True):
            if parameter.grad is not None:
                parameter.grad.copy_(mean.view(parameter.shape))
            elif somewhere:
                parameter.grad = mean.view(parameter.shape).clone()


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        if bucket and sum(p.numel() for p in bucket) + parameter.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket


def meet() -> None:
    """Wait for all processes to be here."""
    if devices() > 1:
        dist.barrier()


def mean_over_devices(values: Tensor) -> Tensor:
    if devices() > 1:
        dist.all_reduce(values)
        values /= devices()
    return values


def share_buffers(module: nn.Module) -> None:
    """Give every process the first one's buffers: statistics of batch normalisation are each process's own until then."""
    if devices() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


def gathered(own: list[dict]) -> list[dict]:
    """What all processes have, in order of rank; every process gets it."""
    if devices() == 1:
        return own
    parts: list[list[dict]] = [[] for _ in range(devices())]
    dist.all_gather_object(parts, own)
    return [one for part in parts for one in part]
