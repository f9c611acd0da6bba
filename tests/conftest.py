"""One strict world for every test: no silent broadcasting, two devices, full precision.

Tests that need PyTorch live in `tests/parity/`, whose files may import it at the top: the folder is not even collected
where PyTorch is missing. A test elsewhere that needs it is marked `torch` and imports it inside its function.
"""

import gc
import importlib.util
import os
import signal
import tempfile
from pathlib import Path

# Some tests compile for TPUs. The compiler makes JAX look for them at every start, and say on stderr that there are
# none; a machine that has some shows them as files.
if importlib.util.find_spec("libtpu") and not any(any(Path("/dev").glob(name)) for name in ("accel*", "vfio/*")):
    found = any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))
    os.environ.setdefault("JAX_PLATFORMS", "cuda,cpu" if found else "cpu")

# XLA divides each program among threads that generate code. The workers take every core already, and programs in one
# part take a tenth less processor time to compile.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_parallel_codegen_split_count=1".strip()

# PyTorch would use every core in every worker, and its threads wait for each other in loops.
if "PYTEST_XDIST_WORKER" in os.environ:
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))

# A shell's background job ignores Ctrl-C, and so would the commands that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import hypothesis
import jax
import pytest
from jax._src import compiler

from tests.bucket import served

# Before the first array: a rank promotion is nearly always a forgotten axis, one device hides every sharding mistake.
# Strict dtype promotion is left out: linen's mixed precision
# (a bfloat16 module over float32 parameters) and optax's schedules (an int32 count times a float) rely on promotion.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 2)
# A GPU would otherwise multiply float32 in tf32. A CPU never does; there "highest" buys shorter sums with longer
# compilation, which the tests that measure rounding ask for themselves.
if jax.default_backend() != "cpu":
    jax.config.update("jax_default_matmul_precision", "highest")

# Most of the time would otherwise go into optimising programs that run once, on a few pixels. That changes how fast a
# program is and how it rounds, not what it computes, which float64 judges. What is said of rounding in float32 and
# below, and of memory, is measured as users compile: see `optimised` below. So is every command in its own process.
if jax.default_backend() == "cpu":
    jax.config.update("jax_disable_most_optimizations", True)

# XLA's earlier code generator of fusions takes two thirds of the time for such programs; newer releases do not have it.
# JAX has no setting for it that holds for all programs of a process, and a variable would hold for those that are
# compiled as users do.
_compile_options = compiler.get_compile_options


def _quick_compile_options(*args, env_options_overrides=None, backend=None, **options):
    if backend is not None and backend.platform == "cpu" and jax.config.read("jax_disable_most_optimizations"):
        env_options_overrides = {"xla_cpu_use_fusion_emitters": False} | (env_options_overrides or {})
    return _compile_options(*args, env_options_overrides=env_options_overrides, backend=backend, **options)


if jax.__version_info__ < (0, 11):
    compiler.get_compile_options = _quick_compile_options

