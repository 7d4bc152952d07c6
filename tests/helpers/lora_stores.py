"""A LoRA store over real caches and a real catalogue, with a canonicaliser that does as the test wants."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pytest

from swiftdiffusion.python_backends.common.errors import InvalidRequestError, RequestError, UnusableFileError
from swiftdiffusion.python_backends.lora.files.outside_settings import OutsideSettings
from swiftdiffusion.python_backends.lora.loading.catalogue import Catalogue
from swiftdiffusion.python_backends.lora.loading.disk_cache import DiskCache
from swiftdiffusion.python_backends.lora.loading.failure_memory import FailureMemory
from swiftdiffusion.python_backends.lora.loading.fetch_limits import FetchLimits
from swiftdiffusion.python_backends.lora.loading.fetching import Fetcher
from swiftdiffusion.python_backends.lora.loading.outcomes import LoadedLora
from swiftdiffusion.python_backends.lora.loading.store import LoraStore, StoreObserver
from swiftdiffusion.python_backends.shared_memory.host_cache import HostCache

GOOD, OTHER = b"good" * 100, b"other" * 100


class Canonicaliser:
    """Copies a file behind a mark, as the real one rewrites it; refuses a content that says it is bad, or foreign."""

    def __init__(self) -> None:
        self.calls = 0
        self.before: Callable[[Path], None] = lambda _source: None

    def __call__(self, source: Path, target: Path, outside: OutsideSettings) -> tuple[str, ...]:
        self.calls += 1
        self.before(source)
        content = source.read_bytes()
        target.write_bytes(b"canonical " + content + (outside.adapter_config or b""))
        if content.startswith(b"bad"):
            raise UnusableFileError("it adapts no module")
        if content.startswith(b"foreign"):
            raise InvalidRequestError("it is of another base model")
        if content.startswith(b"bug"):
            raise RuntimeError("a bug")
        return ()


class Observer(StoreObserver):
    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def loaded(self, source: str, seconds: float) -> None:
        assert seconds >= 0
        self.counts[source] += 1

    def refused(self, reason: str) -> None:
        self.counts[reason] += 1


class Setup:
    """A store in a temporary directory, its parts, and a clock for its memory of failures."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.loras = directory / "loras"
        self.loras.mkdir(exist_ok=True)
        self.now = 0.0
        self.index: dict[str, object] = {}
        self.canonicaliser, self.observer = Canonicaliser(), Observer()
        self.catalogue = Catalogue(self.loras)
        self.restart()

    def restart(self, host_bytes: int = 10_000, max_file_bytes: int = 5_000, disk_bytes: int = 10_000) -> None:
        """A new process over the same disk cache; the host cache is gone."""
        self.disk = DiskCache(self.directory / "disk", disk_bytes)
        self.host = HostCache(Path(tempfile.mkdtemp(dir=self.directory)), host_bytes, wait_s=0.05)
        limits = FetchLimits(
            max_bytes=max_file_bytes, timeout_s=30.0, read_timeout_s=10.0, attempts=2, first_wait_s=0.01
        )
        self.store = LoraStore(
            self.disk,
            self.host,
            Fetcher(limits),
            self.canonicaliser,
            max_file_bytes=max_file_bytes,
            failures=FailureMemory(2.0, 60.0, clock=lambda: self.now),
            observer=self.observer,
        )

    def file(self, name: str, content: bytes) -> Path:
        path = self.loras / f"{name}.safetensors"
        path.write_bytes(content)
        return path

    def remote(self, name: str, location: str, **more: object) -> None:
        self.index[name] = {"location": location, **more}
        (self.loras / "catalogue.json").write_text(json.dumps({"loras": self.index}))

    def start(self, name: str) -> Future[LoadedLora]:
        return self.store.load(self.catalogue.entry(name))

    def load(self, name: str) -> LoadedLora:
        return self.start(name).result(10)

    def error(self, name: str) -> RequestError:
        with pytest.raises(RequestError) as error:
            self.load(name)
        assert str(error.value).startswith(f'LORAS names "{name}": ')
        return error.value

    def files(self) -> list[Path]:
        """What lies in either cache, but locks and indices."""
        folders = (self.host.directory, self.disk.directory / "content", self.disk.directory / "partial")
        return [path for folder in folders for path in folder.iterdir() if path.suffix != ".lock"]
