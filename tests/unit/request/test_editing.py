"""Pictures to start from: what is taken, completed and refused; files of strangers."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import load_image
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edits import KeptHere, box, picture
from swiftdiffusion.python_backends.common.errors import ImageUnavailableError, InvalidRequestError
from swiftdiffusion.python_backends.lora.loading.catalogue import Catalogue
from swiftdiffusion.python_backends.request.completed import CompletedRequest
from swiftdiffusion.python_backends.request.controlnets import KnownControlNet
from swiftdiffusion.python_backends.request.parsing import parse_request
from swiftdiffusion.python_backends.request.rules import RequestRules
from wire import array

RULES = RequestRules(20, 5.0, 128, 64, 8, 256, "EulerDiscreteScheduler")
ONLY_INPAINTS = RequestRules(20, 5.0, 128, 64, 8, 256, "EulerDiscreteScheduler", only_inpaints=True)
MASK = box(40, 48, 8, 8, 24, 24)


def parse(
    rules: RequestRules = RULES, kept: KeptHere | None = None, **fields: Any
) -> tuple[CompletedRequest, KeptHere]:
    """A request, and its pictures by key."""
    kept = KeptHere() if kept is None else kept
    arrays = {name: value if isinstance(value, np.ndarray) else array(name, value) for name, value in fields.items()}
    request = parse_request(
        {name: tensor[0] for name, tensor in ({"PROMPT": array("PROMPT", "a cat")} | arrays).items()},
        rules,
        Catalogue(None),
        {"inpaint": KnownControlNet(), "union": KnownControlNet(control_modes=4)},
        kept.put,
    )
    return request, kept


def refusal(rules: RequestRules = RULES, **fields: Any) -> str:
    with pytest.raises(InvalidRequestError) as refused:
        parse(rules, **fields)
    return str(refused.value)


def png(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_a_request_without_a_picture_begins_with_noise() -> None:
    assert parse()[0].edit is None


def test_absent_values_are_the_pictures_and_the_checkpoints() -> None:
    request, kept = parse(INIT_IMAGE=picture(45, 50))
    assert request.edit is not None
    assert (request.height, request.width, request.edit.strength, request.edit.skipped) == (40, 48, 0.3, 14)
    assert (request.edit.kind, request.edit.mask, request.evaluations) == ("image_to_image", None, 6)
    assert kept[request.edit.picture].shape == (40, 48, 3)
    masked, kept = parse(INIT_IMAGE=picture(40, 48), MASK_IMAGE=MASK)
    assert masked.edit is not None and masked.edit.mask is not None
    assert (masked.edit.kind, masked.edit.strength, masked.edit.skipped) == ("inpaint", 0.9999, 1)
    assert set(np.unique(kept[masked.edit.mask])) == {0, 1}
    assert masked.pictures == (masked.edit.picture, masked.edit.mask)
    assert CompletedRequest.from_json(masked.to_json()) == masked


@pytest.mark.parametrize("size", [(40, 48), (64, 128)])
def test_pictures_and_masks_are_resized_as_diffusers_does(size: tuple[int, int]) -> None:
    height, width = size
    rng = np.random.default_rng(1)
    given, mask = picture(57, 83), rng.integers(0, 256, (1, 100, 90), np.uint8)
    request, kept = parse(INIT_IMAGE=given, MASK_IMAGE=mask, HEIGHT=height, WIDTH=width)
    assert request.edit is not None and request.edit.mask is not None
    of_picture = VaeImageProcessor(vae_scale_factor=8, do_normalize=False)
    of_mask = VaeImageProcessor(8, do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    pixels = of_picture.preprocess(Image.fromarray(given[0]), height, width)[0].permute(1, 2, 0).numpy()
    assert np.array_equal(kept[request.edit.picture].astype(np.float32) / 255, pixels)
    binary = of_mask.preprocess(Image.fromarray(mask[0]), height, width)[0, 0].numpy()
    assert np.array_equal(kept[request.edit.mask], binary)


@given(st.integers(1, 100), st.integers(1, 100))
def test_strengths_are_the_decimals_that_clients_wrote(steps: int, hundredths: int) -> None:
    """diffusers takes `int(steps * strength)` of a Python float; float32 of 0.7 is below it."""
    strength = hundredths / 100
    kept = int(steps * strength)
    if kept:
        request, _ = parse(INIT_IMAGE=picture(40, 48), STRENGTH=strength, STEPS=steps)
        assert request.edit is not None
        assert (request.edit.strength, steps - request.edit.skipped) == (strength, kept)
    else:
        said = refusal(INIT_IMAGE=picture(40, 48), STRENGTH=strength, STEPS=steps)
        least = float(said.partition("allowed with ")[2].split()[2])
        assert int(steps * least) == 1 and f"STRENGTH is {strength:g}; allowed with {steps} STEPS: " in said


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"MASK_IMAGE": MASK}, "MASK_IMAGE is there, and INIT_IMAGE is missing; required: both"),
        ({"STRENGTH": 0.5}, "STRENGTH is there, and INIT_IMAGE is missing; required: both"),
        ({"INIT_IMAGE": picture(40, 48), "STRENGTH": 1.5}, "STRENGTH is 1.5; allowed: 0 to 1"),
        ({"INIT_IMAGE": picture(40, 48), "STRENGTH": 0.04}, "STRENGTH is 0.04; allowed with 20 STEPS: 0.05 to 1"),
        ({"INIT_IMAGE": picture(40, 48), "COMPOSITE": True}, "COMPOSITE is true; allowed: only with MASK_IMAGE"),
        ({"INIT_IMAGE": picture(1, 1)}, "INIT_IMAGE is 1 high; allowed without HEIGHT: 8 to 256"),
        ({"INIT_IMAGE": picture(40, 264)}, "INIT_IMAGE is 264 wide; allowed without WIDTH: 8 to 256"),
        ({"INIT_IMAGE": picture(1, 4097)}, "INIT_IMAGE is 1 high and 4097 wide; allowed: 1 to 4096"),
        ({"INIT_IMAGE": picture(40, 0)}, "INIT_IMAGE is 40 high and 0 wide; allowed: 1 to 4096"),
        ({"INIT_IMAGE": picture(40, 48), "MASK_IMAGE": MASK * 0}, "MASK_IMAGE is below 128 at the first pixel"),
        (
            {"INIT_IMAGE": picture(40, 48), "MASK_IMAGE": box(40, 48, 9, 9, 16, 16)},
            "MASK_IMAGE is below 128 at the first pixel of every 8 x 8 cell",
        ),
        ({"ENCODED_INIT_IMAGE": "no picture"}, 'ENCODED_INIT_IMAGE begins with "no picture"; allowed: a PNG, JPEG'),
        (
            {"INIT_IMAGE": picture(40, 48), "ENCODED_INIT_IMAGE": png(Image.new("RGB", (8, 8)))},
            "INIT_IMAGE is there, and ENCODED_INIT_IMAGE too; allowed: one of them",
        ),
    ],
)
def test_what_is_refused(fields: dict[str, Any], said: str) -> None:
    assert said in refusal(**fields)


def test_a_checkpoint_that_only_inpaints_wants_both() -> None:
    wanted = "MASK_IMAGE is missing; required: this checkpoint only inpaints"
    assert refusal(ONLY_INPAINTS) == refusal(ONLY_INPAINTS, INIT_IMAGE=picture(40, 48)) == wanted
    assert parse(ONLY_INPAINTS, INIT_IMAGE=picture(40, 48), MASK_IMAGE=MASK)[0].edit is not None


def test_an_extreme_shape_is_resized_where_a_size_is_asked_for() -> None:
    request, kept = parse(INIT_IMAGE=picture(4096, 1), HEIGHT=64, WIDTH=64)
    assert request.edit is not None and kept[request.edit.picture].shape == (64, 64, 3)


RGB = Image.fromarray(picture(40, 48)[0])
GREY16 = np.random.default_rng(2).integers(0, 65536, (40, 48), np.uint16)


@pytest.mark.parametrize("travels", [lambda file: file, base64.b64encode, base64.encodebytes])
@pytest.mark.parametrize(
    ("file", "wanted"),
    [
        (png(RGB), np.asarray(RGB)),
        (png(RGB, "WEBP", lossless=True), np.asarray(RGB)),
        (png(RGB, "JPEG"), np.asarray(load_image(Image.open(io.BytesIO(png(RGB, "JPEG")))))),
        (
            png(RGB.convert("CMYK"), "JPEG"),
            np.asarray(Image.open(io.BytesIO(png(RGB.convert("CMYK"), "JPEG"))).convert("RGB")),
        ),
        (png(RGB.convert("P")), np.asarray(RGB.convert("P").convert("RGB"))),
        (png(RGB.convert("L")), np.asarray(RGB.convert("L").convert("RGB"))),
        (png(Image.fromarray(GREY16)), np.repeat((GREY16 >> 8).astype(np.uint8)[..., None], 3, 2)),
        (png(Image.fromarray(np.dstack([np.asarray(RGB), np.asarray(RGB)[..., 0]]))), np.asarray(RGB)),
        (
            png(RGB, exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"),
            np.rot90(np.asarray(RGB), -1),
        ),
        (
            png(RGB, "MPO", save_all=True, append_images=[RGB.rotate(90)]),
            np.asarray(Image.open(io.BytesIO(png(RGB, "JPEG")))),
        ),
    ],
    ids=["png", "webp", "jpeg", "cmyk", "palette", "grey", "16 bits", "transparent", "rotated", "a camera's two"],
)
def test_files_are_the_pictures_that_they_show(
    file: bytes, wanted: np.ndarray, travels: Callable[[bytes], bytes]
) -> None:
    request, kept = parse(ENCODED_INIT_IMAGE=travels(file))
    assert request.edit is not None
    assert np.array_equal(kept[request.edit.picture], wanted)


def test_masks_of_files_are_what_is_bright() -> None:
    mask = Image.fromarray(np.repeat(MASK[0][..., None], 3, 2))
    request, kept = parse(INIT_IMAGE=picture(40, 48), ENCODED_MASK_IMAGE=png(mask))
    assert request.edit is not None and request.edit.mask is not None
    assert np.array_equal(kept[request.edit.mask], MASK[0] // 255)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that says it is so large."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10_000)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (bomb(60_000, 60_000), "ENCODED_INIT_IMAGE is too large; allowed: 1 to 4096 high and wide"),
        (bomb(8000, 8000), "ENCODED_INIT_IMAGE is 8000 high and 8000 wide; allowed: 1 to 4096"),
        (bomb(4096, 4096), "ENCODED_INIT_IMAGE is no whole picture (OSError); allowed: a PNG"),
        (png(RGB)[:1000], "ENCODED_INIT_IMAGE is no whole picture"),
        (png(RGB)[:20], "ENCODED_INIT_IMAGE is no whole picture"),
        (base64.b64encode(b"GIF89a" + bytes(40)), "ENCODED_INIT_IMAGE is no whole picture (UnidentifiedImageError)"),
        (base64.b64encode(png(RGB))[:-3], "allowed: a PNG, JPEG or WebP, or base64 of one"),
        (b"", "ENCODED_INIT_IMAGE is no whole picture"),
        (
            png(RGB, save_all=True, append_images=[RGB.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]),
            "ENCODED_INIT_IMAGE has 2 pictures, one after the other; allowed: one",
        ),
        (
            png(RGB, "WEBP", save_all=True, append_images=[RGB.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]),
            "ENCODED_INIT_IMAGE has 2 pictures, one after the other; allowed: one",
        ),
    ],
    ids=[
        "bomb",
        "smaller bomb",
        "no pixels",
        "cut",
        "header",
        "gif",
        "base64 cut",
        "empty",
        "animated png",
        "animated webp",
    ],
)
def test_files_of_strangers_are_refused_in_a_sentence(file: bytes, said: str) -> None:
    assert said in refusal(ENCODED_INIT_IMAGE=file)


@given(st.binary(max_size=300), st.integers(0, 200))
def test_any_bytes_are_a_picture_or_refused(noise: bytes, at: int) -> None:
    good = png(RGB)
    for file in (noise, good[:at] + noise + good[at + len(noise) :]):
        try:
            parse(ENCODED_INIT_IMAGE=file)
        except InvalidRequestError as error:
            assert "INIT_IMAGE" in str(error)


def test_an_inpainting_controlnet_takes_what_is_to_be_kept() -> None:
    given = picture(40, 48)
    request, kept = parse(
        INIT_IMAGE=given, MASK_IMAGE=MASK, CONTROLNETS='[{"name": "inpaint", "picture": "inpaint", "scale": 0.5}]'
    )
    ((key,),) = [use.images for use in request.controlnets]
    assert np.array_equal(kept[key][..., :3], given[0])
    assert np.array_equal(kept[key][..., 3], 1 - MASK[0] // 255)
    assert key in request.pictures


@pytest.mark.parametrize(
    ("entry", "fields", "said"),
    [
        ('{"name": "inpaint", "picture": "inpaint"}', {}, "required beside it: INIT_IMAGE, MASK_IMAGE"),
        ('{"name": "inpaint", "picture": "init"}', {}, "CONTROLNETS[0].picture"),
        (
            '{"name": "union", "picture": "inpaint", "control_mode": [0, 1]}',
            {"INIT_IMAGE": picture(40, 48), "MASK_IMAGE": MASK},
            'the picture "inpaint" and 2 control modes; allowed: one',
        ),
        (
            '{"name": "inpaint", "picture": "inpaint"}',
            {"INIT_IMAGE": picture(40, 48), "MASK_IMAGE": MASK, "CONTROL_IMAGES": picture(40, 48)[None]},
            'entry of CONTROLNETS without the picture "inpaint", of a union one per control mode: 0',
        ),
    ],
)
def test_what_is_refused_of_one(entry: str, fields: dict[str, Any], said: str) -> None:
    assert said in refusal(CONTROLNETS=f"[{entry}]", **fields)


class NoRoom(KeptHere):
    def put(self, kept: np.ndarray) -> str:
        raise ImageUnavailableError("it takes 9.0 MiB")


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("INIT_IMAGE", {"INIT_IMAGE": picture(40, 48)}),
        ("MASK_IMAGE", {"INIT_IMAGE": picture(40, 48), "MASK_IMAGE": MASK}),
        ("CONTROL_IMAGES", {"CONTROLNETS": '[{"name": "inpaint"}]', "CONTROL_IMAGES": picture(40, 48)[None]}),
    ],
)
def test_the_field_is_named_whose_picture_there_is_no_room_for(field: str, fields: dict[str, Any]) -> None:
    with pytest.raises(ImageUnavailableError, match=f"^{field}: it takes 9.0 MiB"):
        parse(kept=NoRoom(), **fields)
