"""The trainer that the host registers: build_trainer('cartoon-stable-diffusion', default_args={...}).train()."""
from __future__ import annotations

from typing import Any

from modelscope.trainers.base import BaseTrainer
from modelscope.trainers.builder import TRAINERS

from modelscope_cartoon.configuration import DEFAULT_PATH, MODEL_TYPE
from modelscope_cartoon.errors import InvalidRequest
from modelscope_cartoon.names import refuse_unknown
from modelscope_cartoon.training.recipe import Recipe
from modelscope_cartoon.training.run import train

# What the host passes along, and what has no bearing on a training run here.
_HOST_OPTIONS = ('trust_remote_code', 'model_revision', 'cfg_file', 'launcher', 'type')


@TRAINERS.register_module(module_name=MODEL_TYPE)
class CartoonTrainer(BaseTrainer):
    """model: a folder or a hub id. train_dataset: an MsDataset with the columns Target:FILE and Text:Prompt, a
    folder, or a list. work_dir: where the trained model goes. Further keywords are settings of the Recipe.
    """

    def __init__(self, model: str, train_dataset: Any, work_dir: str, device: str = 'gpu', resume: bool = False,
                 **settings: Any):
        super().__init__(str(DEFAULT_PATH))
        settings = {key: value for key, value in settings.items() if key not in _HOST_OPTIONS}
        refuse_unknown('setting', settings, Recipe.__dataclass_fields__)
        self.recipe = Recipe.of(base=model, **settings)
        self.train_dataset, self.work_dir, self.device, self.resume = train_dataset, work_dir, device, resume

    def train(self, *arguments: Any, **keywords: Any) -> str:
        """Trains, and returns work_dir, which pipeline() loads."""
        if arguments or keywords:
            raise InvalidRequest('train() takes no arguments; give settings in default_args of build_trainer().')
        return str(train(self.train_dataset, self.work_dir, self.resume, self.device, **self.recipe.settings()))

    def evaluate(self, *arguments: Any, **keywords: Any) -> dict[str, float]:
        raise InvalidRequest('a style has no score; look at samples/sheet.png in the work_dir, and draw with it.')
