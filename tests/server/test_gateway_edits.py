"""Edits through the gateway: OpenAI's client and webuiapi get what tritonclient gets."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np
import pytest
from openai import BadRequestError, OpenAI
from openai.types import ImageEditCompletedEvent, ImageEditPartialImageEvent, ImagesResponse
from PIL import Image, ImageFilter
from webuiapi import WebUIApi

from edits import box, picture
from gateways import GatewayThread
from swiftdiffusion.python_backends.launcher import TritonServer
from wire import PROMPT, generate

INIT, MASK = picture(96, 128), box(96, 128, 16, 24, 64, 100)
MORE: dict[str, Any] = {"seed": 7, "num_inference_steps": 6, "guidance_scale": 1.0, "strength": 0.8}
FIELDS: dict[str, Any] = {"PROMPT": PROMPT, "SEED": 7, "STEPS": 6, "GUIDANCE_SCALE": 1.0, "STRENGTH": 0.8}


@pytest.fixture
def client(gateway: GatewayThread) -> Iterator[OpenAI]:
    with gateway.openai() as client:
        yield client


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def holes(mask: np.ndarray) -> bytes:
    """A picture that is transparent where the mask is white."""
    return png(np.dstack([INIT[0], 255 - mask[0]]))


def pixels(text: str | None) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text or "", validate=True))).convert("RGB"))


def ask(client: OpenAI, extra: dict[str, Any] | None = None, **values: Any) -> ImagesResponse:
    given = {"image": png(INIT[0]), "prompt": PROMPT, "model": "sdxl", **values}
    return client.images.edit(**given, extra_body={**MORE, **(extra or {})})


def test_the_whole_picture_changes_without_a_mask(client: OpenAI, server: TritonServer) -> None:
    answer = ask(client)
    assert answer.data is not None and answer.size == "128x96"
    assert (pixels(answer.data[0].b64_json) == generate(server, "sdxl", **FIELDS, INIT_IMAGE=INIT).image).all()
    assert answer.data[0].model_extra is not None
    assert answer.data[0].model_extra["info"]["kind"] == "image_to_image"
    assert "mask" not in (answer.model_extra or {})


@pytest.mark.parametrize(("mask", "masked_by"), [(png(MASK[0]), "white"), (holes(MASK), "transparent")])
def test_masks_of_either_kind(client: OpenAI, server: TritonServer, mask: bytes, masked_by: str) -> None:
    wanted = generate(server, "sdxl", **FIELDS, INIT_IMAGE=INIT, MASK_IMAGE=MASK, COMPOSITE=True).image
    answer = ask(client, {"composite": True}, mask=mask)
    assert answer.data is not None
    assert (pixels(answer.data[0].b64_json) == wanted).all()
    assert (answer.model_extra or {})["mask"] == masked_by
    assert (wanted[MASK[0] == 0] == INIT[0][MASK[0] == 0]).all()


def test_mask_aware_is_asked_and_told(client: OpenAI) -> None:
    own = {"source": "own", "exact_steps": [0, 1, 5]}
    answer = ask(client, {"mask_aware": json.dumps(own), "num_inference_steps": 8, "strength": 1.0}, mask=png(MASK[0]))
    assert answer.data is not None and answer.data[0].model_extra is not None
    told = answer.data[0].model_extra["info"]["editing"]
    assert (told["mode"], told["source"], told["exact_steps"]) == ("tokens", "own", [0, 1, 5])


def test_a_stream_has_the_events_of_edits(client: OpenAI, server: TritonServer) -> None:
    # so large that steps are slow: a preview that nobody has fetched when the next one comes is lost
    init, mask = picture(384, 512), box(384, 512, 64, 96, 256, 400)
    more = {**MORE, "num_inference_steps": 20}
    told = list(
        client.images.edit(
            image=png(init[0]), mask=png(mask[0]), prompt=PROMPT, stream=True, partial_images=2, extra_body=more
        )
    )
    *partial, last = told
    assert [type(each) for each in partial] == [ImageEditPartialImageEvent] * 2
    assert isinstance(last, ImageEditCompletedEvent) and last.size == "512x384"
    wanted = generate(server, "sdxl", **{**FIELDS, "STEPS": 20}, INIT_IMAGE=init, MASK_IMAGE=mask).image
    assert (pixels(last.b64_json) == wanted).all()


def test_several_pictures_with_a_lora_in_another_size(client: OpenAI) -> None:
    extra = {"lora": json.dumps([{"name": "outline", "scale": 0.8}]), "guidance_scale": 2.0}
    answer = ask(client, extra, n=2, size="64x64", output_format="webp")
    assert answer.data is not None and answer.size == "64x64"
    first, second = (pixels(each.b64_json) for each in answer.data)
    assert first.shape == (64, 64, 3) and (first != second).any()


@pytest.mark.parametrize(
    ("values", "extra", "said"),
    [
        (
            {"image": b"no picture"},
            {},
            "image is no whole picture (UnidentifiedImageError); allowed: PNG, JPEG or WebP",
        ),
        (
            {"image": png(picture(8, 1000)[0])},
            {},
            "image is 1000x8; allowed where size is auto: 8 to 512 wide and high",
        ),
        ({"mask": png(MASK[0])[:60]}, {}, "mask is no whole picture"),
        ({"mask": png(MASK[0] * 0)}, {}, "MASK_IMAGE is below 128"),
        ({}, {"strength": 1.5}, "strength is 1.5; allowed: at most 1"),
        ({}, {"strength": 0.1}, "STRENGTH is 0.1; allowed with 6 STEPS: 0.1667 to 1"),
        ({}, {"composite": True}, "COMPOSITE is true; allowed: only with MASK_IMAGE"),
        ({}, {"mask_aware": "fast"}, 'MASK_AWARE is "fast"; allowed without MASK_IMAGE: exact'),
        ({}, {"num_inference_steps": "many"}, "num_inference_steps is 'many'; allowed: a whole number"),
        ({}, {"strenght": 0.5}, "strenght is no field of this route"),
        ({"image": [png(INIT[0]), png(INIT[0])]}, {}, "image is there twice; allowed: once"),
    ],
)
def test_what_is_refused(client: OpenAI, values: dict[str, Any], extra: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        ask(client, extra, **values)
    assert said in caught.value.message


@pytest.mark.parametrize(
    "body", [b"", b"--x\r\n", b"--x" * 100_000, b'--x\r\nContent-Disposition: form-data; name="image"']
)
def test_forms_of_strangers(gateway: GatewayThread, body: bytes) -> None:
    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = httpx2.post(f"{gateway.url}/v1/images/edits", content=body, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]
    answer = httpx2.post(f"{gateway.url}/v1/images/edits", json={"prompt": PROMPT})
    assert answer.status_code == 415


@pytest.mark.parametrize("origin", ["https://evil.example", "null"])
def test_forms_of_pages_elsewhere_are_refused(gateway: GatewayThread, origin: str) -> None:
    """A browser sends them without asking first, but says where the page is from."""
    files = {"image": ("a.png", png(INIT[0]))}
    answer = httpx2.post(
        f"{gateway.url}/v1/images/edits", files=files, data={"prompt": PROMPT}, headers={"origin": origin}
    )
    assert answer.status_code == 403 and answer.json()["error"]["code"] == "foreign_origin"


def test_too_many_fields_are_refused(gateway: GatewayThread) -> None:
    files = [("image", ("a.png", png(INIT[0])))] * 20
    answer = httpx2.post(f"{gateway.url}/v1/images/edits", files=files, data={"prompt": PROMPT})
    assert (
        answer.status_code == 400
        and "the form has more than 8 files; allowed: at most so many" in answer.json()["error"]["message"]
    )


@pytest.mark.parametrize("inverted", [0, 1])
def test_a1111_s_client(gateway: GatewayThread, server: TritonServer, inverted: int) -> None:
    api = WebUIApi(baseurl=f"{gateway.url}/sdapi/v1", sampler="Euler")
    size = {"width": 128, "height": 96}
    result = api.img2img(
        images=[Image.fromarray(INIT[0])],
        mask_image=Image.fromarray(255 - MASK[0] if inverted else MASK[0]),
        inpainting_mask_invert=inverted,
        inpainting_fill=1,
        inpaint_full_res=False,
        mask_blur=0,
        denoising_strength=0.8,
        prompt=PROMPT,
        seed=7,
        steps=6,
        cfg_scale=1,
        **size,
    )
    more = {"PROMPT_SYNTAX": "weighted", "SCHEDULER": "euler", "COMPOSITE": True}
    wanted = generate(server, "sdxl", **FIELDS, **more, INIT_IMAGE=INIT, MASK_IMAGE=MASK).image
    assert (np.asarray(result.image) == wanted).all()
    assert "Denoising strength: 0.8" in result.info["infotexts"][0]


def test_a1111_s_client_without_a_mask_needs_none_of_its_fields(gateway: GatewayThread, server: TritonServer) -> None:
    api = WebUIApi(baseurl=f"{gateway.url}/sdapi/v1", sampler="Euler")
    result = api.img2img(
        images=[Image.fromarray(INIT[0])], prompt=PROMPT, seed=7, steps=6, cfg_scale=1, denoising_strength=0.8,
        width=64, height=64, resize_mode=1,
    )  # fmt: skip
    assert np.asarray(result.image).shape == (64, 64, 3)
    with pytest.raises(RuntimeError, match="inpainting_fill is 0; allowed with a mask: 1"):
        api.img2img(images=[Image.fromarray(INIT[0])], mask_image=Image.fromarray(MASK[0]), prompt=PROMPT)


def test_a_soft_edge_mixes_old_and_new(gateway: GatewayThread, server: TritonServer) -> None:
    """The client's default: a deviation of four pixels."""
    api = WebUIApi(baseurl=f"{gateway.url}/sdapi/v1", sampler="Euler")
    result = api.img2img(
        images=[Image.fromarray(INIT[0])], mask_image=Image.fromarray(MASK[0]), inpainting_fill=1,
        inpaint_full_res=False, denoising_strength=0.8, prompt=PROMPT, seed=7, steps=6, cfg_scale=1,
        width=128, height=96,
    )  # fmt: skip
    got, old = np.asarray(result.image).astype(int), INIT[0].astype(int)
    far = box(96, 128, 2, 10, 78, 114)[0] == 0
    assert (got[far] == old[far]).all()
    more = {"PROMPT_SYNTAX": "weighted", "SCHEDULER": "euler"}
    soft = np.asarray(Image.fromarray(MASK[0]).filter(ImageFilter.GaussianBlur(4)))
    new = generate(server, "sdxl", **FIELDS, **more, INIT_IMAGE=INIT, MASK_IMAGE=soft[None]).image.astype(int)
    assert (got[soft >= 128] == new[soft >= 128]).all()
    assert "Denoising strength: 0.8" in result.info["infotexts"][0]


def test_a_part_alone_is_painted_in_the_size_of_a_whole(gateway: GatewayThread) -> None:
    """The client's default too; the answer is of the old picture's size."""
    api = WebUIApi(baseurl=f"{gateway.url}/sdapi/v1", sampler="Euler")
    large, mask = picture(200, 300)[0], box(200, 300, 80, 100, 120, 150)[0]
    result = api.img2img(
        images=[Image.fromarray(large)], mask_image=Image.fromarray(mask), inpainting_fill=1,
        inpaint_full_res_padding=8, prompt=PROMPT, seed=7, steps=6, cfg_scale=1, width=128, height=128,
    )  # fmt: skip
    got = np.asarray(result.image)
    assert got.shape == large.shape
    far = box(200, 300, 60, 80, 140, 170)[0] == 0
    assert (got[far] == large[far]).all()
    assert (got[95:105, 115:135] != large[95:105, 115:135]).any(axis=2).mean() > 0.9
