"""A server's own adapters in the place of a trace's: of each rank of popularity another, as far as they go."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..client.request import ControlNet, GenerationRequest, Lora, Picture
from .trace import TracedRequest


@dataclass(frozen=True)
class Served:
    """What requests may use of a server.

    Attributes:
        loras: names of its catalogue; the first stands for the most popular. Without any, requests have none.
        controlnets: likewise, each with its control picture, all of one size.
    """

    loras: tuple[str, ...] = ()
    controlnets: tuple[tuple[str, Picture], ...] = ()

    def request(
        self, traced: TracedRequest, lora_bound: int | None = None, timeout_ms: int | None = None
    ) -> GenerationRequest:
        """A request of a trace as one for this server."""
        scales = [lora.scale for lora in traced.loras]
        loras = places([lora.rank for lora in traced.loras], len(self.loras))
        controlnets = [self.controlnets[place] for place in places(traced.controlnets, len(self.controlnets))]
        return GenerationRequest(
            traced.prompt,
            seed=traced.seed,
            steps=traced.steps,
            loras=tuple(Lora(self.loras[place], scale) for place, scale in zip(loras, scales, strict=False)),
            lora_bound=lora_bound if loras else None,
            controlnets=tuple(ControlNet(name) for name, _ in controlnets),
            control_images=tuple(image for _, image in controlnets),
            timeout_ms=timeout_ms,
        )


def places(ranks: Sequence[int], count: int) -> list[int]:
    """Ranks as places among `count`, modulo; a request's own stay different, and those that find none are left out."""
    taken: list[int] = []
    for rank in ranks[:count]:
        place = rank % count
        while place in taken:
            place = (place + 1) % count
        taken.append(place)
    return taken
