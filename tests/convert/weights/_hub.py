"""A small Hugging Face hub on this machine, and a process that loads models from it with the library's own client."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

STORED_APART = (".safetensors", ".msgpack", ".bin", ".ckpt")  # by the hub, which redirects to them


class Hub(ThreadingHTTPServer):
    """Serves revisions of repositories, as far as `snapshot_download` asks for them.

    Attributes:
      revisions: Contents of files by their paths, by repository and revision.
      gated: Tokens that repositories ask for.
      broken: Repositories without service.
      asked: Requests so far, without queries.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Answer)
        self.revisions: dict[tuple[str, str], dict[str, bytes]] = {}
        self.gated: dict[str, str] = {}
        self.broken: set[str] = set()
        self.asked: list[str] = []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def address(self) -> str:
        """Value of HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, repository: str, folder: Path, revision: str = "main") -> None:
        """Publishes the files of a folder."""
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        self.revisions[repository, revision] = {".gitattributes": b"", "README.md": b"a model\n"} | files

    def find(self, repository: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Returns a commit and its files, given a branch or the commit itself."""
        for (name, branch), files in self.revisions.items():
            commit = hashlib.sha1(f"{name} {branch} {sorted(files)}".encode()).hexdigest()
            if name == repository and revision in (branch, commit):
                return commit, files
        return None

    def downloads(self) -> list[str]:
        """Files that were asked for, sorted; of a file in its cache, the client knows all it needs."""
        found = (line.partition("/resolve/")[2].partition("/")[2] for line in self.asked if line.startswith("HEAD /"))
        return sorted(filter(None, found))


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        self.server.asked.append(f"{self.command} {unquote(path)}")
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if parts[:2] == ["api", "agent-harnesses"]:  # of no concern here
            self._refuse(404, "EntryNotFound", "Entry not found")
        elif parts[:2] == ["api", "models"]:
            self._describe("/".join(parts[2:4]), parts[4], parts[5])
        elif parts[0] == "stored":
            self._send(next(data for files in self.server.revisions.values() for data in files.values()
                            if hashlib.sha256(data).hexdigest() == parts[1]))  # fmt: skip
        else:
            self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))

    def _describe(self, repository: str, what: str, revision: str) -> None:
        found = self._found(repository, revision)
        if found is None:
            return
        commit, files = found
        if what == "revision":
            siblings = [{"rfilename": name} for name in files]
            self._send_json({"id": repository, "sha": commit, "private": False, "siblings": siblings})
        else:
            self._send_json([_describe_file(name, data) for name, data in files.items()])

    def _resolve(self, repository: str, revision: str, file: str) -> None:
        found = self._found(repository, revision)
        if found is None:
            return
        commit, files = found
        token = self.server.gated.get(repository)
        if token is not None and self.headers["Authorization"] != f"Bearer {token}":
            self._refuse(401, "GatedRepo", f"Access to model {repository} is restricted.")
        elif file not in files:
            self._refuse(404, "EntryNotFound", "Entry not found")
        elif file.endswith(STORED_APART):
            digest = hashlib.sha256(files[file]).hexdigest()
            linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(files[file]))}
            place = {"Location": f"http://localhost:{self.server.server_port}/stored/{digest}"}  # another host
            self._send(b"", 302, {"X-Repo-Commit": commit} | linked | place)
        else:
            self._send(files[file], 200, {"X-Repo-Commit": commit, "ETag": f'"{_blob_id(files[file])}"'})

    def _found(self, repository: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        found = self.server.find(repository, revision)
        if self.headers["Authorization"] == "Bearer hf_wrong":
            self._refuse(401, None, "Invalid credentials in Authorization header")
            return None
        if repository in self.server.broken:
            self._refuse(503, None, "Service Unavailable")
        elif found is None and any(name == repository for name, _ in self.server.revisions):
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif found is None:
            self._refuse(401, "RepoNotFound", "Repository not found")
        return found

    def _refuse(self, status: int, code: str | None, message: str) -> None:
        body = json.dumps({"error": message}).encode()
        self._send(body, status, {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {}))

    def _send_json(self, content: Any) -> None:
        self._send(json.dumps(content).encode(), 200, {"Content-Type": "application/json"})

    def _send(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def _describe_file(name: str, data: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": name, "size": len(data), "oid": _blob_id(data)}
    if name.endswith(STORED_APART):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return entry


def _blob_id(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


_PROGRAM = """
import json, sys
from flax_vae.convert import AutoEncoderParams
from flax_vae.convert.weights import open_weights, resolve_architecture
answers, sys.stdout = sys.stdout, sys.stderr
for line in sys.stdin:
    path, architecture, options = json.loads(line)
    try:
        source = open_weights(path, **options)
        weights = resolve_architecture(source, architecture and AutoEncoderParams.from_dict(architecture))
        mark = weights.to("flux")["decoder.conv_out.bias"]
        answer = {"file": str(source.path), "mark": float(mark[0])}
    except Exception as error:
        answer = {"error": str(error), "kind": type(error).__name__}
    print(json.dumps(answer), file=answers, flush=True)
"""


class Client:
    """A process that loads models, one after another.

    Attributes:
      said: What it wrote to standard error.
    """

    def __init__(self, hub: Hub | None, home: Path, **environment: str):
        address = "http://127.0.0.1:9" if hub is None else hub.address  # nothing listens there
        more = {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
        self._errors = (home.parent / f"{home.name}.err").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={k: v for k, v in os.environ.items() if not k.startswith("HF_")} | more | environment,
        )

    def load(self, path: str, architecture: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
        """Returns the file that was read and a number in it, or the error."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([path, architecture, options]) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    @property
    def said(self) -> str:
        self._errors.seek(0)
        return self._errors.read()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: Any) -> None:
        """Ends the process."""
        self._process.communicate(timeout=60)
        self._errors.close()
