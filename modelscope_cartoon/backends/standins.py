"""What takes the networks' places in a diffusers pipeline while OpenVINO runs them.

They answer what drawing asks of a network and have nothing else, so that what can't work here (an attention
processor, an adapter of diffusers' own) is an AttributeError, not a change without effect.
"""
from __future__ import annotations

import inspect
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.configuration_utils import FrozenDict
from diffusers.models.embeddings import Timesteps
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from transformers import CLIPTextConfig
from transformers.modeling_outputs import BaseModelOutput

from modelscope_cartoon.backends.graphs import Graph
from modelscope_cartoon.errors import InvalidRequest, ModelError
from modelscope_cartoon.weights import quiet


class StandIn(torch.nn.Module):
    dtype, device = torch.float32, torch.device('cpu')

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            raise AttributeError(f'the {type(self).__name__} that runs on OpenVINO has no {name!r}; load the model '
                                 "with backend='torch' for that.") from None


class UNet(StandIn):
    """graph: (sample, sinusoids of the time, text) -> (noise, feature). shallow: the same and a feature -> noise."""

    def __init__(self, config: dict[str, Any], graph: Graph, shallow: Graph):
        super().__init__()
        own = inspect.signature(UNet2DConditionModel.__init__).parameters
        self.config = FrozenDict({**{name: p.default for name, p in own.items() if name != 'self'}, **config})
        self.graph, self.shallow = graph, shallow
        self._sinusoids = Timesteps(self.config.block_out_channels[0], self.config.flip_sin_to_cos,
                                    self.config.freq_shift)

    def forward(self, sample: torch.Tensor, timestep: Any, encoder_hidden_states: torch.Tensor,
                return_dict: bool = True, **conditions: Any) -> Any:
        given = [name for name, value in conditions.items() if value is not None]
        if given:
            raise InvalidRequest(f'the UNet that runs on OpenVINO is called with {given[0]}, which it does not know; '
                                 "load the model with backend='torch'.")
        noise, _ = self._whole(sample, timestep, encoder_hidden_states)
        return UNet2DConditionOutput(sample=noise) if return_dict else (noise,)

    @property
    def feature_calls(self) -> tuple[Any, Any]:
        """What modelscope_cartoon.deepcache takes in place of its own functions."""
        return self._whole, self._shallow

    def _whole(self, sample: torch.Tensor, timestep: Any, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        noise, feature = self.graph(sample, self._time(sample, timestep), text)
        return noise, feature

    def _shallow(self, sample: torch.Tensor, timestep: Any, text: torch.Tensor, feature: torch.Tensor) -> torch.Tensor:
        return self.shallow(sample, self._time(sample, timestep), text, feature)[0]

    def _time(self, sample: torch.Tensor, timestep: Any) -> torch.Tensor:
        return self._sinusoids(torch.as_tensor(timestep).expand(len(sample)))


class TextEncoder(StandIn):
    """graph: ids -> every layer's output through the last norm, which `final_layer_norm` therefore leaves alone."""

    def __init__(self, config: dict[str, Any], graph: Graph):
        super().__init__()
        with quiet():
            self.config = CLIPTextConfig.from_dict(dict(config))
        self.graph = graph
        self.final_layer_norm = torch.nn.Identity()

    def forward(self, input_ids: torch.Tensor, attention_mask: None = None, output_hidden_states: bool = False,
                ) -> BaseModelOutput:
        layers = self.graph(input_ids)[0]
        return BaseModelOutput(last_hidden_state=layers[-1],
                               hidden_states=tuple(layers) if output_hidden_states else None)


class Decoder(torch.nn.Module):
    def __init__(self, graph: Graph):
        super().__init__()
        self.graph = graph

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return self.graph(latents)[0]


class Vae(AutoencoderKL):
    """diffusers' own around the decoder's graph, so that slices and tiles are as they are with torch."""

    dtype, device = torch.float32, torch.device('cpu')

    @classmethod
    def around(cls, config: dict[str, Any], graph: Graph) -> Vae:
        with torch.device('meta'):
            vae = cls.from_config(config)
        del vae.encoder, vae.quant_conv
        vae.decoder, vae.post_quant_conv = Decoder(graph), torch.nn.Identity()
        return vae.eval()

    def encode(self, *_: Any, **__: Any) -> Any:
        raise ModelError("the VAE that runs on OpenVINO decodes only; load the model with backend='torch' to encode.")
