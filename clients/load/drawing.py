"""Traces with the statistics of a published service: the same arguments give the same bytes."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .adapters import KINDS, LOCALITY, AdapterSet, Kind, draw_sets
from .arrivals import Burst, draw_arrivals, draw_bursts
from .published import SERVICES, AdapterStatistics
from .trace import Trace, TracedLora, TracedRequest


@dataclass(frozen=True)
class RandomBursts:
    """Bursts at random times: their factor, their mean seconds, and those of the time between two."""

    factor: float
    seconds: float
    calm: float


@dataclass(frozen=True)
class TraceArguments:
    """What a trace is drawn from, besides prompts.

    Attributes:
        service: one of SERVICES.
        rate: requests per second outside bursts.
        seconds: how long requests arrive.
        bursts: at given times.
        random_bursts: more, at random times.
        seed: of everything that is drawn.
        steps: of denoising; None leaves them to the server.
        lora_scale: weight of every LoRA.
    """

    service: str = "A"
    rate: float = 1.0
    seconds: float = 120.0
    bursts: tuple[Burst, ...] = ()
    random_bursts: RandomBursts | None = None
    seed: int = 0
    steps: int | None = 20
    lora_scale: float = 0.8

    def as_json(self) -> Mapping[str, Any]:
        """For a trace's header."""
        return asdict(self)


def draw_trace(arguments: TraceArguments, prompts: Sequence[str]) -> Trace:
    """Draws a trace; arrivals, prompts and each kind of adapters from random numbers of their own.

    Args:
        arguments: what to draw.
        prompts: each equally likely.
    """
    bursts, arrivals, texts, *kinds = (np.random.default_rng((arguments.seed, stream)) for stream in range(5))
    drawn = list(arguments.bursts)
    if (wanted := arguments.random_bursts) is not None:
        drawn += draw_bursts(arguments.seconds, wanted.factor, wanted.seconds, wanted.calm, bursts)
    times = draw_arrivals(arguments.rate, arguments.seconds, drawn, arrivals)
    sets = {
        kind: draw_sets(statistics_of(arguments.service, kind), LOCALITY[arguments.service, kind], len(times), random)
        for kind, random in zip(KINDS, kinds, strict=True)
    }
    requests = (
        TracedRequest(
            at=round(float(at), 6),
            prompt=prompts[int(texts.random() * len(prompts))],
            seed=number,
            steps=arguments.steps,
            controlnets=controlnets,
            loras=tuple(TracedLora(rank=rank, scale=arguments.lora_scale) for rank in loras),
        )
        for number, (at, controlnets, loras) in enumerate(zip(times, sets["controlnets"], sets["loras"], strict=True))
    )
    return Trace(arguments.as_json(), tuple(requests))


def statistics_of(service: str, kind: Kind) -> AdapterStatistics:
    """The published numbers of one service and kind."""
    return SERVICES[service].controlnets if kind == "controlnets" else SERVICES[service].loras


def sets_of(trace: Trace, kind: Kind) -> list[AdapterSet]:
    """The adapters of a trace's requests, by rank."""
    if kind == "controlnets":
        return [request.controlnets for request in trace.requests]
    return [tuple(lora.rank for lora in request.loras) for request in trace.requests]
