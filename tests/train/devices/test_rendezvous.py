"""Tests of the rendezvous before JAX connects the processes; here in threads, with a stub of JAX's service."""

import contextlib
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from flax_vae.train.devices import rendezvous
from flax_vae.train.devices.processes import join_processes
from flax_vae.train.devices.rendezvous import meet
from flax_vae.train.errors import TrainError
from tests.train.runs import free_port

SETTINGS = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # first frame of an HTTP/2 server


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(rendezvous, "_BUSY_SECONDS", 0.5)
    monkeypatch.setattr(rendezvous, "_GREETING_SECONDS", 0.5)
    monkeypatch.setattr(rendezvous, "_START_SECONDS", 2.0)


@contextlib.contextmanager
def service(port, says=SETTINGS):
    """Starts a server that sends these bytes to every client."""
    ended = threading.Event()

    def serve(listener):
        while not ended.is_set():
            with contextlib.suppress(TimeoutError):
                connection, _ = listener.accept()
                connection.sendall(says)
                connections.append(connection)

    connections = []
    with socket.create_server(("127.0.0.1", port)) as listener, ThreadPoolExecutor() as pool:
        listener.settimeout(0.1)
        serving = pool.submit(serve, listener)
        yield
        ended.set()
        serving.result()
        for connection in connections:
            connection.close()


def start(members, timeout=3.0, pause=0.0):
    """Starts (count, index) pairs one after another; returns the error message of each, or None."""
    port = int(free_port())

    def one(number, count, index):
        time.sleep(number * pause)
        try:
            meet("127.0.0.1", port, count, index, timeout)
            if index == 0:
                with service(port):
                    time.sleep(1)
        except TrainError as error:
            return str(error)
        return None

    with ThreadPoolExecutor() as pool:
        futures = [pool.submit(one, number, *member) for number, member in enumerate(members)]
        return [future.result() for future in futures]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_processes_meet_in_any_order(order):
    assert start([(3, index) for index in order], pause=0.2) == [None] * 3


def test_a_single_process_does_not_wait():
    assert start([(1, 0)]) == [None]


def test_all_processes_name_the_missing_one():
    errors = start([(3, 0), (3, 2)], timeout=0.5)
    assert set(errors) == {
        "process 1 of 3 did not come within 0.5 s; start every process, or wait longer for them: --join-timeout SECONDS"
    }


def test_a_missing_process_0_is_named():
    (error,) = start([(2, 1)], timeout=0.5)
    assert "process 0 did not answer at 127.0.0.1:" in error
    assert "within 0.5 s" in error


@pytest.mark.parametrize("indices", [(0, 0), (0, 1, 1), (1, 0, 1)])
def test_an_index_started_twice_ends_all(indices):
    begun = time.monotonic()
    errors = start([(3, index) for index in indices], timeout=30)
    twice = max(indices, key=indices.count)
    assert set(errors) == {
        f"process {twice} was started twice; give each of the 3 processes its own index, from 0 to 2"
    }
    assert time.monotonic() - begun < 10


def test_different_numbers_of_processes_end_all():
    errors = start([(2, 0), (3, 1)])
    assert set(errors) == {"process 1 was started with processes=3, process 0 with 2; give all of them the same number"}


@pytest.mark.parametrize(
    "says", [b"", SETTINGS, b"SSH-2.0-OpenSSH_9.2\r\n", b"{}\n"], ids=["silent", "jax", "ssh", "{}"]
)
@pytest.mark.parametrize("index", [0, 1])
def test_a_taken_port_is_refused_without_disturbing_its_owner(says, index):
    port = int(free_port())
    with service(port, says):
        with pytest.raises(TrainError, match="coordinator with a free port"):
            meet("127.0.0.1", port, 2, index, 5)
        with socket.create_connection(("127.0.0.1", port)):
            pass


def test_a_port_that_becomes_free_in_time_is_used():
    port = int(free_port())

    def old_run():
        with service(port):
            time.sleep(0.3)

    with ThreadPoolExecutor() as pool:
        old = pool.submit(old_run)
        time.sleep(0.1)
        meet("127.0.0.1", port, 1, 0, 5)
        old.result()


def test_other_programs_and_restarted_processes_are_not_counted():
    port = int(free_port())
    with ThreadPoolExecutor() as pool:
        first = pool.submit(meet, "127.0.0.1", port, 2, 0, 5.0)
        time.sleep(0.2)
        for hello in (
            b"GET / HTTP/1.1\r\n\r\n",
            b'{"index": "x"}\n',
            b"[]\n",
            b"x" * 10_000,
            b"",
            b'{"index": 1, "count": 2',
        ):
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(hello)
                time.sleep(0.05)
        assert not first.done()
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.recv(100)
            connection.sendall(b'{"index": 1, "count": 2}\n')
            first.result()
            assert connection.recv(100) == b'{"go": true}\n'


def test_an_early_end_of_process_0_is_noticed():
    port = int(free_port())
    with ThreadPoolExecutor() as pool:
        first = pool.submit(meet, "127.0.0.1", port, 2, 0, 5.0)
        with pytest.raises(TrainError, match="ended before it started JAX's service"):
            meet("127.0.0.1", port, 2, 1, 5.0)
        first.result()


@pytest.mark.parametrize("address", ["localhost", ":1", "host:", "host:x", "host:0", "host:65536"])
def test_coordinator_needs_host_and_port(address):
    with pytest.raises(TrainError, match="must be HOST:PORT"):
        join_processes(address, 2, 0)
