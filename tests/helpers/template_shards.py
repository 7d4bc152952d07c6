"""A shard's mask-aware runs over entries of their own: what is known of pictures, without a server."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch

from edits import LocalEdits, box, picture
from swiftdiffusion.python_backends.engine.run import Denoising
from swiftdiffusion.python_backends.engine.template_store import TemplateStore
from swiftdiffusion.python_backends.shared_memory.host_cache import HostCache

SIZE = (64, 96)
STEPS = 20
SMALL, WITHIN, BESIDE = box(*SIZE, 9, 5, 33, 31), box(*SIZE, 9, 5, 25, 23), box(*SIZE, 9, 41, 33, 67)
FIELDS: dict[str, Any] = {
    "PROMPT": "a cat",
    "NEGATIVE_PROMPT": "blurry",
    "SEED": 3,
    "STEPS": STEPS,
    "STRENGTH": 1.0,
    "SCHEDULER": "euler",
    "INIT_IMAGE": picture(*SIZE),
    "MASK_IMAGE": SMALL,
}
Edited = tuple[torch.Tensor, dict[str, Any] | None]


class TemplateShard:
    """A checkpoint's parts, and entries of their own for each test."""

    def __init__(self, edits: LocalEdits, tiers: tuple[HostCache, ...]) -> None:
        self.edits, self.store = edits, TemplateStore(tiers)
        self.edits.templates = self.store
        self.counted: Counter[str] = Counter()
        self.edits.make_token_runs(count=self._count)

    def _count(self, what: str, amount: float) -> None:
        self.counted[what] += round(amount)

    def begin(self, **fields: Any) -> Denoising:
        return self.edits.run(self.edits.parse(**FIELDS | fields))

    def finish(self, run: Denoising, shards: int = 1) -> Edited:
        """Latents, and INFO's `editing`."""
        while not run.done:
            self.edits.step(run, shards)
        report = None if run.token_run is None else run.token_run.report(run.steps)
        run.close()
        assert self.edits.token_runs.writer is not None
        self.edits.token_runs.writer.flush()
        return run.latents, report

    def edit(self, shards: int = 1, **fields: Any) -> Edited:
        return self.finish(self.begin(**fields), shards)

    def entries(self) -> list[Path]:
        return sorted(path for tier in self.store._tiers for path in tier.directory.glob("*.safetensors"))
