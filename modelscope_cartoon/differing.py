"""How far a picture that was drawn again is from the file, and what is known of why."""
from __future__ import annotations

import hashlib
import io
from typing import Any

import numpy as np

from modelscope_cartoon import metadata
from modelscope_cartoon.picture_recipe import PACKAGES
from modelscope_cartoon.recorded import Recorded, plain

_LOSSY = ('JPEG', 'WEBP')
# what may differ between two recipes of one picture, and what to call that
_CAUSES = (
    (('model', 'weights_hash'), 'other weights'), (('model', 'revision'), 'another revision of the model'),
    (('model', 'adapter'), 'another LoRA that is always on'),
    (('used', 'prompt'), 'other words reached the model'),
    (('used', 'negative_prompt'), 'another negative prompt reached the model'),
    *((('versions', name), f'another version of {name}') for name in (*PACKAGES, 'modelscope-cartoon')),
    (('machine', 'backend'), 'another backend'), (('machine', 'dtype'), 'another precision'),
    (('machine', 'device'), 'another device'), (('machine', 'processor'), 'another processor'),
    (('machine', 'memory'), 'another memory mode'), (('machine', 'threads'), 'another number of threads'),
    (('machine', 'batch_size'), 'another batch size'))
_CHANGED = 'the picture was changed after it was drawn'
_UNKNOWN = 'nothing that is recorded differs: the machine itself may, or a package that is not recorded'


def compare(recorded: Recorded, drawn: np.ndarray, now: dict[str, Any]) -> dict[str, Any]:
    """{'bit_equal', 'share', 'largest', 'mean', 'reasons'}: of the file's values, those that differ, and the difference
    in grey levels of 255. drawn: uint8 [H, W, 3], RGB. now: its recipe.

    A lossy file is held against `drawn` after the same coding.
    """
    from PIL import Image

    with Image.open(recorded.file) as image:
        if image.size != drawn.shape[1::-1]:
            return {'bit_equal': False, 'share': None, 'largest': None, 'mean': None,
                    'reasons': [f'{_CHANGED}: it is {image.width} x {image.height} now']}
        kept = np.asarray(image.convert('RGB'))
    lossy = recorded.metadata.container in _LOSSY
    again = _coded(drawn, recorded.metadata.container) if lossy and not np.array_equal(kept, drawn) else drawn
    far = np.abs(kept.astype(np.int16) - again)
    same = recorded.of('pixels_sha256') == now['pixels_sha256']
    equal = same and not far.any()
    if lossy or recorded.of('request', 'label'):
        changed = same and bool(far.any())
    else:
        changed = hashlib.sha256(np.ascontiguousarray(kept)).hexdigest() != recorded.of('pixels_sha256')
    found = [_CHANGED] * changed + ([] if same else _causes(recorded, now))
    return {'bit_equal': bool(equal), 'share': float((far > 0).mean()), 'largest': int(far.max()),
            'mean': float(far.mean()), 'reasons': [] if equal else found or [_UNKNOWN]}


def _coded(pixels: np.ndarray, container: str) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(metadata.write(Image.fromarray(pixels), container, None, ()))) as image:
        return np.asarray(image.convert('RGB'))


def _causes(recorded: Recorded, now: dict[str, Any]) -> list[str]:
    found = []
    for (part, key), words in _CAUSES:
        then, here = recorded.of(part, key), now[part].get(key)
        if then is not None and then != here:
            found.append(f'{words}: {plain(then, 200)} then, {plain(here, 200)} now')
    then, here = _loras(recorded.of('used', 'loras')), _loras(now['used']['loras'])
    if set(then) != set(here):
        found.append(f'other LoRAs: {plain(", ".join(then) or "none", 300)} then, {", ".join(here) or "none"} now')
    return found + [f'LoRA {plain(name, 100)}: another file, its sha256 is not the recorded one'
                    for name in then if name in here and then[name] != here[name]]


def _loras(loras: Any) -> dict[str, Any]:
    return {str(one.get('name')): one.get('sha256') for one in loras if isinstance(one, dict)} \
        if isinstance(loras, list) else {}
