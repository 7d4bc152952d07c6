"""Pictures of strangers to start from, through both APIs: what they show is painted on, or a sentence says why not."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from typing import TYPE_CHECKING, Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from edits import picture
from wire import PROMPT, generate

if TYPE_CHECKING:
    from gateways import GatewayThread
    from swiftdiffusion.python_backends.launcher import TritonServer

NOISE = Image.fromarray(picture(64, 96)[0])
FIELDS: dict[str, Any] = {"PROMPT": PROMPT, "SEED": 7, "STEPS": 4, "GUIDANCE_SCALE": 1.0, "STRENGTH": 0.5}


def file(made: Image.Image, file_format: str = "PNG", **how: Any) -> bytes:
    stream = io.BytesIO()
    made.save(stream, file_format, **how)
    return stream.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return file(NOISE, exif=exif)


def bomb(side: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10**7), 9)) + chunk(b"IEND", b"")


GOOD = {
    "PNG": file(NOISE),
    "CMYK": file(NOISE.convert("CMYK"), "JPEG"),
    "16 bits": file(Image.fromarray(np.asarray(NOISE.convert("L")).astype(np.uint16) * 257)),
    "turned": turned(),
    "palette": file(NOISE.convert("P")),
    "WebP": file(NOISE, "WEBP", lossless=True),
    "1x1": file(Image.new("RGB", (1, 1), "red")),
    "4096x1": file(Image.new("RGB", (4096, 1), "red")),
    "1x4096": file(Image.new("L", (1, 4096), 77)),
}
BAD = {
    "bomb": bomb(12_000),
    "large bomb": bomb(50_000),
    "truncated PNG": GOOD["PNG"][:9_000],
    "truncated JPEG": GOOD["CMYK"][:2_000],
    "GIF": file(NOISE, "GIF"),
    "text": b"a cat",
    "nothing": b"",
}


def edit(gateway: GatewayThread, files: dict[str, bytes], **more: str) -> httpx2.Response:
    data = {"prompt": PROMPT, "seed": "7", "num_inference_steps": "4", "guidance_scale": "1", "strength": "0.5", **more}
    named = {name: ("a", content) for name, content in files.items()}
    return httpx2.post(f"{gateway.url}/v1/images/edits", files=named, data=data, timeout=60)


def img2img(gateway: GatewayThread, **values: Any) -> httpx2.Response:
    asked = {"prompt": "a cat", "seed": 7, "steps": 4, "cfg_scale": 1, "inpainting_fill": 1, **values}
    return httpx2.post(f"{gateway.url}/sdapi/v1/img2img", json=asked, timeout=60)


def text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def pixels(given: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(given))).convert("RGB"))


@pytest.mark.parametrize("kind", GOOD)
def test_unusual_pictures_are_what_they_show(kind: str, gateway: GatewayThread, server: TritonServer) -> None:
    """As the server sees their file."""
    answer = edit(gateway, {"image": GOOD[kind]}, size="64x64")
    assert answer.status_code == 200, answer.text[:300]
    encoded = np.array([[GOOD[kind]]], dtype=np.object_)
    wanted = generate(server, "sdxl", **FIELDS, ENCODED_INIT_IMAGE=encoded, HEIGHT=64, WIDTH=64).image
    assert (pixels(answer.json()["data"][0]["b64_json"]) == wanted).all()
    assert img2img(gateway, init_images=[text(GOOD[kind])], width=64, height=64).status_code == 200


@pytest.mark.parametrize("kind", GOOD)
def test_unusual_masks_are_read_or_mask_nothing(kind: str, gateway: GatewayThread) -> None:
    answer = edit(gateway, {"image": GOOD["PNG"], "mask": GOOD[kind]}, size="64x64")
    error = answer.json().get("error", {})
    assert answer.status_code == 200 or error["message"].startswith("MASK_IMAGE is below 128")
    answer = img2img(gateway, init_images=[text(GOOD["PNG"])], mask=text(GOOD[kind]), width=64, height=64)
    assert answer.status_code == 200 or answer.json()["detail"].startswith("MASK_IMAGE is below 128")


def test_a_turned_picture_has_the_size_that_it_shows(gateway: GatewayThread) -> None:
    assert edit(gateway, {"image": GOOD["turned"]}).json()["size"] == "64x96"
    made = img2img(gateway, init_images=[text(GOOD["turned"])]).json()["images"][0]
    assert pixels(made).shape == (96, 64, 3)


@pytest.mark.parametrize("kind", ["1x1", "4096x1", "1x4096"])
def test_sizes_that_are_not_made_are_named(kind: str, gateway: GatewayThread) -> None:
    answer = edit(gateway, {"image": GOOD[kind]})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(f"image is {kind}; allowed where size is auto: 8 to 512")


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_picture_is_refused_by_its_field(kind: str, gateway: GatewayThread) -> None:
    for files in ({"image": BAD[kind]}, {"image": GOOD["PNG"], "mask": BAD[kind]}):
        answer = edit(gateway, files)
        error, field = answer.json()["error"], list(files)[-1]
        assert (answer.status_code, error["param"]) == (400, field)
        assert error["message"].startswith(f"{field} is ") and "; allowed: " in error["message"]
    for values in ({"init_images": [text(BAD[kind])]}, {"init_images": [text(GOOD["PNG"])], "mask": text(BAD[kind])}):
        answer = img2img(gateway, **values)
        if BAD[kind] or "mask" not in values:  # an empty text is no mask
            assert answer.status_code == 400
            assert answer.json()["detail"].startswith(f"{list(values)[-1]} is ")


def test_an_animation_is_a_sentence_or_its_first_picture(gateway: GatewayThread) -> None:
    moving = file(NOISE, save_all=True, append_images=[Image.new("RGB", NOISE.size)])
    answer = edit(gateway, {"image": moving})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "image"
    assert "has 2 pictures, one after the other; allowed: one" in answer.json()["error"]["message"]
    first, alone = (img2img(gateway, init_images=[text(each)]).json()["images"][0] for each in (moving, GOOD["PNG"]))
    assert (pixels(first) == pixels(alone)).all()
