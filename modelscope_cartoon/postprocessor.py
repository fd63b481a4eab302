"""ImagePostprocessor: drawn pictures -> the dict that the caller gets."""
from __future__ import annotations

from typing import Any

from modelscope_cartoon.formats import get_format


class ImagePostprocessor:
    """{'request', 'pictures', 'images'} -> {'output_imgs', 'seeds', 'revised_prompt'}, one entry a picture.

    revised_prompt is one string where all pictures share it, else a list like the others.
    """

    def __call__(self, inputs: dict[str, Any]) -> dict[str, Any]:
        request, pictures = inputs['request'], inputs['pictures']
        convert = get_format(request.output_type).convert
        prompts = [picture.prompt for picture in pictures]
        return {
            'output_imgs': [convert(image) for image in inputs['images']],
            'seeds': [picture.seed for picture in pictures],
            'revised_prompt': prompts[0] if len(set(prompts)) == 1 else prompts,
        }
