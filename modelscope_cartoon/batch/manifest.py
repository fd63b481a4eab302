"""manifest.jsonl: a line for each picture, and for each row that failed, in the order of the file."""
from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modelscope_cartoon.batch.ledger import Entry, Ledger
from modelscope_cartoon.errors import OutputError
from modelscope_cartoon.files import sync_folder

NAME = 'manifest.jsonl'


def write_manifest(ledger: Ledger, output: Path, aside: Path) -> Path:
    """Line by line into the folder `aside`, flushed, renamed."""
    path, unfinished = output / NAME, aside / NAME
    try:
        with unfinished.open('wb') as file:
            for entry in ledger.entries('done', 'failed'):
                for line in _lines(entry):
                    # a lone half of a surrogate pair, which a tag may hold, becomes JSON's own \ud800
                    file.write(json.dumps(line, ensure_ascii=False).encode('utf-8', 'backslashreplace') + b'\n')
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        sync_folder(output)
    except OSError as error:
        raise OutputError(f'{path} could not be written ({error.strerror or error}); the pictures are kept. Free some '
                          'space, and give the same command again.') from error
    return path


def _lines(entry: Entry) -> Iterator[dict[str, Any]]:
    if entry.state == 'failed':
        yield {'id': entry.id, 'failed': entry.reason, 'tries': entry.tries, 'request': entry.request,
               'tags': entry.tags}
    for picture in entry.pictures:
        asked = picture['recipe']['request']
        yield {'id': entry.id, 'file': picture['file'], 'text': asked['text'], 'seed': asked['seed'],
               'sha256': picture['sha256'], 'seconds': entry.seconds, 'tags': entry.tags, 'recipe': picture['recipe']}
