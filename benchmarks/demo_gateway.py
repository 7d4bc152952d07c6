"""The part of `make demo` that goes through the gateway: with the official client of OpenAI's API."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

import numpy as np
from openai import OpenAI
from PIL import Image

from gateway_process import gateway_process

if TYPE_CHECKING:
    from collections.abc import Sequence

    from swiftdiffusion.clients import GenerationResult

PARTIAL = 3


def draw_through_gateway(server_url: str, pictures: Sequence[GenerationResult]) -> list[str]:
    """Draws two pictures once more, the second as a stream; what came of it, in a sentence for each.

    Args:
        server_url: Of the Triton server.
        pictures: As it drew them before.
    """
    asked, streamed = (picture.request for picture in pictures)
    with gateway_process(server_url) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        answer = client.images.generate(prompt=asked.prompt, extra_body={"seed": asked.seed})
        events = list(
            client.images.generate(
                prompt=streamed.prompt, stream=True, partial_images=PARTIAL, extra_body={"seed": streamed.seed}
            )
        )
    partial = sum(event.type == "image_generation.partial_image" for event in events)
    files = [(answer.data or [])[0].b64_json or "", events[-1].b64_json]
    whole, in_parts = (_likeness(file, picture) for file, picture in zip(files, pictures, strict=True))
    return [
        f"through the gateway, {asked.prompt}: {whole}",
        f"through the gateway, streamed with {partial} partial pictures, {streamed.prompt}: {in_parts}",
    ]


def _likeness(file: str, picture: GenerationResult) -> str:
    """How much they differ: sums depend on what is evaluated together, which may round a value up instead of down."""
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(file)))).astype(int)
    largest = int(np.abs(decoded - picture.pixels).max())
    return "the same picture" if largest == 0 else f"values differ by up to {largest} of 255"
