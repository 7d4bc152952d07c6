"""Requests with a picture to start from, parsed as `preprocess` does it."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edits import KeptHere
from swiftdiffusion.python_backends.common.errors import InvalidRequestError
from swiftdiffusion.python_backends.lora.loading.catalogue import Catalogue
from swiftdiffusion.python_backends.request.controlnets import KnownControlNet
from swiftdiffusion.python_backends.request.parsing import parse_request
from swiftdiffusion.python_backends.request.rules import RequestRules
from wire import array

if TYPE_CHECKING:
    from PIL import Image

    from swiftdiffusion.python_backends.request.completed import CompletedRequest

RULES = RequestRules(20, 5.0, 128, 64, 8, 256, "EulerDiscreteScheduler")


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


def picture_file(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()
