"""The loss's formulas are diffusers' and the papers'; a step's draws are a function of seed and step."""
from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from modelscope_cartoon.errors import InvalidRequest, UnknownOption
from modelscope_cartoon.training import losses
from modelscope_cartoon.training.draws import Draws
from modelscope_cartoon.training.loop import rate_factor
from modelscope_cartoon.training.presets import PRESETS
from modelscope_cartoon.training.recipe import Recipe


@pytest.fixture(scope='module')
def scheduler():
    return DDPMScheduler(beta_schedule='scaled_linear', beta_start=0.00085, beta_end=0.012)


TIMES = torch.tensor([0, 1, 500, 998, 999])


def test_noise_and_velocity_are_those_of_diffusers(scheduler):
    x, e = torch.randn(2, 5, 4, 8, 8).unbind()
    a = scheduler.alphas_cumprod[TIMES]
    assert torch.allclose(losses.add_noise(x, e, a), scheduler.add_noise(x, e, TIMES), atol=1e-6)
    assert torch.allclose(losses.target('v_prediction', x, e, a), scheduler.get_velocity(x, e, TIMES), atol=1e-6)
    assert losses.target('epsilon', x, e, a) is e and losses.target('sample', x, e, a) is x


def test_min_snr_weights_are_those_of_the_paper(scheduler):
    """As diffusers' examples compute them (train_text_to_image.py), and by hand at SNR 1 and 99."""
    snr = compute_snr(scheduler, TIMES)
    clamped = torch.minimum(snr, torch.tensor(5.0))
    a = scheduler.alphas_cumprod[TIMES]
    assert torch.allclose(losses.snr_weights('epsilon', a, 5.0), clamped / snr, rtol=1e-3)
    assert torch.allclose(losses.snr_weights('v_prediction', a, 5.0), clamped / (snr + 1), rtol=1e-3)
    by_hand = torch.tensor([0.5, 0.99])
    assert losses.snr_weights('epsilon', by_hand, 5.0).tolist() == pytest.approx([1, 5 / 99], rel=1e-4)
    assert losses.snr_weights('v_prediction', by_hand, 5.0).tolist() == pytest.approx([0.5, 0.05], rel=1e-4)
    assert losses.snr_weights('sample', by_hand, 5.0).tolist() == pytest.approx([1, 5], rel=1e-4)
    assert losses.snr_weights('epsilon', by_hand, 0.0).tolist() == [1, 1]


def test_min_snr_weights_are_finite_where_no_signal_or_no_noise_is_left():
    for prediction in losses.PREDICTIONS:
        assert torch.isfinite(losses.snr_weights(prediction, torch.tensor([0.0, 1.0]), 5.0)).all(), prediction


def test_offset_noise_moves_the_mean_of_a_channel():
    e, shift = torch.zeros(1, 4, 8, 8), torch.ones(1, 4, 1, 1)
    assert losses.offset(e, shift, 0.0) is e and losses.offset(e, shift, 0.1).mean() == pytest.approx(0.1)


def draws(**settings):
    settings = {'batch_size': 8, 'prior_share': 0.25, **settings}
    return Draws(Recipe.of(**settings).completed('small'), 10, 5, (4, 8, 8), 1000)


def test_a_step_draws_the_same_again_and_another_step_or_seed_draws_other_things():
    first, again, later, other = draws().batch(3), draws().batch(3), draws().batch(4), draws(seed=1).batch(3)
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not torch.equal(first.noise, later.noise) and not torch.equal(first.noise, other.noise)


def test_every_picture_comes_once_before_any_comes_again():
    drawn = torch.cat([draws().batch(step).position[:6] for step in range(5)]).tolist()
    assert all(sorted(drawn[i:i + 10]) == list(range(10)) for i in (0, 10, 20))
    assert drawn[:10] != drawn[10:20]


def test_a_batch_has_its_share_of_class_pictures_with_the_papers_weights():
    batch = draws(prior_weight=0.5).batch(0)
    assert (batch.position >= 10).tolist() == [False] * 6 + [True] * 2
    assert batch.weight.tolist() == pytest.approx([1 / 6] * 6 + [0.25] * 2)
    assert ((batch.time >= 0) & (batch.time < 1000)).all() and len(set((batch.time * 8 // 1000).tolist())) == 8


def test_captions_are_dropped_at_their_rate_and_never_at_rate_nought():
    assert not torch.stack([draws().batch(s).dropped[:6] for s in range(50)]).any()
    rate = torch.stack([draws(caption_dropout=0.5).batch(s).dropped[:6] for s in range(50)]).float().mean()
    assert 0.4 < rate < 0.6


def test_the_rate_rises_then_falls():
    assert [rate_factor('cosine', s, 2, 10) for s in (0, 1, 2, 6)] == pytest.approx([0.5, 1, 1, 0.5])
    assert rate_factor('linear', 9, 0, 10) == pytest.approx(0.1) and rate_factor('constant', 9, 0, 10) == 1


def test_a_recipe_goes_through_json_and_refuses_what_it_does_not_know():
    recipe = Recipe.of(steps=5, prior_prompts=('a cat', 'a dog'), flip=True).completed('small')
    assert Recipe.of(**json.loads(json.dumps(recipe.settings()))) == recipe
    with pytest.raises(UnknownOption, match='did you mean'):
        Recipe.of(learning_rat=1e-4)
    for wrong in ({'steps': 0}, {'rank': 1.5}, {'flip': 1}, {'method': 'dora'}, {'caption': '{subject}'},
                  {'learning_rate': float('nan')}, {'resolution': 100}):
        with pytest.raises(InvalidRequest):
            Recipe.of(**wrong)
    with pytest.raises(InvalidRequest, match='prior_target'):
        Recipe.of(method='full', prior_target='base').completed('small')


@pytest.mark.parametrize('preset, method', PRESETS)
def test_every_preset_completes_a_recipe_and_names_its_sources(preset, method):
    settings = Recipe.of(method=method).completed(preset).settings()
    assert [key for key, value in settings.items() if value is None] == ['resolution']
    assert all(source for _, source in PRESETS[preset, method].values())


def test_the_docs_state_the_presets_as_they_are():
    page = (Path(__file__).parent.parent / 'docs' / 'training.md').read_text(encoding='utf-8')
    small, large = PRESETS['small', 'lora'], PRESETS['stable-diffusion', 'lora']
    for key, (value, source) in large.items():
        assert f'| `{key}` | {small[key][0]} | {value} | {source} |' in page
