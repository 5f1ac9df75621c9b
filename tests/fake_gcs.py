"""A stand-in for Google's storage server: buckets in memory behind what gcsfs, TensorStore and
google-cloud-storage use of its JSON API (https://cloud.google.com/storage/docs/json_api/v1).

    with fake_gcs.bucket() as bucket:
        bucket.put("pairs/0.tar", data)
        main([f"--config.data.train={bucket.url}/pairs/0.tar", f"--workdir={bucket.url}/run"])
        assert "run/config.json" in bucket.names()

Inside the `with` the environment sends all clients of this process, and of those it starts, to the
stand-in. There is one server a process, as clients remember the address; each `with` gets a bucket
of its own.
"""

from __future__ import annotations

import base64
import email.utils
import functools
import hashlib
import itertools
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, quote, unquote, urlsplit

PAGE = 1000  # objects of one answer to `list`, at most
ACCOUNT = "/computeMetadata/v1/instance/service-accounts/default/"
METADATA = {  # what the metadata server of a machine in Google's cloud says
    "/": {},
    ACCOUNT: {"email": "test@example.com", "aliases": ["default"], "scopes": ["cloud-platform"]},
    f"{ACCOUNT}token": {"access_token": "token", "expires_in": 3600, "token_type": "Bearer"},
}
_COUNTER = itertools.count(1)


@dataclass(frozen=True)
class Object:
    """What is under one name."""

    data: bytes
    generation: int
    content_type: str
    time: str


