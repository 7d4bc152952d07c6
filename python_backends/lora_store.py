"""The model `lora_store`: REQUEST in, TICKETS out at once; the LoRAs it names load meanwhile."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import triton_python_backend_utils as pb_utils

from .backend.background import made_in_background
from .backend.metrics import LORA_REFUSALS, Counter, Gauge, Histogram
from .backend.model import Model
from .backend.responses import answer_each
from .backend.settings import ModelSettings, input_text, text_tensor
from .common.errors import RequestError
from .common.filesystem import as_text
from .lora.files.canonicaliser import Canonicaliser
from .lora.files.safetensors_file import FileLimits
from .lora.loading.catalogue import Catalogue
from .lora.loading.disk_cache import DiskCache
from .lora.loading.fetch_limits import FetchLimits
from .lora.loading.fetching import Fetcher
from .lora.loading.outcomes import Outcomes
from .lora.loading.store import LoraStore, StoreObserver
from .lora.loading.tickets import Ticket, tickets_to_json
from .networks.checkpoint import Checkpoint
from .networks.engine_constants import engine_constants
from .request.completed import CompletedRequest
from .shared_memory.host_cache import HostCache, host_cache_directory
from .shared_memory.host_directory import remove_stale_host_caches
from .shared_memory.user_cache import user_cache_directory

if TYPE_CHECKING:
    from collections.abc import Mapping
    from concurrent.futures import Future

    from .lora.loading.outcomes import LoadedLora

logger = logging.getLogger(__name__)

GIB = 2**30
DEFAULTS = {
    "lora_disk_bytes": str(64 * GIB),
    "lora_host_bytes": str(4 * GIB),
    "lora_max_file_bytes": str(4 * GIB),
    "lora_fetch_timeout_s": "120",
    "threads": "1",
}
"""Parameters of the model that its config may leave out."""

SHARED_MEMORY_FRACTION = 0.8
"""Most of the shared memory's free space that LoRAs may take: tensors between models are there too."""


class TritonPythonModel(Model):
    """Resolves names in the catalogue and starts loads; never waits for one."""

    def load(self, args: Mapping[str, str]) -> None:
        """Opens catalogue and caches."""
        settings = ModelSettings.from_triton(args)
        parameters = {**DEFAULTS, **settings.parameters}
        torch.set_num_threads(int(parameters["threads"]))
        checkpoint = Checkpoint(settings.required_path("checkpoint"))
        self._catalogue = Catalogue(settings.path("loras"))
        remove_stale_host_caches()
        directory = host_cache_directory()
        self._metrics = LoraMetrics()
        host = HostCache(
            directory,
            _affordable(directory, int(parameters["lora_host_bytes"])),
            on_eviction=self._metrics.evicted("host"),
        )
        disk = DiskCache(
            user_cache_directory("loras", settings.path("lora_disk_directory")),
            int(parameters["lora_disk_bytes"]),
            on_eviction=self._metrics.evicted("disk"),
        )
        self._metrics.watch(host, disk)
        max_file_bytes = int(parameters["lora_max_file_bytes"])
        limits = FetchLimits(max_bytes=max_file_bytes, timeout_s=float(parameters["lora_fetch_timeout_s"]))
        file_limits, constants = FileLimits(file_bytes=max_file_bytes), _constants(settings)
        canonicaliser = made_in_background(  # it imports transformers for seconds, for which only LoRAs have to wait
            "canonicaliser",
            lambda: Canonicaliser(checkpoint, file_limits, max_bytes=host.max_bytes, constants=constants),
        )
        self._store = LoraStore(
            disk,
            host,
            Fetcher(limits, self._metrics.fetch_failed),
            lambda *file: canonicaliser()(*file),
            max_file_bytes=max_file_bytes,
            base=as_text(checkpoint.path) + (f" {constants}" if constants else ""),
            observer=self._metrics,
        )
        self._outcomes = Outcomes(directory)

    def respond(self, requests: list[Any]) -> list[Any]:
        """TICKETS for each request, with one ticket per LoRA in its order."""
        return answer_each(requests, self._answer, "resolving LORAS")

    def close(self) -> None:
        """Starts no more loads."""
        self._store.close()
        self._outcomes.close()

    def _answer(self, request: Any) -> Any:
        uses = CompletedRequest.from_json(input_text(request, "REQUEST")).loras
        tickets = [self._ticket(use.name) for use in uses]
        return pb_utils.InferenceResponse([text_tensor("TICKETS", tickets_to_json(tickets))])

    def _ticket(self, name: str) -> Ticket:
        try:
            loading = self._store.load(self._catalogue.entry(name))
        except RequestError as error:  # `preprocess` refuses and counts unknown names; this one went since
            return Ticket(name, result=error)
        if loading.done():
            return Ticket(name, result=_result(loading))
        outcome = self._outcomes.expect()
        loading.add_done_callback(lambda done: outcome.put(_result(done)))
        return Ticket(name, pending=outcome)


