from __future__ import annotations

import pytest

from modelscope_cartoon.errors import UnknownOption
from modelscope_cartoon.schedulers import get_row
from modelscope_cartoon.styles import get_style, style_of_path, styles


def test_the_five_styles_carry_the_hubs_ids_and_triggers():
    assert list(styles()) == ['design', 'watercolor', 'illustration', 'clipart', 'flat']
    for name, style in styles().items():
        assert style.model_id == f'damo/cv_cartoon_stable_diffusion_{name}' and style.model_revision == 'v1.0.0'
        assert style.trigger == ('archer style' if name == 'clipart' else 'sks style')
        assert get_row(style.scheduler).diffusers_class == 'EulerAncestralDiscreteScheduler'


def test_the_chinese_names_are_those_of_the_hub():
    assert [s.title_zh for s in styles().values()] == ['插画', '水彩', '漫画', '剪贴画', '扁平']


def test_templates_give_the_cards_own_prompts():
    assert get_style('design').prompt('Johnny Depp') == 'sks style, a portrait painting of Johnny Depp'
    assert get_style('clipart').prompt('a castle', person=False, no_text=True) == \
        'archer style, a painting of a castle, no text'


@pytest.mark.parametrize('path', [
    '/c/models/damo--cv_cartoon_stable_diffusion_flat/snapshots/v1.0.0', '/c/damo/cv_cartoon_stable_diffusion_flat',
    '/c/hub/iic/cv_cartoon_stable_diffusion_flat/', r'C:\c\models\damo--cv_cartoon_stable_diffusion_flat\snapshots\m'])
def test_a_snapshots_path_tells_its_style_in_old_and_new_cache_layouts(path):
    assert style_of_path(path).name == 'flat'


@pytest.mark.parametrize('path', ['/c/mallory/cv_cartoon_stable_diffusion_flat', '/c/flat',
                                  '/c/damo/cv_cartoon_stable_diffusion_x', '/c/damo/cv_diffusion_flat'])
def test_other_paths_tell_none(path):
    assert style_of_path(path) is None


def test_an_unknown_style_names_the_nearest():
    with pytest.raises(UnknownOption, match="did you mean 'watercolor'"):
        get_style('watercolour')
