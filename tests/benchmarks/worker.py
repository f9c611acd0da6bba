"""One contender in a process of its own: reads one JSON line per request, answers each with one.

`{"do": "build", "contender": ..., "row": {...}}`, then any number of `{"do": "run"}`, and `{"do": "save", "path": ...}`
for the last result; the end of input ends it.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.benchmarks.process import die_first, peak_bytes
from tests.benchmarks.rows import COMPILED, OURS, Row

PLAIN = "ours plain"  # the plain path where a row decodes in bands


class Worker:
    """Answers requests.

    Attributes:
      call: the work.
      result: what it gave last.
      peak: asks for the peak of memory.
    """

    call: Callable[[], Any]
    result: Any = None
    peak: Callable[[], int]

    def build(self, contender: str, row: dict) -> dict:
        """Makes the model and, unless the row is long, a call that is not counted."""
        work = Row(**row)
        compile_s = traffic = None
        if contender in (OURS, PLAIN):
            from tests.benchmarks import ours

            self.call, compile_s, traffic = ours.build(work, plain=contender == PLAIN)
        else:
            from tests.benchmarks import theirs

            self.call = theirs.build(work, contender)
        self.peak = _device_peak(contender) if work.half else peak_bytes
        first = self.run()["seconds"] if work.warm or contender in COMPILED else None
        return {"compile_s": compile_s, "first_s": first, "traffic": traffic}

    def run(self) -> dict:
        """One timed call."""
        self.result = None
        start = time.perf_counter()
        self.result = self.call()
        return {"seconds": time.perf_counter() - start, "peak": self.peak()}

    def save(self, path: str) -> dict:
        """Writes the last result, for comparison."""
        np.save(path, np.asarray(self.result, np.float32))
        return {}


def _device_peak(contender: str) -> Callable[[], int]:
    """Peak of memory on the GPU; that of the process where there is none."""
    if contender == OURS:
        import jax

        device = jax.local_devices()[0]
        return peak_bytes if device.platform == "cpu" else lambda: device.memory_stats()["peak_bytes_in_use"]
    import torch

    return torch.cuda.max_memory_allocated if torch.cuda.is_available() else peak_bytes


def main() -> None:
    # Libraries may print: the real standard output is for answers only.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    die_first()
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("do"))(**request)
        except Exception as error:  # whatever it is, the table says so and goes on with the others
            answer = {"error": f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