def _constants(settings: ModelSettings) -> dict[str, list[str]]:
    """What engines hold, by component: see `engine_constants`."""
    engines = settings.path("engines")
    if engines is None:
        return {}
    held = engine_constants(engines, settings.parameters["engine_components"].split(","))
    return {component: sorted(modules) for component, modules in held.items()}


def _result(loading: Future[LoadedLora]) -> LoadedLora | RequestError:
    error = loading.exception()
    return error if isinstance(error, RequestError) else loading.result()


class LoraMetrics(StoreObserver):
    """What happens to LoRAs, as Prometheus metrics."""

    def __init__(self) -> None:
        """Opens the families."""
        self._loads = Counter("swiftdiffusion_lora_loads_total", "LoRAs given to requests, by the tier they came from")
        self._seconds = Histogram(
            "swiftdiffusion_lora_load_seconds", "Time from a request to its LoRA in the host cache"
        )
        self._refusals = Counter(*LORA_REFUSALS)
        self._fetch_failures = Counter(
            "swiftdiffusion_lora_fetch_failures_total", "Failed attempts to fetch, by reason"
        )
        self._evictions = Counter("swiftdiffusion_lora_evictions_total", "Files that made room for others, by cache")
        self._bytes = Gauge("swiftdiffusion_lora_cache_bytes", "Bytes in use, by cache")
        self._max_bytes = Gauge("swiftdiffusion_lora_cache_max_bytes", "Bytes that may be in use, by cache")
        self._caches: dict[str, HostCache | DiskCache] = {}

    def watch(self, host: HostCache, disk: DiskCache) -> None:
        """Shows the sizes of the caches from now on."""
        self._caches = {"host": host, "disk": disk}
        for name, cache in self._caches.items():
            self._max_bytes.set(cache.max_bytes, cache=name)
            self._evictions.add(0.0, cache=name)
        self._show_sizes()

    def loaded(self, source: str, seconds: float) -> None:
        """A request got its LoRA."""
        self._loads.add(source=source)
        self._seconds.observe(seconds, source=source)
        if source != "host":
            self._show_sizes()

    def refused(self, reason: str) -> None:
        """A request did not get its LoRA."""
        self._refusals.add(reason=reason)

    def fetch_failed(self, reason: str) -> None:
        """An attempt at a remote store failed."""
        self._fetch_failures.add(reason=reason)

    def evicted(self, cache: str) -> Any:
        """What a cache is to call with each eviction."""
        return lambda _bytes: self._evictions.add(cache=cache)

    def _show_sizes(self) -> None:
        for name, cache in self._caches.items():
            self._bytes.set(cache.bytes_used(), cache=name)


def _affordable(directory: Path, wanted: int) -> int:
    """As many bytes as the machine's shared memory can give: containers often have little."""
    most = int(SHARED_MEMORY_FRACTION * shutil.disk_usage(directory).free)
    if wanted > most:
        logger.warning("the host cache is bounded to %d bytes, not %d: %s has no more", most, wanted, directory.parent)
    return min(wanted, most)
