# SPDX-License-Identifier: Apache-2.0
"""A hub on this machine: the parts of the HTTP interfaces of the Hugging Face Hub and of ModelScope
that downloading a model needs. Point `HF_ENDPOINT` or `MODELSCOPE_ENDPOINT` at its `url`.
"""

import contextlib
import hashlib
import http.server
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

DEFAULT_REVISIONS = ("main", "master")


@dataclass
class Repository:
    """A model of the hub: a folder for each revision, the default one under "main"."""

    revisions: dict[str, Path]
    gated: bool = False
    token: str | None = None  # the one that a gated repository lets in

    def folder(self, revision: str) -> Path | None:
        """Return the folder of a branch, a tag or a commit."""
        name = "main" if revision in DEFAULT_REVISIONS else revision
        by_commit = {commit_of(folder): folder for folder in self.revisions.values()}
        return self.revisions.get(name) or by_commit.get(revision)


@dataclass
class Hub:
    """What the stand-in serves, and what it was asked for."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)  # method, path with query
    fetched: list[str] = field(default_factory=list)  # names of files that were sent
    also_lists: list[str] = field(default_factory=list)  # files beside those in the folder
    dies_in: str | None = None  # the file in the middle of which every answer ends

    def add(self, name: str, folder: Path, **changes: Any) -> Repository:
        """Serve `folder` as the default revision of the model `name`."""
        self.repositories[name] = Repository({"main": folder}, **changes)
        return self.repositories[name]


def commit_of(folder: Path) -> str:
    """Return a commit's hash for a folder."""
    return hashlib.sha1(str(folder).encode()).hexdigest()


@contextlib.contextmanager
def serve_hub() -> Iterator[Hub]:
    """Serve an empty hub on a free port of this machine until the block ends."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.hub.requests.append((self.command, self.path))
        url = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(url.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        if found := re.fullmatch(r"/api/v1/models/([^/]+/[^/]+)(?:/(.+))?", path):
            self._modelscope(found[1], found[2], query)
        elif found := re.fullmatch(
            r"/api/models/([^/]+/[^/]+?)(?:/(revision|tree|refs)(/.*)?)?", path
        ):
            self._hugging_face_api(found[1], found[2], (found[3] or "/main").lstrip("/"))
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._hugging_face_file(found[1], found[2], found[3])
        else:
            self._error(404, "EntryNotFound")

    def _listed(self, folder: Path) -> list[tuple[str, Path]]:
        return [*_files(folder), *((name, folder / name) for name in self.hub.also_lists)]

    # The Hugging Face Hub

    def _admit(self, name: str) -> Repository | None:
        """Return the repository, or answer why not."""
        repository = self.hub.repositories.get(name)
        authorization = self.headers.get("Authorization")
        if repository is None:
            # As the hub has it: whoever is not logged in might be told so.
            self._error(404 if authorization else 401, "RepoNotFound")
        elif repository.gated and authorization != f"Bearer {repository.token}":
            self._error(403 if authorization else 401, "GatedRepo")
        else:
            return repository
        return None

    def _hugging_face_api(self, name: str, kind: str | None, revision: str) -> None:
        repository = self.hub.repositories.get(name)
        if repository is None or kind == "tree":
            repository = self._admit(name)  # what a gated model is may be seen, but not its files
        if repository is None:
            return
        if kind == "refs":
            branches = [
                {"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": commit_of(folder)}
                for branch, folder in repository.revisions.items()
            ]
            self._json({"branches": branches, "tags": [], "converts": []})
            return
        folder = repository.folder(revision)
        if folder is None:
            self._error(404, "RevisionNotFound")
        elif kind == "tree":
            self._json(
                [
                    {"type": "file", "path": file, "size": path.stat().st_size, "oid": _sha1(path)}
                    for file, path in self._listed(folder)
                ]
            )
        else:
            self._json(
                {
                    "id": name,
                    "sha": commit_of(folder),
                    "private": False,
                    "gated": "auto" if repository.gated else False,
                    "tags": [],
                    "downloads": 0,
                    "likes": 0,
                    "siblings": [{"rfilename": file} for file, _ in self._listed(folder)],
                }
            )

    def _hugging_face_file(self, name: str, revision: str, file: str) -> None:
        repository = self._admit(name)
        if repository is None:
            return
        folder = repository.folder(revision)
        if folder is None:
            self._error(404, "RevisionNotFound")
        elif not (folder / file).is_file():
            self._error(404, "EntryNotFound", {"X-Repo-Commit": commit_of(folder)})
        else:
            headers = {"ETag": f'"{_sha1(folder / file)}"', "X-Repo-Commit": commit_of(folder)}
            self._file(folder / file, headers)

    # ModelScope

    def _modelscope(self, name: str, rest: str | None, query: dict[str, str]) -> None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            self._json({"Code": 10010205001, "Message": "record not found", "Success": False}, 404)
            return
        if repository.gated:
            self._json({"Code": 10010201001, "Message": "access denied", "Success": False}, 403)
            return
        if rest == "revisions":
            branches = [{"Revision": _modelscope_name(name)} for name in repository.revisions]
            self._modelscope_data({"RevisionMap": {"Branches": branches, "Tags": []}})
            return
        if rest is None:
            owner, model = name.split("/")
            self._modelscope_data({"Name": model, "Path": owner})
            return
        folder = repository.folder(query.get("Revision", "master"))
        if folder is None:
            self._json({"Code": 10010205002, "Message": "revision not found"}, 404)
        elif rest == "repo/files":
            self._modelscope_data(
                {
                    "Files": [
                        {
                            "Name": path.name,
                            "Path": file,
                            "Type": "blob",
                            "Size": path.stat().st_size,
                            "Sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                            "Revision": commit_of(folder),
                        }
                        for file, path in self._listed(folder)
                    ]
                }
            )
        elif rest == "repo" and (folder / query["FilePath"]).is_file():
            self._file(folder / query["FilePath"], {})
        else:
            self._json({"Code": 10010205003, "Message": "file not found"}, 404)

    def _modelscope_data(self, data: Any) -> None:
        self._json({"Code": 200, "Data": data, "Message": "success", "Success": True})

    # Both

    def _file(self, path: Path, headers: dict[str, str]) -> None:
        content = path.read_bytes()
        status = 200
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            start, end = int(found[1]), min(int(found[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            content, status = content[start : end + 1], 206
        if self.command == "GET":
            self.hub.fetched.append(path.name)
        self._send(status, content, headers, whole=path.name != self.hub.dies_in)

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self._send(
            status,
            json.dumps({"error": code}).encode(),
            {"X-Error-Code": code, "X-Error-Message": code, **(headers or {})},
        )

    def _send(
        self, status: int, content: bytes, headers: dict[str, str], whole: bool = True
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if whole:
            self.wfile.write(content)
        else:
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True


def _files(folder: Path) -> list[tuple[str, Path]]:
    return [
        (str(path.relative_to(folder)), path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]


def _sha1(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


def _modelscope_name(revision: str) -> str:
    return "master" if revision == "main" else revision


def folder_of(name, weights=True, **how):
    from vllm_metal.hub import HubModel, folder_of

    return Path(folder_of(HubModel(name, **how), weights))


def message_of(name, **how):
    """Return the message of a model that cannot be had; it must be all that a user sees."""
    with pytest.raises(RuntimeError) as caught:
        folder_of(name, **how)
    assert caught.value.__suppress_context__
    message = str(caught.value)
    assert "\n" not in message
    assert repr(name) in message
    return message
