"""What a picture costs, one row each: how many steps, which scheduler, where guidance is on, what is reused.

A field of the request beats the preset's. Each field is a request's own as well, so that people can mix; UniPC in few
steps, say: scheduler='UniPC', num_inference_steps=10. What each costs in fidelity, measured: docs/presets.md.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from modelscope_cartoon.names import look_up


@dataclass(frozen=True)
class Preset:
    """`fields`: what it sets in a GenerationRequest."""
    name: str
    words: str
    source: str = ''
    fields: Mapping[str, Any] = field(default_factory=dict)


_SOLVER = 'DPM-Solver++ 2M (Lu et al. 2022, arXiv 2211.01095)'
_INTERVAL = 'guidance on a part of the steps (Kynkäänniemi et al. 2024, arXiv 2404.07724)'

EXACT = 'exact'
ROWS: tuple[Preset, ...] = (
    Preset(EXACT, "the model's own scheduler in 50 steps, guidance on all of them"),
    Preset('balanced', 'half the steps with a second-order solver, guidance on the first three fifths of them',
           f'{_SOLVER}, Karras noise levels; {_INTERVAL}',
           {'scheduler': 'DPM++ 2M Karras', 'num_inference_steps': 25, 'guidance_interval': (0.0, 0.6)}),
    Preset('fast', 'two fifths of the steps with a second-order solver, guidance on half of them',
           f'{_SOLVER}; {_INTERVAL}',
           {'scheduler': 'DPM++ 2M', 'num_inference_steps': 20, 'guidance_interval': (0.0, 0.5)}),
)


def get_preset(name: object) -> Preset:
    return look_up('preset', name, {row.name: row for row in ROWS})
