"""A model folder's weights into a diffusers pipeline, strictly: every tensor is there, fits and is finite.

reading.py reads the files, diffusers and transformers put the tensors in their places (with their own renaming of old
names) and report what they met; a report that isn't clean is an error here. Pickles are read with `weights_only=True`
alone, which runs nothing in them.
"""
from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers.utils import logging as diffusers_logging
from packaging.version import Version
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from modelscope_cartoon.errors import BadConfiguration, DamagedWeights, ModelError, OutOfMemory
from modelscope_cartoon.folder import ModelFolder, WeightFiles
from modelscope_cartoon.log import logger
from modelscope_cartoon.memory import is_out_of_memory
from modelscope_cartoon.reading import state_dict


@contextmanager
def quiet() -> Iterator[None]:
    """Without the two libraries' own load reports (our errors say it better) and their advice to install torchvision
    (whose usual wheel breaks a CPU torch)."""
    before = diffusers_logging.get_verbosity(), transformers_logging.get_verbosity()
    bars = diffusers_logging.is_progress_bar_enabled(), transformers_logging.is_progress_bar_enabled()
    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(before[0])
        transformers_logging.set_verbosity(before[1])
        if bars[0]:
            diffusers_logging.enable_progress_bar()
        if bars[1]:
            transformers_logging.enable_progress_bar()


with quiet():
    import diffusers
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel

_CLASSES = {'unet': UNet2DConditionModel, 'vae': AutoencoderKL, 'text_encoder': CLIPTextModel}
_HARMLESS = ('position_ids',)     # a buffer that older transformers saved and newer ones compute
_CLIP_VOCABULARY = 49408
_CLIP_IDS = [49406, 320, 1125, 539, 320, 2368, 49407]     # 'a photo of a cat'
_SAFE_PICKLE = Version('2.10')    # the first torch whose weights_only=True has no known hole
_PADDING = 1.15                   # what reading a file needs beyond the weights themselves, measured on SD 2.1


def load(folder: ModelFolder, dtype: torch.dtype, copies: Mapping[str, WeightFiles] | None = None,
         ) -> StableDiffusionPipeline:
    """The folder's pipeline in `dtype`, on the CPU, in eval mode. CartoonError names the file and the tensors.

    copies: files of the same weights in `dtype` by component, which were checked when they were made (prepared.py).
    """
    modules = {name: load_component(folder, name, dtype, (copies or {}).get(name)) for name in _CLASSES}
    return assemble(folder, **modules)


def assemble(folder: ModelFolder, **networks: torch.nn.Module) -> StableDiffusionPipeline:
    """The folder's pipeline around `networks`: unet, vae, text_encoder."""
    tokenizer = load_tokenizer(folder, networks['text_encoder'])
    scheduler = load_scheduler(folder)
    if folder.index.get('safety_checker', [None])[0]:
        logger.warning('%s lists a safety_checker; it is not loaded, so check what you publish.', folder.root)
    return StableDiffusionPipeline(**networks, tokenizer=tokenizer, scheduler=scheduler, safety_checker=None,
                                   feature_extractor=None, requires_safety_checker=False)


def parameter_bytes(folder: ModelFolder, dtype: torch.dtype) -> int:
    """Memory for the weights in `dtype`, estimated from the files' sizes (as if fp32 unless named fp16)."""
    stored = sum(w.bytes / (2 if w.variant or _stored_half(w.paths[0]) else 4) for w in folder.weights.values())
    return int(stored * dtype.itemsize * _PADDING)


def _stored_half(path: Path) -> bool:
    with path.open('rb') as file:
        head = file.read(4096)
    return path.suffix == '.safetensors' and (b'"F16"' in head or b'"BF16"' in head)


def load_scheduler(folder: ModelFolder) -> Any:
    name = folder.scheduler_config.get('_class_name')
    scheduler_class = getattr(diffusers, str(name), None)
    if not str(name).endswith('Scheduler') or scheduler_class is None:
        raise BadConfiguration(f'{folder.root / "scheduler"}: _class_name is {name!r}, '
                               f'which diffusers {diffusers.__version__} does not have.')
    try:
        with quiet():
            _try_out(scheduler_class.from_config(folder.scheduler_config))
            return scheduler_class.from_config(folder.scheduler_config)
    except Exception as error:
        raise BadConfiguration(f'{folder.root / "scheduler"} can\'t be built: {error}') from error


def _try_out(scheduler: Any) -> None:
    """Raises whatever is wrong with it now, not in the middle of the first picture."""
    scheduler.set_timesteps(4)
    if len(scheduler.alphas_cumprod) != scheduler.config.num_train_timesteps:
        raise ValueError(f'{len(scheduler.alphas_cumprod)} betas for {scheduler.config.num_train_timesteps} timesteps')
    _ = scheduler.init_noise_sigma


