"""The CPUs of this process."""

import os


def available_cpus() -> int:
    """Returns the number of CPUs that this process may use; a container may allow fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
