"""A hub on this machine that speaks the few calls of a prompt's upload and download, and remembers what was asked.

Repositories are kept in memory; a token is needed to write, and to read a private repository.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

TOKEN = "hf_local"
MAIN = "main"


class Repository:
    """Branches of commits, each with its files."""

    def __init__(self, private: bool = False) -> None:
        self.private = private
        self.commits: dict[str, dict[str, bytes]] = {}
        self.branches: dict[str, str] = {}
        self.messages: list[str] = []
        self.claimed: dict[str, int] = {}  # sizes that the listing claims
        self.commit(MAIN, {".gitattributes": b""}, "initial commit")

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        """Makes a commit of all files on a branch."""
        parent = self.branches.get(branch, "")
        oid = hashlib.sha1(f"{len(self.commits)} {parent} {sorted(files)}".encode()).hexdigest()
        self.commits[oid], self.branches[branch] = dict(files), oid
        self.messages.append(message)
        return oid

    def at(self, revision: str) -> str | None:
        """The commit of a branch or of a commit's own name."""
        return self.branches.get(revision, revision if revision in self.commits else None)


class LocalHub:
    """The hub's content, and the requests that came."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # LFS objects by their SHA-256
        self.requests: list[str] = []
        self.uses_lfs = False
        self.url = ""

    def holds(self, name: str, files: dict[str, bytes], branch: str = MAIN, private: bool = False) -> Repository:
        """Puts files into a repository."""
        repository = self.repositories.setdefault(name, Repository(private))
        repository.commit(branch, files, "put there")
        return repository

    def downloaded(self) -> set[str]:
        """The files whose content was asked for."""
        return {each.rpartition("/")[2] for each in self.requests if each.startswith("GET") and "/resolve/" in each}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LocalHub

    def log_message(self, *_: Any) -> None:
        """Is silent."""

    def _answer(self, status: int, body: Any = b"", **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        self.body = self._chunks() if self.headers.get("Transfer-Encoding") == "chunked" else self._whole()
        for pattern, serve in _ROUTES:
            found = re.fullmatch(pattern, f"{self.command} {path}")
            if found:
                return serve(self, **found.groupdict())
        raise AssertionError(f"{self.command} {path}")

    def _whole(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _chunks(self) -> bytes:
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _has_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _seen(self, name: str) -> Repository | None:
        """A repository that the client may see; else the answer is given, which does not tell why."""
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not self._has_token()):
            self._answer(404 if self._has_token() else 401, {"error": "no"}, X_Error_Code="RepoNotFound")
            return None
        return repository

    def _commit_of(self, repository: Repository, revision: str) -> str | None:
        commit = repository.at(revision)
        if commit is None:
            self._answer(404, {"error": "no"}, X_Error_Code="RevisionNotFound")
        return commit

    def create(self) -> None:
        if not self._has_token():
            return self._answer(401, {"error": "Invalid username or password."})
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        is_new = name not in self.hub.repositories
        if is_new:
            self.hub.repositories[name] = Repository(asked.get("visibility") == "private")
        self._answer(200 if is_new else 409, {"url": f"{self.hub.url}/{name}"})

    def branch(self, name: str, revision: str) -> None:
        repository = self.hub.repositories[name]
        is_new = revision not in repository.branches
        repository.branches.setdefault(revision, repository.branches[MAIN])
        self._answer(200 if is_new else 409, {})

    def validate(self) -> None:
        assert json.loads(self.body)["content"].startswith("---\n")
        self._answer(200, {"errors": [], "warnings": []})

    def preupload(self, name: str, revision: str) -> None:
        mode = "lfs" if self.hub.uses_lfs else "regular"
        paths = [each["path"] for each in json.loads(self.body)["files"]]
        files = [
            {"path": path, "uploadMode": mode if path.endswith(".safetensors") else "regular", "shouldIgnore": False}
            for path in paths
        ]
        self._answer(200, {"files": files})

    def lfs(self, name: str) -> None:
        def upload(oid: str) -> dict[str, Any]:
            return {"upload": {"href": f"{self.hub.url}/objects/{oid}"}}

        wanted = [each["oid"] for each in json.loads(self.body)["objects"]]
        objects = [{"oid": oid, "size": 0, "actions": upload(oid)} for oid in wanted]
        self._answer(200, {"transfer": "basic", "objects": objects})

    def put(self, oid: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.hub.objects[oid] = self.body
        self._answer(200)

    def commit(self, name: str, revision: str) -> None:
        if not self._has_token():
            return self._answer(401, {"error": "no"})
        repository = self.hub.repositories[name]
        files, message = dict(repository.commits[repository.branches[revision]]), ""
        for line in self.body.splitlines():
            each = json.loads(line)
            value = each["value"]
            match each["key"]:
                case "header":
                    message = value["summary"]
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.objects[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        oid = repository.commit(revision, files, message)
        self._answer(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid, "success": True})

    def info(self, name: str, revision: str | None) -> None:
        repository = self._seen(name)
        if repository is not None and (commit := self._commit_of(repository, revision or MAIN)):
            self._answer(200, {"id": name, "sha": commit, "private": repository.private, "siblings": [], "tags": []})

    def tree(self, name: str, revision: str) -> None:
        repository = self._seen(name)
        if repository is not None and (commit := self._commit_of(repository, revision)):
            files = repository.commits[commit].items()
            listed = [
                {"type": "file", "path": path, "size": repository.claimed.get(path, len(content)), "oid": "0" * 40}
                for path, content in files
            ]
            self._answer(200, listed)

    def resolve(self, name: str, revision: str, path: str) -> None:
        repository = self._seen(name)
        if repository is None or not (commit := self._commit_of(repository, revision)):
            return
        content = repository.commits[commit].get(path)
        if content is None:
            return self._answer(404, {"error": "no"}, X_Error_Code="EntryNotFound")
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": commit}
        if path in repository.claimed:
            headers["X-Linked-Size"] = str(repository.claimed[path])
        self._answer(200, content, **headers)


_NAME = r"(?P<name>[^/]+/[^/]+)"
_ROUTES = [
    (r"POST /api/repos/create", _Handler.create),
    (rf"POST /api/models/{_NAME}/branch/(?P<revision>.+)", _Handler.branch),
    (r"POST /api/validate-yaml", _Handler.validate),
    (rf"POST /api/models/{_NAME}/preupload/(?P<revision>.+)", _Handler.preupload),
    (rf"POST /{_NAME}\.git/info/lfs/objects/batch", _Handler.lfs),
    (r"PUT /objects/(?P<oid>\w+)", _Handler.put),
    (rf"POST /api/models/{_NAME}/commit/(?P<revision>.+)", _Handler.commit),
    (rf"GET /api/models/{_NAME}/tree/(?P<revision>.+)", _Handler.tree),
    (rf"GET /api/models/{_NAME}(/revision/(?P<revision>.+))?", _Handler.info),
    (rf"(GET|HEAD) /{_NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
]


@contextmanager
def serving() -> Iterator[LocalHub]:
    """A hub that answers on a free port of this machine."""
    hub = LocalHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def use(monkeypatch: pytest.MonkeyPatch, hub: LocalHub, cache: Path) -> None:
    """Makes it this process's hub, with a cache of its own."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("ptuning.model.hub.getproxies", dict)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
