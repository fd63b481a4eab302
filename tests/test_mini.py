"""What the embedded model draws, in short: its floors are what benchmarks/mini_quality.py measured, less a margin."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality import short

REFERENCE = Path(__file__).parent / 'data' / 'mini_reference.npz'


@pytest.fixture(scope='module')
def state() -> dict:
    return json.loads(REFERENCE.with_suffix('.json').read_text('utf-8'))


@pytest.fixture(scope='module')
def measured() -> dict[str, float]:
    """Sixteen pictures of the model in the package, drawn once, measured against the stored reference."""
    from modelscope_cartoon import load_pipeline
    with np.load(REFERENCE) as reference:
        return short.measure(short.draw(load_pipeline('mini', device='cpu')), dict(reference))


def test_a_picture_shows_the_noun_that_was_asked_for(measured, state):
    assert measured['concept'] >= state['floor']['concept']


def test_the_border_has_the_background_colour_that_was_asked_for(measured, state):
    assert measured['background'] >= state['floor']['background']


def test_a_style_looks_like_that_style_and_not_like_another(measured, state):
    assert measured['style'] >= state['floor']['style']


def test_other_seeds_give_other_pictures(measured, state):
    assert measured['seeds apart'] >= state['floor']['seeds apart'] > 0


def test_words_change_the_picture(measured, state):
    assert measured['prompt apart'] >= state['floor']['prompt apart'] > 0


def test_the_floors_follow_from_what_was_measured(state):
    for name, value in state['measured'].items():
        assert state['floor'][name] == pytest.approx(max(0.0, short.MARGINS[name](value)), abs=1e-3)
