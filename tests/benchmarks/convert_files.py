"""What converting a file of FLUX.1's size costs: `python -m tests.benchmarks.convert_files [--to LAYOUT]`.

Both sides run in fresh processes and take turns: A converts, B copies the same file and hashes it in plain Python.
Weights are random.  The file of a user has no digest, so A hashes what it writes, as B hashes what it copies; C is A
reading a file that this package wrote, whose digest it verifies first.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import safetensors.numpy

from flax_vae.convert import LAYOUTS, PRESETS, expand
from flax_vae.convert.cli.main import main as convert

PRESET = "flux1"
FRAMEWORKS = {"flax", "jax", "torch"}


def make_files(folder: Path) -> tuple[Path, Path]:
    """The same random weights as another program writes them, and as this package does."""
    theirs, ours = folder / "theirs.safetensors", folder / "ours.safetensors"
    rng = np.random.default_rng(0)
    rows = expand(PRESETS[PRESET])
    safetensors.numpy.save_file(
        {row.theirs: rng.standard_normal(row.torch_shape, np.float32) for row in rows}, theirs, {"format": "pt"}
    )
    measure("convert", theirs, ours, "flux")
    return theirs, ours


def measure(what: str, src: Path, dst: Path, layout: str) -> tuple[float, int]:
    """Seconds of the work, and the peak of resident bytes of the process that did it."""
    dst.unlink(missing_ok=True)
    words = [sys.executable, "-m", __spec__.name, "--child", what, "--to", layout, str(src), str(dst)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def child(what: str, src: Path, dst: Path, layout: str) -> None:
    start = time.perf_counter()
    if what == "convert":
        assert convert([str(src), str(dst), "--to", layout, "--preset", PRESET]) == 0
    else:
        shutil.copyfile(src, dst)
        with dst.open("rb") as file:
            hashlib.file_digest(file, "sha256")
    seconds = time.perf_counter() - start
    assert not FRAMEWORKS & sys.modules.keys()
    print(json.dumps([seconds, peak_bytes()]))


def peak_bytes() -> int:
    """Peak of this program alone; `getrusage` would count the process that started it, up to the exec."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", choices=LAYOUTS, default="flux")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("files", nargs="*", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, *args.files, args.to)
    else:
        compare(args.to, args.repeats)


def compare(layout: str, repeats: int) -> None:
    """Lets the sides take turns and prints the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        theirs, ours = make_files(folder)
        dst, size = folder / "dst.safetensors", theirs.stat().st_size
        sides = {
            f"A  {layout} of another's file": ("convert", theirs),
            "B  copy and hash": ("copy", theirs),
            f"C  {layout} of our file, verified": ("convert", ours),
        }
        found = {side: [] for side in sides}
        for _ in range(repeats):
            for side, (what, src) in sides.items():
                found[side].append(measure(what, src, dst, layout))
    limit = 1.5 * size + 150e6
    seconds = {side: statistics.median(s for s, _ in pairs) for side, pairs in found.items()}
    (copying,) = [s for side, s in seconds.items() if side.startswith("B")]
    print(f"{PRESET}, float32, {size / 1e6:.1f} MB; {os.cpu_count()} cores; medians of {repeats}")
    print(f"{'':34} {'seconds':>8} {'B / this':>9} {'peak MB':>8} {'of 1.5 x file + 150 MB':>23}")
    for side, pairs in found.items():
        peak = max(peak for _, peak in pairs)
        print(f"{side:34} {seconds[side]:8.2f} {copying / seconds[side]:9.2f} {peak / 1e6:8.1f} {peak / limit:23.2f}")


if __name__ == "__main__":
    main()
