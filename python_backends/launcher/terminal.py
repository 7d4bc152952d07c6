"""What commands that serve say on stderr, and that they go on where nobody takes it."""

import os
import sys
from contextlib import suppress
from typing import Any, TextIO


class UnfailingStream:
    """A stream whose writing does not fail: what a closed pipe or a full disk does not take is lost."""

    def __init__(self, stream: TextIO | None) -> None:
        """Writes nothing yet.

        Args:
            stream: where it goes; None where the process was started without it.
        """
        self._stream = stream if stream is not None else open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123

    def write(self, text: str) -> int:
        """Characters that it was given."""
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """As far as it goes."""
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        """What else streams have."""
        return getattr(self._stream, name)


def unfailing_stderr() -> UnfailingStream:
    """This process's."""
    return UnfailingStream(sys.stderr)
