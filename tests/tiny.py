"""A tiny Stable Diffusion with random weights in any layout that the hub has: real parts, drawn in milliseconds."""
from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

LEGACY = {'framework': 'pytorch', 'task': 'text-to-image-synthesis',
          'pipeline': {'type': 'diffusers-stable-diffusion'}}
OURS = {'framework': 'pytorch', 'task': 'text-to-image-synthesis', 'model': {'type': 'cartoon-stable-diffusion'},
        'preprocessor': {'type': 'cartoon-style-prompt'}, 'pipeline': {'type': 'cartoon-stable-diffusion'}}


def bytes_to_unicode() -> list[str]:
    """GPT-2's table of printable stand-ins for the 256 bytes (openai/gpt-2, src/encoder.py)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    extra = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + n) for n in range(len(extra))]


def write_tokenizer(folder: Path) -> Path:
    """CLIP's byte-level vocabulary with the three merges that make `cat` one token."""
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = bytes_to_unicode()
    merges = ['c a', 'ca t</w>', 's k']
    words = [*alphabet, *(c + '</w>' for c in alphabet), *(m.replace(' ', '') for m in merges),
             '<|startoftext|>', '<|endoftext|>']
    (folder / 'vocab.json').write_text(json.dumps({w: i for i, w in enumerate(words)}), encoding='utf-8')
    (folder / 'merges.txt').write_text('#version: 0.2\n' + '\n'.join(merges) + '\n', encoding='utf-8')
    CLIPTokenizer.from_pretrained(folder, model_max_length=77).save_pretrained(folder)
    return folder


def components(folder: Path, prediction_type: str = 'epsilon', scheduler: str = 'DDIM', seed: int = 0) -> dict:
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=8, in_channels=4, out_channels=4,
        down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D'), up_block_types=('CrossAttnUpBlock2D', 'UpBlock2D'),
        cross_attention_dim=16, attention_head_dim=4, norm_num_groups=4)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), in_channels=3, out_channels=3, latent_channels=4, norm_num_groups=4,
        down_block_types=('DownEncoderBlock2D',) * 4, up_block_types=('UpDecoderBlock2D',) * 4, sample_size=64)
    tokenizer = CLIPTokenizer.from_pretrained(write_tokenizer(folder / 'tokenizer'))
    text_encoder = CLIPTextModel(CLIPTextConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=0)).eval()
    betas = {'beta_start': 0.00085, 'beta_end': 0.012, 'beta_schedule': 'scaled_linear',
             'prediction_type': prediction_type, 'steps_offset': 1, 'set_alpha_to_one': False}
    noise = {'DDIM': lambda: DDIMScheduler(clip_sample=False, **betas),
             'PNDM': lambda: PNDMScheduler(skip_prk_steps=True, **betas)}[scheduler]()
    return {'unet': unet, 'vae': vae, 'text_encoder': text_encoder, 'tokenizer': tokenizer, 'scheduler': noise}


def build(folder: Path, safe: bool = True, configuration: dict | None = OURS, **options) -> Path:
    """A model folder: `safe` safetensors or legacy .bin; `configuration` None leaves configuration.json out."""
    pipe = StableDiffusionPipeline(**components(folder, **options), safety_checker=None, feature_extractor=None,
                                   requires_safety_checker=False)
    pipe.save_pretrained(folder, safe_serialization=safe)
    if not safe and not (folder / 'text_encoder' / 'pytorch_model.bin').exists():
        _text_encoder_to_bin(folder / 'text_encoder')
    if configuration is not None:
        (folder / 'configuration.json').write_text(json.dumps(configuration), encoding='utf-8')
    return folder


def _text_encoder_to_bin(folder: Path) -> None:
    """As transformers 4 wrote it in 2023: an inner `text_model`, and the buffer that it saved."""
    from safetensors.torch import load_file

    state = {f'text_model.{k.removeprefix("text_model.")}': v
             for k, v in load_file(folder / 'model.safetensors').items()}
    state['text_model.embeddings.position_ids'] = torch.arange(77)[None]
    torch.save(state, folder / 'pytorch_model.bin')
    (folder / 'model.safetensors').unlink()


def build_lora(folder: Path, base: Path, seed: int = 1, rank: int = 4, alpha: float = 8) -> Path:
    """A LoRA for `base` in diffusers' form, written by peft and diffusers; random, so that it shows in the picture."""
    from peft import LoraConfig, get_peft_model_state_dict

    torch.manual_seed(seed)
    pipe = StableDiffusionPipeline.from_pretrained(base)
    layers = {'unet': ['to_q', 'to_v', 'to_out.0', 'ff.net.2', 'proj_in', 'conv1'],
              'text_encoder': ['q_proj', 'out_proj', 'fc1']}
    states, configs = {}, {}
    for part, names in layers.items():
        module = getattr(pipe, part)
        module.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=names, init_lora_weights=False))
        states[part] = get_peft_model_state_dict(module)
        configs[part] = module.peft_config['default'].to_dict()
    pipe.save_lora_weights(
        folder, states['unet'], convert_state_dict_to_diffusers(states['text_encoder']),
        unet_lora_adapter_metadata=configs['unet'], text_encoder_lora_adapter_metadata=configs['text_encoder'])
    return folder
