"""A model hub on loopback, as far as `HfApi.create_repo`, `repo_info` and `upload_folder` need one.

It stands in for huggingface.co. Routes: /api/repos/create, /api/{models,datasets}/NAME, /api/validate-yaml, preupload,
commit, and Git LFS's batch API with basic transfers and verification. Parquet and safetensors go through LFS. What LFS
uploads must have the SHA-256 that was announced, and what is committed by it must have been uploaded. Xet storage,
which the real hub prefers where hf_xet is installed, is not here: HF_HUB_DISABLE_XET=1 leads clients to LFS.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_testtoken0123456789"


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    """Their summaries."""


class Hub:
    """What the hub holds; `url` leads to it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.empty()

    def empty(self) -> None:
        """Forget everything."""
        self.repositories: dict[tuple[str, str], Repository] = {}
        """By kind (model, dataset) and name."""
        self.uploaded: dict[str, bytes] = {}
        self.failing: set[str] = set()
        """Ends of paths that answer 500."""
        self.requests: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        """Silent."""

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self._read())

    do_PUT = do_POST  # noqa: N815 - the name that http.server looks for

    def _read(self) -> bytes:
        if self.headers.get("transfer-encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("content-length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, body: bytes) -> None:
        path = self.path.partition("?")[0]
        self.hub.requests.append(f"{self.command} {path}")
        if any(path.endswith(end) for end in self.hub.failing):
            self._send(500, {"error": "the hub has a bad day"})
        elif path.startswith("/lfs/"):
            self._lfs(path, body)
        elif self.headers.get("authorization") != f"Bearer {TOKEN}":
            self._send(401, {"error": "Invalid credentials in Authorization header"})
        elif path == "/api/validate-yaml":
            self._send(200, {"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif found := re.fullmatch(r"/(?:(datasets)/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._batch(json.loads(body), found)
        elif found := re.fullmatch(r"/api/(model|dataset)s/([^/]+/[^/]+)(?:/(\w+)/main)?", path):
            self._repository(found, body)
        else:
            self._send(404, {"error": f"no route {path}"})

    def _create(self, asked: dict[str, Any]) -> None:
        kind, name = asked.get("type") or "model", f"{asked['organization']}/{asked['name']}"
        url = f"{self.hub.url}/{'datasets/' if kind == 'dataset' else ''}{name}"
        if (kind, name) in self.hub.repositories:
            self._send(409, {"error": "You already created this repo", "url": url})
            return
        self.hub.repositories[kind, name] = Repository(private=asked.get("visibility") == "private")
        self._send(200, {"url": url, "name": name, "id": "0"})

    def _repository(self, found: re.Match[str], body: bytes) -> None:
        repository = self.hub.repositories.get((found[1], found[2]))
        if repository is None:
            self._send(404, {"error": "Repository not found"}, {"x-error-code": "RepoNotFound"})
        elif found[3] == "preupload":
            files = [one["path"] for one in json.loads(body)["files"]]
            modes = [
                {
                    "path": name,
                    "uploadMode": "lfs" if name.endswith((".parquet", ".safetensors")) else "regular",
                    "shouldIgnore": False,
                }
                for name in files
            ]
            self._send(200, {"files": modes})
        elif found[3] == "commit":
            self._commit(repository, f"{found[1]}s/{found[2]}", body)
        else:
            sha = hashlib.sha1(repr(repository.commits).encode()).hexdigest()
            self._send(200, {"_id": "0", "id": found[2], "private": repository.private, "sha": sha, "siblings": []})

    def _commit(self, repository: Repository, name: str, body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                repository.commits.append(value["summary"])
            elif line["key"] == "file":
                assert value["encoding"] == "base64"
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repository.files[value["path"]] = self.hub.uploaded[value["oid"]]
            else:
                self._send(400, {"error": f"unknown operation {line['key']}"})
                return
        self._send(200, {"commitUrl": f"{self.hub.url}/{name}/commit/1", "commitOid": "1" * 40, "success": True})

    def _batch(self, asked: dict[str, Any], found: re.Match[str]) -> None:
        if ("dataset" if found[1] else "model", found[2]) not in self.hub.repositories:
            self._send(404, {"error": "Repository not found"}, {"x-error-code": "RepoNotFound"})
            return
        objects = []
        for one in asked["objects"]:
            links = {
                "upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"},
                "verify": {"href": f"{self.hub.url}/lfs/verify"},
            }
            known = one["oid"] in self.hub.uploaded
            objects.append({"oid": one["oid"], "size": one["size"]} | ({} if known else {"actions": links}))
        self._send(200, {"transfer": "basic", "objects": objects})

    def _lfs(self, path: str, body: bytes) -> None:
        if path == "/lfs/verify":
            asked = json.loads(body)
            there = len(self.hub.uploaded.get(asked["oid"], b"")) == asked["size"]
            self._send(200 if there else 404, {})
            return
        oid = path.removeprefix("/lfs/")
        if hashlib.sha256(body).hexdigest() != oid:
            self._send(400, {"error": "not what was announced"})
            return
        self.hub.uploaded[oid] = body
        self._send(200, {})

    def _send(self, status: int, content: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {
            "content-type": "application/json",
            "content-length": str(len(body)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def stub_hub() -> Iterator[Hub]:
    """A hub on a free port of loopback; it ends with the block."""

    class Handler(_Handler):
        """With a hub of its own."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")
    Handler.hub = hub
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
