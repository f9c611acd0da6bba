"""What commands keep from the screen, and that nothing is kept from a program that imports the packages."""

import logging
import subprocess
import sys

import pytest

from flax_vae.convert.console import quiet

PROBE = """
import logging, os, sys
{before}
try:
    import libtpu
    print("found")
except ImportError:
    print("not found")
print(logging.getLogger("absl").level, os.environ.get("TF_CPP_MIN_LOG_LEVEL"))
"""


@pytest.fixture
def libtpu(tmp_path, monkeypatch):
    """Something of that name to import, in an environment that chooses no backend."""
    (tmp_path / "libtpu.py").write_text("")
    for name in (*quiet._CHOSEN, "TF_CPP_MIN_LOG_LEVEL"):
        monkeypatch.delenv(name, raising=False)

    def probe(before):
        code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n" + PROBE.format(before=before)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
        return done.stdout.split()

    return probe


NO_TPU = "import flax_vae.convert.console.quiet as quiet; quiet._TPU_FILES = ('no-such-*',); "


def test_where_there_is_no_tpu_commands_do_not_find_libtpu(libtpu):
    assert libtpu(NO_TPU + "quiet.quiet_libraries()") == ["not", "found", str(logging.CRITICAL), "2"]


@pytest.mark.parametrize(
    "before",
    [
        NO_TPU + "quiet.quiet_libraries(tpu_compiler=True)",
        NO_TPU + "os.environ['TPU_NAME'] = 'pod'; quiet.quiet_libraries()",
        NO_TPU + "os.environ['JAX_PLATFORMS'] = 'tpu'; quiet.quiet_libraries()",
        "import flax_vae.convert.console.quiet as quiet; quiet._TPU_FILES = ('null',); quiet.quiet_libraries()",
    ],
    ids=["plan", "named", "chosen", "attached"],
)
def test_where_a_tpu_is_meant_libtpu_is_found(libtpu, before):
    assert libtpu(before)[0] == "found"


def test_a_program_that_imports_the_packages_keeps_all_it_had(libtpu):
    assert libtpu("import flax_vae.convert, flax_vae.train") == ["found", str(logging.NOTSET), "None"]


def test_every_command_is_quiet(libtpu):
    commands = {
        "flax_vae.convert.cli.main": "[]",
        "flax_vae.cli.main": "['x']",
        "flax_vae.train.cli.main": "['--dry-run', '--preset', 'x']",
    }
    for command, words in commands.items():
        before = NO_TPU + f"from {command} import main; sys.stderr = open(os.devnull, 'w')\n"
        before += f"try:\n    main({words})\nexcept SystemExit:\n    pass"
        assert libtpu(before)[-4:-2] == ["not", "found"], command


def test_what_the_event_loops_of_orbax_report_is_not_printed_and_all_else_is():
    code = """
import logging, sys, types, warnings
from flax_vae.convert.console.quiet import quiet_libraries
sys.unraisablehook = lambda report: print(repr(report.exc_value), file=sys.stderr)
quiet_libraries()
quiet_libraries()
for error in (RuntimeError("Event loop is closed"), RuntimeError("another"), ValueError("Event loop is closed")):
    sys.unraisablehook(types.SimpleNamespace(exc_value=error))
logging.getLogger("asyncio").error("Task exception was never retrieved")
warnings.warn("coroutine 'write' was never awaited", RuntimeWarning)
raise RuntimeError("Event loop is closed")
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    lines = process.stderr.splitlines()
    reports = ["RuntimeError('another')", "ValueError('Event loop is closed')"]
    assert lines[:3] == [*reports, "Traceback (most recent call last):"]
    assert lines[-1] == "RuntimeError: Event loop is closed"
