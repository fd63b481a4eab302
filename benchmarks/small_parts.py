"""Parts that decide how a backend is set up, small enough for a busy machine: one thread, CPU seconds, sides in turn.

    python -m benchmarks.small_parts [-o results.json]

layouts        Stable Diffusion's residual blocks in bf16, contiguous and channels_last (backends/eager.py)
lora_switches  a style of the embedded model put on and taken off, as wrappers and as merged copies
"""
from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_REPEATS, _WARM_UP = 7, 1
_BLOCKS = {'unet 320 x 64 x 64': (2, 320, 64, 1280), 'unet 640 x 32 x 32': (2, 640, 32, 1280),
           'unet 1280 x 16 x 16': (2, 1280, 16, 1280), 'vae 128 x 256 x 256': (1, 128, 256, None)}


def in_turn(sides: dict[str, Callable[[], Any]]) -> dict[str, dict[str, float]]:
    """Milliseconds of the process's CPU time: median and quickest."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(_REPEATS + _WARM_UP):
        for name, run in sides.items():
            started = time.process_time()
            run()
            if i >= _WARM_UP:
                times[name].append(1000 * (time.process_time() - started))
    return {name: {'median': round(statistics.median(t), 1), 'least': round(min(t), 1)} for name, t in times.items()}


def layouts() -> dict[str, Any]:
    from diffusers.models.resnet import ResnetBlock2D
    found = {}
    for name, (batch, channels, side, time_channels) in _BLOCKS.items():
        block = ResnetBlock2D(in_channels=channels, out_channels=channels, temb_channels=time_channels, groups=32)
        last = ResnetBlock2D(in_channels=channels, out_channels=channels, temb_channels=time_channels, groups=32)
        block, last = block.eval().bfloat16(), last.eval().bfloat16().to(memory_format=torch.channels_last)
        picture = torch.randn(batch, channels, side, side).bfloat16()
        picture_last = picture.to(memory_format=torch.channels_last)
        moment = None if time_channels is None else torch.randn(batch, time_channels).bfloat16()
        found[name] = in_turn({'contiguous': lambda b=block, p=picture, m=moment: b(p, m),
                               'channels_last': lambda b=last, p=picture_last, m=moment: b(p, m)})
    return found


def lora_switches() -> dict[str, Any]:
    from modelscope_cartoon import load_pipeline
    from modelscope_cartoon.backends.merged_loras import MergedLoras
    from modelscope_cartoon.lora import Loras
    pipe = load_pipeline('mini', device='cpu')
    [choice] = pipe.preprocess({'text': 'a cat', 'style': 'flat'})['pictures'][0].loras

    def switching(loras: Loras) -> Callable[[], None]:
        def switch() -> None:
            with loras.on(pipe.pipeline, [choice]):
                pass
        return switch
    return in_turn({'wrappers': switching(Loras()), 'merged copies': switching(MergedLoras())})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--output', '-o', type=Path, metavar='FILE')
    output = parser.parse_args().output
    torch.set_num_threads(1)
    with torch.no_grad():
        results = {'torch': torch.__version__, 'cpu': dict(torch.cpu.get_capabilities()), 'unit': 'CPU milliseconds',
                   'layouts': layouts(), 'lora_switches': lora_switches()}
    text = json.dumps(results, indent=2) + '\n'
    print(text) if output is None else output.write_text(text, encoding='utf-8')


if __name__ == '__main__':
    main()
