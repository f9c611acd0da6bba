"""Runs reading, computing and writing concurrently, each in the order of the jobs."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from flax_vae.convert.console import available_cpus

J = TypeVar("J")
R = TypeVar("R")
C = TypeVar("C")

_READ_AHEAD = 3  # jobs that are being read or wait for the devices
_IN_FLIGHT = 2  # jobs that are being computed or collected


def stream(
    jobs: Iterable[J],
    begin: Callable[[ThreadPoolExecutor, J], R],
    compute: Callable[[J, R], C],
    collect: Callable[[ThreadPoolExecutor, J, C], None],
) -> None:
    """Processes jobs, a few at a time.

    Args:
      jobs: Jobs, in order.
      begin: Function that starts reading a job in the given threads, and returns futures.
      compute: Function that waits for the futures and starts the computation.
      collect: Function that waits for the results and stores them; called in a separate thread, job by job.

    Raises:
      Exception: The first exception of these functions, after all others have ended.
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
        # In this order, because a collector may be waiting for the threads.
        collector.shutdown(cancel_futures=True)
        threads.shutdown(cancel_futures=True)


def _ahead(jobs: Iterable[J], begin: Callable[[J], R], count: int) -> Iterator[tuple[J, R]]:
    """Yields each job with the result of `begin`, which is called for `count` jobs ahead."""
    begun: deque[tuple[J, R]] = deque()
    for job in jobs:
        begun.append((job, begin(job)))
        if len(begun) > count:
            yield begun.popleft()
    yield from begun
