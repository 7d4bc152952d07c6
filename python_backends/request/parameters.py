"""Request parameters: what a client's JSON holds beside its inputs. Needs no torch.

Triton's HTTP `generate` makes a parameter of every key that is no input, so that a misspelt input would be left out
without a word.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING

from ..common.errors import InvalidRequestError
from ..common.sentences import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

READ_BY_TRITON = {"id"}
"""Keys that Triton's front ends read and hand on all the same."""

OTHER_NAMES = {
    "NUM_INFERENCE_STEPS": "STEPS",
    "CFG": "GUIDANCE_SCALE",
    "CFG_SCALE": "GUIDANCE_SCALE",
    "NEGATIVE": "NEGATIVE_PROMPT",
    "CFG_RESCALE": "GUIDANCE_RESCALE",
    "SAMPLER": "SCHEDULER",
    "SAMPLER_NAME": "SCHEDULER",
    "SAMPLER_INDEX": "SCHEDULER",
    "SIZE": "HEIGHT",
    "IMAGE": "INIT_IMAGE",
    "INIT_IMAGES": "INIT_IMAGE",
    "MASK": "MASK_IMAGE",
    "DENOISING_STRENGTH": "STRENGTH",
}
"""What other APIs call an input."""


LIKENESS = 0.71
"""Of names that may be meant for one another, by difflib's measure."""


def refuse_unread(parameters: Iterable[str], inputs: Sequence[str], ignored: str) -> None:
    """Nothing, if every parameter is one that somebody reads.

    Args:
        parameters: Names of a request's parameters.
        inputs: Names of the inputs that there are.
        ignored: Regular expression of names that are let pass; empty for none.

    Raises:
        InvalidRequestError: At the first that nobody reads, with the nearest input.
    """
    for name in parameters:
        if name in READ_BY_TRITON or (ignored and re.fullmatch(ignored, name)):
            continue
        near = OTHER_NAMES.get(name.upper())
        near = near or next(iter(difflib.get_close_matches(name.upper(), inputs, n=1, cutoff=LIKENESS)), None)
        allowed = f"the nearest input is {near}" if near else f"the inputs {', '.join(inputs)}"
        raise InvalidRequestError(f"{shown(name)} is no input; allowed: {allowed} (upper case, as tensors)")
