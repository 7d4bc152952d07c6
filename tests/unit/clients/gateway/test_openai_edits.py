"""What a form of OpenAI's route for edits asks of the server."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edit_requests import PIPELINE, png
from swiftdiffusion.clients.client.pipelines import PipelineDescription
from swiftdiffusion.clients.client.request import GenerationRequest
from swiftdiffusion.clients.gateway.bodies import validated
from swiftdiffusion.clients.gateway.errors import ApiError
from swiftdiffusion.clients.gateway.openai_edits import ImageEdit

IMAGE = png(Image.new("RGB", (101, 70), "red"))
WHITE = png(Image.fromarray(np.array([[0, 255]], np.uint8)))
HOLE = png(Image.fromarray(np.array([[[9, 9, 9, 255], [9, 9, 9, 0]]], np.uint8)))


def edit(**values: Any) -> ImageEdit:
    return validated(ImageEdit, {"prompt": "a cat", "image": IMAGE, **values})


def request(asked: ImageEdit, pipeline: PipelineDescription = PIPELINE) -> GenerationRequest:
    return asyncio.run(asked.request(pipeline, 2**20, "mine"))


def refusal(**values: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        request(edit(**values))
    assert caught.value.status == 400
    return caught.value


def test_the_picture_goes_on_as_it_came_in_its_own_size() -> None:
    asked = edit()
    wanted = GenerationRequest("a cat", request_id="mine", output_format="png", height=64, width=96, init_image=IMAGE)
    assert request(asked) == wanted
    assert asked.masked_by is None


@pytest.mark.parametrize(("mask", "masked_by"), [(WHITE, "white"), (HOLE, "transparent")])
def test_masks_of_either_kind_are_white_on_the_wire_and_told_apart(mask: bytes, masked_by: str) -> None:
    asked = edit(mask=mask, strength=0.4, composite=True, mask_aware="fast")
    made = request(asked)
    assert np.asarray(made.mask_image).tolist() == [[0, 255]]
    assert (made.strength, made.composite, made.mask_aware) == (0.4, True, "fast")
    kept = asked.without_pictures()
    assert (kept.masked_by, kept.image, kept.mask) == (masked_by, b"", None)


def test_a_size_is_the_new_picture_s() -> None:
    made = request(edit(size="64x32"))
    assert (made.height, made.width) == (32, 64)


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [(8, 8, (8, 8)), (263, 256, (256, 256)), (256, 263, (256, 256)), (15, 16, (16, 8)), (101, 70, (64, 96))],
)
def test_an_own_size_is_rounded_down_to_what_is_made(width: int, height: int, size: tuple[int, int]) -> None:
    made = request(edit(image=png(Image.new("L", (width, height)))))
    assert (made.height, made.width) == size


@pytest.mark.parametrize(("width", "height"), [(7, 64), (64, 7), (264, 64), (64, 264), (1, 1), (4096, 1)])
def test_an_own_size_that_is_not_made_is_refused(width: int, height: int) -> None:
    image = png(Image.new("L", (width, height)))
    error = refusal(image=image)
    assert error.param == "size"
    assert error.message == f"image is {width}x{height}; allowed where size is auto: 8 to 256 wide and high"
    assert request(edit(image=image, size="64x64")).init_image == image


@pytest.mark.parametrize(
    ("values", "param", "said"),
    [
        ({"image": b""}, "image", "image is no whole picture (UnidentifiedImageError); allowed: PNG, JPEG or WebP"),
        ({"image": IMAGE[:60]}, "image", "image is no whole picture"),
        ({"image": IMAGE[:60], "size": "64x64"}, "image", "image is no whole picture"),
        ({"mask": b""}, "mask", "mask is no whole picture"),
        ({"mask": WHITE[:40]}, "mask", "mask is no whole picture"),
        ({"image": png(Image.new("1", (4096, 300)))}, "image", "image is 4096x300; allowed: at most 1048576 pixels"),
        ({"mask": png(Image.new("1", (4096, 300)))}, "mask", "mask is 4096x300; allowed: at most 1048576 pixels"),
        ({"image": "x.png"}, "image", "image is 'x.png'; allowed: a file"),
        ({"mask": 7}, "mask", "mask is 7; allowed: a file"),
        ({"strength": 0}, "strength", "strength is 0; allowed: more than 0"),
        ({"strength": 1.01}, "strength", "strength is 1.01; allowed: at most 1"),
        ({"strength": "much"}, "strength", "strength is 'much'; allowed: a number"),
        ({"composite": "yes"}, "composite", "composite is 'yes'; allowed: true or false"),
        ({"input_fidelity": "best"}, "input_fidelity", "input_fidelity is 'best'; allowed: 'low' or 'high'"),
        ({"background": "transparent"}, "background", "background is 'transparent'; allowed: 'auto' or 'opaque'"),
        ({"markup": b"x"}, "markup", "markup is no field of this route; allowed: prompt, model, "),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_is_named(values: dict[str, Any], param: str, said: str) -> None:
    error = refusal(**values)
    assert error.message.startswith(said)
    assert error.param == param


@pytest.mark.parametrize(
    ("values", "previews"),
    [
        ({"strength": 0.8, "num_inference_steps": 6}, 1),
        ({"strength": 0.5, "num_inference_steps": 40}, 6),
        ({"strength": 0.01}, 1),
        ({}, 2),
        ({"mask": WHITE}, 3),
        ({"strength": 1}, 6),
        ({"strength": 0.5, "preview_every": 1}, 1),
    ],
)
def test_partial_images_are_of_the_steps_that_are_taken(values: dict[str, Any], previews: int) -> None:
    """Of 20, but for the strength."""
    assert request(edit(stream=True, partial_images=2, **values)).previews == previews
