"""A stand-in for huggingface.co on this machine, with the answers of the real one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serve(repos: dict[str, Path | int], token: str = "") -> Iterator[tuple[str, list[str]]]:
    """Serve repositories: a folder with files, or a status: 403 for a gated one, 400 for a refusal.

    With a ``token`` all of them are gated for whoever does not send it.

    Yields its address, and the paths that are asked for as they are.
    """
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = self.path.split("?")[0].strip("/")
            parts = path.removeprefix("api/models/").split("/")
            repo, rest = repos.get("/".join(parts[:2])), parts[2:]
            asked.append(path)
            if token and self.headers.get("Authorization") != f"Bearer {token}":
                repo = 403
            if repo is None:
                return self.reply(404, b"", body, {"X-Error-Code": "RepoNotFound"})
            if isinstance(repo, int):
                return self.reply(repo, b"", body, {"X-Error-Code": "GatedRepo"} if repo == 403 else {})
            files = [file for file in repo.rglob("*") if file.is_file()]
            names = {file.relative_to(repo).as_posix(): file for file in files}
            if path.startswith("api/") and rest[:1] == ["tree"]:
                listed = [
                    {"type": "file", "path": name, "size": file.stat().st_size, "oid": etag(file)}
                    for name, file in names.items()
                ]
                return self.reply(200, json.dumps(listed).encode(), body, {})
            if path.startswith("api/"):
                info = {"id": "/".join(parts[:2]), "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
                return self.reply(200, json.dumps(info).encode(), body, {})
            file = names.get("/".join(rest[2:]))
            if file is None:
                return self.reply(404, b"", body, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            headers = {"ETag": f'"{etag(file)}"', "X-Repo-Commit": COMMIT}
            return self.reply(200, file.read_bytes(), body, headers)

        def reply(self, status: int, data: bytes, body: bool, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(data))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
