"""The benchmarks: arithmetic counted right, goals held against samples, sides that draw in turn, tables from JSON."""
from __future__ import annotations

import json

import numpy as np
import pytest
import tiny

from benchmarks import cpu, goals, gpu, render, runner, stats
from benchmarks.flops import unet_flops
from benchmarks.models import Model

SD21 = {'sample_size': 96, 'cross_attention_dim': 1024, 'attention_head_dim': [5, 10, 20, 20],
        'use_linear_projection': True, 'upcast_attention': True}


def sample(step: list[float], text: float, vae: float, **more: float) -> dict:
    return {'seconds': 3 * step[0] + text + vae, 'cpu_seconds': 2 * (3 * step[0] + text + vae), 'steps': 3,
            'step': step, 'text': text, 'vae': vae, **more}


def made_up(kind: str = 'cpu') -> dict:
    """Upstream 13 s a call, diffusers bf16 6.5, ours 5: numbers that can be worked out by hand."""
    side = {'U': False, 'D16': False, 'openvino': True}
    exact = {'kind': 'exact', 'size': 512, 'steps': 3, 'batch': 1, 'options': {}, 'errors': {
        'D16': 0.01, 'openvino': 0.03}, 'samples': {
        'U': [sample([13.0, 12.0], 1.0, 19.0, peak_gib=6.0), sample([14.0, 13.0], 1.0, 19.0, peak_gib=6.2)],
        'D16': [sample([6.5, 6.5], 0.5, 8.0, peak_gib=4.6)],
        'openvino': [sample([5.0, 5.0], 0.5, 7.0, peak_gib=3.1)]}}
    sampler = {**exact, 'kind': 'same sampler', 'options': {'scheduler': 'DPM++ 2M'}, 'errors': {}}
    fast = {'kind': 'fast', 'size': 512, 'steps': 0, 'batch': 1, 'options': {'preset': 'fast'}, 'errors': {},
            'samples': {'openvino': [{**sample([5.0, 2.5], 0.5, 7.0, peak_gib=3.1), 'seconds': 80.0}]}}
    return {'schema': 1, 'kind': kind, 'finished': True, 'command': 'python -m benchmarks.cpu', 'date': '2026-01-02T03',
            'machine': {'processor': 'a processor', 'cores': 2, 'threads': 2, 'capabilities': ['avx512_bf16'],
                        'memory_gib': 23.0, 'gpu': None, 'load_before': [0.1, 0.1, 0.1], 'load_after': [2, 1, 1]},
            'versions': {'torch': '2.13.0', 'diffusers': '0.42.1'}, 'settings': {'steps': 3, 'size': 512, 'seed': 0},
            'model': {'name': 'sd21-random', 'size': 512, 'fp32_gib': 4.8, 'sd21': True},
            'sides': {n: {'title': f'side {n}', 'ours': o, 'runs_as': 'x', 'load': [9.0]} for n, o in side.items()},
            'runs': [exact, sampler, fast], 'left out': {'T': 'torch_tensorrt is not installed.'}, 'groups': [],
            'preset': {'scheduler': 'DPM++ 2M', 'num_inference_steps': 20, 'guidance_interval': [0.0, 0.5]},
            'flops': {'512': {'unet': {'conv': 0.8e12, 'linear': 0.5e12, 'attention': 0.3e12}, 'vae': {}}},
            'peaks': {'gemm bf16': [3.0e11], 'conv bf16': [4.0e11, 3.9e11, 4.1e11]},
            'cold': {'upstream': [25.0, 24.0, 26.0], 'ours, prepared': [14.0]},
            'imports': {'modelscope': [2.0], 'modelscope_cartoon': [2.1]}}


def measured(result: dict) -> dict[str, tuple]:
    return {f'{g["goal"]} {g["what"]}': (g['measured'] and round(g['measured'], 3), g['met'])
            for g in goals.goals(result)}


def test_sd_2_1_takes_1_609_tflop_for_a_call_with_guidance_at_512():
    flops = unet_flops(SD21, 64)
    assert sum(flops.values()) == pytest.approx(1.609e12, rel=0.01)
    assert flops['conv'] == pytest.approx(0.837e12, rel=0.01)
    assert flops['attention'] == pytest.approx(0.252e12, rel=0.01)


