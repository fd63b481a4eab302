"""Prompts to embeddings: diffusers' own path for a plain short prompt, A1111's for weights and any length.

Weights and chunks follow AUTOMATIC1111 stable-diffusion-webui, `modules/sd_hijack_clip.py`: chunks of 75 tokens
between begin and end, split at a comma where one is near, each token's vector times its weight, then the chunk
scaled back to the mean it had.
"""
from __future__ import annotations

from typing import Any

import torch

from modelscope_cartoon.errors import InvalidRequest
from modelscope_cartoon.prompt import is_plain, parse_weights

_COMMA_BACKTRACK = 20      # tokens; A1111's default
_NO_MEAN = 1e-5            # of the mean size; below it a mean is rounding (an untrained norm has none) and no scale

Chunk = list[tuple[int, float]]


def encode(pipe: Any, prompt: str, negative_prompt: str, clip_skip: int | None = None,
           ) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of the prompt and of the negative prompt, [1, tokens, width] both, of equal length.

    clip_skip counts layers from the end and leaves the negative prompt alone, as in diffusers.
    """
    plain = all(is_plain(text) and _fits(pipe.tokenizer, text) for text in (prompt, negative_prompt))
    if plain and clip_skip is None:
        return pipe.encode_prompt(prompt, pipe._execution_device, 1, True, negative_prompt)
    chunks, negative_chunks = chunk(pipe.tokenizer, prompt), chunk(pipe.tokenizer, negative_prompt)
    length = max(len(chunks), len(negative_chunks))
    return (_encode_chunks(pipe, chunks, length, clip_skip), _encode_chunks(pipe, negative_chunks, length, None))


def _fits(tokenizer: Any, text: str) -> bool:
    return len(tokenizer(text).input_ids) <= tokenizer.model_max_length


def chunk(tokenizer: Any, text: str) -> list[Chunk]:
    """(token, weight) pairs, split into chunks that leave room for begin and end."""
    room = tokenizer.model_max_length - 2
    comma = tokenizer.convert_tokens_to_ids(',</w>')
    chunks: list[Chunk] = [[]]
    for piece in parse_weights(text):
        if piece.text is None:
            chunks.append([])
            continue
        for token in tokenizer(piece.text, add_special_tokens=False, verbose=False).input_ids:
            if len(chunks[-1]) == room:
                chunks.append([] if token == comma else _after_last_comma(chunks[-1], comma))
            chunks[-1].append((token, piece.weight))
    return chunks


def _after_last_comma(full: Chunk, comma: int) -> Chunk:
    """The words behind the last near comma, taken out of `full`, so that a phrase isn't cut in two."""
    for i in range(len(full) - 1, max(len(full) - _COMMA_BACKTRACK, 0) - 1, -1):
        if full[i][0] == comma:
            moved = full[i + 1:]
            del full[i + 1:]
            return moved
    return []


def _encode_chunks(pipe: Any, chunks: list[Chunk], length: int, clip_skip: int | None) -> torch.Tensor:
    padded = chunks + [[]] * (length - len(chunks))
    return torch.cat([_encode_chunk(pipe, one, clip_skip) for one in padded], dim=1)


def _encode_chunk(pipe: Any, tokens: Chunk, clip_skip: int | None) -> torch.Tensor:
    tokenizer, encoder, device = pipe.tokenizer, pipe.text_encoder, pipe._execution_device
    padding = tokenizer.model_max_length - len(tokens) - 2
    ids = [tokenizer.bos_token_id, *(t for t, _ in tokens), tokenizer.eos_token_id, *[tokenizer.pad_token_id] * padding]
    weights = [1.0, *(w for _, w in tokens), *[1.0] * (padding + 1)]
    hidden = _hidden_state(encoder, torch.tensor([ids], device=device), clip_skip)
    if all(weight == 1.0 for weight in weights):
        return hidden
    weighted = hidden.float() * torch.tensor(weights, device=device)[None, :, None]
    mean = weighted.mean()
    if mean.abs() > _NO_MEAN * weighted.abs().mean():
        weighted = weighted * (hidden.float().mean() / mean)
    return weighted.to(hidden.dtype)


def _hidden_state(encoder: Any, ids: torch.Tensor, clip_skip: int | None) -> torch.Tensor:
    if clip_skip is None:
        return encoder(ids)[0]
    layers = encoder(ids, output_hidden_states=True).hidden_states
    if clip_skip >= len(layers):
        raise InvalidRequest(f'clip_skip is {clip_skip}; this text encoder has {len(layers) - 1} layers.')
    # transformers 5 dropped the inner `text_model`, where diffusers 0.42 still looks for the norm
    inner = getattr(encoder, 'text_model', encoder)
    return inner.final_layer_norm(layers[-(clip_skip + 1)])
