"""The model `text_encoder`: the keys of a request's embeddings, which it leaves in shared memory."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import triton_python_backend_utils as pb_utils

from .backend.compute import ComputeSettings
from .backend.memory import keep_freed_memory
from .backend.metrics import BusyTime
from .backend.model import Model
from .backend.request_ends import Ending, RequestEnds
from .backend.responses import as_request_error, error_response
from .backend.settings import ModelSettings, input_text, text_tensor
from .common.errors import LoraUnavailableError
from .engine.lora_run import text_set
from .lora.files.lora_set import NO_LORAS, LoraSet
from .lora.loading.catalogue import Catalogue
from .lora.loading.outcomes import Outcomes
from .lora.loading.tickets import tickets_of
from .networks.kept_embeddings import KeptEmbeddings
from .networks.prompt_encoding import Embedding, PromptEncoder, Text
from .request.completed import CompletedRequest
from .request.encoding import Encoding
from .shared_memory.host_directory import host_cache_directory

if TYPE_CHECKING:
    from collections.abc import Mapping


class TritonPythonModel(Model):
    """Encodes the texts of all requests of a batch at once, with those of their LoRAs that are at hand."""

    computes = True

    def load(self, args: Mapping[str, str]) -> None:
        """Loads the text encoders; making the embedding of the empty prompt warms them up."""
        settings = ModelSettings.from_triton(args)
        compute = ComputeSettings.from_settings(settings)
        catalogue = Catalogue(settings.path("loras"))
        self._encoder = PromptEncoder(
            compute.checkpoint,
            compute.device,
            compute.dtype,
            catalogue=catalogue,
            patches=settings.path("loras") is not None,
            runtime=compute.runtime,
        )
        self._kept = KeptEmbeddings()
        self._ends, self._busy = RequestEnds(), BusyTime(settings.name, settings.instance)
        self._outcomes = Outcomes(host_cache_directory())
        keep_freed_memory()

    def respond(self, requests: list[Any]) -> list[Any]:
        """ENCODING: keys of the embeddings of negative prompt and prompt, and how they were made."""
        by_set: dict[LoraSet, dict[int, tuple[Text | None, Text]]] = {}
        known: dict[int, CompletedRequest] = {}
        responses: list[Any] = [None] * len(requests)
        for number, request in enumerate(requests):
            try:
                completed = known[number] = CompletedRequest.from_json(input_text(request, "REQUEST"))
                self._ends.take(completed.run_id)
                tickets = tickets_of(completed.loras, input_text(request, "TICKETS"), self._outcomes)
                loras = text_set(completed.loras, tickets)
                by_set.setdefault(loras, {})[number] = self._encoder.texts(completed)
            except Exception as error:  # noqa: BLE001  what one request brings must not end the others
                responses[number] = self._failed(known.get(number), error)
        for loras, pairs in by_set.items():
            try:
                with self._busy.counted():
                    answers = self._encode(list(pairs.values()), loras)
            except Exception as error:  # noqa: BLE001  one set's failure must not be that of the others
                answers = [self._failed(known[number], error) for number in pairs]
            for number, answer in zip(pairs, answers, strict=True):
                responses[number] = answer
        for completed in known.values():
            self._ends.hand_on(completed.run_id)
        return responses

    def _failed(self, request: CompletedRequest | None, error: Exception) -> Any:
        reason = as_request_error(error, "encoding")
        if request is not None:
            self._ends.failed(Ending.of(request), reason)
        return error_response(reason)

    def _encode(self, pairs: list[tuple[Text | None, Text]], loras: LoraSet) -> list[Any]:
        """Responses for pairs of texts under one LoRA set."""
        start = time.perf_counter()
        texts = [text for pair in pairs for text in pair if text is not None]
        try:
            embeddings = self._encoder.encode(texts, loras)
        except LoraUnavailableError as error:  # it has gone since: who has it again asks again
            pb_utils.Logger.log_warn(f"prompts are encoded without LoRAs: {error}")
            loras = NO_LORAS
            embeddings = self._encoder.encode(texts)
        milliseconds = 1000 * (time.perf_counter() - start)
        return [self._response(pair, embeddings, milliseconds, loras) for pair in pairs]

    def _response(
        self, pair: tuple[Text | None, Text], embeddings: Mapping[Text, Embedding], milliseconds: float, loras: LoraSet
    ) -> Any:
        prompt = embeddings[pair[1]]
        encoding = Encoding(
            negative=None if pair[0] is None else self._kept.put(embeddings[pair[0]]),
            prompt=self._kept.put(prompt),
            ms=milliseconds,
            prompt_truncated=prompt.truncated,
            loras=loras,
        )
        return pb_utils.InferenceResponse([text_tensor("ENCODING", encoding.to_json())])
