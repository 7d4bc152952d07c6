"""Repeating a request that met a part of the server which died: it asks for nothing but to be sent again."""

import asyncio
import random

from .errors import ServerRestarting, ServerUnreachable

PAUSES_S = (1.0, 5.0, 20.0)
"""Before the tries after the first, the last for all further ones: most of a server is there again within 2 s, what has
weights to load within 10. Give or take a fifth, so that those who failed together do not come back together."""

RETRIABLE = (ServerRestarting, ServerUnreachable)


class Retries:
    """The tries of one request that are left."""

    def __init__(self, most: int) -> None:
        """None made yet; `most` after the first."""
        self._made, self._most = 0, most

    async def pause(self, error: ServerRestarting | ServerUnreachable) -> None:
        """Waits until the next; raises the error if there is none."""
        if self._made >= self._most:
            raise error
        seconds = PAUSES_S[min(self._made, len(PAUSES_S) - 1)]
        self._made += 1
        await asyncio.sleep(seconds * random.uniform(0.8, 1.2))
