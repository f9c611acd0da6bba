import os
import signal
import subprocess
import sys
import time

import pytest

COMMAND = """
import sys
from flax_vae.convert.console.interrupts import end_on_signals, ended_with_this_process
from flax_vae.convert.files import scratch_folder

end_on_signals("command")
waiting = [sys.executable, "-c", "import time; time.sleep(300)"]
with scratch_folder() as folder, ended_with_this_process(waiting) as child:
    (folder / "result").write_text("half of it")
    print(child.pid, folder, flush=True)
    child.wait()
"""


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"  # ended, but no parent has asked how
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="tells of processes by /proc")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM], ids=lambda signum: signum.name)
def test_a_signal_ends_what_was_started_and_removes_temporary_folders(tmp_path, signum):
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", COMMAND], env=environment, stdout=-1, stderr=-1, text=True) as command:
        assert command.stdout is not None
        pid, _ = command.stdout.readline().split(maxsplit=1)
        assert is_running(int(pid)) and list(tmp_path.iterdir())
        command.send_signal(signum)
        _, err = command.communicate(timeout=60)
    assert command.returncode == 128 + signum
    assert err.startswith("command: ") and err.count("\n") == 1
    deadline = time.monotonic() + 60
    while is_running(int(pid)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert list(tmp_path.iterdir()) == []