@dataclass
class Bucket:
    """One bucket of the stand-in, and how a test looks into it."""

    name: str
    server: ThreadingHTTPServer
    objects: dict[str, Object] = field(default_factory=dict)
    forbidden: bool = False  # every request is answered with 403
    read_only: bool = False  # every request that changes something is
    # what the bucket is may not be asked, as with the right to its objects alone
    undescribed: bool = False
    broken: int = 0  # so many requests from now on are answered with 503
    delay: float = 0.0  # seconds until a request is answered
    # (method, path with query), oldest first
    requests: list[tuple[str, str]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"gs://{self.name}"

    def put(
        self, name: str, data: bytes | str, content_type: str = "application/octet-stream"
    ) -> Object:
        """Stores an object, in place of one of that name."""
        data = data.encode() if isinstance(data, str) else data
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        self.objects[name] = Object(bytes(data), next(_COUNTER), content_type, now)
        return self.objects[name]

    def get(self, name: str) -> bytes:
        return self.objects[name].data

    def names(self, prefix: str = "") -> list[str]:
        with self.server.lock:
            return sorted(name for name in self.objects if name.startswith(prefix))


@functools.cache
def _server() -> ThreadingHTTPServer:
    """The server of this process; it ends with it."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.lock, server.buckets, server.uploads = threading.RLock(), {}, {}
    threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True
    ).start()
    return server


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, client_address):
        """A client that was killed closes its connection in the middle: nothing to print."""


def environment(server: ThreadingHTTPServer | None = None) -> dict[str, str]:
    """What sends the clients to the stand-in, and for credentials to its metadata server."""
    host, port = (server or _server()).server_address[:2]
    return {
        "STORAGE_EMULATOR_HOST": f"http://{host}:{port}",  # gcsfs, google-cloud-storage
        "TENSORSTORE_GCS_HTTP_URL": f"http://{host}:{port}",
        # where TensorStore and google-auth ask whether this is Google's cloud
        "GCE_METADATA_ROOT": f"{host}:{port}",
        "GCE_METADATA_HOST": f"{host}:{port}",
        "GOOGLE_CLOUD_PROJECT": "test",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks over gRPC, which is not here
    }


@contextmanager
def bucket(name: str = "") -> Iterator[Bucket]:
    """An empty bucket, reached by all clients inside the context."""
    server = _server()
    made = Bucket(name or f"bucket-{next(_COUNTER)}", server)
    wanted = environment(server) | {"GOOGLE_APPLICATION_CREDENTIALS": None}
    before = {key: os.environ.get(key) for key in wanted}
    with server.lock:
        server.buckets[made.name] = made
    try:
        _set(wanted)
        yield made
    finally:
        _set(before)
        with server.lock:
            del server.buckets[made.name]


def _set(values: dict[str, str | None]) -> None:
    for key, value in values.items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value


class _Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body in one packet

    # What each path means. Names of objects are one segment with / as %2F; some clients leave it as
    # it is.
    routes = (
        ("GET", r"/storage/v1/b/([^/]+)", "bucket_get"),
        ("GET", r"/storage/v1/b/([^/]+)/o", "list"),
        ("POST", r"(?:/resumable)?/upload/storage/v1/b/([^/]+)/o", "insert"),
        ("PUT", r"(?:/resumable)?/upload/storage/v1/b/([^/]+)/o", "insert"),
        ("DELETE", r"(?:/resumable)?/upload/storage/v1/b/([^/]+)/o", "cancel"),
        ("POST", r"/storage/v1/b/([^/]+)/o/(.+)/rewriteTo/b/([^/]+)/o/(.+)", "rewrite"),
        ("POST", r"/storage/v1/b/([^/]+)/o/(.+)/copyTo/b/([^/]+)/o/(.+)", "rewrite"),
        ("POST", r"/storage/v1/b/([^/]+)/o/(.+)/moveTo/o/(.+)", "move"),
        ("POST", r"/storage/v1/b/([^/]+)/o/(.+)/compose", "compose"),
        ("GET", r"(?:/download)?/storage/v1/b/([^/]+)/o/(.+)", "get"),
        ("DELETE", r"/storage/v1/b/([^/]+)/o/(.+)", "delete"),
    )

    def log_message(self, format, *args):
        """Prints nothing."""

    def do_GET(self):
        self._answer()

    do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = do_GET

    def _answer(self) -> None:
        body = self._body()
        split = urlsplit(self.path)
        self.query = dict(parse_qsl(split.query, keep_blank_values=True))
        try:
            if self.command == "GET" and split.path in METADATA:
                self._json(METADATA[split.path], {"Metadata-Flavor": "Google"})
                return
            for method, pattern, name in self.routes:
                found = re.fullmatch(pattern, split.path)
                if method == self.command and found:
                    bucket, *names = map(unquote, found.groups())
                    time.sleep(
                        self.server.buckets[bucket].delay if bucket in self.server.buckets else 0.0
                    )
                    with self.server.lock:
                        self._allow(self._bucket(bucket))
                        getattr(self, name)(
                            self._bucket(bucket),
                            *names,
                            *([body] if name in ("insert", "compose") else []),
                        )
                    return
            raise _Refused(404, f"{self.command} {split.path} is not part of the stand-in")
        except _Refused as error:
            text = {
                "error": {
                    "code": error.status,
                    "message": str(error),
                    "errors": [{"message": str(error)}],
                }
            }
            self._send(error.status, b"" if error.status == 304 else json.dumps(text).encode())

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _bucket(self, name: str) -> Bucket:
        if name not in self.server.buckets:
            raise _Refused(404, "The specified bucket does not exist.")
        return self.server.buckets[name]

    def _allow(self, bucket: Bucket) -> None:
        bucket.requests.append((self.command, self.path))
        refused = bucket.forbidden or (bucket.read_only and self.command != "GET")
        if bucket.broken > 0:
            bucket.broken -= 1
            raise _Refused(503, "Backend Error")
        if refused or (
            bucket.undescribed and re.fullmatch(r"/storage/v1/b/[^/]+", urlsplit(self.path).path)
        ):
            right = "objects" if refused else "buckets.get"
            raise _Refused(
                403,
                f"Anonymous caller does not have storage.{right} access to the bucket "
                f"{bucket.name}.",
            )

    def _object(self, bucket: Bucket, name: str) -> Object:
        if name not in bucket.objects:
            raise _Refused(404, f"No such object: {bucket.name}/{name}")
        return bucket.objects[name]

    def _check_generation(
        self, bucket: Bucket, name: str, prefix: str = "if", status: int = 304
    ) -> None:
        """The conditions of the query: the generation that is there, 0 for none, must or must not
        be the given one.
        """
        here = bucket.objects[name].generation if name in bucket.objects else 0
        wanted, refused = (
            self.query.get(f"{prefix}Generation{kind}") for kind in ("Match", "NotMatch")
        )
        if wanted is not None and int(wanted) != here:
            raise _Refused(412, "At least one of the pre-conditions you specified did not hold.")
        if refused is not None and int(refused) == here:
            raise _Refused(status, "Not Modified")

    # ---------------------------------------------------------------------------------- the methods

    def bucket_get(self, bucket: Bucket) -> None:
        self._json(
            {"kind": "storage#bucket", "id": bucket.name, "name": bucket.name, "location": "US"}
        )

    def list(self, bucket: Bucket) -> None:
        query = self.query
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        start, end, after = (
            query.get("startOffset", ""),
            query.get("endOffset", ""),
            query.get("pageToken", ""),
        )
        entries: dict[str, Object | None] = {}  # a name, or with None the beginning of several
        for name in sorted(bucket.objects):
            if not name.startswith(prefix) or name < start or (end and name >= end):
                continue
            inside = name[len(prefix) :].split(delimiter, 1) if delimiter else [name]
            entry, value = (
                (prefix + inside[0] + delimiter, None)
                if len(inside) > 1
                else (name, bucket.objects[name])
            )
            if entry > after:
                entries[entry] = value
        page = list(entries)[: min(int(query.get("maxResults", PAGE)), PAGE)]
        answer = {
            "kind": "storage#objects",
            "items": [
                _describe(bucket, name, entries[name]) for name in page if entries[name] is not None
            ],
            "prefixes": [name for name in page if entries[name] is None],
        }
        if len(page) < len(entries):
            answer["nextPageToken"] = page[-1]
        self._json({key: value for key, value in answer.items() if value})

    def get(self, bucket: Bucket, name: str) -> None:
        found = self._object(bucket, name)
        self._check_generation(bucket, name)
        if self.query.get("alt") != "media":
            self._json(_describe(bucket, name, found))
            return
        headers = {
            "Content-Type": found.content_type,
            "X-Goog-Generation": str(found.generation),
            "X-Goog-Metageneration": "1",
            "X-Goog-Hash": f"md5={_md5(found.data)}",
            "ETag": f'"{found.generation}"',
        }
        size = len(found.data)
        span = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not span:
            self._send(200, found.data, headers)
            return
        first, last = (int(text) if text else None for text in span.groups())
        if first is None:
            first, last = max(size - last, 0), size - 1
        last = min(size - 1 if last is None else last, size - 1)
        if first >= size:
            self._send(416, b"", {"Content-Range": f"bytes */{size}"})
            return
        self._send(
            206,
            found.data[first : last + 1],
            headers | {"Content-Range": f"bytes {first}-{last}/{size}"},
        )

    def insert(self, bucket: Bucket, body: bytes) -> None:
        query, kind = self.query, self.query.get("uploadType", "")
        if "upload_id" in query:
            self._resume(bucket, query["upload_id"], body)
        elif kind == "resumable":
            name = query.get("name") or json.loads(body or b"{}").get("name")
            self._check_generation(bucket, name)
            known = f"upload-{next(_COUNTER)}"
            content_type = self.headers.get("X-Upload-Content-Type", "application/octet-stream")
            self.server.uploads[known] = (name, bytearray(), content_type)
            host = self.headers["Host"]
            place = f"http://{host}/resumable{urlsplit(self.path).path}?uploadType=resumable&upload_id={known}"
            self._send(200, b"", {"Location": place})
        elif kind == "multipart":
            description, content_type, data = _parts(self.headers["Content-Type"], body)
            self._store(bucket, query.get("name") or description["name"], data, content_type)
        else:
            self._store(
                bucket,
                query["name"],
                body,
                self.headers.get("Content-Type", "application/octet-stream"),
            )

    def _resume(self, bucket: Bucket, known: str, body: bytes) -> None:
        if known not in self.server.uploads:
            raise _Refused(404, "No such upload")
        name, data, content_type = self.server.uploads[known]
        span = re.fullmatch(
            r"bytes (?:\*|(\d+)-(\d+))/(\d+|\*)", self.headers.get("Content-Range", "bytes */*")
        )
        if span[1] is not None:
            if int(span[1]) != len(data):
                raise _Refused(400, f"{len(data)} bytes are here")
            data += body
        elif "Content-Range" not in self.headers:
            data += body
        if "Content-Range" not in self.headers or span[3] == str(len(data)):
            del self.server.uploads[known]
            self._store(bucket, name, bytes(data), content_type)
        else:
            self._send(308, b"", {"Range": f"bytes=0-{len(data) - 1}"} if data else {})

    def cancel(self, bucket: Bucket) -> None:
        self.server.uploads.pop(self.query.get("upload_id", ""), None)
        self._send(499, b"")

    def _store(self, bucket: Bucket, name: str, data: bytes, content_type: str) -> None:
        self._check_generation(bucket, name)
        self._json(_describe(bucket, name, bucket.put(name, data, content_type)))

    def delete(self, bucket: Bucket, name: str) -> None:
        self._check_generation(bucket, name)
        self._object(bucket, name)
        del bucket.objects[name]
        self._send(204, b"")

    def rewrite(self, bucket: Bucket, name: str, to_bucket: str, to_name: str) -> None:
        found, target = self._object(bucket, name), self._bucket(to_bucket)
        self._check_generation(target, to_name)
        made = _describe(target, to_name, target.put(to_name, found.data, found.content_type))
        size = str(len(found.data))
        done = {
            "kind": "storage#rewriteResponse",
            "done": True,
            "totalBytesRewritten": size,
            "objectSize": size,
        }
        self._json(made if "/copyTo/" in self.path else done | {"resource": made})

    def move(self, bucket: Bucket, name: str, to_name: str) -> None:
        found = self._object(bucket, name)
        self._check_generation(bucket, to_name)
        made = bucket.put(to_name, found.data, found.content_type)
        del bucket.objects[name]
        self._json(_describe(bucket, to_name, made))

    def compose(self, bucket: Bucket, name: str, body: bytes) -> None:
        self._check_generation(bucket, name)
        parts = [
            self._object(bucket, source["name"]).data
            for source in json.loads(body)["sourceObjects"]
        ]
        self._json(_describe(bucket, name, bucket.put(name, b"".join(parts))))

    # ---------------------------------------------------------------------------------- the answers

    def _json(self, value: dict, headers: dict[str, str] | None = None) -> None:
        headers = {"Content-Type": "application/json; charset=UTF-8"} | (headers or {})
        self._send(200, json.dumps(value).encode(), headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response_only(status)
        for name, value in (
            {"Date": email.utils.formatdate(usegmt=True)} | (headers or {})
        ).items():
            self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD" and status not in (204, 304):
            self.wfile.write(body)


def _describe(bucket: Bucket, name: str, found: Object) -> dict[str, str]:
    """The resource of an object."""
    return {
        "kind": "storage#object",
        "id": f"{bucket.name}/{name}/{found.generation}",
        "selfLink": f"/storage/v1/b/{bucket.name}/o/{quote(name, safe='')}",
        "name": name,
        "bucket": bucket.name,
        "generation": str(found.generation),
        "metageneration": "1",
        "contentType": found.content_type,
        "storageClass": "STANDARD",
        "size": str(len(found.data)),
        "md5Hash": _md5(found.data),
        "etag": str(found.generation),
        "timeCreated": found.time,
        "updated": found.time,
    }


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data).digest()).decode()


def _parts(content_type: str, body: bytes) -> tuple[dict, str, bytes]:
    """Description, type and data of an upload in two parts.

    Clients end lines with \\n or with \\r\\n.
    """
    border = b"--" + re.search(r'boundary="?([^";]+)"?', content_type)[1].encode()
    _, first, rest = body.split(border, 2)
    second = rest[: rest.rindex(border)]
    (_, description), (header, data) = (
        re.split(rb"\r?\n\r?\n", part, maxsplit=1) for part in (first, second)
    )
    kind = re.search(rb"(?i)content-type: *([^\r\n]+)", header)
    end = 2 if data.endswith(b"\r\n") and b"\r\n" in header else 1
    return json.loads(description), kind[1].decode() if kind else "", data[:-end]
