"""CartoonPipeline: the registered pipeline. It only hands over: preprocessor -> model -> postprocessor."""
from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from modelscope.pipelines.base import Pipeline
from modelscope.pipelines.builder import PIPELINES
from modelscope.utils.constant import Frameworks, Tasks

from modelscope_cartoon import mini, provenance
from modelscope_cartoon.configuration import DEFAULT_PATH, PIPELINE_TYPE, configuration, preprocessor_options
from modelscope_cartoon.errors import Interrupted, InvalidRequest
from modelscope_cartoon.hub import base_folder, local_model
from modelscope_cartoon.log import logger
from modelscope_cartoon.lora_choice import LoraChoice
from modelscope_cartoon.model import HOST_OPTIONS, OPTIONS, CartoonStableDiffusion
from modelscope_cartoon.names import refuse_unknown
from modelscope_cartoon.postprocessor import ImagePostprocessor
from modelscope_cartoon.preprocessor import StylePromptPreprocessor
from modelscope_cartoon.request import FIELD_NAMES

PICTURES_AT_ONCE = 4     # of one request, unless batch_size says otherwise


def load_pipeline(name: str = mini.NAME, **options: Any) -> CartoonPipeline:
    """A CartoonPipeline for mini, a style ('design'), a hub id or a folder; works without a network once downloaded."""
    return CartoonPipeline(name, **options)


