"""Work that a GPU does beside what comes after it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch


@contextmanager
def beside(device: torch.device) -> Iterator[Callable[[], None]]:
    """What is launched within waits for all that was launched before, but nothing launched afterwards waits for it until `join` is called.

    Yields join, to be called after the block and while what it reads is still alive. On a CPU everything is done in its order.
    """
    if device.type != "cuda":
        yield lambda: None
        return
    main, side = torch.cuda.current_stream(device), _side(device)
    side.wait_stream(main)
    with torch.cuda.stream(side):
        yield lambda: main.wait_stream(side)


@cache
def _side(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
