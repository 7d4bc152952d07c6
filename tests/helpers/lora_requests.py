"""What a request's LoRAs need without a server: a host cache with two of them, and the other models."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import torch

from swiftdiffusion.python_backends.engine.lora_run import LoraRun, set_of
from swiftdiffusion.python_backends.lora.files.canonical import CanonicalLora, Group
from swiftdiffusion.python_backends.lora.files.lora_set import LoraSet
from swiftdiffusion.python_backends.lora.loading.outcomes import LoadedLora, Outcome, Outcomes
from swiftdiffusion.python_backends.lora.loading.tickets import Ticket
from swiftdiffusion.python_backends.networks.kept_embeddings import Embeddings
from swiftdiffusion.python_backends.request.completed import LoraUse
from swiftdiffusion.python_backends.shared_memory.host_cache import HostCache

STEPS = 10
KEYS = {"unet": "a" * 64, "text": "b" * 64}


class Store:
    """A host cache with two LoRAs, one of them for the text encoder too, and outcomes to be written by hand."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self.cache = HostCache(directory / "host", 2**20)
        (directory / "loads").mkdir(exist_ok=True)
        self.outcomes = Outcomes(self.cache.directory, directory / "loads")
        self.write()

    def write(self) -> None:
        for name, key in KEYS.items():
            components = ("unet", "text_encoder") if name == "text" else ("unet",)
            groups = tuple(
                Group(part, "low_rank", ("m",), (1.0,), {"up": torch.ones(1, 4, 2), "down": torch.ones(1, 2, 4)})
                for part in components
            )
            with self.cache.reserve(1000) as reservation:
                CanonicalLora(groups, ("alpha = rank was assumed",)).save(reservation.path)
                reservation.publish(key)

    def evict(self, name: str) -> None:
        (self.cache.directory / f"{KEYS[name]}.safetensors").unlink()

    def loaded(self, name: str, source: str = "disk") -> LoadedLora:
        return LoadedLora(self.cache.directory / f"{KEYS[name]}.safetensors", source, 12.5)

    def pending(self, name: str) -> tuple[Ticket, Outcome]:
        outcome = self.outcomes.expect()
        return Ticket(name, pending=outcome), outcome


class Models:
    """The other models, answering when told to."""

    def __init__(self) -> None:
        self.encodings: list[tuple[LoraSet, Future[Embeddings]]] = []
        self.reloads: list[Future[Ticket]] = []

    def encode(self, loras: Sequence[LoraRun]) -> Future[Embeddings]:
        self.encodings.append((set_of(loras), Future()))
        return self.encodings[-1][1]

    def load_again(self, position: int) -> Future[Ticket]:
        self.reloads.append(Future())
        return self.reloads[-1]


def use(name: str = "unet", bound: int = 0, patch_step: int | None = None, scale: float = 1.0) -> LoraUse:
    return LoraUse(name, scale, bound, patch_step)
