"""LoRAs while drawing, held against diffusers' own loading, against weights merged by hand, and against no trace."""
from __future__ import annotations

import gc
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from modelscope_cartoon import load_pipeline, lora
from modelscope_cartoon.errors import CartoonError, InvalidRequest, UnknownOption
from modelscope_cartoon.lora import LoraLayer
from modelscope_cartoon.lora_choice import WEIGHTS, LoraChoice

CAT = {'text': 'a cat', 'seed': 3, 'num_inference_steps': 3}
RANK, ALPHA = 4, 8


@pytest.fixture(scope='module')
def files(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the LoRAs a and b in diffusers' form, and a in kohya's."""
    root = tmp_path_factory.mktemp('files')
    tiny.build_lora(root / 'a', tiny_folder, 1, RANK, ALPHA)
    tiny.build_lora(root / 'b', tiny_folder, 2, RANK, ALPHA)
    save_file(as_kohya(load_file(root / 'a' / WEIGHTS)), root / 'kohya.safetensors')
    return root


@pytest.fixture(scope='module')
def pipe(tiny_folder: Path, files: Path):
    return load_pipeline(tiny_folder, device='cpu', lora_dir=str(files))


@pytest.fixture(scope='module')
def plain(pipe) -> np.ndarray:
    return draw(pipe)


@pytest.fixture(scope='module')
def with_a(pipe, files) -> np.ndarray:
    return draw(pipe, lora=files / 'a')


def draw(pipe, **request) -> np.ndarray:
    return pipe({**CAT, **request})['output_imgs'][0]


def close(one: np.ndarray, other: np.ndarray) -> bool:
    return np.abs(one.astype(int) - other).max() <= 1


def by_diffusers(tiny_folder: Path, loras: dict[Path, float]) -> np.ndarray:
    """What diffusers draws by itself with `loras` loaded and set."""
    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder)
    for i, path in enumerate(loras):
        pipe.load_lora_weights(path.parent if path.is_file() else path, adapter_name=f'n{i}',
                               weight_name=path.name if path.is_file() else WEIGHTS)
    pipe.set_adapters([f'n{i}' for i in range(len(loras))], list(loras.values()))
    image = pipe('a cat', num_inference_steps=3, generator=torch.Generator().manual_seed(3), output_type='np').images[0]
    return (image * 255).round().astype('uint8')[..., ::-1]


def as_kohya(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As kohya's trainer writes it: `lora_te_text_model_...`, `lora_unet_...`, down, up and alpha."""
    renamed = {}
    for key, tensor in tensors.items():
        for theirs, kohyas in (('.lora_A.', '.lora_down.'), ('.lora_B.', '.lora_up.'),
                               ('.lora_linear_layer.down.', '.lora_down.'), ('.lora_linear_layer.up.', '.lora_up.')):
            key = key.replace(theirs, kohyas)
        name, _, rest = key.partition('.lora_')
        name = name.replace('unet.', 'lora_unet.', 1).replace('text_encoder.', 'lora_te.text_model.', 1)
        renamed[f'{name.replace(".", "_")}.lora_{rest}'] = tensor
        renamed[f'{name.replace(".", "_")}.alpha'] = torch.tensor(float(ALPHA))
    return renamed


def state(pipe) -> dict[str, torch.Tensor]:
    return {f'{part}.{key}': tensor.clone() for part in ('unet', 'text_encoder', 'vae')
            for key, tensor in getattr(pipe.pipeline, part).state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)


def no_trace(pipe) -> bool:
    return not any(isinstance(module, LoraLayer) for part in ('unet', 'text_encoder')
                   for module in getattr(pipe.pipeline, part).modules())


def test_a_lora_draws_what_diffusers_draws_with_it(tiny_folder, files, plain, with_a):
    assert (with_a == by_diffusers(tiny_folder, {files / 'a': 1.0})).all() and not close(with_a, plain)


def test_several_loras_with_scales_draw_what_diffusers_draws(pipe, tiny_folder, files):
    expected = by_diffusers(tiny_folder, {files / 'a': 0.8, files / 'b': -0.4})
    assert (draw(pipe, lora=[(files / 'a', 0.8), ('b', -0.4)]) == expected).all()


def test_kohyas_form_draws_the_same_and_what_diffusers_makes_of_it(pipe, tiny_folder, files, with_a):
    drawn = draw(pipe, lora=files / 'kohya.safetensors')
    assert close(drawn, with_a) and close(drawn, by_diffusers(tiny_folder, {files / 'kohya.safetensors': 1.0}))


def test_diffusers_older_names_are_read(pipe, files, with_a, tmp_path):
    older = {}
    for key, tensor in load_file(files / 'a' / WEIGHTS).items():
        if '.attn' in key:
            key = key.replace('.to_', '.processor.to_').replace('to_out.0', 'to_out')
            key = key.replace('.lora_A', '_lora.down').replace('.lora_B', '_lora.up')
        elif key.startswith('unet'):
            key = key.replace('.lora_A', '.lora.down').replace('.lora_B', '.lora.up')
        else:
            for new, old in (('q_proj.lora_linear_layer', 'to_q_lora'), ('out_proj.lora_linear_layer', 'to_out_lora'),
                             ('lora_A', 'lora_linear_layer.down'), ('lora_B', 'lora_linear_layer.up')):
                key = key.replace(new, old)
        older[key.replace('text_encoder.', 'text_encoder.text_model.')] = tensor
    save_file(older, tmp_path / 'older.safetensors')     # without metadata: alpha is the rank, a factor of 1
    assert close(draw(pipe, lora=(tmp_path / 'older.safetensors', ALPHA / RANK)), with_a)


def test_weights_merged_by_hand_draw_the_same(tiny_folder, files, with_a):
    merged = load_pipeline(tiny_folder, device='cpu')
    kohya = load_file(files / 'kohya.safetensors')
    for part, prefix in (('unet', 'lora_unet_'), ('text_encoder', 'lora_te_text_model_')):
        for name, module in getattr(merged.pipeline, part).named_modules():
            down = kohya.get(f'{prefix}{name.replace(".", "_")}.lora_down.weight')
            if down is not None:
                up = kohya[f'{prefix}{name.replace(".", "_")}.lora_up.weight']
                product = up.flatten(1) @ down.flatten(1) * (ALPHA / RANK)
                module.weight.data += product.reshape(module.weight.shape)
    assert close(draw(merged), with_a)


def test_a_matrix_for_a_one_by_one_kernel_and_the_reverse_fit(pipe, files, with_a, tmp_path):
    turned = {key: tensor[:, :, 0, 0].contiguous() if tensor.shape[2:] == (1, 1) and 'proj_in' in key
              else tensor[..., None, None].contiguous() if tensor.ndim == 2 else tensor
              for key, tensor in load_file(files / 'kohya.safetensors').items()}
    save_file(turned, tmp_path / 'turned.safetensors')
    assert close(draw(pipe, lora=tmp_path / 'turned.safetensors'), with_a)


def test_alphas_of_single_layers_are_read(tiny_folder, files, tmp_path):
    from safetensors import safe_open
    with safe_open(files / 'a' / WEIGHTS, 'pt') as opened:
        metadata = opened.metadata()['lora_adapter_metadata']
    changed = metadata.replace('"unet.alpha_pattern": {}', '"unet.alpha_pattern": {"attn1.to_q": 1.5}', 1)
    assert changed != metadata
    path = tmp_path / WEIGHTS
    save_file(load_file(files / 'a' / WEIGHTS), path, {'lora_adapter_metadata': changed, 'format': 'pt'})
    drawn = draw(load_pipeline(tiny_folder, device='cpu'), lora=path)
    assert (drawn == by_diffusers(tiny_folder, {path: 1.0})).all()
    assert (drawn != by_diffusers(tiny_folder, {files / 'a': 1.0})).any()


def test_a_request_without_a_lora_is_bit_identical_to_one_before_any(pipe, plain, files):
    before = state(pipe)
    draw(pipe, lora=[files / 'a', files / 'b'])
    assert no_trace(pipe) and same(state(pipe), before) and (draw(pipe) == plain).all()
    assert (draw(pipe, lora=[(files / 'a', 0)]) == plain).all() and (draw(pipe, lora=[]) == plain).all()


def test_requests_in_one_batch_each_get_their_own_lora(pipe, files, plain, with_a):
    requests = [CAT, {**CAT, 'lora': files / 'a'}, {**CAT, 'lora': 'b'}, {**CAT, 'text': 'a cat <lora:a>'}]
    outputs = pipe(requests, batch_size=4)
    images = [output['output_imgs'][0] for output in outputs]
    expected = [plain, with_a, draw(pipe, lora='b'), with_a]
    assert all(close(image, wanted) for image, wanted in zip(images, expected))
    assert [output.get('loras') for output in outputs] == [None, [('a', 1.0)], [('b', 1.0)], [('a', 1.0)]]


def test_prompts_and_wildcards_of_one_request_have_their_own_tags(pipe, plain, with_a):
    output = pipe({**CAT, 'text': ['a cat', 'a cat, <lora:a:1>'], 'seed': [3, 3]})
    assert output['loras'] == [[], [('a', 1.0)]] and output['revised_prompt'] == 'a cat'
    assert close(output['output_imgs'][0], plain) and close(output['output_imgs'][1], with_a)
    drawn = pipe({**CAT, 'text': 'a cat {<lora:a>|<lora:b:0.5>}', 'num_images_per_prompt': 6})
    assert {tuple(loras) for loras in drawn['loras']} == {(('a', 1.0),), (('b', 0.5),)}


def test_a_generator_for_pictures_with_different_loras_is_refused(pipe):
    with pytest.raises(InvalidRequest, match='split the request'):
        pipe({'text': ['a', 'a <lora:a>'], 'num_inference_steps': 1, 'generator': torch.Generator().manual_seed(1)})


def test_a_lora_that_does_not_fit_stops_a_batch_before_its_first_picture(pipe, tmp_path):
    save_file({'lora_unet_x.lora_up.weight': torch.ones(2, 2), 'lora_unet_x.lora_down.weight': torch.ones(2, 2)},
              tmp_path / 'x.safetensors')
    calls = []
    hook = pipe.pipeline.unet.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(CartoonError, match='lora_unet_x'):
        pipe([CAT, {**CAT, 'lora': tmp_path / 'x.safetensors'}], batch_size=1)
    hook.remove()
    assert not calls


class Mine(Exception):
    pass


@pytest.mark.parametrize('error', [Mine, KeyboardInterrupt, 'Ctrl-C'])
def test_whatever_stops_a_drawing_takes_the_lora_off(pipe, plain, files, error):
    def stop(*_: object) -> None:
        assert not no_trace(pipe)
        if error == 'Ctrl-C':
            os.kill(os.getpid(), signal.SIGINT)
        else:
            raise error
    before = state(pipe)
    hook = pipe.pipeline.unet.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt if error == 'Ctrl-C' else error):
        draw(pipe, lora=files / 'a')
    hook.remove()
    assert no_trace(pipe) and same(state(pipe), before) and (draw(pipe) == plain).all()


