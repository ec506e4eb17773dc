"""A local stand-in of the Hugging Face hub's HTTP interface: who am I, new repository, upload of files, commit."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_standin"


class Hub:
    """The stand-in's state: repositories made, and files by repository and path."""

    def __init__(self) -> None:
        self.repositories: list[str] = []
        self.blobs: dict[str, bytes] = {}  # large files by SHA-256
        self.files: dict[str, dict[str, bytes]] = {}
        self.url = ""

    def commit(self, repository: str, lines: list[dict]) -> None:
        files = self.files.setdefault(repository, {})
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.blobs[value["oid"]]


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of `huggingface_hub`; a subclass says for which hub."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        """Silent."""

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, content: object, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if self.path != "/api/whoami-v2":
            self.answer({"id": "user/name", "siblings": [], "sha": "0" * 40})
        elif known:
            self.answer({"name": "user", "type": "user", "auth": {}})
        else:
            self.answer({"error": "Invalid credentials"}, 401)

    def do_PUT(self) -> None:
        data = self.body()
        self.hub.blobs[hashlib.sha256(data).hexdigest()] = data
        self.answer({})

    def do_POST(self) -> None:
        body = self.body()
        if self.path == "/api/repos/create":
            name = json.loads(body)
            self.hub.repositories.append(f"{name.get('organization') or 'user'}/{name['name']}")
            self.answer({"url": f"{self.hub.url}/{self.hub.repositories[-1]}"})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            self.answer({"files": [self.mode(file) for file in json.loads(body)["files"]]})
        elif self.path.endswith("/info/lfs/objects/batch"):
            self.answer({"transfer": "basic", "objects": [self.upload(e) for e in json.loads(body)["objects"]]})
        elif "/commit/" in self.path:
            repository = self.path.removeprefix("/api/models/").split("/commit/")[0]
            self.hub.commit(repository, [json.loads(line) for line in body.splitlines() if line.strip()])
            self.answer({"commitUrl": f"{self.hub.url}/{repository}/commit/1", "commitOid": "1" * 40, "success": True})
        else:
            self.answer({"error": f"no {self.path}"}, 404)

    def mode(self, file: dict) -> dict:
        large = file["path"].endswith(".safetensors")
        mode = {"uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": None}
        return {"path": file["path"]} | mode

    def upload(self, entry: dict) -> dict:
        address = f"{self.hub.url}/upload/{entry['oid']}"
        return entry | {"actions": {"upload": {"href": address, "header": {}}}}


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Runs the stand-in on a free local port."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
