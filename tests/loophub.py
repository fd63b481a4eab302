"""A ModelScope hub on 127.0.0.1: what the real client (modelscope 1.40, modelscope_hub 0.5) asks for when it downloads
a model, and the faults that real networks have.

    with LoopHub() as hub:
        hub.add('damo/some_model', folder, 'v1.0.0')
        hub.faults.append(Fault('truncate', match='FilePath=unet'))
        ...                     # a process with MODELSCOPE_ENDPOINT=hub.endpoint downloads
        hub.requests            # what it asked for, in order
"""
from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qsl, unquote, urlsplit


@dataclass
class Fault:
    """What goes wrong with the first `times` requests whose 'path?query' `match` is found in (-1: with all of them).

    truncate  the full length is announced, half of it is sent, the connection closes
    corrupt   the full length, wrong bytes
    html      a login page instead of the file, as behind a captive portal
    missing   HTTP 404
    status    HTTP 500
    owner     the model's metadata name another owner
    """
    kind: str
    match: str = '.'
    times: int = 1

    def strikes(self, line: str) -> bool:
        if self.times == 0 or not re.search(self.match, line):
            return False
        self.times -= 1
        return True


@dataclass(frozen=True)
class Request:
    line: str                   # 'path?query', unquoted
    range: str | None           # the Range header of a resumed download
    fault: str | None


@dataclass
class LoopHub:
    faults: list[Fault] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    _folders: dict[tuple[str, str], Path] = field(default_factory=dict)
    handler: ClassVar[type[BaseHTTPRequestHandler]]

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        handler = type('BoundHandler', (self.handler,), {'hub': self})
        self._server = ThreadingHTTPServer(('127.0.0.1', 0), handler)
        self._server.daemon_threads = True
        self.endpoint = f'http://127.0.0.1:{self._server.server_address[1]}'

    def __enter__(self) -> LoopHub:
        threading.Thread(target=self._server.serve_forever, kwargs={'poll_interval': 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, model_id: str, folder: Path, revision: str = 'master') -> None:
        self._folders[model_id, revision] = folder

    def has(self, model_id: str) -> bool:
        return any(known == model_id for known, _ in self._folders)

    def folder(self, model_id: str, revision: str | None) -> Path | None:
        return self._folders.get((model_id, revision or 'master'))

    def note(self, line: str, resumed: str | None) -> str | None:
        """Logs a request; the kind of fault that it meets."""
        with self._lock:
            kind = next((fault.kind for fault in self.faults if fault.strikes(line)), None)
            self.requests.append(Request(line, resumed, kind))
            return kind


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    timeout = 30
    hub: Any     # LoopHub, or what extends it

    def log_message(self, *_: object) -> None:
        """Nothing on stderr; `hub.requests` has it all."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path, query = unquote(url.path), dict(parse_qsl(url.query))
        self.fault = self.hub.note(unquote(self.path), self.headers.get('Range'))
        if self.fault == 'status':
            return self._json({'Code': 500, 'Message': 'injected', 'Success': False}, 500)
        if self.fault == 'missing':
            return self._missing(path)
        if self.fault == 'html':
            return self._bytes(b'<html>please log in to the network</html>', 'text/html')
        for pattern, answer in _ROUTES:
            if match := re.fullmatch(pattern, path):
                return answer(self, *match.groups(), **({'query': query} if match.groups() else {}))
        return self._missing(path)

    def _acceleration(self) -> None:
        self._ok({'InternalRegionQueryAddress': ''})

    def _model(self, model_id: str, query: dict[str, str]) -> None:
        if not self.hub.has(model_id):
            return self._missing(model_id)
        owner, name = model_id.split('/')
        shown = f'mallory/{name}' if self.fault == 'owner' else f'{owner}/{name}'
        return self._json({'success': True, 'data': {'id': shown, 'private': False, 'tasks': []}})

    def _listing(self, model_id: str, query: dict[str, str]) -> None:
        top = self.hub.folder(model_id, query.get('Revision'))
        if top is None:
            return self._missing(f'{model_id} {query}')
        return self._ok({'Files': [_row(top, path) for path in sorted(top.rglob('*'))]})

    def _file(self, model_id: str, query: dict[str, str]) -> None:
        top = self.hub.folder(model_id, query.get('Revision'))
        path = top / query.get('FilePath', '') if top else None
        if path is None or not path.is_file():
            return self._missing(f'{model_id} {query}')
        return self._send(path.read_bytes())

    def _send(self, data: bytes) -> None:
        resumed = re.fullmatch(r'bytes=(\d+)-', self.headers.get('Range') or '')
        start, total = int(resumed.group(1)) if resumed else 0, len(data)
        part = data[start:]
        if self.fault == 'corrupt':
            part = bytes(byte ^ 0x5A for byte in part)
        self.send_response(206 if resumed else 200)
        self.send_header('Content-Type', 'application/octet-stream')
        self.send_header('Content-Length', str(len(part)))
        self.send_header('Accept-Ranges', 'bytes')
        if resumed:
            self.send_header('Content-Range', f'bytes {start}-{total - 1}/{total}')
        self.end_headers()
        if self.fault == 'truncate':
            part, self.close_connection = part[:len(part) // 2], True
        self.wfile.write(part)

    def _missing(self, what: str) -> None:
        self._json({'Code': 10010205001, 'Message': f'{what} does not exist', 'Success': False}, 404)

    def _ok(self, data: Any) -> None:
        self._json({'Code': 200, 'Data': data, 'Message': 'success', 'Success': True})

    def _json(self, value: Any, status: int = 200) -> None:
        self._bytes(json.dumps(value).encode(), 'application/json; charset=utf-8', status)

    def _bytes(self, body: bytes, content_type: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header('Content-Type', content_type)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)


_MODEL = r'/models/([^/]+/[^/]+)'
_ROUTES = (
    (r'/api/v1/repos/internalAccelerationInfo', Handler._acceleration),
    (rf'/openapi/v1{_MODEL}', Handler._model),
    (rf'/api/v1{_MODEL}/repo/files', Handler._listing),
    (rf'/api/v1{_MODEL}/repo', Handler._file),
)


def _row(top: Path, path: Path) -> dict[str, Any]:
    """One entry of the hub's listing of a repository."""
    row = {'Path': path.relative_to(top).as_posix(), 'Name': path.name, 'Type': 'tree', 'Size': 0, 'Sha256': '',
           'Revision': '0' * 40}
    if path.is_file():
        row |= {'Type': 'blob', 'Size': path.stat().st_size, 'Sha256': hashlib.sha256(path.read_bytes()).hexdigest()}
    return row


LoopHub.handler = Handler
