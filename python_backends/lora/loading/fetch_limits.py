"""What a fetch from a remote store may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FetchLimits:
    """How much, how long and how often.

    Attributes:
        max_bytes: Largest file.
        timeout_s: For one file, all attempts together.
        read_timeout_s: Longest time to connect, and without any data, for HTTP.
        attempts: Most attempts at one file, where trying again may help.
        first_wait_s: Pause after the first attempt; it doubles with each, and is jittered by as much.
    """

    max_bytes: int
    timeout_s: float = 120.0
    read_timeout_s: float = 15.0
    attempts: int = 4
    first_wait_s: float = 0.25
