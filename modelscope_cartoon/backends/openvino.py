"""OpenVINO on the CPU: the networks converted once, kept on disk, and run without torch's weights in memory.
diffusers' pipeline and loop stay; what computes in it are stand-ins (standins.py) around graphs (graphs.py) of
converted files (conversion.py). LoRAs are merged into weights of their own. Once the user replaces one, torch draws.
"""
from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from modelscope_cartoon import cache, deepcache, prepared, weights
from modelscope_cartoon.backends import Report, conversion, graphs
from modelscope_cartoon.backends.eager import Eager
from modelscope_cartoon.backends.graphs import Graph
from modelscope_cartoon.backends.standins import StandIn, TextEncoder, UNet, Vae
from modelscope_cartoon.errors import CartoonError
from modelscope_cartoon.folder import ModelFolder
from modelscope_cartoon.log import logger
from modelscope_cartoon.lora import NETWORKS, Loras
from modelscope_cartoon.lora_choice import LoraChoice
from modelscope_cartoon.precision import cpu_has_bf16, is_small

_FILES = {'text_encoder': ('text_encoder',), 'unet': ('unet', 'shallow'), 'vae': ('vae',)}
KEPT_SETS = 4                   # of LoRAs at hand; those of a full-size model are compiled anew when they take turns
Networks = dict[str, Graph]     # by the name of the file


