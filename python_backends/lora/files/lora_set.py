"""Which LoRAs at which scales: what a shard is told to make resident. Needs no torch."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints, TypeAdapter, ValidationError

from ...common.errors import InvalidRequestError

LoraSet = tuple[tuple[str, float], ...]
"""(key, scale) pairs, sorted; the key is the name of a canonical file in the host cache, without its suffix."""

NO_LORAS: LoraSet = ()

_Key = Annotated[str, StringConstraints(pattern="^[0-9a-f]{16,64}$")]
_SETS = TypeAdapter(tuple[tuple[_Key, Annotated[float, Field(allow_inf_nan=False, ge=-1000, le=1000)]], ...])


def make_set(loras: dict[Path, float]) -> LoraSet:
    """The set of canonical files (path → scale)."""
    return tuple(sorted((path.stem, scale) for path, scale in loras.items()))


def set_to_json(loras: LoraSet) -> str:
    """The set as it travels to a shard or to the text encoder."""
    return json.dumps(loras)


@lru_cache(maxsize=256)
def set_from_json(text: str) -> LoraSet:
    """The set that `set_to_json` wrote.

    Raises:
        InvalidRequestError: If the text is anything else (a client called an inner model by itself).
    """
    try:
        return tuple(sorted(_SETS.validate_json(text)))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise InvalidRequestError(f"LORA_SET is not what a denoiser writes: {first['msg']}") from None
