"""What a request asks of a shard: of a mask-aware one no more than it is sure to."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edits import box, picture
from parsed_edits import parse
from swiftdiffusion.python_backends.engine.work import Work

SIZE = 128, 64
SMALL, LARGE = box(*SIZE, 0, 0, 40, 40), box(*SIZE, 0, 0, 100, 60)
OWN = '{"source": "own", "exact_steps": %s}'


def work(**fields: Any) -> Work:
    request, _ = parse(INIT_IMAGE=picture(*SIZE), STRENGTH=1.0, **fields)
    return Work.of(request)


@pytest.mark.parametrize(
    ("asked", "masked"),
    [
        ("fast", 12),  # 14 by its own steps; where it tries and goes by a template, five may lack an entry
        ("balanced", 10),
        ("exact", 0),
        (OWN % "[]", 18),
        (OWN % "[0, 5, 19]", 16),
        (OWN.replace("own", "template") % "[]", 0),
        (OWN.replace("own", "auto") % "[]", 14),
        (OWN % '"fast"', 14),
    ],
)
def test_steps_count_as_masked_that_are_whatever_is_known(asked: str, masked: int) -> None:
    found = work(MASK_IMAGE=SMALL, MASK_AWARE=asked)
    assert (found.steps, found.masked_steps, bool(found.masked)) == (20, masked, masked > 0)
    assert found.shared(1).rows == (2 if masked else 1)


@pytest.mark.parametrize("fields", [{"MASK_IMAGE": LARGE}, {"MASK_IMAGE": SMALL, "STEPS": 15}, {}])
def test_where_nothing_will_be_left_out_none_does(fields: dict[str, Any]) -> None:
    aware = {"MASK_AWARE": "fast"} if "MASK_IMAGE" in fields else {}
    assert work(**fields, **aware).masked_steps == 0


def test_whatever_may_come_or_go_costs_two_steps() -> None:
    always, late = (
        [{"name": "inpaint", "picture": "inpaint", **window}] for window in ({}, {"start": 0.2, "end": 0.8})
    )
    fields = {"MASK_IMAGE": SMALL, "MASK_AWARE": "fast"}
    assert work(**fields, CONTROLNETS=json.dumps(always)).masked_steps == 12
    assert work(**fields, CONTROLNETS=json.dumps(late)).masked_steps == 8
