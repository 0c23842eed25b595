"""A loopback server that speaks as much of W&B's protocol as the real client asks of it, and remembers what arrived."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = "someone"
TIME = "2026-01-01T00:00:00"


NOBODY: dict[str, Any] = {"edges": []}
USER = {"__typename": "User", "id": "U1", "username": ENTITY, "name": ENTITY, "email": "a@b.c", "admin": False,
        "flags": "{}", "entity": ENTITY, "deletedAt": None, "apiKeys": NOBODY, "teams": NOBODY}  # fmt: skip


class Remembered:
    """What a server was sent."""

    def __init__(self) -> None:
        self.operations: list[str] = []
        self.runs: dict[str, dict[str, Any]] = {}
        self.history: dict[str, list[dict[str, Any]]] = {}
        self.views: dict[str, dict[str, Any]] = {}
        self.artifacts: dict[str, dict[str, Any]] = {}
        self.used: list[dict[str, Any]] = []
        self.uploads: dict[str, bytes] = {}
        self.unknown: list[str] = []


class Handler(BaseHTTPRequestHandler):
    """Answers one request; `server.remembered` keeps it."""

    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        """A client that hangs up is no error."""
        with suppress(ConnectionError):
            super().handle()

    def log_message(self, *_: Any) -> None:
        """Stay quiet."""

    @property
    def kept(self) -> Remembered:
        """What this server was sent."""
        return self.server.remembered  # type: ignore[attr-defined]

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") == "chunked":
            parts = []
            while size := int(self.rfile.readline().strip() or b"0", 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, content: Any, status: int = 200) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self) -> None:
        self._answer({})

    def do_PUT(self) -> None:
        self.kept.uploads[self.path] = self._body()
        self._answer({})

    def do_POST(self) -> None:
        body = self._body()
        if self.path.endswith("/file_stream"):
            run = self.path.split("/")[-2]
            files = json.loads(body or b"{}").get("files") or {}
            for line in (files.get("wandb-history.jsonl") or {}).get("content", []):
                self.kept.history.setdefault(run, []).append(json.loads(line))
            self._answer({"exitcode": None, "limits": {}})
            return
        request = json.loads(body)
        query, variables = request["query"], request.get("variables") or {}
        found = re.search(r"(query|mutation)\s+(\w+)", query)
        name = found.group(2) if found else query
        self.kept.operations.append(name)
        try:
            self._answer({"data": self._data(name, query, variables)})
        except (KeyError, IndexError, TypeError) as error:  # the client asked in a way that this server does not know
            self.kept.unknown.append(f"{name}: {error!r} {query[:800]} {json.dumps(variables)[:600]}")
            self._answer({"errors": [{"message": f"not understood: {name}"}]})

    def _project(self, name: str = "shaping") -> dict[str, Any]:
        return {"id": "P1", "internalId": "P1", "name": name, "entityName": ENTITY,
                "entity": {"id": "E1", "name": ENTITY}}  # fmt: skip

    def _artifact(self, number: str) -> dict[str, Any]:
        """An artifact as a reader is shown it."""
        asked = self.kept.artifacts[number]["variables"]
        place = {"__typename": "ArtifactSequence", "id": "S1", "name": asked["artifactCollectionName"],
                 "project": self._project()}  # fmt: skip
        latest = {"__typename": "ArtifactAlias", "id": "L1", "alias": "latest", "artifactCollection": place}
        return {"__typename": "Artifact", "id": number, "artifactSequence": place, "versionIndex": 0,
                "artifactType": {"name": asked["artifactTypeName"]}, "description": None, "metadata": "{}",
                "ttlDurationSeconds": -2, "ttlIsInherited": False, "tags": [], "historyStep": None,
                "state": "COMMITTED",
                "size": 1, "digest": asked["digest"], "commitHash": "c", "fileCount": 1,
                "createdAt": TIME, "updatedAt": TIME, "aliases": [latest]}  # fmt: skip

    def _artifact_named(self, name: str) -> dict[str, Any] | None:
        for number, found in self.kept.artifacts.items():
            if found["variables"].get("artifactCollectionName") == name.split(":")[0]:
                return self._artifact(number)
        return None

    def _data(self, name: str, query: str, v: dict[str, Any]) -> Any:
        base = f"http://127.0.0.1:{self.server.server_port}"  # type: ignore[attr-defined]
        kept = self.kept
        v = v.get("input", v)
        match name:
            case "GetDefaultEntity":
                return {"viewer": {"id": "U1", "entity": ENTITY}}
            case "Viewer":
                return {"viewer": {"id": "U1", "entity": ENTITY, "username": ENTITY, "email": "a@b.c", "flags": "{}",
                                   "name": ENTITY, "admin": False, "teams": {"edges": []}, "apiKeys": {"edges": []}},
                        "serverInfo": {"latestLocalVersionInfo": None, "cliVersionInfo": {}}}  # fmt: skip
            case "UpsertBucket":
                run = v.get("name") or "run"
                kept.runs.setdefault(run, {}).update({k: x for k, x in v.items() if x is not None})
                bucket = {"id": f"R-{run}", "name": run, "displayName": v.get("displayName") or run, "description": "",
                          "config": v.get("config") or "{}", "sweepName": None, "historyLineCount": 0,
                          "project": self._project(v.get("project") or "shaping")}  # fmt: skip
                return {"upsertBucket": {"bucket": bucket, "inserted": True}}
            case "RunResumeStatus" | "BucketQuery":
                return {
                    "model": {"id": "P1", "name": "shaping", "entity": {"id": "E1", "name": ENTITY}, "bucket": None}
                }
            case "CreateRunFiles":
                files = [{"name": f, "uploadUrl": f"{base}/up/{f}"} for f in v["files"]]
                return {"createRunFiles": {"runID": "R1", "uploadHeaders": [], "files": files}}
            case "CreateArtifact":
                collections = v.get("artifactCollectionNames") or [v.get("artifactCollectionName") or "unnamed"]
                digest, collection = v["digest"], collections[0]
                artifact = {"id": f"A-{digest}", "state": "PENDING", "digest": digest, "artifactSequence": {
                    "id": f"S-{collection}", "latestArtifact": None, "name": collection}}  # fmt: skip
                kept.artifacts.setdefault(f"A-{digest}", {"variables": v, "state": "PENDING"})
                return {"createArtifact": {"artifact": artifact}}
            case "CreateArtifactManifest":
                file: dict[str, Any] = {"id": "F1", "name": v.get("name"), "displayName": v.get("name"),
                        "uploadUrl": f"{base}/manifest/{v.get('artifactID')}", "uploadHeaders": []}  # fmt: skip
                return {"createArtifactManifest": {"artifactManifest": {"id": "M1", "file": file}}}
            case "UpdateArtifactManifest":
                file = {"id": "F1", "name": "m", "uploadUrl": f"{base}/manifest/x", "uploadHeaders": []}
                return {"updateArtifactManifest": {"artifactManifest": {"id": "M1", "file": file}}}
            case "CreateArtifactFiles":
                files = [{"node": {"id": f"F{i}", "name": f["name"], "displayName": f["name"], "uploadHeaders": [],
                                   "uploadUrl": f"{base}/files/{i}/{f['name']}", "storagePath": f["name"],
                                   "uploadMultipartUrls": None, "artifact": {"id": f["artifactID"]}}}
                         for i, f in enumerate(v["artifactFiles"])]  # fmt: skip
                return {"createArtifactFiles": {"files": {"edges": files}}}
            case "CommitArtifact":
                kept.artifacts.setdefault(v["artifactID"], {})["state"] = "COMMITTED"
                return {"commitArtifact": {"artifact": {"id": v["artifactID"], "digest": v["artifactID"][2:]}}}
            case "ArtifactType":
                found = self._artifact_named(v["name"])
                return {"project": {"artifact": found and {"artifactType": found["artifactType"]}}}
            case "ArtifactByID":
                return {"artifact": self._artifact(v["id"])}
            case "ArtifactByName":
                return {"project": {"artifact": self._artifact_named(v["name"])}}
            case "ArtifactMembershipByName":
                found = self._artifact_named(v["name"])
                place = found and found["artifactSequence"]
                member = found and {"__typename": "ArtifactCollectionMembership", "id": "AM1", "versionIndex": 0,
                                    "createdAt": "2026-01-01T00:00:00",
                                    "aliases": found["aliases"],
                                    "artifactCollection": place, "artifact": found}  # fmt: skip
                return {"project": {"artifactCollectionMembership": member}}
            case "UseArtifact":
                kept.used.append(v)
                used = {"id": v["artifactID"], "digest": v["artifactID"][2:], "description": "", "state": "COMMITTED",
                        "createdAt": "", "metadata": "{}"}  # fmt: skip
                return {"useArtifact": {"artifact": used}}
            case "ServerFeaturesQuery" | "ServerFeatures":
                return {"serverInfo": {"features": []}}
            case "GetProjects":
                edges = [{"node": {**self._project(), "createdAt": "2026-01-01T00:00:00", "isBenchmark": False,
                                   "user": USER},
                          "cursor": "c"}]  # fmt: skip
                page = {"endCursor": "c", "hasNextPage": False}
                return {
                    "models": {"edges": edges, "pageInfo": page},
                    "entity": {"projects": {"edges": edges, "pageInfo": page}},
                }
            case "ProjectInternalId":
                return {"project": {"id": "P1", "internalId": "P1"}}
            case "UpsertView2" | "upsertView":
                view_id = v.get("id") or f"V{len(kept.views) + 1}"
                old = kept.views.get(view_id, {})
                view = {**old, **{k: x for k, x in v.items() if x is not None}, "id": view_id,
                        "project": self._project(v.get("projectName") or "shaping")}  # fmt: skip
                view["saves"] = old.get("saves", 0) + 1
                kept.views[view_id] = view
                shown = {
                    k: view.get(k) for k in ("id", "name", "displayName", "description", "spec", "project", "type")
                }
                return {"upsertView": {"view": {**shown, "updatedAt": "2026-01-01T00:00:00"}, "inserted": not old}}
            case "View":
                nodes = [x for x in kept.views.values() if v["viewName"] in x["name"] or x["name"] in v["viewName"]]
                return {"project": {"allViews": {"edges": [{"node": x} for x in nodes]}}}
            case "SpecificReport":
                view = kept.views.get(v["reportId"]) or next(
                    iter(x for x in kept.views.values() if x.get("type") == "runs")
                )
                return {"view": {**view, "createdAt": "2026-01-01T00:00:00", "updatedAt": "2026-01-01T00:00:00"}}
            case _:
                kept.unknown.append(f"{name}: {query[:1500]} {json.dumps(v)[:300]}")
                return {}


@contextmanager
def wandb_server() -> Iterator[tuple[str, Remembered]]:
    """A server's address, and what it was sent."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.remembered = Remembered()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", server.remembered  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
