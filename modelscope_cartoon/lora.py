"""LoRAs while a picture is drawn: read, held against the model's layers, put on, and taken off without a trace.

For the time of one batch each layer that a LoRA changes is replaced by a LoraLayer around it; then the same layer is
put back. No weight of the model is ever written to. The arithmetic is that of peft's layers, to the bit, yet these are
our own: peft's rename the model's weights while they are attached (`to_q.base_layer.weight`), so that what reads or
saves the model between two pictures finds another, and putting them on anew each time is slow (figures: docs/lora.md).
"""
from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from modelscope_cartoon.errors import ModelError
from modelscope_cartoon.lora_choice import LoraChoice, weights_file
from modelscope_cartoon.lora_file import Delta, read, some

NETWORKS = ('unet', 'text_encoder')
KEPT_BYTES = 256 * 2**20      # of files that were read, for the next time; those in use are kept anyway


class Layer(NamedTuple):
    """A linear or convolution layer of the model, and where it hangs. network: 'unet' or 'text_encoder'."""
    parent: torch.nn.Module
    attribute: str
    module: torch.nn.Module
    dtype: torch.dtype
    network: str


class LoraLayer(torch.nn.Module):
    """`base` with LoRAs added to its output. What else is asked of it, `base` answers."""

    def __init__(self, base: torch.nn.Module):
        super().__init__()
        self.base = base
        self.terms: list[tuple[Delta, float]] = []     # plain tensors: offloading must not move them

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__('base'), name)

    def forward(self, x: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        result = self.base(x, *arguments, **options)
        self.terms = [(_moved(delta, result.device), scale) for delta, scale in self.terms]
        for delta, scale in self.terms:
            result = result + self._term(x.to(delta.down), delta, scale).to(result.dtype)
        return result

    def _term(self, x: torch.Tensor, delta: Delta, scale: float) -> torch.Tensor:
        scaling = scale * delta.alpha / delta.divisor
        if delta.down.ndim == 2:
            return functional.linear(functional.linear(x, delta.down), delta.up) * scaling
        conv = self.base.get_base_layer() if hasattr(self.base, 'get_base_layer') else self.base     # a user's own peft
        x = functional.conv2d(x, delta.down, None, conv.stride, conv.padding, conv.dilation)
        return functional.conv2d(x, delta.up) * scaling


def _moved(delta: Delta, device: torch.device) -> Delta:
    """`delta` on `device`: known only here, where offloading has put the layer for the moment."""
    if delta.down.device == device:
        return delta
    return delta._replace(down=delta.down.to(device), up=delta.up.to(device))


def difference(delta: Delta, scale: float, weight: torch.Tensor) -> torch.Tensor:
    """What `delta` adds to `weight`, in float32 on its device. A convolution's kernel is in `down`, `up` is 1 x 1."""
    down, up = (tensor.to(weight.device, torch.float32).flatten(1) for tensor in (delta.down, delta.up))
    return (up @ down).view(weight.shape) * (scale * delta.alpha / delta.divisor)


class Loras:
    """The LoRAs of one model. What was read is kept for the next time, up to KEPT_BYTES, the oldest given up first."""

    def __init__(self) -> None:
        self._files: dict[tuple, dict[str, Delta]] = {}
        self._on: list[tuple[Layer, LoraLayer]] = []
        self._depth = 0

    @contextmanager
    def on(self, pipe: Any, choices: Sequence[LoraChoice]) -> Iterator[None]:
        """`pipe` (diffusers) draws with `choices` inside the block, and is as it was after it, whatever happens."""
        found = self._take_off()
        outer = found if self._depth else []     # of a callback that draws itself; else a second Ctrl-C left it behind
        self._depth += 1
        try:
            self._put_on(self._wrappers(pipe, choices))
            yield
        finally:
            self._depth -= 1
            self._take_off()
            self._put_on(outer)

    def check(self, pipe: Any, choice: LoraChoice) -> None:
        """CartoonError where `choice` can't be read or doesn't fit `pipe`."""
        self._wrappers(pipe, [choice])

    def changed(self, pipe: Any, choices: Sequence[LoraChoice]) -> list[str]:
        """'unet' and 'text_encoder', or the one of them that `choices` change."""
        changed = {layer.network for layer, _ in self._wrappers(pipe, choices)}
        return [name for name in NETWORKS if name in changed]

    @torch.no_grad()
    def merge(self, pipe: Any, choices: Sequence[LoraChoice]) -> None:
        """Adds `choices` to the weights of `pipe` for good. A network on the meta device stays as it is."""
        for layer, wrapper in self._wrappers(pipe, choices):
            weight = layer.module.weight
            if not weight.is_meta:
                merged = weight + sum(difference(delta, scale, weight) for delta, scale in wrapper.terms)
                layer.module.weight = torch.nn.Parameter(merged.to(weight.dtype), requires_grad=False)

    def _put_on(self, wrappers: list[tuple[Layer, LoraLayer]]) -> None:
        for layer, wrapper in wrappers:
            self._on.append((layer, wrapper))     # first, so that an interruption finds it
            setattr(layer.parent, layer.attribute, wrapper)

    def _take_off(self) -> list[tuple[Layer, LoraLayer]]:
        taken = list(self._on)
        while self._on:
            layer = self._on[-1][0]
            setattr(layer.parent, layer.attribute, layer.module)
            self._on.pop()
        return taken

    def _wrappers(self, pipe: Any, choices: Sequence[LoraChoice]) -> list[tuple[Layer, LoraLayer]]:
        layers = _layers(pipe) if choices else {}
        wrappers: dict[int, tuple[Layer, LoraLayer]] = {}
        for choice in choices:
            deltas = self._read(choice.path)
            _refuse_strangers(choice.path, deltas, layers)
            for name, delta in deltas.items():
                layer = layers[name]
                wrapper = wrappers.setdefault(id(layer.module), (layer, LoraLayer(layer.module)))[1]
                wrapper.terms.append((_fitted(f'{choice.path}: {name}', delta, layer), choice.scale))
        self._give_up_oldest(len(choices))
        return list(wrappers.values())

    def _read(self, path: str) -> dict[str, Delta]:
        file = weights_file(path)
        key = (os.path.realpath(file), file.stat().st_mtime_ns, file.stat().st_size)
        self._files[key] = deltas = self._files.pop(key, None) or read(file)     # to the young end
        return deltas

    def _give_up_oldest(self, in_use: int) -> None:
        def kept() -> int:
            return sum(d.down.nbytes + d.up.nbytes for deltas in self._files.values() for d in deltas.values())
        while len(self._files) > in_use and kept() > KEPT_BYTES:
            del self._files[next(iter(self._files))]


def _layers(pipe: Any) -> dict[str, Layer]:
    """The layers that a LoRA may change, by every name that LoRA files have for them."""
    found: dict[str, Layer] = {}
    for network in NETWORKS:
        root = getattr(pipe, network)
        root = getattr(root, '_orig_mod', root)     # torch.compile's wrapper
        dtype = root.dtype     # diffusers looks through all weights for it
        modules = dict(root.named_modules())
        for name, module in modules.items():
            if _can_change(module):
                parent, _, attribute = name.rpartition('.')
                layer = Layer(modules[parent], attribute, module, dtype, network)
                found.update(dict.fromkeys(_names(network, name), layer))
    return found


def _can_change(module: torch.nn.Module) -> bool:
    weight = getattr(module, 'weight', None)
    return (isinstance(weight, torch.Tensor) and weight.ndim in (2, 4) and getattr(module, 'groups', 1) == 1
            and not isinstance(module, torch.nn.Embedding))


def _names(network: str, name: str) -> list[str]:
    """diffusers' name, and kohya's. transformers 5 dropped the text encoder's inner `text_model`; files have it."""
    if network == 'unet':
        return [f'unet.{name}', f'lora_unet_{name.replace(".", "_")}']
    short = name.removeprefix('text_model.')
    both = (short, f'text_model.{short}')
    return [f'text_encoder.{one}' for one in both] + [
        f'{prefix}_{one.replace(".", "_")}' for prefix in ('lora_te', 'lora_te1') for one in both]


def _refuse_strangers(path: str, deltas: dict[str, Delta], layers: dict[str, Layer]) -> None:
    strangers = [name for name in deltas if name not in layers]
    if strangers:
        raise ModelError(f'{path} changes {len(strangers)} of {len(deltas)} layers that this model does not have: '
                         f'{some(strangers)}; it was made for another base model.')


def _fitted(shown: str, delta: Delta, layer: Layer) -> Delta:
    """`delta` in the layer's form and precision. Files have 1 x 1 kernels as matrices, and the reverse."""
    shape = layer.module.weight.shape
    down, up = (_with_dimensions(tensor, len(shape)) for tensor in (delta.down, delta.up))
    if down.shape[1:] != shape[1:] or up.shape[0] != shape[0] or any(n != 1 for n in up.shape[2:]):
        raise ModelError(f'{shown} has down {tuple(delta.down.shape)} and up {tuple(delta.up.shape)}, which do not fit '
                         f'this model\'s {tuple(shape)}; it was made for another base model.')
    return delta._replace(down=down.to(layer.dtype), up=up.to(layer.dtype))


def _with_dimensions(tensor: torch.Tensor, wanted: int) -> torch.Tensor:
    if tensor.ndim == 2 and wanted == 4:
        return tensor[:, :, None, None]
    return tensor[:, :, 0, 0] if wanted == 2 and tensor.shape[2:] == (1, 1) else tensor
