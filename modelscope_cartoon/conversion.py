"""A model folder's weights as safetensors for others: copied where they are that, converted where they are not, and a
LoRA merged into its base. Nothing is written that wasn't loaded strictly before (modelscope_cartoon.weights).
"""
from __future__ import annotations

import shutil
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import save_file

from modelscope_cartoon import weights
from modelscope_cartoon.errors import DamagedWeights
from modelscope_cartoon.folder import WEIGHT_STEMS, ModelFolder, WeightFiles, check_weight_file

ADAPTER_FILE = 'pytorch_lora_weights.safetensors'
# transformers 5 saves the text encoder's names without this; with it, older versions read the file as well.
_PREFIX = {'text_encoder': 'text_model.'}


def write_weights(folder: ModelFolder, target: Path) -> tuple[str, ...]:
    """The weights of `folder` into the component folders of `target`; what was converted, in words."""
    convert = [name for name, files in folder.weights.items() if not _may_be_copied(files)]
    pipe = weights.load(folder, torch.float32) if convert else None
    for name, files in folder.weights.items():
        (target / name).mkdir(exist_ok=True)
        if name in convert:
            _save(getattr(pipe, name), files, target)
        else:
            for path in _files_read(folder, files):
                plain = path.name.replace('.fp16.', '.') if files.variant else path.name
                shutil.copyfile(path, target / name / plain)
    return (f'{", ".join(convert)}: converted to safetensors.',) if convert else ()


def write_merged(folder: ModelFolder, adapter: Path, target: Path) -> None:
    """The weights of `folder` with the LoRA of the folder `adapter` merged in at scale 1."""
    pipe = weights.load(folder, torch.float32)
    merge(pipe, adapter / ADAPTER_FILE)
    for name, files in folder.weights.items():
        (target / name).mkdir(exist_ok=True)
        _save(getattr(pipe, name), files, target)


def merge(pipe: StableDiffusionPipeline, lora: Path) -> None:
    """Adds a LoRA file to the pipeline's own weights. DamagedWeights where not all of it fits, or it does nothing."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    check_weight_file(lora)
    modules = [pipe.unet, pipe.text_encoder]
    before = [{name: tensor.clone() for name, tensor in module.state_dict().items()} for module in modules]
    try:
        with weights.quiet():
            pipe.load_lora_weights(lora.parent, weight_name=lora.name, use_safetensors=True)
            placed = sum(isinstance(layer, BaseTunerLayer) for module in modules for layer in module.modules())
            pipe.fuse_lora(safe_fusing=True)
            pipe.unload_lora_weights()
    except Exception as error:
        raise DamagedWeights(f'{lora} can\'t be merged into its base: {" ".join(str(error).split())[:400]}') from error
    if placed != _pairs(lora):
        raise DamagedWeights(f'{lora} has weights for {_pairs(lora)} layers, and its base has {placed} of them; '
                             'it was trained on another model.')
    after = [module.state_dict() for module in modules]
    if [old.keys() for old in before] != [new.keys() for new in after]:
        raise DamagedWeights(f'{lora} could not be taken off its base again after it was merged.')
    if all(torch.equal(old[name], new[name]) for old, new in zip(before, after) for name in old):
        raise DamagedWeights(f'{lora} changes nothing of its base; it was not trained, or is damaged.')


def files_read(folder: ModelFolder) -> list[Path]:
    """The weight files that `folder` is loaded from, with the indexes of those that come in parts."""
    return [path for files in folder.weights.values() for path in _files_read(folder, files)]


def _files_read(folder: ModelFolder, files: WeightFiles) -> list[Path]:
    whole = len(files.paths) == 1 and '-of-' not in files.paths[0].name
    indexes = [] if whole else (folder.root / files.component).glob(
        f'*.{"safetensors" if files.safe else "bin"}.index{".fp16" if files.variant else ""}.json')
    return [*files.paths, *indexes]


def _may_be_copied(files: WeightFiles) -> bool:
    """safetensors whole, or in parts under the names that every program looks for."""
    return files.safe and (files.variant is None or len(files.paths) == 1)


def _save(module: torch.nn.Module, files: WeightFiles, target: Path) -> None:
    """As one file, in half precision where it was stored so."""
    parameters = sum(tensor.numel() for tensor in module.parameters())
    half = files.bytes < 3 * parameters
    state = {_PREFIX.get(files.component, '') + name: (tensor.half() if half and tensor.is_floating_point() else tensor)
             .contiguous() for name, tensor in module.state_dict().items()}
    save_file(state, target / files.component / f'{WEIGHT_STEMS[files.component]}.safetensors', {'format': 'pt'})


def _pairs(lora: Path) -> int:
    with safe_open(lora, 'pt') as file:
        return sum(any(part in key for part in ('lora_A', 'lora.down', 'lora_down')) for key in file.keys())