def test_goals_are_worked_out_from_the_samples():
    found = measured(made_up())
    upstream, ours = 50 * 13 + 1 + 19, 50 * 5 + 0.5 + 7
    assert found['P1 50 exact steps, upstream / openvino'] == (round(upstream / ours, 3), True)
    assert found['P1 50 exact steps, upstream / torch'] == (None, None)
    assert found['P2 UNet call, openvino / bf16 floor of this machine'] == (round(5 / (1.6e12 / 4e11), 3), True)
    fast = 'P3 end to end, upstream with 50 exact steps / ours (openvino) with fast'
    assert found[fast] == (round(upstream / 80, 3), True)
    assert found[f'{fast}, cache_interval=2'] == (None, None)
    assert found['P7 peak memory of the process, openvino / upstream'] == (0.5, True)
    assert found["exact 512 px, distance from fp32, openvino / diffusers bf16's own"] == (3.0, False)
    assert found['P8 cold start without the step itself, ours, prepared / upstream'] == (round((14 - 5) / 12, 3), False)
    assert found['P8 import modelscope_cartoon beyond import modelscope, s'] == (0.1, True)


@pytest.mark.parametrize('other', [{'sd21': False}, {'size': 256}])
def test_another_model_or_size_is_held_against_no_goal(other):
    result = made_up()
    result['model'] |= other
    assert goals.goals(result) == []


def test_gpu_goals_are_worked_out_from_whole_pictures_and_the_best_batch():
    def picture(seconds: float, gib: float) -> list[dict]:
        return [{'seconds': seconds, 'steps': 50, 'step': [seconds / 50], 'text': 0.0, 'vae': 0.0, 'gpu_gib': gib}]
    result = made_up('gpu')
    result['sides'] |= {n: {'title': n, 'ours': n != 'C', 'runs_as': n, 'load': [1.0]} for n in ('C', 'torch', 'low')}
    run = {'kind': 'exact', 'size': 512, 'steps': 50, 'batch': 1, 'options': {}, 'errors': {}, 'samples': {
        'U': picture(1.5, 5.6), 'D16': picture(0.9, 3.0), 'C': picture(0.6, 3.0), 'torch': picture(0.5, 2.8),
        'low': picture(0.8, 1.4)}}
    batch = {**run, 'kind': 'throughput', 'batch': 8, 'samples': {'D16': picture(3.2, 6.0), 'torch': picture(2.0, 6.0)}}
    result['runs'] = [run, batch]
    found = measured(result)
    assert found['P5 512 px, 50 steps, upstream / ours'] == (3.0, True)
    assert found['P5 512 px, 50 steps, best of torch.compile and TensorRT / ours'] == (1.2, True)
    assert found['P5 768 px, 50 steps, upstream / ours'] == (None, None)
    assert found['P6 512 px, pictures per second at the best batch, ours / upstream one by one'] == (6.0, True)
    assert found['P6 the same, ours / diffusers bf16 at that batch'] == (1.6, True)
    assert found['P7 512 px, GPU memory, GiB'] == (2.8, True)
    assert found["P7 512 px, time, memory='low' / full"] == (1.6, False)


def test_engine_gain_and_step_gain_are_lines_of_their_own():
    lines = {what: faster for what, _, faster in goals.gains(made_up())}
    assert lines['engine alone: ours (openvino), 50 exact steps'] == pytest.approx(670 / 257.5)
    assert lines["steps alone: diffusers bf16, the preset's sampler, 20 steps"] == pytest.approx(670 / 138.5)
    assert stats.evaluations(made_up(), 'fast') == '30'


def test_sides_are_grouped_by_memory_each_group_with_upstream():
    names = ['U', 'O', 'openvino', 'int8', 'D16', 'torch']
    groups = runner.plan(names, 19.0, 4.8)
    assert len(groups) > 1 and all(group[0] == 'U' for group in groups)
    assert [name for group in groups for name in group if name != 'U'] == names[1:]
    assert runner.plan(names, 100.0, 4.8) == [names]


@pytest.mark.parametrize(('load', 'threads', 'shared'), [(0.1, 2, False), (1.9, 2, True), (0.1, 4, True)])
def test_the_tables_say_when_the_machine_was_shared(load, threads, shared, tmp_path):
    result = made_up()
    result['machine'] |= {'load_before': [load, 0, 0], 'threads': threads}
    assert ('The machine was shared' in rendered(result, tmp_path)) == shared


