"""Guidance on some of the steps alone (Kynkäänniemi et al. 2024, arXiv 2404.07724).

On the other steps the UNet is called with the prompt only, on N rows instead of 2 N: that is the gain. diffusers' loop
asks for its guidance scale at every UNet call, and takes prompt embeddings back from callback_on_step_end; so a
callback switches guidance on and off.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from modelscope_cartoon.errors import InvalidRequest
from modelscope_cartoon.request import GenerationRequest


def check(pipe: Any, request: GenerationRequest) -> None:
    """InvalidRequest where an interval is asked of a model that has its guidance built in (distilled, LCM)."""
    if request.guidance_interval and pipe.unet.config.get('time_cond_proj_dim') is not None:
        raise InvalidRequest(f'guidance_interval is {request.guidance_interval}, and this model has its guidance built '
                             'in and calls its UNet once a step anyway; leave guidance_interval and preset out.')


def options(request: GenerationRequest, negative_prompt_embeds: torch.Tensor, callback: Callable | None,
            ) -> dict[str, Any]:
    """diffusers' call keywords for the request's guidance; `callback` is the user's own, which is called too."""
    if not request.guidance_interval or request.guidance_scale <= 1:     # diffusers: no guidance up to 1
        return {'guidance_scale': request.guidance_scale, 'callback_on_step_end': callback}
    switch = GuidanceSwitch(request, negative_prompt_embeds, callback)
    return {'guidance_scale': request.guidance_scale if switch.on else 1.0, 'callback_on_step_end': switch,
            'callback_on_step_end_tensor_inputs': switch.tensor_inputs}


class GuidanceSwitch:
    """A callback_on_step_end for one denoising: guidance is on where start <= step / steps < stop.

    A step's second half (Heun, DPM2) follows its first; the calls of PNDM's warm-up are its first step's. A callback
    of the user's that changes the guidance scale or the embeddings while guidance is on finds them again; one that
    turns guidance on or off itself (diffusers' SDCFGCutoffCallback) is left alone from then on.
    """

    def __init__(self, request: GenerationRequest, negative_prompt_embeds: torch.Tensor, callback: Callable | None):
        self.start, self.stop = request.guidance_interval or (0.0, 1.0)
        self.steps, self.scale = request.num_inference_steps, request.guidance_scale
        self._negative, self._callback = negative_prompt_embeds, callback
        self._wanted = getattr(callback, 'tensor_inputs', ['latents'])
        self.on = self._guided(0)

    @property
    def tensor_inputs(self) -> list[str]:
        return list(dict.fromkeys([*self._wanted, 'latents', 'prompt_embeds']))

    def __call__(self, pipe: Any, call: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        changed: dict[str, Any] = {}
        if self._callback is not None:
            changed = self._callback(pipe, call, timestep, {name: tensors[name] for name in self._wanted}) or {}
        on = self._guided(self._step(pipe, call + 1))
        if on == self.on or call + 1 == pipe.num_timesteps or pipe.do_classifier_free_guidance != self.on:
            return changed
        self.on = on
        embeds = changed.get('prompt_embeds', tensors['prompt_embeds'])
        return {**changed, 'prompt_embeds': self._switched(pipe, embeds)}

    def _switched(self, pipe: Any, prompt_embeds: torch.Tensor) -> torch.Tensor:
        """`pipe` and the embeddings for the calls that follow: negative and prompt, or the prompt alone."""
        if self.on:
            pipe._guidance_scale = self.scale
            return torch.cat([self._negative.to(prompt_embeds), prompt_embeds])
        self.scale, pipe._guidance_scale = pipe._guidance_scale, 1.0
        self._negative, prompt_embeds = prompt_embeds.chunk(2)
        return prompt_embeds

    def _step(self, pipe: Any, call: int) -> int:
        warm_up = max(0, pipe.num_timesteps - self.steps * pipe.scheduler.order)
        return max(0, call - warm_up) // pipe.scheduler.order

    def _guided(self, step: int) -> bool:
        return self.start <= step / self.steps < self.stop
