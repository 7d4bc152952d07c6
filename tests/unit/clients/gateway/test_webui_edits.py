"""What bodies of A1111's `img2img` ask of the server, and what becomes of its pictures."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from typing import Any
from unittest import mock

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from webuiapi import WebUIApi

from edit_requests import PIPELINE, png
from swiftdiffusion.clients.client.request import GenerationRequest
from swiftdiffusion.clients.gateway.bodies import validated
from swiftdiffusion.clients.gateway.errors import ApiError
from swiftdiffusion.clients.gateway.webui_edits import ImageToImage
from swiftdiffusion.clients.gateway.webui_masks import blurred

NOISE = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
MASK = np.zeros((64, 96), np.uint8)
MASK[16:40, 32:56] = 255
WITH_MASK: dict[str, Any] = {"inpainting_fill": 1, "inpaint_full_res": False, "mask_blur": 0}


def text(pixels: np.ndarray | Image.Image) -> str:
    made = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    return base64.b64encode(png(made)).decode("ascii")


def edit(**values: Any) -> ImageToImage:
    return validated(ImageToImage, {"prompt": "a cat", "init_images": [text(NOISE)], **values})


def request(asked: ImageToImage) -> GenerationRequest:
    return asyncio.run(asked.request(PIPELINE, 2**20, "mine"))


def refusal(**values: Any) -> str:
    with pytest.raises(ApiError) as caught:
        request(edit(**values))
    assert caught.value.status == 400
    return caught.value.message


def new(asked: ImageToImage, made: Image.Image) -> np.ndarray:
    """What the answer has of a picture that the server made."""
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", "a cat")
    stream = io.BytesIO()
    made.save(stream, "PNG", pnginfo=chunks)
    with Image.open(io.BytesIO(asked.finished(stream.getvalue()))) as finished:
        assert finished.format != "PNG" or finished.text["parameters"] == "a cat"
        return np.asarray(finished.convert("RGB"))


def test_a_body_of_defaults_is_a_picture_at_a_strength() -> None:
    asked = edit()
    made = request(asked)
    assert (made.strength, made.height, made.width, made.output_format) == (0.75, 64, 96, "png")
    assert (np.asarray(made.init_image) == NOISE).all()
    assert made.mask_image is made.composite is None
    assert made.previews == 1, "of the fifteen steps that are taken"
    assert asked.finished(b"as it came") == b"as it came"


def sent_by_webuiapi(**values: Any) -> dict[str, Any]:
    """The client's own body, with its defaults."""
    api = WebUIApi(sampler="Euler")
    with mock.patch.object(WebUIApi, "post_and_get_api_result", autospec=True) as posted:
        api.img2img(images=[Image.fromarray(NOISE)], prompt="a cat", **values)
    return json.loads(json.dumps(posted.call_args.args[2]))


def test_webuiapi_s_defaults_are_served() -> None:
    pipeline = PIPELINE.model_copy(update={"max_size": 512, "scheduler": "EulerDiscreteScheduler"})
    with mock.patch("swiftdiffusion.clients.gateway.webui_fields.scheduler_named", return_value=None):
        made = asyncio.run(validated(ImageToImage, sent_by_webuiapi()).request(pipeline, 2**20, "mine"))
        body = sent_by_webuiapi(mask_image=Image.fromarray(MASK), inpainting_fill=1)
        masked = asyncio.run(validated(ImageToImage, body).request(pipeline, 2**20, "mine"))
    assert np.asarray(made.init_image).shape == np.asarray(masked.init_image).shape == (512, 512, 3)
    assert np.asarray(masked.mask_image).shape == (512, 512)
    assert (made.strength, made.height, made.width, masked.composite) == (0.75, 512, 512, None)


def test_with_a_mask_webuiapi_has_to_name_the_fill() -> None:
    with pytest.raises(ApiError, match=r"^inpainting_fill is 0; allowed with a mask: 1 \(original\)$"):
        validated(ImageToImage, sent_by_webuiapi(mask_image=Image.fromarray(MASK)))


@pytest.mark.parametrize("inverted", [0, 1, False, True])
def test_a_sharp_mask_of_the_whole_is_the_server_s(inverted: int) -> None:
    asked = edit(mask=text(255 - MASK if inverted else MASK), inpainting_mask_invert=inverted, **WITH_MASK)
    made = request(asked)
    assert (np.asarray(made.mask_image) == MASK).all()
    assert made.composite is True
    assert asked.finished(b"as it came") == b"as it came"