# The same examples on every machine; no deadline, because the first call of anything compiles.
hypothesis.settings.register_profile("tests", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("tests")

# Published weights lie outside the repository, each model in a folder of its name: `weights/taef2`.
_BESIDE = Path(__file__).parents[2] / "shared" / "weights"
WEIGHTS = Path(os.environ.get("FLAX_VAE_WEIGHTS") or _BESIDE)

HAVE_TORCH = importlib.util.find_spec("torch") is not None
TESTS = Path(__file__).parent
PARITY = TESTS / "parity"

# Folders and files of the fast lane.
FAST = (
    *("convert/", "flax_vae/images/", "train/config/", "train/data/", "train/report/"),
    *("test_language.py", "test_layering.py", "test_readme.py"),
)

# Folders and files of `-m gpu`, besides the tests marked so: numbers and gradients, and what chooses by platform.
ON_GPU = (
    *("flax_vae/ops/", "flax_vae/test_attention.py", "flax_vae/test_half_precision.py"),
    *("parity/test_attention_paths.py", "parity/test_blocks.py", "parity/test_gradients.py", "parity/test_models.py"),
)


def pytest_report_header():
    return "torch: found" if HAVE_TORCH else "torch: not installed, so everything marked torch is left out"


def pytest_ignore_collect(collection_path):
    if not HAVE_TORCH and collection_path == PARITY:
        return True
    return None


def pytest_configure(config):
    """One folder of compiled programs for the session: its workers, and the commands that tests start, share it."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="compiled")
        config.add_cleanup(folder.cleanup)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder.name  # workers inherit it
        config.add_cleanup(lambda: os.environ.pop("JAX_COMPILATION_CACHE_DIR"))
    if "FLAX_VAE_CACHE" not in os.environ:  # what a user's commands keep is not for tests to read or to fill
        kept = tempfile.TemporaryDirectory(prefix="kept")
        config.add_cleanup(kept.cleanup)
        os.environ["FLAX_VAE_CACHE"] = kept.name
        config.add_cleanup(lambda: os.environ.pop("FLAX_VAE_CACHE"))
    # A command compiles the same many small programs as the one before it.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    # JAX was imported, and has read its variables, before. Here small programs are rarely those of another worker.
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def pytest_collection_finish():
    """Leaves modules and tests, which stay, to no garbage collection; it took an eighth of the time of a short run."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.hookimpl(optionalhook=True)  # without pytest-xdist nobody asks
def pytest_xdist_make_scheduler(config, log):
    """Each worker begins with its own share of the files, whose tests share fixtures, and then helps the others."""
    if config.getvalue("dist") != "load":  # something else was asked for
        return None
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


@pytest.hookimpl(wrapper=True)  # before -m selects by marker, and after it
def pytest_collection_modifyitems(config, items):
    backend = jax.default_backend()
    for item in items:
        if PARITY in item.path.parents:
            item.add_marker("torch")
        file = item.path.relative_to(TESTS).as_posix()
        left_out = item.get_closest_marker("slow") or item.get_closest_marker("torch")
        if file.startswith(FAST) and not left_out:
            item.add_marker("fast")
        if config.getoption("markexpr") == "gpu" and file.startswith(ON_GPU):
            item.add_marker("gpu")
        for platform in ("cpu", "gpu"):
            if backend != platform and item.get_closest_marker(platform):
                item.add_marker(
                    pytest.mark.skip(reason=f"is about a {platform.upper()}; JAX computes on a {backend.upper()}")
                )
        published = item.get_closest_marker("published")
        if published and not all((WEIGHTS / name).is_dir() for name in published.args):
            item.add_marker(pytest.mark.skip(reason="FLAX_VAE_WEIGHTS names no folder with these published weights"))
        if not HAVE_TORCH and item.get_closest_marker("torch"):
            item.add_marker(pytest.mark.skip(reason="PyTorch is not installed"))
    result = yield
    _begin_with_slow_files(items)
    return result


def _begin_with_slow_files(items):
    """Lets each worker begin with its part of the files that hold slow tests, so that all end at the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    if workers == 1:
        return
    parts = [[] for _ in range(workers)]
    files = {item.path: [] for item in items}  # whole files, whose tests share fixtures
    for item in items:
        files[item.path].append(item)
    for number, path in enumerate(path for path in files if path in slow):
        parts[number % workers] += files[path]
    part, each = 0, len(items) / workers
    for path in files:
        if path not in slow:
            while part < workers - 1 and len(parts[part]) >= each:
                part += 1
            parts[part] += files[path]
    items[:] = [item for part in parts for item in part]


@pytest.fixture
def x64():
    """Float64 in JAX for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def optimised():
    """Programs compiled as users compile them, for what depends on it: rounding in float32 and below, memory, speed."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def bucket():
    """Address of a bucket that this process, and those that it starts, can reach; each test uses a folder of its own.

    Only tests that need it wait for the server.
    """
    if not all(importlib.util.find_spec(name) for name in ("gcsfs", "gcp_storage_emulator")):
        pytest.skip("gcsfs or gcp-storage-emulator is not installed")  # importing gcsfs here would read no variables
    yield from served()


ACCURACY = ["preset", "image", "of", "flax", "torch", "ratio"]


def pytest_terminal_summary(terminalreporter):
    """Prints what tests measured, also when several workers did: rounding, and mutated inputs."""
    ran, left_out = (
        [report for report in terminalreporter.stats.get(kind, []) if "published" in report.keywords]
        for kind in ("passed", "skipped")
    )
    if ran or left_out:
        terminalreporter.section("published weights")
        terminalreporter.line(f"{len(ran)} tests passed with them, {len(left_out)} were skipped")
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    properties = [each for report in reports for each in getattr(report, "user_properties", ())]
    mutated = [row for name, row in properties if name == "mutated"]
    if mutated:
        inputs, refused = (sum(row[column] for row in mutated) for column in (1, 2))
        terminalreporter.section("mutated files: only our errors, each within a second and 300 MB")
        terminalreporter.line(f"{inputs:,} inputs of {len(mutated)} kinds, {refused:,} refused")
    rows = [row for name, row in properties if name == "accuracy"]
    if not rows:
        return
    terminalreporter.section("RMS float32 error against float64, of the output's RMS (ratio allowed: 1.5)")
    table = [ACCURACY, *sorted(rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(ACCURACY))]
    for row in table:
        terminalreporter.line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