def test_a_callback_that_draws_a_picture_itself_gets_a_plain_one_and_spoils_nothing(pipe, files, plain, with_a):
    inner = []

    def callback(_, step, *rest):
        if step == 0:
            inner.append(draw(pipe))
    outer = draw(pipe, lora=files / 'a', callback_on_step_end=callback)
    assert (inner[0] == plain).all() and (outer == with_a).all() and no_trace(pipe)


def test_half_precision_falls_back_to_fp32_with_the_lora_on(tiny_folder, files, with_a, plain):
    half = load_pipeline(tiny_folder, device='cpu', dtype='bfloat16')
    calls = []

    def black_once(module, inputs, output):
        calls.append(1)
        return torch.full_like(output, -9) if len(calls) == 1 else None
    half.pipeline.vae.decoder.register_forward_hook(black_once)
    drawn = draw(half, lora=files / 'a').astype(int)
    assert half.model.dtype == half.pipeline.unet.dtype == torch.float32 and no_trace(half)
    assert np.abs(drawn - with_a).mean() < np.abs(drawn - plain).mean() / 3


@pytest.mark.parametrize('memory', ['low', 'min'])
def test_lower_memory_modes_draw_the_same_with_a_lora(tiny_folder, files, with_a, memory):
    assert close(draw(load_pipeline(tiny_folder, device='cpu', memory=memory), lora=files / 'a'), with_a)


