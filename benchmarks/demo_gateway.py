"""The part of `make demo` that goes through the gateway: with the official client of OpenAI's API."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

import numpy as np
from gateway_process import gateway_process
from openai import OpenAI
from PIL import Image

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
    same = [_is(file, picture) for file, picture in zip(files, pictures, strict=True)]
    return [
        f"through the gateway: {asked.prompt}: {_likeness(same[0])}",
        f"through the gateway, streamed with {partial} partial pictures: {streamed.prompt}: {_likeness(same[1])}",
    ]


def _is(file: str, picture: GenerationResult) -> bool:
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(file))))
    return bool((decoded == picture.pixels).all())


def _likeness(same: bool) -> str:
    return "the same picture" if same else "ANOTHER PICTURE"
