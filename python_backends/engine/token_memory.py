"""What all mask-aware runs of a shard may keep of their blocks' tokens. Needs no torch."""

from __future__ import annotations

import threading


class TokenMemory:
    """Bytes, for any thread.

    Attributes:
        free: Those that nobody has.
    """

    def __init__(self, most_bytes: int) -> None:
        """Nothing is taken yet."""
        self.free, self._mutex = most_bytes, threading.Lock()

    def take(self, nbytes: int) -> bool:
        """Whether there was room; it is taken then."""
        with self._mutex:
            if nbytes > self.free:
                return False
            self.free -= nbytes
            return True

    def give_back(self, nbytes: int) -> None:
        """What was taken."""
        with self._mutex:
            self.free += nbytes