class OpenVINO(Eager):
    """`pipe` holds stand-ins; once it doesn't, this is Eager."""
    name = 'openvino'

    def __init__(self, folder: ModelFolder, device: torch.device, dtype: torch.dtype, memory_mode: str):
        self.folder, self.device, self.dtype, self.memory_mode = folder, device, dtype, memory_mode
        self._loras = Loras()
        self._is_small = is_small(conversion.folder_bytes(folder))     # looks into files: not for every batch
        self._merged: dict[str, Networks] = {}     # by conversion.lora_key
        try:
            if device.type != 'cpu':
                raise _Unfit(f'OpenVINO draws on the CPU here, not on {device}')
            self._base = self._load_base()
        except _Unfit as unfit:
            logger.warning('%s; drawing with torch instead.', unfit)
            self.name, self.pipe = Eager.name, prepared.load(folder, dtype)
        else:
            self.pipe = self._pipeline(self._base)

    @classmethod
    def missing(cls, device: torch.device) -> str | None:
        if graphs.is_installed():
            return None
        return "openvino is not installed; pip install 'modelscope-cartoon[openvino]'."

    @classmethod
    def obstacle(cls, folder: ModelFolder) -> str | None:
        config = folder.configs['unet']
        blocks = [*(config.get('down_block_types') or ()), *(config.get('up_block_types') or ())]
        found = deepcache.unlike(blocks, config)
        return f'its UNet has {found}, and plain Stable Diffusion UNets alone are converted.' if found else None

    @classmethod
    def recommended(cls, folder: ModelFolder, device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type != 'cpu' or dtype == torch.float16 or is_small(conversion.folder_bytes(folder)) \
                or not conversion.is_here(folder):
            return None
        return f'the model is converted already, and OpenVINO is faster than torch on a CPU; in {_precision(dtype)}.'

    @classmethod
    def prepare(cls, folder: ModelFolder, device: torch.device, dtype: torch.dtype, report: Report) -> bool:
        if device.type != 'cpu' or cls.missing(device) or cls.obstacle(folder):
            return False
        target = conversion.place(folder)
        done = [name for name in conversion.NETWORKS if conversion.convert(folder, name, target)]
        if done:
            report(f'{", ".join(done)}: converted for OpenVINO, in {target}')
        return bool(done)

    @functools.cached_property
    def _skeleton(self) -> SimpleNamespace:
        return conversion.skeleton(self.folder)

    def _load_base(self) -> Networks:
        target = conversion.place(self.folder)
        if not conversion.is_here(self.folder):
            logger.warning('converting %s for OpenVINO, once (a full-size model takes two or three minutes); kept in '
                           '%s.', self.folder.root, target)
        networks = {name: graph for network in conversion.NETWORKS for name, graph in
                    self._open(network, target).items()}
        if not self._is_small:
            networks['unet'].makes_room = [networks['text_encoder'], networks['vae']]
        return networks

    def _open(self, network: str, target: Path, loras: Sequence[LoraChoice] = ()) -> Networks:
        """`network`'s graphs from `target`, converted where they aren't there and once more where they are damaged."""
        self._convert(network, target, loras)
        try:
            return self._graphs(network, target)
        except RuntimeError as error:
            logger.warning('%s is damaged (%s) and is built again.', target / network, str(error).splitlines()[-1])
            cache.remove(target / network)
        self._convert(network, target, loras)
        return self._graphs(network, target)

    def _convert(self, network: str, target: Path, loras: Sequence[LoraChoice]) -> None:
        try:
            conversion.convert(self.folder, network, target, loras)
        except CartoonError:
            raise
        except Exception as error:
            raise _Unfit(f'the {network} of {self.folder.root} can\'t be converted for OpenVINO '
                         f'({" ".join(str(error).split())[:300]})') from error

    def _graphs(self, network: str, target: Path) -> Networks:
        return {name: self._graph(target / network / f'{name}.xml') for name in _FILES[network]}

    def _graph(self, file: Path) -> Graph:
        return Graph(file, _precision(self.dtype), self._has_fixed_shapes(file))

    def _has_fixed_shapes(self, file: Path) -> bool:
        return self.memory_mode == 'full' and file.stem != 'text_encoder'     # that is as fast, and sooner there

    def _pipeline(self, networks: Networks) -> StableDiffusionPipeline:
        configs = self.folder.configs
        return weights.assemble(
            self.folder, unet=UNet(configs['unet'], networks['unet'], networks['shallow']),
            vae=Vae.around(configs['vae'], networks['vae']),
            text_encoder=TextEncoder(configs['text_encoder'], networks['text_encoder']))

    @contextmanager
    def drawing(self, loras: Sequence[LoraChoice]) -> Iterator[None]:
        networks = self._networks(loras) if self._runs_openvino() else None
        if networks is None:
            with super().drawing(loras):
                yield
            return
        before = self._use(networks)
        try:
            yield
        finally:
            self._use(before)

    def _use(self, networks: Networks) -> Networks:
        """Puts `networks` behind the stand-ins; what was there before."""
        unet, text_encoder = self.pipe.unet, self.pipe.text_encoder
        before = {'unet': unet.graph, 'shallow': unet.shallow, 'text_encoder': text_encoder.graph}
        unet.graph, unet.shallow, text_encoder.graph = (networks[name] for name in before)
        return before

    def _networks(self, loras: Sequence[LoraChoice]) -> Networks | None:
        """None where they can't be merged and converted; torch has taken over then."""
        try:
            networks = self._with(loras)
        except _Unfit as unfit:
            self._hand_over(str(unfit), self.dtype)
            return None
        if not self._is_small:     # else as much memory again for each set
            for graph in self._all_graphs():
                if graph not in networks.values():
                    graph.forget()
        return networks

    def _with(self, loras: Sequence[LoraChoice]) -> Networks:
        if not loras:
            return self._base
        key = conversion.lora_key(loras)
        found = self._merged.pop(key, None)
        while found is None and len(self._merged) >= KEPT_SETS:
            del self._merged[next(iter(self._merged))]
        self._merged[key] = found or self._merge(key, loras)
        return self._base | self._merged[key]

    def _merge(self, key: str, loras: Sequence[LoraChoice]) -> Networks:
        target = conversion.place(self.folder) / f'lora-{key}'
        networks: Networks = {}
        for network in self._loras.changed(self._skeleton, loras):
            if not (target / network).is_dir():
                logger.warning('%s: merging into a copy of the %s and converting that for OpenVINO, once for these '
                               'LoRAs at these scales.', ' + '.join(choice.name for choice in loras), network)
            networks |= self._open(network, target, loras)
        conversion.keep_young(target)
        return networks

    def _runs_openvino(self) -> bool:
        """False from the moment on where the user has put other networks into the pipeline: torch runs those."""
        strangers = [name for name in NETWORKS if not isinstance(getattr(self.pipe, name, None), StandIn)]
        if strangers and self.name != Eager.name:
            theirs = getattr(self.pipe, strangers[0], None)
            self._hand_over(f'replaced in the pipeline: {", ".join(strangers)}', getattr(theirs, 'dtype', self.dtype))
        return not strangers

    def _hand_over(self, why: str, dtype: torch.dtype) -> None:
        """Networks from the folder for the stand-ins that are left, in `dtype`."""
        logger.warning('%s; torch runs all of the pipeline from now on, not OpenVINO.', why)
        self.name = Eager.name
        for name in conversion.NETWORKS:
            if isinstance(getattr(self.pipe, name, None), (StandIn, Vae)):
                setattr(self.pipe, name, weights.load_component(self.folder, name, dtype))
        self.set_memory(self.memory_mode)

    def check_lora(self, choice: LoraChoice) -> None:
        if self._runs_openvino():
            self._loras.check(self._skeleton, choice)
        else:
            super().check_lora(choice)

    def to_fp32(self) -> None:
        if not self._runs_openvino():
            return super().to_fp32()
        self.dtype = torch.float32
        for graph in self._all_graphs():
            graph.precision = _precision(self.dtype)
            graph.forget()

    def set_memory(self, mode: str) -> None:
        super().set_memory(mode)
        if self.name == Eager.name:
            return
        for graph in self._all_graphs():
            graph.fixed = self._has_fixed_shapes(graph.file)
            graph.forget()

    def _all_graphs(self) -> list[Graph]:
        return [graph for networks in (self._base, *self._merged.values()) for graph in networks.values()]

    def compile(self, **options: Any) -> None:
        if not self._runs_openvino():
            return super().compile(**options)
        logger.info('compile: OpenVINO compiles by itself; the options are for torch.compile and are not used.')

    def save_networks(self, folder: str) -> None:
        if self._runs_openvino():
            pipe = prepared.load(self.folder, self.dtype)
            pipe.scheduler = self.pipe.scheduler
            pipe.save_pretrained(folder, safe_serialization=True)
        else:
            super().save_networks(folder)


class _Unfit(Exception):
    """Why OpenVINO can't draw this; torch does it then."""


def _precision(dtype: torch.dtype) -> str:
    """float16 was chosen for speed too, and bfloat16 is what processors have."""
    return 'bf16' if dtype != torch.float32 and cpu_has_bf16() else 'f32'
