"""What a measured process knows of itself and of its machine.  No framework is imported here."""

import contextlib
import os
import resource
import sys
from pathlib import Path

# optax's names; both sides take the same numbers
ADAMW = {"learning_rate": 1e-4, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 1e-2}


def cores() -> int:
    """Cores that this process may use; everyone gets as many threads."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_bytes() -> int:
    """Peak of resident memory; `getrusage`, the second best, may count the process that started this one."""
    with contextlib.suppress(OSError):
        return _proc("self/status")["VmHWM"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def resident_bytes() -> int:
    """Resident memory now; needs /proc."""
    return _proc("self/status")["VmRSS"]


def free_bytes() -> float:
    """Memory that can be had without swapping, as far as it is known."""
    with contextlib.suppress(OSError):
        return _proc("meminfo")["MemAvailable"]
    return float("inf")


def die_first() -> None:
    """Where memory runs out after all, the kernel should end this process and none that matters."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _proc(name: str) -> dict[str, int]:
    """The lines in kB of a file under /proc, in bytes."""
    lines = Path("/proc", name).read_text(encoding="ascii").splitlines()
    pairs = (line.split(":", 1) for line in lines if line.endswith(" kB"))
    return {key: int(value.split()[0]) * 1024 for key, value in pairs}