def test_layers_that_visit_the_device_one_by_one_take_a_lora(tiny_folder, files, with_a):
    from accelerate import cpu_offload
    offloaded = load_pipeline(tiny_folder, device='cpu')
    cpu_offload(offloaded.pipeline.unet, torch.device('cpu'))     # memory mode min on a GPU
    assert offloaded.pipeline.unet.conv_in.weight.device.type == 'meta'
    assert (draw(offloaded, lora=files / 'a') == with_a).all() and no_trace(offloaded)


def test_a_pipeline_that_the_user_puts_in_takes_the_lora_and_keeps_its_own(tiny_folder, files, with_a):
    pipe = load_pipeline(tiny_folder, device='cpu')
    pipe.pipeline = StableDiffusionPipeline.from_pretrained(tiny_folder)
    assert (draw(pipe, lora=files / 'a') == with_a).all()
    pipe.pipeline.load_lora_weights(files / 'b')
    own = draw(pipe)
    both = draw(pipe, lora=files / 'a')
    assert close(both, by_diffusers(tiny_folder, {files / 'b': 1.0, files / 'a': 1.0}))
    assert (draw(pipe) == own).all() and not close(own, both)


def test_a_hundred_switches_keep_no_more_than_the_limit(pipe, tiny_folder, files, tmp_path, monkeypatch):
    tensors = load_file(files / 'kohya.safetensors')
    for i in range(5):
        save_file({key: tensor * (i + 1) for key, tensor in tensors.items()}, tmp_path / f'{i}.safetensors')
    size = sum(tensor.nbytes for key, tensor in tensors.items() if 'alpha' not in key)
    monkeypatch.setattr(lora, 'KEPT_BYTES', 2 * size)
    loras, seen = lora.Loras(), []
    for i in range(100):
        with loras.on(pipe.pipeline, [LoraChoice('x', str(tmp_path / f'{i % 5}.safetensors'), 1.0)]):
            pass
        if i in (19, 99):
            gc.collect()
            seen.append(sum(type(thing) is torch.Tensor for thing in gc.get_objects()))
    assert len(loras._files) == 2 and seen[1] <= seen[0] and no_trace(pipe)


def test_a_file_that_was_written_anew_is_read_anew(pipe, files, tmp_path, plain, with_a):
    path = tmp_path / 'mine.safetensors'
    save_file(load_file(files / 'kohya.safetensors'), path)
    assert close(draw(pipe, lora=path), with_a)
    save_file({key: tensor * 0 for key, tensor in load_file(files / 'kohya.safetensors').items()}, path)
    os.utime(path, (1, 1))
    assert close(draw(pipe, lora=path), plain)


def test_an_unknown_name_says_which_there_are(pipe):
    with pytest.raises(UnknownOption, match=r"no LoRA 'kohja' \(did you mean 'kohya'\?\); names known here: a, b, k"):
        pipe({**CAT, 'text': 'a cat <lora:kohja:1>'})
    with pytest.raises(UnknownOption, match="no LoRA 'nowhere"):
        pipe({**CAT, 'lora': 'nowhere/lora.safetensors'})