def load_tokenizer(folder: ModelFolder, text_encoder: Any) -> CLIPTokenizer:
    path = folder.root / 'tokenizer'
    try:
        tokenizer = CLIPTokenizer.from_pretrained(path, local_files_only=True)
        ids = tokenizer('a photo of a cat').input_ids
    except Exception as error:
        raise ModelError(f'{path} can\'t be read ({error}); download the model again.') from error
    rows = text_encoder.config.vocab_size
    if len(tokenizer) < 100 or len(tokenizer) > rows:
        raise ModelError(f'{path} knows {len(tokenizer)} tokens and the text encoder {rows}; '
                         'they do not belong together.')
    positions = text_encoder.config.max_position_embeddings
    if not 3 <= tokenizer.model_max_length <= positions:
        raise ModelError(f'{path} has the model_max_length {tokenizer.model_max_length} and the text encoder '
                         f'{positions} positions; they do not belong together.')
    if _CLIP_VOCABULARY in (len(tokenizer), rows) and ids != _CLIP_IDS:
        raise ModelError(f"{path} reads 'a photo of a cat' as {ids}, CLIP's own as {_CLIP_IDS}; "
                         'the vocabulary is damaged: download the model again.')
    return tokenizer


def load_component(folder: ModelFolder, name: str, dtype: torch.dtype, copy: WeightFiles | None = None,
                   ) -> torch.nn.Module:
    """'unet', 'vae' or 'text_encoder' of the folder, from `copy` where there is one."""
    files = copy or folder.weights[name]
    shown = files.paths[0]
    if not files.safe and Version(torch.__version__) < _SAFE_PICKLE:
        raise DamagedWeights(f'{shown} is a pickle, which torch {torch.__version__} does not read safely; '
                             f'install torch {_SAFE_PICKLE} or newer, or use a safetensors file.')
    try:
        with quiet():
            build = _text_encoder if name == 'text_encoder' else _diffusers_network
            module, report = build(_CLASSES[name], folder.root / name, state_dict(files, dtype), dtype)
    except Exception as error:
        if is_out_of_memory(error):
            raise OutOfMemory(f'not enough memory for loading {shown}; close something, or use dtype="bfloat16".'
                              ) from error
        raise DamagedWeights(f'{shown} can\'t be loaded with its config.json: {_reason(error)}') from error
    _check_report(shown, report)
    if copy is None:
        _check_values(shown, module)
    return module.eval()


def _diffusers_network(network: Any, config: Path, state: dict[str, torch.Tensor], dtype: torch.dtype,
                       ) -> tuple[torch.nn.Module, dict[str, Any]]:
    with init_empty_weights():
        module = network.from_config(network.load_config(config, local_files_only=True))
    module._fix_state_dict_keys_on_load(state)     # the attention's names before diffusers 0.15
    report = module.load_state_dict(state, strict=False, assign=True)     # raises for shapes that misfit
    module.register_to_config(_name_or_path=str(config))
    return module, report._asdict()


def _text_encoder(network: Any, config: Path, state: dict[str, torch.Tensor], dtype: torch.dtype,
                  ) -> tuple[torch.nn.Module, dict[str, Any]]:
    """transformers names misfits in its report only when it is told to go on, and it would load the attention code
    that a config.json names from the hub."""
    return network.from_pretrained(None, config=CLIPTextConfig.from_pretrained(config, local_files_only=True),
                                   state_dict=state, dtype=dtype, output_loading_info=True,
                                   ignore_mismatched_sizes=True, attn_implementation='sdpa')


def _reason(error: BaseException) -> str:
    seen: BaseException | None = error
    while seen is not None:     # diffusers raises an error of its own over the unpickler's
        if isinstance(seen, pickle.UnpicklingError):
            return 'it is damaged, or a pickle that holds more than tensors; it is refused because reading it ' \
                   'could run its code: use a safetensors file.'
        seen = seen.__cause__ or seen.__context__
    return ' '.join(str(error).split())[:600]


def _check_report(shown: Path, report: dict[str, Any]) -> None:
    for kind in ('missing_keys', 'unexpected_keys', 'mismatched_keys', 'error_msgs'):
        names = [str(key) for key in report.get(kind) or () if not str(key).endswith(_HARMLESS)]
        if names:
            what = {'missing_keys': 'lacks', 'unexpected_keys': 'has, unknown to the model,'}.get(kind, 'misfits')
            more = f' and {len(names) - 10} more' if len(names) > 10 else ''
            raise DamagedWeights(f'{shown} {what} {len(names)} tensors: {", ".join(sorted(names)[:10])}{more}; '
                                 'a picture from half-loaded weights would be wrong: download the model again.')


def _check_values(shown: Path, module: torch.nn.Module) -> None:
    """Every tensor is finite, and no weight matrix is all zero (a file with a hole in it)."""
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            continue
        low, high = torch.aminmax(tensor)     # NaN where one is in it; 50 times as fast as a sum of bfloat16
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise DamagedWeights(f'{shown}: the tensor {name} holds NaN or infinite values; download it again.'
                                 + (' If it was made for float32: give dtype="float32".'
                                    if tensor.dtype == torch.float16 else ''))
        if tensor.ndim > 1 and low == 0 == high:
            raise DamagedWeights(f'{shown}: the tensor {name} is all zeros, as in a file with a hole; '
                                 'download it again.')

