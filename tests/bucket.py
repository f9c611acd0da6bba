"""A bucket on this machine: `gs://bucket`, of a Cloud Storage emulator in a process of its own.

`python -m tests.bucket` serves until its standard input ends, and prints its port.  The emulator knows no conditions on
the generation of an object, by which the real store makes "create only if absent", and does not say the generation of
what is read; both are added here.
"""

import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from pathlib import Path

BUCKET = "gs://bucket"


def environment(port: str) -> Mapping[str, str]:
    """Variables with which gcsfs, tensorstore and the processes that a test starts find the emulator."""
    address = f"http://127.0.0.1:{port}"
    return {
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # else a minute is spent looking for gRPC
        "NO_GCE_CHECK": "true",
    }


def served() -> Iterator[str]:
    """Gives the address of the bucket, in whose environment this process then is; the body of a fixture."""
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.bucket"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # it reports every client that was killed
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert server.stdin is not None and server.stdout is not None
    before = dict(os.environ)
    os.environ.update(environment(server.stdout.readline().strip()))
    try:
        yield BUCKET
    finally:
        for name in environment(""):
            os.environ.pop(name)
            if name in before:
                os.environ[name] = before[name]
        server.kill()  # it may still wait for a client
        server.communicate()


def _serve() -> None:
    from gcp_storage_emulator.handlers import objects

    insert, download = objects.insert, objects.download

    def generation(storage, request, name):
        try:
            return storage.get_file_obj(request.params["bucket_name"], name)["generation"]
        except Exception:  # its classes of an object that is missing differ by what is missing
            return "0"

    def conditional(request, response, storage, *rest, **named):
        expected = request.query.get("ifGenerationMatch")
        if expected is not None:
            name = request.query.get("name") or [(request.data.get("meta") or request.data)["name"]]
            if expected[0] != generation(storage, request, name[0]):
                response.status = HTTPStatus.PRECONDITION_FAILED
                return None
        return insert(request, response, storage, *rest, **named)

    def told(request, response, storage, *rest, **named):
        response["x-goog-generation"] = generation(storage, request, request.params["object_id"])
        return download(request, response, storage, *rest, **named)

    objects.insert, objects.download = conditional, told  # before the server puts them into its table
    from gcp_storage_emulator import server

    # One thread for each connection, because a client may open one and send nothing; one request at a time.
    http.server.HTTPServer = http.server.ThreadingHTTPServer
    http.server.ThreadingHTTPServer.request_queue_size = 128  # tensorstore asks in dozens
    handle, turn = server.Router.handle, threading.Lock()

    def in_turn(router, method):
        with turn:
            handle(router, method)

    server.Router.handle = in_turn
    served = server.create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
    served.start()
    print(served._api._httpd.server_address[1], flush=True)
    sys.stdin.read()
    served.stop()


if __name__ == "__main__":
    _serve()
