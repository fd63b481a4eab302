"""DeepCache (Ma, Fang, Wang 2023, arXiv 2312.00858): most UNet calls reuse what an earlier one found deep inside.

    noise, feature = whole(unet, sample, timestep, text)          a UNet call, and what enters its very last layer
    noise = shallow(unet, sample, timestep, text, feature)        the next one: first convolution, last layer, no more

That is branch 0 of the published package (DeepCache 0.1.1), the one that saves most: with Stable Diffusion 2.1 at 512
pixels a shallow call is a thirteenth of a whole one. `whole` and `shallow` are plain functions of tensors, so that a
compiler can take them as they are.
"""
from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

from modelscope_cartoon.errors import InvalidRequest

Tensor = torch.Tensor
_BLOCKS = {'DownBlock2D', 'CrossAttnDownBlock2D', 'UpBlock2D', 'CrossAttnUpBlock2D'}
_PLAIN = {'center_input_sample': False, 'class_embed_type': None, 'addition_embed_type': None,
          'encoder_hid_dim_type': None, 'time_cond_proj_dim': None, 'time_embedding_act_fn': None,
          'attention_type': 'default'}


def whole(unet: Any, sample: Tensor, timestep: Any, encoder_hidden_states: Tensor) -> tuple[Tensor, Tensor]:
    """(what `unet` itself predicts, to the bit; the feature [B, C, h, w] that stands for all its deep layers)."""
    time = _time(unet, sample, timestep)
    hidden = unet.conv_in(sample)
    skips = [hidden]
    for block in unet.down_blocks:
        hidden, outputs = block(hidden, temb=time, **_text(block, encoder_hidden_states))
        skips += outputs
    if unet.mid_block is not None:
        hidden = unet.mid_block(hidden, time, **_text(unet.mid_block, encoder_hidden_states))
    *upper, last = unet.up_blocks
    for block in upper:
        taken = tuple(skips.pop() for _ in block.resnets)[::-1]
        hidden = block(hidden, taken, temb=time, upsample_size=_upsample_size(unet, sample, skips[-1]),
                       **_text(block, encoder_hidden_states))
    for layer in range(len(last.resnets) - 1):
        hidden = _up(last, layer, hidden, skips.pop(), time, encoder_hidden_states)
    return _end(unet, hidden, skips.pop(), time, encoder_hidden_states), hidden


def shallow(unet: Any, sample: Tensor, timestep: Any, encoder_hidden_states: Tensor, feature: Tensor) -> Tensor:
    """The prediction for `sample` with a `feature` that whole() found for another, of the same batch and size."""
    return _end(unet, feature, unet.conv_in(sample), _time(unet, sample, timestep), encoder_hidden_states)


def _time(unet: Any, sample: Tensor, timestep: Any) -> Tensor:
    return unet.time_embedding(unet.get_time_embed(sample=sample, timestep=timestep))


def _text(block: Any, encoder_hidden_states: Tensor) -> dict[str, Tensor]:
    attends = getattr(block, 'has_cross_attention', False)
    return {'encoder_hidden_states': encoder_hidden_states} if attends else {}


def _upsample_size(unet: Any, sample: Tensor, skip: Tensor) -> Any:
    """diffusers names a size only where halving and doubling wouldn't come back to it."""
    exact = all(side % 2 ** unet.num_upsamplers == 0 for side in sample.shape[-2:])
    return None if exact else skip.shape[2:]


def _up(block: Any, layer: int, hidden: Tensor, skip: Tensor, time: Tensor, encoder_hidden_states: Tensor) -> Tensor:
    hidden = block.resnets[layer](torch.cat([hidden, skip], dim=1), time)
    if not getattr(block, 'has_cross_attention', False):
        return hidden
    return block.attentions[layer](hidden, encoder_hidden_states=encoder_hidden_states, return_dict=False)[0]


def _end(unet: Any, hidden: Tensor, skip: Tensor, time: Tensor, encoder_hidden_states: Tensor) -> Tensor:
    last = unet.up_blocks[-1]
    hidden = _up(last, len(last.resnets) - 1, hidden, skip, time, encoder_hidden_states)
    if unet.conv_norm_out is not None:
        hidden = unet.conv_act(unet.conv_norm_out(hidden))
    return unet.conv_out(hidden)


