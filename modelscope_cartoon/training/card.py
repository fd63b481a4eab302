"""README.md of a trained model: what it is, how to draw with it, how it was made."""
from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from modelscope_cartoon import mini
from modelscope_cartoon.hub import hub_model
from modelscope_cartoon.training.pictures import Example

if TYPE_CHECKING:
    from modelscope_cartoon.training.base import Base

_CARD = '''---
license: other
tasks:
- text-to-image-synthesis
frameworks:
- pytorch
language:
- en
domain:
- multi-modal
tags:
- stable-diffusion
- style
{tag}{base_line}base_model_relation: {relation}
---
# {name}
{what} of {base}, taught a style from {pictures} pictures. {trigger_line}

```python
from modelscope.pipelines import pipeline
import modelscope_cartoon

pipe = pipeline('text-to-image-synthesis', model='{name}')     # this folder
output = pipe({{'text': '{prompt}'}})
```
```
modelscope-cartoon draw "{prompt}" --model {name}
```
{sheet}
## How it was trained
{steps} steps of {batch} pictures at {resolution} pixels, {detail}{prior}.
Every setting, and the name and sha256 of each picture: `recipe.json`. The loss: `loss.png`.
The sha256 of every file: `manifest.json`.

## Licence
That of the base, and what the makers of the {pictures} pictures allow; this card does not know them.
'''


def card(name: str, base: Base, examples: Sequence[Example], with_sheet: bool) -> str:
    recipe, lora = base.recipe, base.recipe.method == 'lora'
    prompt = recipe.without_trigger(examples[0].caption).replace("'", '') or 'a picture'
    trigger = f'Its trigger is "{recipe.trigger}"; it is put in front of a prompt by itself.'
    sheet = '\nThe same prompts and seeds as training went on:\n\n![samples](samples/sheet.png)\n' if with_sheet else ''
    detail = f'LoRA of rank {recipe.rank} on {recipe.lora_targets}' if lora else 'all weights'
    prior = f', {recipe.prior_share:.0%} of each batch class pictures of the base' if recipe.prior_share else ''
    local = os.path.isdir(recipe.base)     # its path is nobody else's business
    on_hub = not local and recipe.base != mini.NAME
    return _CARD.format(
        name=name, base=Path(recipe.base).name if local else recipe.base,
        base_line=f'base_model: {hub_model(recipe.base)[0]}\n' if on_hub else '',
        relation='adapter' if lora else 'finetune', tag='- lora\n' if lora else '',
        what='A LoRA' if lora else 'A fine-tune', pictures=len(examples), prompt=prompt, sheet=sheet,
        trigger_line=trigger if recipe.trigger else 'It needs no trigger.', steps=recipe.steps,
        batch=recipe.batch_size, resolution=base.resolution, detail=detail, prior=prior)
