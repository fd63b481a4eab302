"""ImagePostprocessor: drawn pictures -> the dict that the caller gets."""
from __future__ import annotations

from typing import Any

from modelscope_cartoon import picture_recipe
from modelscope_cartoon.corner_label import labelled
from modelscope_cartoon.formats import get_format, to_uint8


class ImagePostprocessor:
    """{'request', 'pictures', 'images', 'drawn'} -> {'output_imgs', 'seeds', 'revised_prompt', 'preset', 'recipes'},
    one entry a picture.

    preset is one name. revised_prompt is one string where all pictures share it, else a list like the others. Where
    LoRAs were on there is `loras` too, [(name, scale), ...], in the same way. A recipe (picture_recipe) is plain JSON.
    """

    def __call__(self, inputs: dict[str, Any]) -> dict[str, Any]:
        request, pictures = inputs['request'], inputs['pictures']
        rows = zip(pictures, inputs['positions'], inputs['drawn'], inputs['images'])
        recipes = [picture_recipe.build(request, picture, position, drawn, to_uint8(image))
                   for picture, position, drawn, image in rows]
        loras = [[(choice.name, choice.scale) for choice in picture.loras] for picture in pictures]
        return {
            'output_imgs': [_converted(request, image, recipe) for image, recipe in zip(inputs['images'], recipes)],
            'seeds': [picture.seed for picture in pictures],
            'revised_prompt': _shared([picture.prompt for picture in pictures]),
            'preset': request.preset,
            'recipes': recipes,
            **({'loras': _shared(loras)} if any(loras) else {}),
        }


def _converted(request: Any, image: Any, recipe: dict[str, Any]) -> Any:
    row = get_format(request.output_type)
    image = labelled(image, request.label) if request.label else image
    return row.convert(image, recipe, request.metadata) if row.holds_metadata else row.convert(image)


def _shared(values: list[Any]) -> Any:
    return values[0] if all(value == values[0] for value in values) else values