def check(unet: Any, interval: int) -> None:
    """InvalidRequest where an `interval` above 1 is asked of a UNet whose features can't be reused here."""
    obstacle = _obstacle(unet)
    if interval > 1 and obstacle:
        raise InvalidRequest(f"cache_interval is {interval}, and this model's UNet {obstacle}; features are reused "
                             'in plain Stable Diffusion UNets alone: leave cache_interval out, or give 1.')


def _obstacle(unet: Any) -> str | None:
    if hasattr(unet, 'feature_calls'):
        return None
    unet = getattr(unet, '_orig_mod', unet)     # torch.compile's wrapper
    if not isinstance(unet, UNet2DConditionModel):
        return f'is a {type(unet).__name__}'
    blocks = (*unet.down_blocks, *unet.up_blocks)
    found = unlike([type(block).__name__ for block in blocks], unet.config)
    if found is None and any(getattr(block, 's1', None) for block in blocks):
        return 'has FreeU on'
    return f'has {found}' if found else None


def unlike(blocks: Iterable[str], config: Mapping[str, Any]) -> str | None:
    """What a UNet with these kinds of blocks and this config has that Stable Diffusion's hasn't; None where nothing."""
    found = [f'a {block}' for block in blocks if block not in _BLOCKS]
    found += [f'the {name} {config[name]!r}' for name, plain in _PLAIN.items() if config.get(name, plain) != plain]
    return found[0] if found else None


def reusing(pipe: Any, interval: int) -> Any:
    """`pipe` for one denoising in which every `interval`-th UNet call is whole; with 1, `pipe` itself."""
    if interval == 1:
        return pipe
    ours = copy.copy(pipe)
    ours.unet = ReusingUNet(pipe.unet, interval)
    ours.maybe_free_model_hooks = pipe.maybe_free_model_hooks     # offloading must find the UNet behind ours
    return ours


class ReusingUNet:
    """Takes a UNet's place in a diffusers pipeline for one denoising; what else is asked of it, `unet` answers.

    Calls are counted, not timesteps: the second halves of Heun's and DPM2's steps count as calls of their own. Where
    guidance has been switched off, the feature's conditional half goes on; where it is switched on, a call is whole.
    """

    def __init__(self, unet: Any, interval: int):
        self.unet, self.interval = unet, interval
        self.whole, self.shallow = _calls(unet)
        self._feature: Tensor | None = None
        self._uses = 0     # of the feature, its own call included

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, 'unet'), name)

    def __call__(self, sample: Tensor, timestep: Any, encoder_hidden_states: Tensor, return_dict: bool = True,
                 **conditions: Any) -> Any:
        given = [name for name, value in conditions.items() if value is not None]
        if given:
            raise InvalidRequest(f'cache_interval is {self.interval}, and the UNet is called with {given[0]}, which '
                                 'reusing features does not know; leave cache_interval out, or give 1.')
        feature = self._reusable(len(sample))
        self._uses += 1
        if feature is None:
            noise, self._feature = self.whole(sample, timestep, encoder_hidden_states)
            self._uses = 1
        else:
            noise = self.shallow(sample, timestep, encoder_hidden_states, feature)
        return UNet2DConditionOutput(sample=noise) if return_dict else (noise,)

    def _reusable(self, batch: int) -> Tensor | None:
        if self._feature is None or self._uses >= self.interval:
            return None
        if len(self._feature) == 2 * batch:     # diffusers puts the unconditional half first
            return self._feature[batch:]
        return self._feature if len(self._feature) == batch else None


def _calls(unet: Any) -> tuple[Callable, Callable]:
    if hasattr(unet, 'feature_calls'):
        return unet.feature_calls
    unet = getattr(unet, '_orig_mod', unet)
    return partial(_with_hooks, unet, whole), partial(_with_hooks, unet, shallow)


def _with_hooks(unet: Any, call: Callable, *tensors: Any) -> Any:
    """Offloading waits for the UNet's own forward, which isn't called here: what accelerate (`_hf_hook`) or diffusers
    (`_diffusers_hook`) put around it is asked by hand."""
    registry = getattr(unet, '_diffusers_hook', None)
    hooks = [registry.hooks[name] for name in registry._hook_order] if registry else []
    hooks += [unet._hf_hook] if hasattr(unet, '_hf_hook') else []
    for hook in reversed(hooks):     # the last one put on is the outermost
        tensors, _ = hook.pre_forward(unet, *tensors)
    result = call(unet, *tensors)
    for hook in hooks:
        result = hook.post_forward(unet, result)
    return result
