"""The styles. One JSON file beside this one is one style; adding a file adds it everywhere."""
from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from modelscope_cartoon.names import look_up

_HUB_PATH = re.compile(r'(?:^|[\\/])(?:damo|iic)(?:--|[\\/])(cv_cartoon_stable_diffusion_\w+?)(?:[\\/]|$)')


@dataclass(frozen=True)
class Style:
    """One look: where its full-size model lives and how it is asked for."""
    name: str
    title_en: str
    title_zh: str
    look: str
    trigger: str
    model_id: str
    model_revision: str
    person_template: str
    thing_template: str
    scheduler: str
    size: int
    licence: str
    source: str

    def prompt(self, subject: str, person: bool = True, no_text: bool = False) -> str:
        """The card's own wording around `subject`, trigger included."""
        template = self.person_template if person else self.thing_template
        return f'{self.trigger}, {template.format(subject)}' + (', no text' if no_text else '')

    def snapshot_call(self) -> str:
        return f"pipeline('text-to-image-synthesis', model='{self.model_id}', model_revision='{self.model_revision}')"


@cache
def styles() -> dict[str, Style]:
    """Every style by name, in the order of the hub's own list."""
    rows = [Style(**json.loads(path.read_text(encoding='utf-8')))
            for path in sorted(Path(__file__).parent.glob('*.json'))]
    order = ['design', 'watercolor', 'illustration', 'clipart', 'flat']
    rows.sort(key=lambda style: (order.index(style.name) if style.name in order else len(order), style.name))
    return {style.name: style for style in rows}


def get_style(name: object) -> Style:
    return look_up('style', name, styles())


def style_of_path(model_dir: str) -> Style | None:
    """The style whose hub repository `model_dir` is a snapshot of; owners damo and iic, old and new cache layouts."""
    match = _HUB_PATH.search(str(model_dir))
    if match is None:
        return None
    return next((s for s in styles().values() if s.model_id.split('/')[1] == match.group(1)), None)
