"""What a model's process goes on to make once it is ready. Needs no torch."""

from __future__ import annotations

import logging
import os
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)
T = TypeVar("T")


def made_in_background(what: str, make: Callable[[], T]) -> Callable[[], T]:
    """Has a thread make something, which does not keep the process from ending.

    A process that cannot make it ends: it is loaded again, as any that dies.

    Args:
        what: For the log.
        make: Makes it.

    Returns:
        What waits for it, if need be, and returns it.
    """
    made: Future[T] = Future()

    def run() -> None:
        try:
            made.set_result(make())
        except BaseException:
            logger.exception("%s cannot be made: this process ends", what)
            os._exit(1)

    threading.Thread(target=run, name=what, daemon=True).start()
    return made.result
