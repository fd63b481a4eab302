"""The five hub models as they were published say `diffusers-stable-diffusion`; this answers to that name for them.

Imported by the host when that type is first built. Upstream's own class is registered first, as it would be without
us, and every other model still gets exactly it.
"""
from __future__ import annotations

from importlib import import_module
from typing import Any

from modelscope.pipelines.builder import PIPELINES
from modelscope.utils.constant import Tasks
from modelscope.utils.import_utils import LazyImportModule, requires

from modelscope_cartoon.model import CartoonStableDiffusion
from modelscope_cartoon.pipeline import CartoonPipeline
from modelscope_cartoon.styles import style_of_path

LEGACY_TYPE = 'diffusers-stable-diffusion'
_UPSTREAM_MODULE = 'modelscope.pipelines.multi_modal.diffusers_wrapped.stable_diffusion.stable_diffusion_pipeline'


def _upstream() -> Any:
    """Upstream's class, or the error that the host fails with without us (upstream needs torchvision)."""
    requirements = LazyImportModule.get_ast_index()['requirements']
    try:
        requires(_UPSTREAM_MODULE, requirements.get(_UPSTREAM_MODULE, []))
        return import_module(_UPSTREAM_MODULE).StableDiffusionPipeline
    except Exception as error:
        return error


_UPSTREAM = _upstream()


class StableDiffusionPipeline:
    """Chooses the class at building time. It has upstream's name because the host puts it before error messages."""

    @classmethod
    def _instantiate(cls, **arguments: Any) -> Any:
        model = arguments.get('model')
        if isinstance(model, CartoonStableDiffusion) or (isinstance(model, str) and style_of_path(model)):
            return CartoonPipeline(**arguments)
        if isinstance(_UPSTREAM, Exception):
            raise _UPSTREAM
        return _UPSTREAM(**arguments)


PIPELINES.register_module(Tasks.text_to_image_synthesis, module_name=LEGACY_TYPE, module_cls=StableDiffusionPipeline,
                          force=True)
if not isinstance(_UPSTREAM, Exception):
    _UPSTREAM.group_key = Tasks.text_to_image_synthesis
