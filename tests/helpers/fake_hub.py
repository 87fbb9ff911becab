"""A Hub that lives in this process: as much of its interface as uploads and downloads use."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub:
    """Repositories by name: branch -> commit, commit -> {file: bytes}; and who asked for what."""

    def __init__(self):
        self.branches, self.commits, self.private, self.tokens = {}, {}, {}, set()

    def create(self, name, private):
        self.branches.setdefault(name, {"main": self._commit({})})
        self.private.setdefault(name, private)

    def write(self, name, branch, changes):
        files = self.commits[self.branches[name][branch]] | changes
        self.branches[name][branch] = self._commit(files)
        return self.branches[name][branch]

    def files(self, name, revision="main"):
        return self.commits[self.resolve(name, revision)]

    def resolve(self, name, revision):
        return self.branches.get(name, {}).get(revision, revision)

    def _commit(self, files):
        text = json.dumps([len(self.commits), sorted(files)])
        commit = hashlib.sha1(text.encode()).hexdigest()
        self.commits[commit] = files
        return commit


@contextmanager
def serving():
    """The hub and its address, on the loopback interface."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(hub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_POST(self):
            hub.tokens.add(self.headers.get("Authorization"))
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            if self.path == "/api/repos/create":
                asked = json.loads(body)
                name = "/".join(n for n in (asked.get("organization"), asked["name"]) if n)
                known = name in hub.branches
                private = bool(asked.get("private")) or asked.get("visibility") == "private"
                hub.create(name, private)
                return self.reply({"url": self.address(name)}, 409 if known else 200)
            if self.path == "/api/validate-yaml":
                return self.reply({"errors": [], "warnings": []})
            name, action, rest = re.match(
                r"/api/models/([^/]+/[^/]+)/(\w+)/(.+)", self.path
            ).groups()
            if name not in hub.branches:
                return self.reply({"error": "Repository not found"}, 404, "RepoNotFound")
            if action == "branch":
                known = rest in hub.branches[name]
                hub.branches[name].setdefault(rest, hub.branches[name]["main"])
                return self.reply({}, 409 if known else 200)
            if action == "preupload":
                names = [file["path"] for file in json.loads(body)["files"]]
                files = [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]
                return self.reply({"files": files})
            lines = [json.loads(line) for line in body.splitlines()]
            files = [line["value"] for line in lines if line["key"] == "file"]
            changes = {f["path"]: base64.b64decode(f["content"]) for f in files}
            commit = hub.write(name, rest, changes)
            url = f"{self.address(name)}/commit/{commit}"
            return self.reply({"commitUrl": url, "commitOid": commit, "success": True})

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            found = re.match(
                r"/api/models/([^/?]+/[^/?]+)(?:/(revision|tree)/([^/?]+))?(?:\?.*)?$", self.path
            )
            if found:
                return self.describe(found.group(1), found.group(2), found.group(3) or "main")
            found = re.match(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
            commit = hub.resolve(found.group(1), found.group(2)) if found else None
            content = hub.commits.get(commit, {}).get(found.group(3)) if found else None
            if content is None:
                return self.reply({"error": f"nothing at {self.path}"}, 404, "EntryNotFound")
            headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
            return self.send(content, 200, headers)

        def describe(self, name, kind, revision):
            if name not in hub.branches:
                return self.reply({"error": "Repository not found"}, 404, "RepoNotFound")
            commit = hub.resolve(name, revision)
            if commit not in hub.commits:
                return self.reply({"error": "no such revision"}, 404, "RevisionNotFound")
            files = hub.commits[commit]
            if kind == "tree":
                sizes = {path: len(content) for path, content in files.items()}
                entries = [{"type": "file", "path": p, "size": s} for p, s in sizes.items()]
                oids = [hashlib.sha1(content).hexdigest() for content in files.values()]
                return self.reply([e | {"oid": oid} for e, oid in zip(entries, oids)])
            siblings = [{"rfilename": path} for path in files]
            return self.reply({"id": name, "sha": commit, "siblings": siblings})

        def address(self, name):
            return f"http://{self.headers['Host']}/{name}"

        def reply(self, document, status=200, error=None):
            headers = {"Content-Type": "application/json"}
            headers |= {"X-Error-Code": error} if error else {}
            self.send(json.dumps(document).encode(), status, headers)

        def send(self, content, status, headers):
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    return Handler
