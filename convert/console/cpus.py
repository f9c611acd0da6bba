"""The CPUs of this process."""

import os


def available_cpus() -> int:
    """How many CPUs this process may use, which in a container may be few of many."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
