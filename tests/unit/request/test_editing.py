"""Pictures to start from: what is taken, completed and refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from diffusers.image_processor import VaeImageProcessor
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edits import KeptHere, box, picture
from parsed_edits import parse, picture_file, refusal
from swiftdiffusion.python_backends.common.errors import ImageUnavailableError
from swiftdiffusion.python_backends.request.completed import CompletedRequest
from swiftdiffusion.python_backends.request.rules import RequestRules

ONLY_INPAINTS = RequestRules(20, 5.0, 128, 64, 8, 256, "EulerDiscreteScheduler", only_inpaints=True)
MASK = box(40, 48, 8, 8, 24, 24)


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
        ({"INIT_IMAGE": picture(40, 48), "STRENGTH": 1.5}, "STRENGTH is 1.5; allowed: above 0 to 1"),
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
            {"INIT_IMAGE": picture(40, 48), "ENCODED_INIT_IMAGE": picture_file(Image.new("RGB", (8, 8)))},
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
