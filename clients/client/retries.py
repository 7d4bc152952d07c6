"""Repeating a request that met a part of the server which died: it asks for nothing but to be sent again."""

import asyncio
import logging
import random
import re
import time

from .errors import ServerRestarting, ServerUnreachable

logger = logging.getLogger(__name__)

PAUSES_S = (1.0, 5.0, 20.0)
"""Before the tries after the first, the last for all further ones: most of a server is there again within 2 s, what has
weights to load within 10. Give or take a fifth, so that those who failed together do not come back together."""

ASK_EVERY_S = 2.0
"""While a server says that it cannot begin yet, likewise."""

PATIENCE_S = 120.0
"""So long from the first time a request waits for that without using up a try: nothing was done for it."""

RETRIABLE = (ServerRestarting, ServerUnreachable)

_NOT_BEGUN = re.compile(
    r"\bnot begun: .*; retry in a few seconds$|; retry elsewhere$|has no available versions"
    r"|[Ff]ailed to connect|Connect call failed"
)

_AT_THE_DOOR = re.compile(r"Stub process '(?!\S*controlnet_)(?:[\w-]+_)?preprocess_\d+_\d+' is not healthy")
"""The first model died before it had handed the request on: as good as not begun, unless the request killed it."""


class Retries:
    """The tries of one request that are left."""

    def __init__(self, most: int) -> None:
        """None made yet; `most` after the first, and as many more for what was lost at the door."""
        self._made, self._at_the_door, self._most = 0, 0, most
        self._until: float | None = None  # when the patience ends that began with the first such error

    async def pause(self, error: ServerRestarting | ServerUnreachable) -> None:
        """Waits until the next; raises the error if there is none."""
        now, is_begun = time.monotonic(), not _NOT_BEGUN.search(str(error))
        if self._until is None and not is_begun:
            self._until = now + (PATIENCE_S if self._most else 0.0)
        if not is_begun and self._until is not None and now < self._until:
            seconds = ASK_EVERY_S
        elif _AT_THE_DOOR.search(str(error)) and self._at_the_door < self._most:
            seconds = ASK_EVERY_S
            self._at_the_door += 1
        elif self._made < self._most:
            seconds = PAUSES_S[min(self._made, len(PAUSES_S) - 1)]
            self._made += 1
        else:
            raise error
        logger.info("sent again in %.0f s, %d of %d retries used up: %s", seconds, self._made, self._most, error)
        await asyncio.sleep(seconds * random.uniform(0.8, 1.2))
