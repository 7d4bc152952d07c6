"""The model `text_encoder`: the embeddings of a request's prompt and negative prompt."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import torch
import triton_python_backend_utils as pb_utils

from .backend import ComputeSettings, output_tensor
from .completed_request import CompletedRequest
from .errors import InvalidRequestError
from .prompt_encoding import Embedding, PromptEncoder
from .settings import ModelSettings, error_response, input_text, text_tensor

if TYPE_CHECKING:
    from collections.abc import Mapping


class TritonPythonModel:
    """Encodes the texts of all requests of a batch at once."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Loads the text encoders; making the embedding of the empty prompt warms them up."""
        compute = ComputeSettings.from_settings(ModelSettings.from_triton(args))
        self._encoder = PromptEncoder(compute.checkpoint, compute.device, compute.dtype)

    def execute(self, requests: list[Any]) -> list[Any]:
        """PROMPT_EMBEDS (and POOLED_PROMPT_EMBEDS): row 0 the negative prompt, row 1 the prompt."""
        start = time.perf_counter()
        pairs = [self._texts(request) for request in requests]
        wanted = [text for pair in pairs if isinstance(pair, tuple) for text in pair if text is not None]
        embeddings, encoded = self._encoder.encode(wanted)
        milliseconds = 1000 * (time.perf_counter() - start)
        responses = []
        for pair in pairs:
            if isinstance(pair, InvalidRequestError):
                responses.append(error_response(pair))
                continue
            negative, positive = (self._encoder.zeros if text is None else embeddings[text] for text in pair)
            report = {
                "ms": milliseconds,
                "cached": not encoded.intersection(pair),
                "prompt_truncated": positive.truncated,
            }
            responses.append(pb_utils.InferenceResponse(self._tensors(negative, positive, report)))
        return responses

    def _texts(self, request: Any) -> tuple[str | None, str] | InvalidRequestError:
        """Negative prompt and prompt; None for a negative prompt that is not used or stands for zeros."""
        try:
            parsed = CompletedRequest.from_json(input_text(request, "REQUEST"))
        except InvalidRequestError as error:
            return error
        return (self._encoder.negative(parsed.negative_prompt) if parsed.guidance_scale > 1 else None, parsed.prompt)

    @staticmethod
    def _tensors(negative: Embedding, positive: Embedding, report: dict[str, Any]) -> list[Any]:
        tensors = [
            output_tensor("PROMPT_EMBEDS", torch.stack([negative.tokens, positive.tokens])[None]),
            text_tensor("ENCODING", json.dumps(report)),
        ]
        if negative.pooled is not None and positive.pooled is not None:
            tensors.append(output_tensor("POOLED_PROMPT_EMBEDS", torch.stack([negative.pooled, positive.pooled])[None]))
        return tensors
