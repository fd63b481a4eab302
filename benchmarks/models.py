"""The model that is measured: a folder, `mini`, or the real Stable Diffusion 2.1 architecture with random weights.

Random weights: speed and memory are real, the pictures are noise.
"""
from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

RANDOM = Path(tempfile.gettempdir()) / 'sd21-random'
LEGACY = {'framework': 'pytorch', 'task': 'text-to-image-synthesis', 'pipeline': {'type': 'diffusers-stable-diffusion'}}
SD21_UNET = {'block_out_channels': [320, 640, 1280, 1280], 'cross_attention_dim': 1024, 'layers_per_block': 2}


class Model(NamedTuple):
    """size: pixels that it is measured at, at most its own. fp32_gib: what
    loading makes of its weights in fp32, the margin of modelscope_cartoon.weights included."""
    folder: Path
    name: str
    size: int
    fp32_gib: float
    sd21: bool

    def describe(self) -> dict[str, Any]:
        return {'folder': str(self.folder), 'name': self.name, 'size': self.size,
                'fp32_gib': round(self.fp32_gib, 3), 'sd21': self.sd21}


def resolve(folder: str, size: int) -> Model:
    """The model in `folder` (or 'mini'), built first where it is the random one and not there."""
    from modelscope_cartoon import mini
    from modelscope_cartoon.files import folder_aside

    path = mini.path() if folder == mini.NAME else Path(folder).resolve()
    if not (path / 'model_index.json').exists():
        print(f'building {path}: Stable Diffusion 2.1 with random weights, 5 GB', file=sys.stderr)
        with folder_aside(path) as aside:     # a killed build leaves no folder that looks whole
            build(aside)
    unet = config(path, 'unet')
    own = unet['sample_size'] * 2 ** (len(config(path, 'vae')['block_out_channels']) - 1)
    return Model(path, folder if folder == mini.NAME else path.name, min(size, own), _fp32_gib(path),
                 {key: unet.get(key) for key in SD21_UNET} == SD21_UNET)


def config(folder: Path, component: str) -> dict[str, Any]:
    return json.loads((folder / component / 'config.json').read_text(encoding='utf-8'))


def has_bin(folder: Path) -> bool:
    """True where the weights are pickles, the only form that upstream's class reads by default."""
    return any((folder / 'unet').glob('*.bin'))


def _fp32_gib(folder: Path) -> float:
    import torch

    from modelscope_cartoon.folder import ModelFolder
    from modelscope_cartoon.weights import parameter_bytes

    return parameter_bytes(ModelFolder(folder), torch.float32) / 2**30


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