@PIPELINES.register_module(Tasks.text_to_image_synthesis, module_name=PIPELINE_TYPE)
class CartoonPipeline(Pipeline):
    """model: a folder, a hub id, or a CartoonStableDiffusion. Options for the model (dtype, memory) and the
    preprocessor (translator, lora_dir) are keywords here; one that nobody knows is an UnknownOption. A folder with a
    LoRA and its base_model is that model with the LoRA always on.
    """

    def __init__(self, model: str | CartoonStableDiffusion, preprocessor: StylePromptPreprocessor | None = None,
                 device: str = 'gpu', config_file: str | None = None, translator: Any = None,
                 lora_dir: str | None = None, **options: Any):
        adapter = None
        if not isinstance(model, CartoonStableDiffusion):
            folder = local_model(model)
            base = base_folder(folder)
            adapter = folder if base != folder else None
            model = self._load(base, device, dict(options))
        if preprocessor is None:
            preprocessor = StylePromptPreprocessor(model.model_dir, **preprocessor_options(model.model_dir, adapter),
                                                   translator=translator, lora_dir=lora_dir)
        elif adapter and preprocessor.adapter != adapter:
            logger.warning('the given preprocessor leaves the LoRA %s off; build it with adapter=%r.', adapter, adapter)
        if adapter:
            model.check_loras([LoraChoice(adapter, adapter, 1.0)])
        own_config = os.path.join(model.model_dir, 'configuration.json')
        super().__init__(config_file=config_file or (own_config if os.path.isfile(own_config) else str(DEFAULT_PATH)),
                         model=model, preprocessor=preprocessor, device=device, auto_collate=False,
                         compile=options.get('compile', False), compile_options=options.get('compile_options') or {})
        self.postprocessor = ImagePostprocessor()

    @staticmethod
    def _load(model_dir: str, device: str, options: dict[str, Any]) -> CartoonStableDiffusion:
        refuse_unknown('option', [key for key in options if key not in (*HOST_OPTIONS, 'auto_collate', 'device_map')],
                       (*OPTIONS, 'translator', 'preprocessor', 'lora_dir', 'model_revision'))
        configuration(model_dir)     # says what is wrong with it before gigabytes are read
        options.pop('auto_collate', None)
        if options.pop('device_map', None) is not None:
            logger.warning('device_map is not used here; device and memory say where the model is kept.')
        return CartoonStableDiffusion(model_dir, device=device, **options)

    def _get_framework(self) -> str:
        return Frameworks.torch

    @property
    def pipeline(self) -> Any:
        """The diffusers pipeline; `pipe.pipeline.scheduler = ...` takes effect at the next picture."""
        return self.model.diffusers_pipeline

    @pipeline.setter
    def pipeline(self, value: Any) -> None:
        self.model.diffusers_pipeline = value

    def _sanitize_parameters(self, **parameters: Any) -> tuple[dict, dict, dict]:
        refuse_unknown('keyword', parameters, (*FIELD_NAMES, 'batch_size'))
        return parameters, {}, {'done': []}

    def _check_input(self, input: Any) -> None:
        """The preprocessor checks, with better words than the host's assertions."""

    def _check_output(self, input: Any) -> None:
        """The postprocessor writes the host's own key; there is nothing to check."""

    def preprocess(self, inputs: Any, **overrides: Any) -> dict[str, Any]:
        return self.preprocessor(inputs, **overrides)

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return self._draw([inputs], PICTURES_AT_ONCE)[0]

    def _process_single(self, input: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The host draws a list by calling this in a loop; `done` is what that call has so far, for Ctrl-C."""
        done = kwargs.pop('postprocess_params')['done']
        try:
            done.append(super()._process_single(input, *args, **kwargs))
        except KeyboardInterrupt as interruption:
            raise Interrupted([*done, *getattr(interruption, 'outputs', [])]) from None
        return done[-1]

    def postprocess(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return self.postprocessor(inputs)

    def _process_batch(self, input: list, batch_size: int, **kwargs: Any) -> list[dict[str, Any]]:
        """What shares its settings is drawn together, `batch_size` pictures at a time; results in the order given."""
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise InvalidRequest(f'batch_size is {batch_size!r}; accepted: a whole number from 1.')
        jobs = [self.preprocess(one, **kwargs.get('preprocess_params', {})) for one in input]
        return [self.postprocess(drawn) for drawn in self._draw(jobs, batch_size)]

    def _process_iterator(self, input: Any, *args: Any, **kwargs: Any) -> Iterator[dict[str, Any]]:
        """Rows of an MsDataset: columns that are fields of a request are used, others named once and left out."""
        ignored: set[str] = set()
        for row in input:
            extra = set(row) - set(FIELD_NAMES) - ignored if isinstance(row, dict) else set()
            if extra:
                logger.warning('columns of the data set that are not used: %s.', ', '.join(sorted(extra)))
                ignored |= extra
            used = {k: v for k, v in row.items() if k in FIELD_NAMES} if isinstance(row, dict) else row
            yield self._process_single(used, *args, **{**kwargs, 'postprocess_params': {'done': []}})

    def _draw(self, jobs: list[dict[str, Any]], at_once: int) -> list[dict[str, Any]]:
        """`jobs` with their images. Interrupted carries the outputs of the pictures that were done before Ctrl-C."""
        images: list[list] = [[None] * len(job['pictures']) for job in jobs]
        drawn: list[list] = [[None] * len(job['pictures']) for job in jobs]
        batches = list(_batches(jobs, at_once))
        if len(batches) > 1:     # a LoRA that can't be used is an error before the first picture, not after the tenth
            self.model.check_loras({lora for job in jobs for picture in job['pictures'] for lora in picture.loras})
        try:
            for batch in batches:
                request, pictures = jobs[batch[0][0]]['request'], [jobs[j]['pictures'][i] for j, i in batch]
                for (j, i), image in zip(batch, self.model.draw(request, pictures)):
                    images[j][i] = image
                how = provenance.of(self.model, request, pictures[0].loras, len(batch),
                                    getattr(self.preprocessor, 'adapter', None))
                for j, i in batch:
                    drawn[j][i] = how
        except KeyboardInterrupt:
            done = [_finished(*one) for one in zip(jobs, images, drawn)]
            raise Interrupted([self.postprocess(job) for job in done if job['pictures']]) from None
        return [_finished(*one) for one in zip(jobs, images, drawn)]


def _batches(jobs: list[dict[str, Any]], at_once: int) -> Iterator[list[tuple[int, int]]]:
    """(job, picture) positions, batch by batch: equal settings and LoRAs together, a request's own tensors alone."""
    groups: dict[Any, list[tuple[int, int]]] = {}
    for j, job in enumerate(jobs):
        request = job['request']
        for i, picture in enumerate(job['pictures']):
            key = ('alone', j) if request.draws_alone else (request.settings(), picture.loras)
            groups.setdefault(key, []).append((j, i))
    for key, group in groups.items():
        size = len(group) if key[0] == 'alone' else at_once
        for start in range(0, len(group), size):
            yield group[start:start + size]


def _finished(job: dict[str, Any], images: list, drawn: list) -> dict[str, Any]:
    """`job` with what was drawn of it, and where in the request each picture stands."""
    done = [i for i, how in enumerate(drawn) if how is not None]
    return {**job, 'positions': done, **{name: [row[i] for i in done] for name, row in
                                         (('pictures', job['pictures']), ('images', images), ('drawn', drawn))}}
