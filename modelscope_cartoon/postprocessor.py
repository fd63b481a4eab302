"""ImagePostprocessor: drawn pictures -> the dict that the caller gets."""
from __future__ import annotations

from typing import Any

from modelscope_cartoon.formats import get_format


class ImagePostprocessor:
    """{'request', 'pictures', 'images'} -> {'output_imgs', 'seeds', 'revised_prompt', 'preset'}, one entry a picture.

    preset is one name. revised_prompt is one string where all pictures share it, else a list like the others. Where
    LoRAs were on there is `loras` too, [(name, scale), ...], in the same way.
    """

    def __call__(self, inputs: dict[str, Any]) -> dict[str, Any]:
        request, pictures = inputs['request'], inputs['pictures']
        convert = get_format(request.output_type).convert
        prompts = [picture.prompt for picture in pictures]
        loras = [[(choice.name, choice.scale) for choice in picture.loras] for picture in pictures]
        return {
            'output_imgs': [convert(image) for image in inputs['images']],
            'seeds': [picture.seed for picture in pictures],
            'revised_prompt': _shared(prompts),
            'preset': request.preset,
            **({'loras': _shared(loras)} if any(loras) else {}),
        }


def _shared(values: list[Any]) -> Any:
    return values[0] if all(value == values[0] for value in values) else values
