"""The loopback hub, with what the real client asks for when it creates a repository and uploads to it."""
from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from loophub import Handler, LoopHub


@dataclass
class UploadHub(LoopHub):
    """Repositories live in root/owner/name/revision. created: what the client said of each. token: who may write.

    A fault's `match` sees 'POST path' and 'PUT path' of these requests; its kinds here: status (HTTP 500), spoil (the
    bytes of a blob change after they were received), forbidden (HTTP 403).
    """
    root: Path = Path()
    token: str = 'a-token'
    created: dict[str, dict[str, Any]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    put: list[str] = field(default_factory=list)      # sha256 of the blobs that were sent, in order

    def has(self, model_id: str) -> bool:
        return model_id in self.created

    def folder(self, model_id: str, revision: str | None) -> Path | None:
        folder = self.root / model_id / (revision or 'master')
        return folder if folder.is_dir() else None

    def names(self, model_id: str, revision: str = 'master') -> set[str]:
        top = self.root / model_id / revision
        return {path.relative_to(top).as_posix() for path in top.rglob('*') if path.is_file()}

    def writes(self) -> list[str]:
        return [request.line for request in self.requests if request.line.split()[0] in ('POST', 'PUT')]


class UploadHandler(Handler):
    def do_POST(self) -> None:
        self._write('POST')

    def do_PUT(self) -> None:
        self._write('PUT')

    def do_GET(self) -> None:
        match = re.fullmatch(r'/api/v1/models/([^/]+/[^/]+)/revisions', unquote(urlsplit(self.path).path))
        return self._revisions(match.group(1)) if match else super().do_GET()

    def _revisions(self, model_id: str) -> None:
        self.fault = self.hub.note(unquote(self.path), None)
        names = sorted(path.name for path in (self.hub.root / model_id).iterdir())
        rows = [{'Revision': name, 'CreatedAt': 1_700_000_000} for name in names]
        self._ok({'RevisionMap': {'Branches': [row for row in rows if row['Revision'] == 'master'],
                                  'Tags': [row for row in rows if row['Revision'] != 'master']}})

    def _write(self, method: str) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        self.fault = self.hub.note(f'{method} {path}', None)
        if self.headers.get('Authorization') != f'Bearer {self.hub.token}':
            return self._refuse(401, 10010103009, 'AccessToken is invalid or expired')
        if self.fault in ('status', 'forbidden'):
            return self._refuse({'status': 500, 'forbidden': 403}[self.fault], 1, 'injected')
        for pattern, answer in _ROUTES:
            if match := re.fullmatch(pattern, f'{method} {path}'):
                return answer(self, body if method == 'PUT' else json.loads(body), *match.groups())
        return self._missing(path)

    def _refuse(self, status: int, code: int, message: str) -> None:
        self._json({'Code': code, 'Message': message, 'Success': False}, status)

    def _create(self, told: dict[str, Any]) -> None:
        model_id = f'{told["Path"]}/{told["Name"]}'
        if model_id in self.hub.created:
            return self._refuse(400, 10010101001, 'the model already exists')
        self.hub.created[model_id] = told
        (self.hub.root / model_id).mkdir(parents=True)
        return self._ok({'Id': 1, 'Path': told['Path'], 'Name': told['Name']})

    def _batch(self, told: dict[str, Any], model_id: str) -> None:
        rows = [{'oid': o['oid'], 'size': o['size'], 'actions': {} if o['oid'] in self.hub.blobs else
                 {'upload': {'href': f'{self.hub.endpoint}/blob/{o["oid"]}'}}} for o in told['objects']]
        self._ok({'objects': rows})

    def _blob(self, body: bytes, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.put.append(oid)
        self.hub.blobs[oid] = bytes(len(body)) if self.fault == 'spoil' else body
        self._json({'Code': 200})

    def _commit(self, told: dict[str, Any], model_id: str, branch: str) -> None:
        for action in told['actions']:
            path = self.hub.root / model_id / branch / action['path']
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.hub.blobs[action['sha256']] if action['type'] == 'lfs' else
                             base64.b64decode(action['content']))
        self._ok({'Oid': hashlib.sha1(json.dumps(told).encode()).hexdigest()})

    def _tag(self, told: dict[str, Any], model_id: str) -> None:
        shutil.copytree(self.hub.root / model_id / told['Ref'], self.hub.root / model_id / told['TagName'])
        self._ok({})


_MODEL = r'([^/]+/[^/]+)'
_ROUTES = (
    (r'POST /api/v1/models', UploadHandler._create),
    (rf'POST /api/v1/repos/models/{_MODEL}/info/lfs/objects/batch', UploadHandler._batch),
    (r'PUT /blob/([0-9a-f]{64})', UploadHandler._blob),
    (rf'POST /api/v1/repos/models/{_MODEL}/commit/([^/]+)', UploadHandler._commit),
    (rf'POST /api/v1/models/{_MODEL}/repo/tag', UploadHandler._tag),
)
UploadHub.handler = UploadHandler