def rendered(result: dict, folder) -> str:
    result['goals'] = goals.goals(result)
    document = folder / 'performance.md'
    document.write_text('Before.\n<!-- benchmark cpu -->\nwhat was there\n<!-- /benchmark cpu -->\n'
                        '<!-- benchmark gpu -->\nNot measured yet.\n<!-- /benchmark gpu -->\n', encoding='utf-8')
    (folder / 'cpu.json').write_text(json.dumps(result), encoding='utf-8')
    render.main([str(folder / 'cpu.json'), '--into', str(document), '--pictures', str(folder)])
    return document.read_text(encoding='utf-8')


def test_tables_come_from_the_json_between_the_markers_of_their_kind(tmp_path):
    pytest.importorskip('matplotlib')
    text = rendered(made_up(), tmp_path)
    assert 'what was there' not in text and text.startswith('Before.\n') and 'Not measured yet.' in text
    assert '| side openvino | x | 5.00 (5.00 to 5.00, 2) | 0.50 (1 sample) | 7.00 (1 sample) | 258 | 2.60x |' in text
    assert '3.00% (3.00)' in text and 'torch_tensorrt is not installed.' in text
    assert '![Seconds of a picture, side by side](performance_cpu.png)' in text
    assert (tmp_path / 'performance_cpu.png').read_bytes()[:4] == b'\x89PNG'
    document = tmp_path / 'performance.md'
    render.main([str(tmp_path / 'cpu.json'), '--into', str(document), '--pictures', str(tmp_path)])
    assert document.read_text(encoding='utf-8') == text


def test_a_document_without_the_place_for_a_result_is_refused():
    with pytest.raises(SystemExit, match='no place for'):
        render.replaced('text', 'cpu', 'content')


def test_without_a_gpu_the_gpu_command_says_so_in_one_sentence(monkeypatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    with pytest.raises(SystemExit, match=r'^this benchmark needs an NVIDIA GPU, and torch sees none here'):
        gpu.main([])


def measured_on_tiny(command, folder, *options: str) -> dict:
    """What the command itself writes, from sides in processes of their own."""
    model = tiny.build(folder / 'tiny', safe=False, configuration=tiny.LEGACY)
    command.main(['--folder', str(model), '--steps', '2', '--repeats', '1', '--fast-repeats', '0',
                  '--cold-repeats', '0', '--out', str(folder / 'result.json'), *options])
    return json.loads((folder / 'result.json').read_text(encoding='utf-8'))


def test_two_sides_draw_in_turn_and_every_sample_is_kept(tmp_path):
    result = measured_on_tiny(cpu, tmp_path, '--sides', 'D16', 'torch')
    assert result['finished'] and result['kind'] == 'cpu' and result['goals'] == []
    run = stats.find(result, 'exact')
    assert [len(run['samples'][side][0]['step']) for side in ('D16', 'torch')] == [1, 1]
    assert run['errors']['torch'] < 1e-5 < run['errors']['D16'] < 0.1, 'ours draws so small a model in float32'
    assert result['peaks']['gemm bf16'] and result['flops']['64']['unet']['conv'] > 0
    assert 0.1 < run['samples']['torch'][0]['peak_gib'] < 4


def test_the_gpu_command_runs_on_a_cpu_but_for_its_cuda_calls(tmp_path):
    result = measured_on_tiny(gpu, tmp_path, '--device', 'cpu', '--sizes', '64', '--batches', '2', '--sides', 'torch')
    assert result['finished'] and result['kind'] == 'gpu'
    assert [(run['kind'], run['batch'], len(run['samples']['torch'])) for run in result['runs']] == [
        ('exact', 1, 1), ('throughput', 2, 1)]
    assert result['left out']['T'] == 'torch_tensorrt is not installed.'


def test_a_side_that_can_not_be_loaded_is_left_out_and_the_run_goes_on(tmp_path):
    bench = runner.Bench(Model(tmp_path, 'x', 64, 0.001, False), 'cpu', tmp_path, {'settings': {'seed': 0}})
    with bench.opened(['nobody']) as processes:
        assert processes == {}
    assert bench.result['left out']['nobody'] == 'it ended with exit code 2; its own words are above.'


def test_everybody_gets_the_same_latents_and_a_batch_begins_with_the_single_one(tmp_path):
    from modelscope_cartoon import mini

    bench = runner.Bench(Model(mini.path(), 'mini', 128, 0.1, False), 'cpu', tmp_path, {'settings': {'seed': 3}})
    one, four = np.load(bench.noise(128, 1)), np.load(bench.noise(128, 4))
    assert one.shape == (1, 16, 16, 16) and one.dtype == np.float32 and np.array_equal(one[0], four[0])
