"""What is noted of a run while it goes on, for INFO."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..request.encoding import NO_PICTURE

if TYPE_CHECKING:
    from ..request.encoding import Encoding, PictureEncoding


@dataclass
class RunReport:
    """How a run went.

    Attributes:
        encoding: The text encoder's report.
        picture: The picture encoder's.
        shards: Names of the shards that evaluated any of its halves.
        largest_batch: Most requests that it shared a step with, itself included.
        lora_path: `patched` (into the weights) or `beside` them → evaluations of a half with LoRAs.
        fp8: Whether the UNet multiplied 8-bit floats.
        stale: Position of a ControlNet → evaluations of a half in which its residuals were the previous step's.
        came: When it came to its shard, in seconds of the monotonic clock.
        waited_s: From then to its first step, in seconds; None before that.
    """

    encoding: Encoding
    picture: PictureEncoding = NO_PICTURE
    shards: set[str] = field(default_factory=set)
    largest_batch: int = 0
    fp8: bool = False
    stale: Counter[int] = field(default_factory=Counter)
    lora_path: Counter[str] = field(default_factory=Counter)
    came: float = field(default_factory=time.monotonic)
    waited_s: float | None = None

    def note_begin(self, now: float) -> None:
        """It takes its first step, or another one."""
        if self.waited_s is None:
            self.waited_s = now - self.came
