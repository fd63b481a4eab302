"""What loading, sharing and eight bits cost, on a CPU: `python -m benchmarks.memory FILE.json`.

A model of the real architecture's kinds at a moderate size, random weights, each loading in a process of its own with
the page cache of its files dropped first; and the distance that eight-bit weights put between the mini model's latents
and those of float32, beside what bfloat16 alone does.
"""
from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from modelscope_cartoon.files import write_json

LOADS = ('diffusers float32', 'diffusers bfloat16', 'ours float32', 'ours bfloat16', 'ours bfloat16 prepared')
PROMPTS = ('a cat', 'a red house', 'a portrait of a woman', 'a tree by a lake')
CHANNELS, WIDTH = (128, 256, 512, 512), 512


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('output', type=Path)
    parser.add_argument('--load', nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        print(json.dumps(loaded(*arguments.load)))
        return
    with tempfile.TemporaryDirectory() as root:
        os.environ['MODELSCOPE_CARTOON_CACHE'] = f'{root}/cache'
        folders = {'safetensors': build(Path(root, 'safetensors'), True), '.bin': build(Path(root, 'bin'), False)}
        results: dict[str, Any] = {'machine': platform.processor() or platform.machine(), 'torch': torch.__version__,
                                   'parameter_bytes_fp32': int((Path(root) / 'bytes').read_text()), 'loading': {}}
        for form, folder in folders.items():
            results['loading'][form] = {}
            for how in LOADS:
                results['loading'][form][how] = in_a_process(folder, how)
                write_json(arguments.output, results)
        results['sharing'] = sharing(folders['safetensors'], folders['.bin'])
        write_json(arguments.output, results)
    results['eight_bits'] = eight_bits_distance()
    write_json(arguments.output, results)


def build(folder: Path, safe: bool) -> Path:
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from modelscope_cartoon import mini
    mini_pipe = StableDiffusionPipeline.from_pretrained(mini.path())
    torch.manual_seed(0)
    unet = UNet2DConditionModel(block_out_channels=CHANNELS, cross_attention_dim=WIDTH, attention_head_dim=8,
                                sample_size=32, use_linear_projection=True)
    vae = AutoencoderKL(block_out_channels=(32, 64), down_block_types=('DownEncoderBlock2D',) * 2,
                        up_block_types=('UpDecoderBlock2D',) * 2, sample_size=256)
    config = {**mini_pipe.text_encoder.config.to_dict(), 'hidden_size': WIDTH, 'intermediate_size': 4 * WIDTH,
              'num_hidden_layers': 12, 'num_attention_heads': 8,
              'vocab_size': 49400}     # not CLIP's own 49408, whose words would be wanted
    parts = {'unet': unet, 'vae': vae, 'text_encoder': CLIPTextModel(CLIPTextConfig(**config))}
    pipe = StableDiffusionPipeline(**parts, tokenizer=mini_pipe.tokenizer, scheduler=mini_pipe.scheduler,
                                   safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipe.save_pretrained(folder)
    count = 4 * sum(p.numel() for part in parts.values() for p in part.parameters())
    folder.with_name('bytes').write_text(str(count))
    if not safe:
        to_bin(folder)
    return folder


def to_bin(folder: Path) -> None:
    from safetensors.torch import load_file
    for path in folder.rglob('*.safetensors'):
        stem = 'pytorch_model' if path.parent.name == 'text_encoder' else path.stem
        torch.save({key: tensor.clone() for key, tensor in load_file(path).items()}, path.with_name(f'{stem}.bin'))
        path.unlink()


def in_a_process(folder: Path, how: str) -> dict[str, Any]:
    if how.endswith('prepared'):
        from modelscope_cartoon import prepared
        from modelscope_cartoon.folder import ModelFolder
        prepared.prepare(ModelFolder(folder), torch.bfloat16, print)
    for path in [*folder.rglob('*'), *Path(os.environ['MODELSCOPE_CARTOON_CACHE']).rglob('*')]:
        drop(path)
    command = [sys.executable, '-m', 'benchmarks.memory', 'unused', '--load', str(folder), how]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def drop(path: Path) -> None:
    """Its pages leave the page cache, so that what is read shows."""
    if path.is_file():
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def loaded(folder: str, how: str) -> dict[str, Any]:
    """Loads, then touches every weight as the first picture would; what was added to memory, and read from disk."""
    import time

    from diffusers import StableDiffusionPipeline

    from modelscope_cartoon import prepared, weights
    from modelscope_cartoon.folder import ModelFolder
    torch.set_num_threads(1)
    dtype = torch.float32 if 'float32' in how else torch.bfloat16
    torch.ones(2**20).to(dtype).sum()
    Path('/proc/self/clear_refs').write_text('5')     # the peak begins here
    start, read, cpu = memory()['VmRSS'], bytes_read(), time.process_time()
    if how.startswith('diffusers'):
        with weights.quiet():
            pipe = StableDiffusionPipeline.from_pretrained(folder, dtype=dtype, use_safetensors=None)
    else:
        pipe = prepared.load(ModelFolder(folder), dtype)
    untouched = memory()['VmRSS'] - start
    seconds = time.process_time() - cpu
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        for tensor in part.parameters():
            tensor.data.amax()
    return {'load_cpu_seconds': round(seconds, 2), 'loaded_bytes': untouched, 'peak_bytes': memory()['VmHWM'] - start,
            'used_bytes': memory()['VmRSS'] - start, 'bytes_read': bytes_read() - read}


def memory() -> dict[str, int]:
    lines = Path('/proc/self/status').read_text().splitlines()
    return {line.split(':')[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith('Vm')}


def bytes_read() -> int:
    return int(Path('/proc/self/io').read_text().split('read_bytes: ')[1].split()[0])


def sharing(first: Path, second: Path) -> dict[str, int]:
    """Memory that a second model adds while both are there. All its weights are equal to the first one's, in other
    files."""
    from modelscope_cartoon import load_pipeline
    os.environ['MODELSCOPE_CARTOON_CACHE'] = os.environ['MODELSCOPE_CARTOON_CACHE'] + '-empty'
    one = load_pipeline(first, device='cpu', dtype='bfloat16')
    before = memory()['VmRSS']
    other = load_pipeline(second, device='cpu', dtype='bfloat16')
    parts = {name: sum(p.nbytes for p in getattr(one.pipeline, name).parameters())
             for name in ('unet', 'vae', 'text_encoder')}
    added = memory()['VmRSS'] - before
    del other
    return {**parts, 'second_model_added': added}


@torch.no_grad()
def eight_bits_distance() -> dict[str, Any]:
    """||latents - latents of float32|| / ||latents of float32|| after 20 steps, for each prompt."""
    from modelscope_cartoon import eight_bits, mini, weights
    from modelscope_cartoon.folder import ModelFolder

    def latents(pipe: Any, seed: int) -> torch.Tensor:
        size, channels = pipe.unet.config.sample_size, pipe.unet.config.in_channels
        noise = torch.randn((1, channels, size, size), generator=torch.Generator().manual_seed(seed))
        return pipe(PROMPTS[seed], num_inference_steps=20, latents=noise.to(pipe.unet.dtype),
                    output_type='latent').images.float()

    def pipe(dtype: torch.dtype) -> Any:
        made = weights.load(ModelFolder(mini.path()), dtype)
        made.set_progress_bar_config(disable=True)
        return made
    packed, fp8 = pipe(torch.bfloat16), pipe(torch.bfloat16)
    eight_bits.pack(packed.unet, torch.device('cpu'), [])
    fp8.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    full = pipe(torch.float32)
    exact = [latents(full, seed) for seed in range(len(PROMPTS))]
    return {name: [round(float((latents(one, seed) - exact[seed]).norm() / exact[seed].norm()), 4)
                   for seed in range(len(PROMPTS))]
            for name, one in (('bfloat16', pipe(torch.bfloat16)), ('bfloat16, eight-bit weights', packed),
                              ('bfloat16, float8_e4m3fn layerwise casting', fp8))}


if __name__ == '__main__':
    main()
