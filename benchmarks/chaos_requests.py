"""Requests of many kinds, and callers who ask for them while processes of the server die."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass, field
from itertools import count, takewhile

import numpy as np

from swiftdiffusion.clients import (
    AsyncClient,
    ControlNet,
    GenerationRequest,
    GenerationResult,
    Lora,
    Progress,
    RequestCancelled,
    ServerRestarting,
    ServerUnreachable,
    SwiftDiffusionError,
)

RETRIABLE = (ServerRestarting, ServerUnreachable)
DEADLINE_S = 180.0
"""Of one request, its tries and pauses included: tritonserver may start anew in it."""

RETRIES = 3
BREATH_S = 3.0
"""Pause of a caller without retries after a failure, so that an outage does not use up all requests."""

MEAN, MAX = 1.0, 3.0
"""How far a picture may be from its reference, in units of 1/255: rows are computed in batches of other sizes."""

RIGHT, WRONG = "right", "wrong"


@dataclass(frozen=True)
class Offer:
    """What requests may ask of a server: names, and sides in pixels."""

    loras: tuple[str, ...]
    controlnets: tuple[str, ...]
    sides: tuple[int, ...] = (64, 96, 128)

    def request(self, number: int, seed: int) -> GenerationRequest:
        """One of the kinds; the same arguments make the same. Without guidance, and LoRAs are waited for."""
        chance = random.Random(f"{seed} {number}")
        height, width = chance.choice(self.sides), chance.choice(self.sides)
        loras = chance.sample(self.loras, chance.choice((0, 0, 1, 2)))
        controls = chance.sample(self.controlnets, min(len(self.controlnets), chance.choice((0, 0, 1, 2))))
        pixels = np.random.default_rng([seed, number]).integers(0, 2, (len(controls), height // 8, width // 8, 1))
        pictures = np.kron(255 * pixels, np.ones((1, 8, 8, 3))).astype(np.uint8)
        return GenerationRequest(
            "a red circle above a blue square",
            seed=number,
            steps=chance.choice((4, 8, 12)),
            guidance_scale=1.0,
            height=height,
            width=width,
            loras=[Lora(name) for name in loras],
            lora_bound=0,
            controlnets=[ControlNet(name) for name in controls],
            control_images=list(pictures),
        )


@dataclass(frozen=True)
class Order:
    """One request on its way.

    Attributes:
        kind: Which of the distinct requests.
        protocol: `grpc` or `http`.
        streams: Whether its progress is asked for.
        cancel_after_s: When it is cancelled by its id; None: never.
    """

    kind: int
    protocol: str
    streams: bool
    cancel_after_s: float | None


@dataclass(frozen=True)
class Outcome:
    """What came of an order: RIGHT, WRONG or the failure's type; the sentence is the server's."""

    order: Order
    came: str
    seconds: float
    retries: int = 0
    is_exact: bool = False
    is_retriable: bool = False
    sentence: str = ""

    @property
    def used_up(self) -> bool:
        """Whether it failed for all its retries."""
        return self.is_retriable and self.retries > 0

    @property
    def is_allowed(self) -> bool:
        """Whether a client may see it."""
        if self.came == RequestCancelled.__name__:
            return self.order.cancel_after_s is not None
        return self.came == RIGHT or self.is_retriable


@dataclass
class Orders:
    """The requests of all callers, each taken by one of them.

    Attributes:
        outcomes: Of those that were answered.
    """

    requests: list[GenerationRequest]
    pictures: list[np.ndarray]
    orders: Iterator[Order]
    outcomes: list[Outcome] = field(default_factory=list)

    async def work(self, urls: dict[str, str], retries: int) -> None:
        """A caller with connections of its own, until no request is left."""
        async with AsyncExitStack() as stack:
            clients = {
                protocol: await stack.enter_async_context(AsyncClient(url, timeout=DEADLINE_S, retries=retries))
                for protocol, url in urls.items()
            }
            for order in self.orders:
                outcome = await self.ask(clients[order.protocol], order, retries)
                self.outcomes.append(outcome)
                if outcome.is_retriable:
                    await asyncio.sleep(0.0 if retries else BREATH_S)

    async def ask(self, client: AsyncClient, order: Order, retries: int) -> Outcome:
        """One order, by a client that has so many retries."""
        request, expected = self.requests[order.kind].with_request_id(), self.pictures[order.kind]
        start = time.monotonic()
        cancelling = asyncio.create_task(_cancel(client, request, order.cancel_after_s))
        try:
            picture = await (_streamed(client, request) if order.streams else client.generate(request))
            distance = np.abs(picture.pixels.astype(float) - expected)
            came = RIGHT if distance.mean() <= MEAN and distance.max() <= MAX else WRONG
            sentence = "" if came == RIGHT else f"differs by {distance.mean():.2f}, at most {distance.max():.0f}"
            return Outcome(order, came, time.monotonic() - start, retries, not distance.any(), sentence=sentence)
        except Exception as error:  # noqa: BLE001 - whatever a client raises is to be counted
            again = isinstance(error, RETRIABLE)
            seconds = time.monotonic() - start
            return Outcome(order, type(error).__name__, seconds, retries, is_retriable=again, sentence=str(error))
        finally:
            cancelling.cancel()


class BackwardsError(Exception):
    """A stream told of a step for the second time."""


def make_orders(kinds: int, seed: int, enough: Callable[[int], bool]) -> Iterator[Order]:
    """Half of them streams, a third over HTTP, one in eight is cancelled.

    Args:
        kinds: How many distinct requests there are.
        seed: The same one makes the same orders.
        enough: Whether so many are.
    """
    chance = random.Random(seed)
    for _ in takewhile(lambda made: not enough(made), count()):
        streams = chance.random() < 0.5
        protocol = "grpc" if streams or chance.random() < 1 / 3 else "http"
        cancel_after_s = chance.uniform(0.0, 1.0) if chance.random() < 1 / 8 else None
        yield Order(chance.randrange(kinds), protocol, streams, cancel_after_s)


async def draw_alone(url: str, requests: list[GenerationRequest]) -> list[np.ndarray]:
    """The pictures of requests, one after the other."""
    async with AsyncClient(url, timeout=DEADLINE_S, retries=RETRIES) as client:
        return [(await client.generate(request)).pixels for request in requests]


async def ask_once(url: str, request: GenerationRequest, expected: np.ndarray) -> Outcome:
    """What comes of a request that is sent once."""
    async with AsyncClient(url, timeout=DEADLINE_S) as client:
        return await Orders([request], [expected], iter(())).ask(client, Order(0, "grpc", False, None), 0)


def counted(outcomes: list[Outcome]) -> dict[str, int]:
    """How often what came."""
    return dict(sorted(Counter(outcome.came for outcome in outcomes).items()))


async def _streamed(client: AsyncClient, request: GenerationRequest) -> GenerationResult:
    told, picture = 0, None
    async with aclosing(client.stream(request)) as events:
        async for event in events:
            if isinstance(event, Progress):
                if event.step <= told:
                    raise BackwardsError(f"step {event.step} after step {told}")
                told = event.step
            else:
                picture = event
    assert picture is not None
    return picture


async def _cancel(client: AsyncClient, request: GenerationRequest, after_s: float | None) -> None:
    if after_s is not None:
        await asyncio.sleep(after_s)
        with suppress(SwiftDiffusionError, TimeoutError):
            await client.cancel(request.request_id or "")