@pytest.mark.parametrize("blur", [{}, {"mask_blur": 4}, {"mask_blur_x": 4}, {"mask_blur_x": 9, "mask_blur": 4}])
def test_a_soft_edge_is_laid_over_outside_the_mask(blur: dict[str, int]) -> None:
    """The new picture up to where the mask ends, which is the middle of its edge, and less and less of it beyond."""
    asked = edit(mask=text(MASK), **{**WITH_MASK, "mask_blur": None, **blur})
    made = request(asked)
    assert (made.composite, made.output_format) == (None, "png")
    soft = np.asarray(made.mask_image)
    assert (soft == blurred(MASK, 4, 4)).all()
    got = new(asked, Image.new("RGB", (96, 64), "red")).astype(int)
    assert (got[20:36, 36:52] == (255, 0, 0)).all()
    shown = np.minimum(soft.astype(float) * 2, 255)[..., None] / 255
    assert np.abs(got - (shown * (255, 0, 0) + (1 - shown) * NOISE)).max() <= 1
    far = np.ones_like(MASK, bool)
    far[:54, 18:70] = False
    assert (got[far] == NOISE[far]).all()


def test_a_direction_may_be_sharp() -> None:
    made = request(edit(mask=text(MASK), **{**WITH_MASK, "mask_blur": None}, mask_blur_x=0, mask_blur_y=6))
    soft = np.asarray(made.mask_image)
    assert not soft[:, :32].any() and soft[12, 40] > 0


@pytest.mark.parametrize("samples", ["png", "webp", "jpg"])
def test_a_part_alone_is_put_where_it_was(samples: str) -> None:
    large = np.random.default_rng(1).integers(0, 256, (200, 300, 3), np.uint8)
    mask = np.zeros((200, 300), np.uint8)
    mask[100:116, 200:232] = 255
    settings = {"samples_format": samples}
    more = {**WITH_MASK, "inpaint_full_res": True, "inpaint_full_res_padding": 8}
    asked = edit(init_images=[text(large)], mask=text(mask), width=128, height=64, override_settings=settings, **more)
    made = request(asked)
    assert made.output_format == "png", "without loss, until it is whole"
    part = Image.fromarray(large[92:124, 184:248])
    assert (np.asarray(made.init_image) == np.asarray(part.resize((128, 64), Image.Resampling.LANCZOS))).all()
    assert np.asarray(made.mask_image)[32, 64] == 255 and np.asarray(made.mask_image)[8, 8] == 0
    got = new(asked, Image.new("RGB", (128, 64), "red")).astype(int)
    assert got.shape == large.shape
    if samples == "png":
        assert (got[mask > 0] == (255, 0, 0)).all()
        assert (got[mask == 0] == large[mask == 0]).all()
    else:
        assert np.abs(got[mask > 0] - (255, 0, 0)).mean() < 40


def test_a_preview_is_put_there_too() -> None:
    """An interrupted picture is its last preview, of whatever size."""
    asked = edit(mask=text(MASK), **{**WITH_MASK, "inpaint_full_res": True}, width=64, height=64)
    request(asked)
    got = new(asked, Image.new("RGB", (16, 16), "red"))
    assert (got[16:40, 32:56] == (255, 0, 0)).all() and (got[MASK == 0] == NOISE[MASK == 0]).all()


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_picture_and_mask_come_to_the_new_size_alike(mode: int) -> None:
    made = request(edit(mask=text(MASK), width=128, height=128, resize_mode=mode, **WITH_MASK))
    assert np.asarray(made.init_image).shape == (128, 128, 3)
    assert np.asarray(made.mask_image).shape == (128, 128)


def test_a_controlnet_without_a_picture_sees_the_old_one() -> None:
    units = {"ControlNet": {"args": [{"model": "edges"}, {"model": "edges", "image": text(MASK)}]}}
    made = request(edit(alwayson_scripts=units))
    first, second = (np.asarray(each) for each in made.control_images)
    assert (first == NOISE).all() and (second[..., 0] == MASK).all()
    assert len(request(edit(alwayson_scripts=units, mask=text(MASK), **WITH_MASK)).controlnets) == 2
    said = "inpaint_full_res is true; allowed with a mask and ControlNet units: false"
    assert refusal(alwayson_scripts=units, mask=text(MASK), inpainting_fill=1) == said


