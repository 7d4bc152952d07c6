"""A shard's side of LoRA loading: tickets taken up, prompts encoded again, evicted files asked for again."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from ..backend.metrics import Counter, Histogram
from ..backend.model_calls import encode_prompts, load_loras, patiently
from ..common.errors import EmbeddingsUnavailableError, LoraUnavailableError
from ..lora.loading.outcomes import Outcomes
from ..lora.loading.tickets import Ticket, tickets_from_json, tickets_of, tickets_to_json
from ..shared_memory.host_cache import EvictedError, host_cache_directory
from .lora_run import set_of
from .request_loras import RequestLoras

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..lora.files.lora_set import LoraSet
    from ..networks.kept_embeddings import Embeddings, KeptEmbeddings
    from ..request.completed import CompletedRequest
    from .lora_run import LoraRun
    from .run import Denoising

STEP_BUCKETS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
THREADS = 8
"""Calls of `text_encoder` and `lora_store` at once; steps go on meanwhile."""

ENCODINGS = 3
"""Embeddings that go so often before they are used do not come."""


class AdapterServices:
    """Makes the `RequestLoras` of the requests that come to one shard."""

    def __init__(
        self, text_encoder: str, lora_store: str, embeddings: KeptEmbeddings, uploads_ahead: bool, timeout_s: float
    ) -> None:
        """Opens what the server's processes share.

        Args:
            text_encoder: Its model.
            lora_store: Its model.
            embeddings: Where the text encoder leaves what it makes.
            uploads_ahead: See `RequestLoras`.
            timeout_s: Longest wait of a request at a LoRA's bound.
        """
        self.text_encoder, self.lora_store = text_encoder, lora_store
        self._timeout_s, self._uploads_ahead = timeout_s, uploads_ahead
        self.embeddings = embeddings
        self.outcomes = Outcomes(host_cache_directory())
        self.threads = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="adapter-call")
        self._delays = Histogram(
            "swiftdiffusion_lora_delay_steps", "Denoising steps that ran before a LoRA went on", STEP_BUCKETS
        )
        self._waits = Histogram(
            "swiftdiffusion_lora_wait_seconds", "Time that requests waited for a LoRA at its bound, where they did"
        )
        self._rows = Counter(
            "swiftdiffusion_lora_rows_total", "Rows of UNet calls with LoRAs: patched in, or beside the weights"
        )

    def take_up(self, request: CompletedRequest, tickets: str, encoded: LoraSet) -> RequestLoras:
        """The LoRAs of a request, some of which its prompts are encoded with already.

        Args:
            request: The request.
            tickets: What `lora_store` wrote for it.
            encoded: See `RequestLoras`.

        Raises:
            InvalidRequestError: If the tickets are not the request's.
        """
        return RequestLoras(
            request.loras,
            tickets_of(request.loras, tickets, self.outcomes),
            _Calls(self, request),
            encoded,
            self._timeout_s,
            uploads_ahead=self._uploads_ahead,
        )

    def count(self, run: Denoising) -> None:
        """Adds a request that has ended to the metrics."""
        for lora in run.loras.runs:
            if lora.patched_at_step is not None:
                self._delays.observe(lora.patched_at_step)
            if lora.waited_ms:
                self._waits.observe(lora.waited_ms / 1000)
        for path, rows in run.report.lora_path.items():
            self._rows.add(rows, path=path)


class _Calls:
    """BLS calls for one request; see `request_loras.Services`."""

    def __init__(self, services: AdapterServices, request: CompletedRequest) -> None:
        self._services, self._request = services, request

    def encode(self, loras: Sequence[LoraRun]) -> Future[Embeddings]:
        return self._services.threads.submit(self._encode, loras)

    def load_again(self, position: int) -> Future[Ticket]:
        return self._services.threads.submit(self._load_again, position)

    def _encode(self, loras: Sequence[LoraRun]) -> Embeddings:
        request = replace(self._request, loras=tuple(replace(lora.use, patch_step=None) for lora in loras))
        tickets = tickets_to_json([Ticket(lora.use.name, result=lora.loaded) for lora in loras])
        for _ in range(ENCODINGS):
            encoding = patiently(lambda: encode_prompts(self._services.text_encoder, request, tickets))
            if encoding.loras != set_of(loras):
                names = ", ".join(lora.use.name for lora in loras)
                raise LoraUnavailableError(f"LORAS: the text encoder could not read {names}")
            with suppress(EvictedError):
                return self._services.embeddings.pair(encoding.negative, encoding.prompt)
        raise EmbeddingsUnavailableError(f"PROMPT: its embeddings went before they were used, {ENCODINGS} times")

    def _load_again(self, position: int) -> Ticket:
        alone = replace(self._request, loras=self._request.loras[position : position + 1])
        tickets = patiently(lambda: load_loras(self._services.lora_store, alone))
        return tickets_from_json(tickets, self._services.outcomes)[0]
