"""The int8 backend: calibrated on the model's own weights, kept only where its distance is accepted."""
from __future__ import annotations

import io
from importlib.util import find_spec

import numpy as np
import pytest
import tiny
import torch

from modelscope_cartoon import backends, load_pipeline
from modelscope_cartoon.backends import int8
from modelscope_cartoon.backends.int8 import Int8
from modelscope_cartoon.errors import ModelError
from modelscope_cartoon.folder import ModelFolder

pytestmark = pytest.mark.skipif(not all(map(find_spec, ('openvino', 'nncf'))), reason='not installed')
CPU = torch.device('cpu')


@pytest.fixture(scope='module', autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('MODELSCOPE_CARTOON_CACHE', str(tmp_path_factory.mktemp('cache')))
        patch.setattr(int8, 'STEPS', 2)
        yield


@pytest.fixture(scope='module')
def asked(tiny_folder):
    """What was asked and reported, calibrated twice: refused first, then accepted."""
    questions: list[str] = []
    said: list[list[str]] = [[], []]
    with pytest.MonkeyPatch.context() as patch:
        for answer in (False, True):
            patch.setattr(Int8, 'accept', staticmethod(lambda text, answer=answer: questions.append(text) or answer))
            if answer:
                with pytest.raises(ModelError, match='prepare .* --backend int8'):
                    load_pipeline(tiny_folder, device='cpu', backend='int8')
            built = Int8.prepare(ModelFolder(tiny_folder), CPU, torch.float32, said[answer].append)
            assert built is answer
    return questions, said


def draw(pipe, **fields):
    return np.stack(pipe({'text': 'a cat', 'seed': 3, 'num_inference_steps': 4, 'output_type': 'np', **fields}
                         )['output_imgs'])


def test_what_is_not_accepted_is_not_kept_and_the_distance_is_shown_before(asked):
    questions, (refused, accepted) = asked
    assert len(questions) == 2 and 'int8 moves the final latents by' in questions[0] and 'of 255' in questions[0]
    assert questions[0] in refused and 'not accepted, so nothing was kept' in refused[-1]
    assert questions[1] == accepted[-1]


def test_it_is_calibrated_once(asked, tiny_folder):
    assert not Int8.prepare(ModelFolder(tiny_folder), CPU, torch.float32, lambda line: None)


def test_the_unet_multiplies_8_bit_numbers_and_the_picture_is_near(asked, tiny_folder, tiny_pipe):
    pipe = load_pipeline(tiny_folder, device='cpu', backend='int8')
    kinds = [node.get_type_name() for node in pipe.pipeline.unet.graph._model.get_ops()]
    assert pipe.model.backend == 'int8' and kinds.count('FakeQuantize') > 5
    difference = np.abs(draw(pipe) - draw(tiny_pipe))
    assert 0 < difference.mean() < 0.1


def test_features_are_reused_in_int8_too(asked, tiny_folder, tiny_pipe):
    ours = draw(load_pipeline(tiny_folder, device='cpu', backend='int8'), cache_interval=2)
    assert np.abs(ours - draw(tiny_pipe, cache_interval=2)).mean() < 0.1


def test_a_lora_is_drawn_without_int8_and_that_is_said(asked, tiny_folder, tiny_pipe, tmp_path, caplog):
    lora = str(tiny.build_lora(tmp_path / 'lora', tiny_folder))
    pipe = load_pipeline(tiny_folder, device='cpu', backend='int8')
    ours = [draw(pipe, lora=lora) for _ in range(2)]
    assert np.abs(ours[0] - draw(tiny_pipe, lora=lora)).max() < 2e-4 and np.array_equal(*ours)
    assert caplog.text.count('LoRAs that change the UNet are not drawn in int8') == 1


def test_it_is_never_chosen_by_itself(asked, tiny_folder):
    assert Int8.by_name_only and backends.choose('auto', ModelFolder(tiny_folder), CPU, torch.float32) is not Int8


def test_nobody_at_a_terminal_means_no(monkeypatch):
    monkeypatch.setattr('sys.stdin', io.StringIO('y\n'))
    assert int8.ask('it moves a little') is False
