"""Work that begins before it is needed."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

J = TypeVar("J")
T = TypeVar("T")


def ahead(jobs: Iterable[J], begin: Callable[[J], T], count: int) -> Iterator[tuple[J, T]]:
    """Yields each job with what `begin` made of it, in order.

    Args:
      jobs: what there is to do.
      begin: starts a job in the background and returns at once, with futures for example.
      count: jobs that have begun before their turn; each takes memory.
    """
    begun: deque[tuple[J, T]] = deque()
    for job in jobs:
        begun.append((job, begin(job)))
        if len(begun) > count:
            yield begun.popleft()
    yield from begun


def available_cpus() -> int:
    """How many CPUs this process may use, which in a container may be few of many."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
