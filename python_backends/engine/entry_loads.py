"""Entries come to where the UNet computes: block by block, by a thread of their own, a step ahead.

What lies in shared memory is there already for a UNet on the CPU: it is mapped. From a disk it is read, to a GPU it is
copied, while the step before is computed; what has come to a GPU stays there as long as there is room.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from concurrent.futures import Future, wait
from queue import SimpleQueue
from typing import TYPE_CHECKING

import torch

from ..common.errors import EntryLostError
from ..networks.token_codes import Codes

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    from .template_store import TemplateStore

WEIGHT = 0.2
"""Of the latest load in a running mean of a tier's pace."""

PACE = 2**30
"""Bytes a second of a tier that nothing was loaded from yet."""


class Entry:
    """One row's blocks, on their way or there.

    Attributes:
        waited_s: Seconds that steps waited for them.
    """

    def __init__(self, blocks: Mapping[int, Future[Codes]], waited: Callable[[float], None] = lambda _: None) -> None:
        """By number; blocks that are left out never come. `waited` is told of seconds."""
        self._blocks, self._waited = blocks, waited
        self.waited_s = 0.0

    @property
    def numbers(self) -> frozenset[int]:
        """Of all that come, or are there."""
        return frozenset(self._blocks)

    @property
    def is_lost(self) -> bool:
        """Whether one could not be read."""
        return any(each.done() and each.exception() is not None for each in self._blocks.values())

    def block(self, number: int) -> Codes:
        """A block that comes; waits for it.

        Raises:
            EntryLostError: If it could not be read.
        """
        future = self._blocks[number]
        if not future.done():
            started = time.perf_counter()
            wait([future])
            self._waited(seconds := time.perf_counter() - started)
            self.waited_s += seconds
        try:
            codes = future.result()
        except Exception as error:
            raise EntryLostError(str(error)) from error
        if codes.values.is_cuda:  # made on another stream, and not to be freed before this one is through with it
            for each in codes:
                each.record_stream(torch.cuda.current_stream(each.device))
        return codes


class EntryLoads:
    """Brings entries of a store to one device.

    Attributes:
        pending: Bytes that are on their way.
    """

    def __init__(
        self,
        store: TemplateStore,
        device: torch.device,
        kept_bytes: int,
        read: Callable[[Codes], Codes] = lambda codes: Codes(codes.values.clone(), codes.scales.clone()),
        loaded: Callable[[Path], None] = lambda _path: None,
        waited: Callable[[float], None] = lambda _seconds: None,
    ) -> None:
        """Loads nothing yet.

        Args:
            store: Whose entries.
            device: Where they go.
            kept_bytes: Most that stays there, of entries that came.
            read: Of mapped blocks makes such as lie in memory.
            loaded: Told of every entry that came.
            waited: Told of seconds that a step waited for one.
        """
        self._store, self._device, self._read = store, device, read
        self._loaded, self._waited = loaded, waited
        self._kept_bytes = kept_bytes if device.type == "cuda" else 0
        self._kept: OrderedDict[Path, tuple[Entry, int]] = OrderedDict()
        self._pace: dict[Path, float] = {}
        self._jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self.pending, self._mutex = 0, threading.Lock()

    def is_there(self, path: Path) -> bool:
        """Whether an entry takes no loading."""
        return path in self._kept or (self._device.type == "cpu" and self._store.is_near(path))

    def pace(self, path: Path) -> float:
        """Bytes a second that entries of the same tier come with."""
        return self._pace.get(path.parent, PACE)

    def begin(
        self, path: Path, shapes: Sequence[tuple[int, int]], wanted: Collection[int] | None = None
    ) -> Entry | None:
        """An entry that comes from now on; None if it has gone, or is of another network.

        Args:
            path: Of its file.
            shapes: By block, (tokens, width).
            wanted: Blocks that are loaded; None for all.
        """
        if (kept := self._kept.get(path)) is not None:
            if not kept[0].is_lost:
                self._kept.move_to_end(path)
                return kept[0]
            del self._kept[path]
        file = self._store.open(path)
        if file is None:
            return None
        try:
            mapped = {number: file.block(number, *shape) for number, shape in enumerate(shapes)}
        except ValueError:
            self._store.discard(path)
            return None
        blocks: dict[int, Future[Codes]] = {number: Future() for number in mapped if wanted is None or number in wanted}
        if self.is_there(path):
            for number, future in blocks.items():
                future.set_result(mapped[number])
            return Entry(blocks)
        entry = Entry(blocks, self._waited)
        self._expect(sum(mapped[number].nbytes for number in blocks))
        self._start(lambda: self._load(path, mapped, blocks))
        if len(blocks) == len(shapes):
            self._keep(path, entry, sum(each.nbytes for each in mapped.values()))
        return entry

    def _expect(self, nbytes: int) -> None:
        with self._mutex:
            self.pending += nbytes

    def _keep(self, path: Path, entry: Entry, nbytes: int) -> None:
        if nbytes > self._kept_bytes:
            return
        self._kept[path] = entry, nbytes
        while sum(size for _, size in self._kept.values()) > self._kept_bytes:
            self._kept.popitem(last=False)

    def _start(self, job: Callable[[], None]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._live, name="entries", daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def _live(self) -> None:
        stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        with torch.inference_mode(), torch.cuda.stream(stream):
            while True:
                self._jobs.get()()

    def _load(self, path: Path, mapped: Mapping[int, Codes], blocks: Mapping[int, Future[Codes]]) -> None:
        nbytes, started = 0, time.perf_counter()
        for number, future in blocks.items():
            try:
                self._expect(-mapped[number].nbytes)
                codes = self._read(mapped[number])
                if not codes.is_finite:
                    raise ValueError(f"block {number} of {path.name} is not finite")
                codes = codes.to(self._device)
                if self._device.type == "cuda":
                    torch.cuda.current_stream().synchronize()
            except Exception as error:  # noqa: BLE001  raised where it is waited for
                future.set_exception(error)
            else:
                future.set_result(codes)
                nbytes += codes.nbytes
        if nbytes:
            pace, before = nbytes / (time.perf_counter() - started), self._pace.get(path.parent)
            self._pace[path.parent] = pace if before is None else before + WEIGHT * (pace - before)
        failures = [future.exception() for future in blocks.values()]
        if not any(failures):
            self._loaded(path)
        elif any(isinstance(each, OSError | ValueError) for each in failures):
            self._store.discard(path)
