"""A stand-in for the Hugging Face Hub: model repositories in memory, behind what huggingface_hub
sends to upload a folder of small files (all of them "regular", none in large file storage).

    with fake_hub.hub() as hub:
        HfApi(endpoint=hub.url, token="token").upload_folder(...)
        assert hub.repos["owner/name"].files == {"README.md": b"..."}
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Repo:
    """A model repository."""

    private: bool = True
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b""})


@dataclass
class Hub:
    """What a test looks at."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)  # method and path of what would write
    forbidden: bool = False  # every request that writes is answered with 403


@contextmanager
def hub() -> Iterator[Hub]:
    """A hub of its own for the time of the `with`."""
    here = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": here}))
    here.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield here
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args) -> None:
        """Nothing on stderr."""

    def do_GET(self) -> None:
        """A repository, or the list of its files."""
        name, rest = re.match(r"/api/models/([^/]+/[^/?]+)(.*)", self.path).groups()
        repo = self.hub.repos.get(name)
        if repo is None:
            self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif rest.startswith("/tree/"):
            files = repo.files.items()
            rows = [{"type": "file", "path": p, "size": len(x), "oid": "0" * 40} for p, x in files]
            self._answer(200, rows)
        else:
            self._answer(200, {"id": name, "private": repo.private, "siblings": []})

    def do_POST(self) -> None:
        """What leads to a commit."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self._chunks()
        if self.path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        self.hub.requests.append(f"POST {self.path}")
        if self.hub.forbidden or self.headers.get("Authorization") != "Bearer token":
            return self._answer(403, {"error": "You may not write here"})
        if self.path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given['organization']}/{given['name']}"
            private = given.get("private", given.get("visibility") == "private")
            self.hub.repos[name] = Repo(private=private)
            return self._answer(200, {"url": f"{self.hub.url}/{name}", "id": name})
        name, what = re.match(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/", self.path).groups()
        if what == "preupload":
            files = [file["path"] for file in json.loads(body)["files"]]
            keep = {"uploadMode": "regular", "shouldIgnore": False}
            return self._answer(200, {"files": [keep | {"path": path} for path in files]})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                self.hub.repos[name].files[line["value"]["path"]] = content
            elif line["key"] != "header":
                return self._answer(400, {"error": f"a {line['key']} is not known here"})
        commit = {"commitUrl": f"{self.hub.url}/{name}/commit/0", "commitOid": "0" * 40}
        self._answer(200, commit | {"pullRequestUrl": None})

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, status: int, value: object, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data)
