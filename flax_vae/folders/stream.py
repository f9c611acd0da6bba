"""Reading, computing and writing at the same time, each in the order of the jobs."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from flax_vae.convert.console import available_cpus

J = TypeVar("J")
R = TypeVar("R")
C = TypeVar("C")

_READ_AHEAD = 3  # jobs that are being read, or wait
_IN_FLIGHT = 2  # jobs on the devices, or on their way back


def stream(
    jobs: Iterable[J],
    begin: Callable[[ThreadPoolExecutor, J], R],
    compute: Callable[[J, R], C],
    collect: Callable[[ThreadPoolExecutor, J, C], None],
) -> None:
    """Works through jobs, of which a few are under way at a time.

    Args:
      jobs: Jobs, in order.
      begin: Function that starts the reading for a job in the threads that it is given, and returns their futures.
      compute: Function that waits for those futures, and starts the computation.
      collect: waits for that, and puts away what comes of it; called in a thread of its own, one job after the other.

    Raises:
      Exception: The first that one of them raises; nothing is under way then any more.
    """
    threads = ThreadPoolExecutor(available_cpus(), thread_name_prefix="files")
    collector = ThreadPoolExecutor(1, thread_name_prefix="collect")
    returning: deque[Future[None]] = deque()
    try:
        for job, coming in _ahead(jobs, lambda job: begin(threads, job), _READ_AHEAD):
            returning.append(collector.submit(collect, threads, job, compute(job, coming)))
            while len(returning) >= _IN_FLIGHT:
                returning.popleft().result()
        for future in returning:
            future.result()
    finally:
        # In this order: a collector may be waiting for what it has asked of the threads.
        collector.shutdown(cancel_futures=True)
        threads.shutdown(cancel_futures=True)


def _ahead(jobs: Iterable[J], begin: Callable[[J], R], count: int) -> Iterator[tuple[J, R]]:
    """Each job with what `begin` made of it; so many have begun before their turn."""
    begun: deque[tuple[J, R]] = deque()
    for job in jobs:
        begun.append((job, begin(job)))
        if len(begun) > count:
            yield begun.popleft()
    yield from begun
