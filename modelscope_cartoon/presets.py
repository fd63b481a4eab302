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


_SOURCE = ('DPM-Solver++ 2M (Lu et al. 2022, arXiv 2211.01095) on Karras noise levels; '
           'guidance in an interval (Kynkäänniemi et al. 2024, arXiv 2404.07724)')

EXACT = 'exact'
ROWS: tuple[Preset, ...] = (
    Preset(EXACT, "the model's own scheduler in 50 steps, guidance on all of them"),
    Preset('balanced', 'DPM++ 2M Karras in 25 steps, guidance on the middle three fifths of them', _SOURCE,
           {'scheduler': 'DPM++ 2M Karras', 'num_inference_steps': 25, 'guidance_interval': (0.2, 0.8)}),
    Preset('fast', 'DPM++ 2M Karras in 20 steps, guidance on the middle half of them', _SOURCE,
           {'scheduler': 'DPM++ 2M Karras', 'num_inference_steps': 20, 'guidance_interval': (0.25, 0.75)}),
)


def get_preset(name: object) -> Preset:
    return look_up('preset', name, {row.name: row for row in ROWS})
