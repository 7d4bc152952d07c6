"""Which optimisation profile of an engine serves a call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..common.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .metadata import Bounds, Shape


class EngineShapeError(InvalidRequestError):
    """A call whose tensors no profile of the engine holds."""


def choose_profile(shapes: Mapping[str, Shape], profiles: Sequence[Mapping[str, Bounds]]) -> int:
    """The first profile that was made for these very shapes, else the first that holds them.

    Args:
        shapes: Input → shape.
        profiles: Of the engine, in their order.

    Returns:
        Its index.

    Raises:
        EngineShapeError: If there is none, or inputs are missing or unknown.
    """
    wanted = set(profiles[0])
    if set(shapes) != wanted:
        raise EngineShapeError(f"the inputs are {sorted(shapes)}; this engine takes {sorted(wanted)}")
    for fits in (_is_best, _holds):
        for index, profile in enumerate(profiles):
            if all(fits(bounds, shapes[name]) for name, bounds in profile.items()):
                return index
    apart = [
        name for name, shape in shapes.items() if not any(_holds(profile[name], shape) for profile in profiles)
    ]  # empty where each input alone would fit some profile
    name = min(apart or shapes)
    allowed = ", ".join(_text(profile[name]) for profile in profiles)
    given = f"{name} is {list(shapes[name])}" if apart else f"the inputs are {dict(shapes)}, which fit no one profile"
    raise EngineShapeError(f"{given}; {name} of this engine may be {allowed}")


def _is_best(bounds: Bounds, shape: Shape) -> bool:
    return bounds[1] == shape


def _holds(bounds: Bounds, shape: Shape) -> bool:
    low, _, high = bounds
    return len(shape) == len(low) and all(a <= side <= b for a, side, b in zip(low, shape, high, strict=True))


def _text(bounds: Bounds) -> str:
    low, _, high = bounds
    return str(list(low)) if low == high else f"{list(low)} to {list(high)}"
