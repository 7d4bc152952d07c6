"""Requests sent at their arrival times, whatever is in flight.

A client that waits for answers before it sends the next request slows down with the server and leaves out what users
would have met then (coordinated omission). So nothing waits here, and latencies count from the arrival that the trace
says, even where the client was late to send.
"""

import asyncio
import gc
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager

from ..client.errors import SwiftDiffusionError
from ..client.result import GenerationInfo
from .outcomes import Outcome, Status, status_of
from .trace import TracedRequest

Send = Callable[[TracedRequest], Awaitable[GenerationInfo | None]]
"""Gets a request answered and returns INFO, if there is such a thing; raises SwiftDiffusionError where it fails."""

SOLO_REQUESTS = 5


async def replay(
    requests: Sequence[TracedRequest],
    send: Send,
    rate_scale: float = 1.0,
    sent: Callable[[], None] = lambda: None,
    ended: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Sends every request at its time and waits for all answers.

    Args:
        requests: in the order of their arrival.
        send: called once for each, as a task of its own.
        rate_scale: requests arrive so many times as fast.
        sent: called at every sending.
        ended: called at every end.

    Returns:
        An outcome per request, in their order.
    """
    start = time.monotonic()

    async def run(request: TracedRequest, at: float) -> Outcome:
        late = time.monotonic() - start - at
        sent()
        status, sentence, info = Status.OK, "", None
        try:
            info = await send(request)
        except SwiftDiffusionError as error:
            status, sentence = status_of(error), str(error)
        loras = () if info is None else info.loras
        outcome = Outcome(at, late, time.monotonic() - start - at, status, sentence, loras)
        ended(outcome)
        return outcome

    tasks = []
    with _rare_collections():
        async with asyncio.TaskGroup() as group:
            for request in requests:
                at = request.at / rate_scale
                await asyncio.sleep(max(0.0, start + at - time.monotonic()))
                tasks.append(group.create_task(run(request, at)))
    return [task.result() for task in tasks]


async def solo_seconds(requests: Sequence[TracedRequest], send: Send) -> float:
    """Median latency of a few requests that are alone, without their LoRAs: so that a replay finds those cold.

    The first of all goes once more before them and is not counted.

    Raises:
        SwiftDiffusionError: one is not answered.
    """
    alone = [request.model_copy(update={"loras": ()}) for request in requests[:SOLO_REQUESTS]]
    seconds = []
    for request in [*alone[:1], *alone]:
        start = time.monotonic()
        await send(request)
        seconds.append(time.monotonic() - start)
    return statistics.median(seconds[1:])


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Keeps Python's collector from going through thousands of requests in flight, which holds up arrivals by 0.3 s."""
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
