"""An S3 server (moto's, over HTTP) and a web server of plain files, in a process of its own.

It writes down every request, and fails where it is told to. Run: object_server.py PORT_FILE FOLDER.

    GET  /_log                        the requests since the last call, JSON
    POST /_fail {match, kind, times}  the next `times` GETs of objects whose path holds `match` are
                                      cut short ("truncate") or refused ("503")
    GET  /www/...                     FOLDER, with index pages, ranges and ETags
"""

import json
import os
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.utils import send_file
from werkzeug.wrappers import Request, Response


class Quiet(WSGIRequestHandler):
    def log(self, *_: Any) -> None:
        pass


class Recorder:
    def __init__(self, folder: Path) -> None:
        self.s3 = DomainDispatcherApplication(create_backend_app)
        self.folder = folder
        self.lock = threading.Lock()
        self.requests: list[dict[str, Any]] = []
        self.faults: list[dict[str, Any]] = []

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        request = Request(environ)
        if request.path == "/_log":
            with self.lock:
                taken, self.requests = self.requests, []
            return Response(json.dumps(taken))(environ, start)
        if request.path == "/_fail":
            with self.lock:
                self.faults = [json.loads(request.get_data())]
            return Response()(environ, start)
        with self.lock:
            self.requests.append(
                {
                    "method": request.method,
                    "path": request.path,
                    "query": request.query_string.decode(),
                    "range": request.headers.get("Range"),
                    "authorization": request.headers.get("Authorization"),
                }
            )
            fault = self._due(request)
        if fault == "503":
            return Response(status=503)(environ, start)
        answer = self._www(request) if request.path.startswith("/www") else None
        if answer is None and fault is None:
            return self.s3(environ, start)
        answer = answer or Response.from_app(self.s3, environ)
        if fault == "truncate":
            return self._cut(answer, start)
        return answer(environ, start)

    def _due(self, request: Request) -> str | None:
        for fault in self.faults:
            is_get = request.method == "GET" and "list-type" not in request.args
            if is_get and fault["match"] in request.path and fault["times"] > 0:
                fault["times"] -= 1
                return str(fault["kind"])
        return None

    @staticmethod
    def _cut(answer: Response, start: Callable[..., Any]) -> Iterable[bytes]:
        answer.direct_passthrough = False
        body = answer.get_data()
        headers = [(k, v) for k, v in answer.headers.items() if k.lower() != "content-length"]
        start(answer.status, [*headers, ("Content-Length", str(len(body)))])
        return [body[: len(body) // 2]]

    def _www(self, request: Request) -> Response:
        path = self.folder / request.path.removeprefix("/www").strip("/")
        if path.is_dir():
            names = sorted(p.name + "/" * p.is_dir() for p in path.iterdir())
            links = "".join(f'<a href="{name}">{name}</a>\n' for name in names)
            return Response(f'<html><a href="../">up</a>\n{links}</html>', mimetype="text/html")
        if not path.is_file():
            return Response(status=404)
        return send_file(path, request.environ, mimetype="application/x", conditional=True)


if __name__ == "__main__":
    port_file, folder = map(Path, sys.argv[1:])
    server = make_server("127.0.0.1", 0, Recorder(folder), threaded=True, request_handler=Quiet)
    partial = port_file.with_suffix(".partial")
    partial.write_text(str(server.server_port))
    os.replace(partial, port_file)
    server.serve_forever()