def test_the_old_pictures_are_told_only_if_wanted() -> None:
    assert (edit(mask="").echo["init_images"], edit().echo["mask"]) == (None, None)
    asked = edit(include_init_images=True)
    assert (asked.echo["init_images"], asked.echo["denoising_strength"]) == ([text(NOISE)], 0.75)
    json.dumps(asked.echo)


def test_what_is_neutral_is_let_pass() -> None:
    neutral = {name: allowed[-1] for name, allowed in ImageToImage.neutral.items()}
    more = {
        "initial_noise_multiplier": 1.0,
        "image_cfg_scale": 1.5,
        "mask_blur": None,
        "mask": None,
        "latent_mask": None,
    }
    assert request(edit(**{**neutral, **more})).strength == 0.75


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"init_images": []}, "init_images is a list of 0; allowed: a length of at least 1"),
        ({"init_images": [text(NOISE)] * 2}, "init_images is a list of 2; allowed: a length of at most 1"),
        ({"init_images": text(NOISE)}, "init_images is str of"),
        ({"init_images": [7]}, "init_images[0] is 7; allowed: a text"),
        ({"init_images": ["http://127.0.0.1/x.png"]}, "init_images is no base64; allowed: base64 of a PNG"),
        ({"init_images": ["aGVsbG8="]}, "init_images is no whole picture"),
        ({"mask": "aGVsbG8=", **WITH_MASK}, "mask is no whole picture"),
        ({"mask": text(MASK * 0), **WITH_MASK}, "mask paints nothing anew; allowed: one that does"),
        ({"mask": text(MASK * 0), "inpainting_fill": 1}, "mask paints nothing anew; allowed: one that does"),
        ({"mask": text(MASK)}, "inpainting_fill is 0; allowed with a mask: 1 (original)"),
        ({"mask": text(MASK), "inpainting_fill": 2}, "inpainting_fill is 2; allowed with a mask: 1 (original)"),
        ({"denoising_strength": 0}, "denoising_strength is 0; allowed: more than 0"),
        ({"denoising_strength": 2}, "denoising_strength is 2; allowed: at most 1"),
        ({"resize_mode": 3}, "resize_mode is 3; allowed: 0, 1 or 2"),
        ({"mask_blur": -1}, "mask_blur is -1; allowed: at least 0"),
        ({"mask_blur": 65}, "mask_blur is 65; allowed: at most 64"),
        ({"mask_blur_x": 65}, "mask_blur_x is 65; allowed: at most 64"),
        ({"mask_blur": 4.5}, "mask_blur is 4.5; allowed: a whole number"),
        ({"inpaint_full_res_padding": -1}, "inpaint_full_res_padding is -1; allowed: at least 0"),
        ({"inpaint_full_res": 2}, "inpaint_full_res is 2; allowed: 0 or 1"),
        ({"inpainting_mask_invert": 2}, "inpainting_mask_invert is 2; allowed: 0 or 1"),
        ({"mask_round": False}, "mask_round is false; allowed: true: it is not supported"),
        ({"latent_mask": "x"}, 'latent_mask is "x"; allowed: "": it is not supported'),
        ({"initial_noise_multiplier": 0.5}, "initial_noise_multiplier is 0.5; allowed: 1: it is not supported"),
        ({"enable_hr": True}, "enable_hr is true; allowed: false: it is not supported"),
        ({"init_image": "x"}, "init_image is no field of this route; allowed: "),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_served_is_refused_by_name(values: dict[str, Any], said: str) -> None:
    assert refusal(**values).startswith(said)


def test_a_size_that_the_server_refuses_makes_no_large_picture_here() -> None:
    made = request(edit(mask=text(MASK), width=10**6, height=10**6, **WITH_MASK))
    assert (made.width, np.asarray(made.init_image).shape, np.asarray(made.mask_image).shape) == (
        10**6,
        (64, 96, 3),
        (64, 96),
    )
    assert request(edit(width=8, height=-8)).height == -8


@pytest.mark.parametrize(("side", "own"), [(1, 8), (15, 8), (4096, 256)])
def test_without_a_size_it_is_the_nearest_to_the_picture_s(side: int, own: int) -> None:
    made = request(edit(init_images=[text(np.zeros((side, 64), np.uint8))]))
    assert (made.height, made.width, np.asarray(made.init_image).shape) == (own, 64, (own, 64, 3))
