"""A server on localhost that implements as much of W&B's protocol as the real client needs, and records requests."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = "someone"
TIME = "2026-01-01T00:00:00"

NO_EDGES: dict[str, Any] = {"edges": []}
USER = {"__typename": "User", "id": "U1", "username": ENTITY, "name": ENTITY, "email": "a@b.c", "admin": False,
        "flags": "{}", "entity": ENTITY, "deletedAt": None, "apiKeys": NO_EDGES, "teams": NO_EDGES}  # fmt: skip

Json = dict[str, Any]


class Received:
    """What a server was sent."""

    def __init__(self) -> None:
        self.operations: list[str] = []
        """Names of the GraphQL operations, in order."""
        self.runs: dict[str, Json] = {}
        self.history: dict[str, list[Json]] = {}
        """Run -> its logged rows; as in W&B, a line replaces the one that arrived before at the same place."""
        self.summaries: dict[str, str] = {}
        """Run -> its summary, as JSON."""
        self.views: dict[str, Json] = {}
        """Reports and workspaces by id."""
        self.artifacts: dict[str, Json] = {}
        self.used: list[Json] = []
        """Artifacts that runs declared as inputs."""
        self.uploads: dict[str, bytes] = {}
        """Path -> content of uploaded files."""
        self.unknown: list[str] = []
        """Requests that the server could not answer."""


class Handler(BaseHTTPRequestHandler):
    """Answers one request and records it in `server.received`."""

    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        """Answer; a client that closes the connection is not an error."""
        with suppress(ConnectionError):
            super().handle()

    def log_message(self, *_: Any) -> None:
        """Print nothing."""

    @property
    def received(self) -> Received:
        """What this server was sent."""
        return self.server.received  # type: ignore[attr-defined]

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
        self.received.uploads[self.path] = self._body()
        self._answer({})

    def do_POST(self) -> None:
        body = self._body()
        if self.path.endswith("/file_stream"):
            run = self.path.split("/")[-2]
            files = json.loads(body or b"{}").get("files") or {}
            if history := files.get("wandb-history.jsonl"):
                rows, start = self.received.history.setdefault(run, []), history.get("offset", 0)
                rows[start : start + len(history["content"])] = map(json.loads, history["content"])
            if summary := files.get("wandb-summary.json"):
                self.received.summaries[run] = summary["content"][-1]
            self._answer({"exitcode": None, "limits": {}})
            return
        request = json.loads(body)
        query, variables = request["query"], request.get("variables") or {}
        match = re.search(r"(query|mutation)\s+(\w+)", query)
        name = match.group(2) if match else query
        self.received.operations.append(name)
        try:
            address = f"http://127.0.0.1:{self.server.server_port}"  # type: ignore[attr-defined]
            answer = getattr(Operations(self.received, address), name)
            self._answer({"data": answer(variables.get("input", variables))})
        except (AttributeError, KeyError, IndexError, TypeError) as error:
            self.received.unknown.append(f"{name}: {error!r} {query[:800]} {json.dumps(variables)[:600]}")
            self._answer({"errors": [{"message": f"not understood: {name}"}]})


def project(name: str = "shaping") -> Json:
    """A project in the form of the protocol."""
    return {"id": "P1", "internalId": "P1", "name": name, "entityName": ENTITY, "entity": {"id": "E1", "name": ENTITY}}


class Operations:
    """One method for each GraphQL operation, under its name; each takes the variables and returns the data."""

    def __init__(self, received: Received, address: str) -> None:
        self._received, self._address = received, address

    # Account and projects

    def GetDefaultEntity(self, _: Json) -> Json:
        return {"viewer": {"id": "U1", "entity": ENTITY}}

    def Viewer(self, _: Json) -> Json:
        return {"viewer": {"id": "U1", "entity": ENTITY, "username": ENTITY, "email": "a@b.c", "flags": "{}",
                           "name": ENTITY, "admin": False, "teams": NO_EDGES, "apiKeys": NO_EDGES},
                "serverInfo": {"latestLocalVersionInfo": None, "cliVersionInfo": {}}}  # fmt: skip

    def ServerFeaturesQuery(self, _: Json) -> Json:
        return {"serverInfo": {"features": []}}

    ServerFeatures = ServerFeaturesQuery

    def GetProjects(self, _: Json) -> Json:
        node = {**project(), "createdAt": TIME, "isBenchmark": False, "user": USER}
        edges = [{"node": node, "cursor": "c"}]
        page = {"endCursor": "c", "hasNextPage": False}
        return {"models": {"edges": edges, "pageInfo": page},
                "entity": {"projects": {"edges": edges, "pageInfo": page}}}  # fmt: skip

    def ProjectInternalId(self, _: Json) -> Json:
        return {"project": {"id": "P1", "internalId": "P1"}}

    # Runs

    def UpsertBucket(self, variables: Json) -> Json:
        run = variables.get("name") or "run"
        values = {key: value for key, value in variables.items() if value is not None}
        self._received.runs.setdefault(run, {}).update(values)
        bucket = {"id": f"R-{run}", "name": run, "displayName": variables.get("displayName") or run, "description": "",
                  "config": variables.get("config") or "{}", "sweepName": None, "historyLineCount": 0,
                  "project": project(variables.get("project") or "shaping")}  # fmt: skip
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}

    def RunResumeStatus(self, variables: Json) -> Json:
        run, bucket = variables["name"], None
        if stored := self._received.runs.get(run):
            rows = self._received.history.get(run, [])
            bucket = {"id": f"R-{run}", "name": run, "displayName": stored.get("displayName") or run,
                      "historyLineCount": len(rows), "logLineCount": 0, "eventsLineCount": 0,
                      "historyTail": json.dumps([json.dumps(row) for row in rows[-1:]]), "eventsTail": "[]",
                      "summaryMetrics": self._received.summaries.get(run, "{}"), "config": stored.get("config", "{}"),
                      "tags": stored.get("tags", []), "notes": None, "wandbConfig": "{\"t\": 1}"}  # fmt: skip
        return {"model": {"id": "P1", "name": "shaping", "entity": {"id": "E1", "name": ENTITY}, "bucket": bucket}}

    BucketQuery = RunResumeStatus

    def CreateRunFiles(self, variables: Json) -> Json:
        files = [{"name": name, "uploadUrl": f"{self._address}/up/{name}"} for name in variables["files"]]
        return {"createRunFiles": {"runID": "R1", "uploadHeaders": [], "files": files}}

    def OrganizationCoreWeaveOrganizationID(self, _: Json) -> Json:
        return {"entity": {"organization": None}}

    # Writing artifacts

    def CreateArtifact(self, variables: Json) -> Json:
        collections = variables.get("artifactCollectionNames") or [variables.get("artifactCollectionName") or "unnamed"]
        digest, collection = variables["digest"], collections[0]
        sequence = {"id": f"S-{collection}", "latestArtifact": None, "name": collection}
        artifact = {"id": f"A-{digest}", "state": "PENDING", "digest": digest, "artifactSequence": sequence}
        self._received.artifacts.setdefault(f"A-{digest}", {"variables": variables, "state": "PENDING"})
        return {"createArtifact": {"artifact": artifact}}

    def CreateArtifactManifest(self, variables: Json) -> Json:
        file: Json = {"id": "F1", "name": variables.get("name"), "displayName": variables.get("name"),
                      "uploadUrl": f"{self._address}/manifest/{variables.get('artifactID')}",
                      "uploadHeaders": []}  # fmt: skip
        return {"createArtifactManifest": {"artifactManifest": {"id": "M1", "file": file}}}

    def UpdateArtifactManifest(self, _: Json) -> Json:
        file: Json = {"id": "F1", "name": "m", "uploadUrl": f"{self._address}/manifest/x", "uploadHeaders": []}
        return {"updateArtifactManifest": {"artifactManifest": {"id": "M1", "file": file}}}

    def CreateArtifactFiles(self, variables: Json) -> Json:
        edges = [
            {"node": {"id": f"F{i}", "name": file["name"], "displayName": file["name"], "uploadHeaders": [],
                      "uploadUrl": f"{self._address}/files/{i}/{file['name']}", "storagePath": file["name"],
                      "uploadMultipartUrls": None, "artifact": {"id": file["artifactID"]}}}
            for i, file in enumerate(variables["artifactFiles"])
        ]  # fmt: skip
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def CommitArtifact(self, variables: Json) -> Json:
        number = variables["artifactID"]
        self._received.artifacts.setdefault(number, {})["state"] = "COMMITTED"
        return {"commitArtifact": {"artifact": {"id": number, "digest": number[2:]}}}

    # Reading artifacts

    def _artifact(self, number: str) -> Json:
        """A stored artifact in the form in which it is read."""
        variables = self._received.artifacts[number]["variables"]
        sequence = {"__typename": "ArtifactSequence", "id": "S1", "name": variables["artifactCollectionName"],
                    "project": project()}  # fmt: skip
        latest = {"__typename": "ArtifactAlias", "id": "L1", "alias": "latest", "artifactCollection": sequence}
        return {"__typename": "Artifact", "id": number, "artifactSequence": sequence, "versionIndex": 0,
                "artifactType": {"name": variables["artifactTypeName"]}, "description": None, "metadata": "{}",
                "ttlDurationSeconds": -2, "ttlIsInherited": False, "tags": [], "historyStep": None,
                "state": "COMMITTED",
                "size": 1, "digest": variables["digest"], "commitHash": "c", "fileCount": 1,
                "createdAt": TIME, "updatedAt": TIME, "aliases": [latest]}  # fmt: skip

    def _artifact_named(self, name: str) -> Json | None:
        for number, artifact in self._received.artifacts.items():
            if artifact["variables"].get("artifactCollectionName") == name.split(":")[0]:
                return self._artifact(number)
        return None

    def ArtifactType(self, variables: Json) -> Json:
        artifact = self._artifact_named(variables["name"])
        return {"project": {"artifact": artifact and {"artifactType": artifact["artifactType"]}}}

    def ArtifactByID(self, variables: Json) -> Json:
        return {"artifact": self._artifact(variables["id"])}

    def ArtifactByName(self, variables: Json) -> Json:
        return {"project": {"artifact": self._artifact_named(variables["name"])}}

    def ArtifactMembershipByName(self, variables: Json) -> Json:
        artifact = self._artifact_named(variables["name"])
        member = artifact and {"__typename": "ArtifactCollectionMembership", "id": "AM1", "versionIndex": 0,
                               "createdAt": TIME, "aliases": artifact["aliases"],
                               "artifactCollection": artifact["artifactSequence"], "artifact": artifact}  # fmt: skip
        return {"project": {"artifactCollectionMembership": member}}

    def UseArtifact(self, variables: Json) -> Json:
        self._received.used.append(variables)
        number = variables["artifactID"]
        artifact = {"id": number, "digest": number[2:], "description": "", "state": "COMMITTED", "createdAt": "",
                    "metadata": "{}"}  # fmt: skip
        return {"useArtifact": {"artifact": artifact}}

    # Reports and workspaces

    def UpsertView2(self, variables: Json) -> Json:
        views = self._received.views
        view_id = variables.get("id") or f"V{len(views) + 1}"
        old = views.get(view_id, {})
        values = {key: value for key, value in variables.items() if value is not None}
        view = {**old, **values, "id": view_id, "project": project(variables.get("projectName") or "shaping")}
        view["saves"] = old.get("saves", 0) + 1
        views[view_id] = view
        keys = ("id", "name", "displayName", "description", "spec", "project", "type")
        answer = {**{key: view.get(key) for key in keys}, "updatedAt": TIME}
        return {"upsertView": {"view": answer, "inserted": not old}}

    upsertView = UpsertView2

    def View(self, variables: Json) -> Json:
        name = variables["viewName"]
        nodes = [view for view in self._received.views.values() if name in view["name"] or view["name"] in name]
        return {"project": {"allViews": {"edges": [{"node": node} for node in nodes]}}}

    def SpecificReport(self, variables: Json) -> Json:
        views = self._received.views
        view = views.get(variables["reportId"]) or next(view for view in views.values() if view.get("type") == "runs")
        return {"view": {**view, "createdAt": TIME, "updatedAt": TIME}}


@contextmanager
def wandb_server() -> Iterator[tuple[str, Received]]:
    """Yields the address of a running server, and what it receives."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    received = Received()
    server.received = received  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", received
    finally:
        server.shutdown()
        server.server_close()
