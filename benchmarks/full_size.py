"""The real Stable Diffusion 2.1 architecture with random weights: our pipeline and upstream's own, side by side.

    python -m benchmarks.full_size [--folder DIR] [--steps 2] [--sizes 512 768] [--json FILE]

Builds the folder once (legacy layout: fp32 .bin files, 5 GB), loads it through both classes, each in a process of its
own, and lets them draw in turn with the same prompt, seed and steps. Random weights: speed and memory are real, the
pictures are noise. Upstream's class imports torchvision and uses nothing of it, so it is given an empty stand-in.
"""
from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

SIDES = ('ours', 'upstream')
LEGACY = {'framework': 'pytorch', 'task': 'text-to-image-synthesis', 'pipeline': {'type': 'diffusers-stable-diffusion'}}


def build(folder: Path) -> None:
    """stabilityai/stable-diffusion-2-1's component configs; weights as each class initialises them."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from modelscope_cartoon import mini

    torch.manual_seed(0)
    unet = UNet2DConditionModel(sample_size=96, cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20),
                                use_linear_projection=True, upcast_attention=True)
    vae = AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=768,
                        down_block_types=('DownEncoderBlock2D',) * 4, up_block_types=('UpDecoderBlock2D',) * 4)
    # one row more than CLIP's 49408: with exactly as many, loading would hold the vocabulary against CLIP's own
    text_encoder = CLIPTextModel(CLIPTextConfig(
        vocab_size=49409, hidden_size=1024, intermediate_size=4096, projection_dim=512, num_hidden_layers=23,
        num_attention_heads=16, hidden_act='gelu'))
    tokenizer = CLIPTokenizer.from_pretrained(mini.path() / 'tokenizer', model_max_length=77)
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule='scaled_linear', clip_sample=False,
                              set_alpha_to_one=False, steps_offset=1, prediction_type='v_prediction')
    StableDiffusionPipeline(vae, text_encoder, tokenizer, unet, scheduler, None, None, requires_safety_checker=False,
                            ).save_pretrained(folder, safe_serialization=False)
    _text_encoder_to_bin(folder / 'text_encoder')
    (folder / 'configuration.json').write_text(json.dumps(LEGACY))


def _text_encoder_to_bin(folder: Path) -> None:
    """transformers 5 writes safetensors alone; the hub's repositories of 2023 have pytorch_model.bin."""
    import torch
    from safetensors.torch import load_file

    if (folder / 'model.safetensors').exists():
        torch.save(load_file(folder / 'model.safetensors'), folder / 'pytorch_model.bin')
        (folder / 'model.safetensors').unlink()


def serve(side: str, folder: str) -> None:
    """One side's process: loads, then draws once for each line (a JSON list of size and steps) on stdin."""
    started = time.perf_counter()
    pipe = load(side, folder)
    answer({'load_seconds': time.perf_counter() - started, 'dtype': str(pipe.pipeline.unet.dtype)})
    for line in sys.stdin:
        size, steps = json.loads(line)
        answer(draw(pipe, size, steps))


def load(side: str, folder: str) -> Any:
    if side == 'upstream':
        from diffusers import StableDiffusionPipeline as _  # noqa: F401  (before: transformers would use the stand-in)
        stand_in_for_torchvision()
        from modelscope.pipelines.multi_modal.diffusers_wrapped.stable_diffusion.stable_diffusion_pipeline import (
            StableDiffusionPipeline,
        )
        return StableDiffusionPipeline(folder)
    from modelscope_cartoon import load_pipeline
    return load_pipeline(folder, device='cpu')


def stand_in_for_torchvision() -> None:
    for name in ('torchvision', 'torchvision.transforms'):
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__spec__ = ModuleSpec(name, None, is_package=True)
    sys.modules['torchvision'].transforms = sys.modules['torchvision.transforms']


def draw(pipe: Any, size: int, steps: int) -> dict[str, float]:
    """Seconds of a whole call, and of one denoising step: the pace between the ends of the first and the last step."""
    import torch

    ends: list[float] = []
    started = time.perf_counter()
    pipe({'text': 'a portrait painting of a woman', 'height': size, 'width': size, 'num_inference_steps': steps,
          'generator': torch.Generator().manual_seed(0), 'callback_steps': 1,
          'callback': lambda *_: ends.append(time.perf_counter())})
    return {'seconds': time.perf_counter() - started, 'step_seconds': (ends[-1] - ends[0]) / max(1, len(ends) - 1),
            'peak_gib': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def answer(value: dict[str, Any]) -> None:
    print('@' + json.dumps(value), flush=True)


def ask(process: subprocess.Popen, question: Any = None) -> dict[str, Any]:
    if question is not None:
        process.stdin.write(json.dumps(question) + '\n')
        process.stdin.flush()
    for line in process.stdout:
        if line.startswith('@'):
            return json.loads(line[1:])
    raise SystemExit('a side ended early; its own words are above')


def compare(folder: Path, sizes: list[int], steps: int, runs: int) -> dict[str, Any]:
    """Loads one side after the other, then draws in turn: ours, upstream, ours, ..."""
    processes, result = {}, {}
    for side in SIDES:
        processes[side] = subprocess.Popen(
            [sys.executable, '-m', 'benchmarks.full_size', '--side', side, '--folder', folder],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        result[side] = ask(processes[side])
    for size in sizes:
        for _ in range(runs):
            for side in SIDES:
                result[side].setdefault(str(size), []).append(ask(processes[side], [size, steps]))
    for process in processes.values():
        process.stdin.close()
        process.wait()
    return result


def show(result: dict[str, Any], sizes: list[int]) -> None:
    import statistics

    rows = [('load, s', {side: result[side]['load_seconds'] for side in SIDES})]
    for size in sizes:
        for key, title in (('step_seconds', 'a step'), ('seconds', 'whole call'), ('peak_gib', 'peak memory so far')):
            values = {side: statistics.median(run[key] for run in result[side][str(size)]) for side in SIDES}
            rows.append((f'{size} px, {title}, {"GiB" if key == "peak_gib" else "s"}', values))
    print(f'\n{"":36}{"ours":>10}{"upstream":>10}{"ratio":>8}   ({", ".join(result[s]["dtype"] for s in SIDES)})')
    for title, values in rows:
        ours, upstream = values['ours'], values['upstream']
        print(f'{title:36}{ours:>10.2f}{upstream:>10.2f}{upstream / ours:>8.2f}')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--folder', type=Path, default=Path(tempfile.gettempdir()) / 'sd21-random')
    parser.add_argument('--sizes', type=int, nargs='+', default=[512, 768])
    parser.add_argument('--steps', type=int, default=2)
    parser.add_argument('--runs', type=int, default=1)
    parser.add_argument('--json', type=Path)
    parser.add_argument('--side', choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        return serve(arguments.side, str(arguments.folder))
    if not (arguments.folder / 'model_index.json').exists():
        print(f'building {arguments.folder} (5 GB)', file=sys.stderr)
        build(arguments.folder)
    result = compare(arguments.folder, arguments.sizes, arguments.steps, arguments.runs)
    show(result, arguments.sizes)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + '\n')


if __name__ == '__main__':
    main()
