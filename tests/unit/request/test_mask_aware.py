"""MASK_AWARE: presets and JSON, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edits import box, picture
from swiftdiffusion.python_backends.common.errors import InvalidRequestError
from swiftdiffusion.python_backends.lora.loading.catalogue import Catalogue
from swiftdiffusion.python_backends.networks.token_masks import sizes_of, token_mask
from swiftdiffusion.python_backends.request.completed import CompletedRequest
from swiftdiffusion.python_backends.request.mask_aware import LEVELS, MaskAware, parts_of
from swiftdiffusion.python_backends.request.parsing import parse_request
from swiftdiffusion.python_backends.request.rules import RequestRules
from wire import array

RULES = RequestRules(
    steps=20, guidance_scale=5.0, height=64, width=64, size_multiple=8, max_size=128, own_scheduler="", latent_cell=4
)
FIELDS: dict[str, Any] = {"PROMPT": "a cat", "INIT_IMAGE": picture(64, 64), "STRENGTH": 0.5}
MASK = {"MASK_IMAGE": box(64, 64, 8, 8, 32, 32)}


def parsed(**fields: Any) -> CompletedRequest:
    arrays = {name: value if isinstance(value, np.ndarray) else array(name, value) for name, value in fields.items()}
    return parse_request({name: tensor[0] for name, tensor in arrays.items()}, RULES, Catalogue(None))


def aware(text: str, **fields: Any) -> MaskAware | None:
    completed = parsed(**FIELDS | MASK | fields, MASK_AWARE=text)
    again = CompletedRequest.from_json(completed.to_json())
    assert again == completed and again.edit is not None
    return again.edit.mask_aware


def test_exact_is_what_an_absent_one_means() -> None:
    edit = parsed(**FIELDS, **MASK).edit
    assert edit is not None and edit.mask_aware is None and aware("exact") is None


def test_presets_name_steps_of_those_that_are_taken() -> None:
    fast, balanced = aware("fast"), aware("balanced")
    assert fast == MaskAware("auto", "fast") and balanced == MaskAware("auto", "balanced")
    assert (sorted(fast.exact("own", 10)), sorted(balanced.exact("own", 10))) == ([0, 1, 5, 9], [0, 1, 4, 7])
    assert sorted(fast.exact("own", 19)) == [0, 1, 5, 9, 13, 17]
    assert (sorted(fast.exact("template", 20)), sorted(balanced.exact("template", 20))) == ([10, 19], [5, 10, 15, 19])
    assert sorted(balanced.exact("template", 1)) == [0]


def test_json_names_them_one_by_one() -> None:
    assert aware('{"source": "own", "exact_steps": [0, 9]}') == MaskAware("own", (0, 9))
    assert aware('{"source": "template", "exact_steps": []}') == MaskAware("template", ())
    assert aware('{"source": "own", "exact_steps": "fast"}') == MaskAware("own", "fast")


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 4), st.data())
def test_parts_are_what_the_shard_pads_to(height: int, width: int, levels: int, data: st.DataObject) -> None:
    cells = data.draw(st.sets(st.integers(0, height * width - 1), min_size=1, max_size=60))
    mask = np.zeros(height * width, np.uint8)
    mask[list(cells)] = 1
    mask = mask.reshape(height, width)
    parts = parts_of(mask)
    assert sizes_of(parts, height, width)[:levels] == token_mask(torch.from_numpy(mask), levels).sizes
    assert len(parts) == LEVELS


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("quick", 'MASK_AWARE is "quick"; allowed: exact, fast, balanced, or JSON such as'),
        ('{"source": "own"}', "MASK_AWARE.exact_steps is missing; allowed: fast, balanced, or a list of steps from 0"),
        ('{"sources": "own", "exact_step": "fast"}', 'MASK_AWARE has the key "sources"; allowed: source, exact_steps'),
        ('{"exact_steps": [1]}', "MASK_AWARE.source is missing; allowed: auto, template, own"),
        (
            '{"source": "own", "exact_steps": [10]}',
            "MASK_AWARE.exact_steps has 10; allowed: 0 to 9: STRENGTH 0.5 of 20 STEPS makes 10",
        ),
        ('{"source": "own", "exact_steps": [-1]}', "MASK_AWARE.exact_steps[0] is -1; allowed: fast, balanced, or a"),
        ('{"source": "own", "exact_steps": "quick"}', 'MASK_AWARE.exact_steps is "quick"; allowed: fast, balanced, or'),
        ('{"source": "own", "exact_steps": 3}', "MASK_AWARE.exact_steps is 3; allowed: fast, balanced, or a list"),
        ('{"source": "mine", "exact_steps": []}', 'MASK_AWARE.source is "mine"; allowed: auto, template, own'),
        ('{"source": "own", "exact_steps": [], "x": 1}', 'MASK_AWARE has the key "x"; allowed: source, exact_steps'),
        ('{"source": "own", "exact_steps": [], "steps": 1}', 'MASK_AWARE has the key "steps"; allowed: source, exact'),
        ('{"source": "own", "exact_steps": []', "which is not JSON (Invalid JSON: EOF while parsing an object"),
        ("{'source': 'own'}", "which is not JSON (Invalid JSON: key must be a string"),
        ("[]", 'MASK_AWARE is "[]"; allowed: exact, fast, balanced, or JSON such as'),
        ("3", 'MASK_AWARE is "3"; allowed: exact, fast, balanced, or JSON such as'),
        ("[" * 600, "MASK_AWARE is "),
        ("x" * 5000, "MASK_AWARE has 5000 characters; allowed: at most 4096"),
    ],
)
def test_what_is_refused(text: str, said: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        aware(text)
    assert said in str(caught.value) and len(str(caught.value)) < 400


def test_it_wants_a_mask() -> None:
    with pytest.raises(InvalidRequestError, match='MASK_AWARE is "fast"; allowed without MASK_IMAGE: exact'):
        parsed(**FIELDS, MASK_AWARE="fast")
    assert parsed(**FIELDS, MASK_AWARE="exact").edit is not None


@given(st.text(max_size=40))
def test_any_text_is_understood_or_refused(text: str) -> None:
    try:
        aware(text)
    except InvalidRequestError as error:
        assert "MASK_AWARE" in str(error)
