"""What a LoRA adds to one module's weight, in the few forms that every format comes down to.

A term's delta is a matrix [out, in·k] over the weight with its convolution kernel flattened:

| form | tensors | delta |
|---|---|---|
| `low_rank` | up [out, r], down [r, in·k] | up · down |
| `hadamard` (LoHa) | up, down, up_2, down_2 | (up · down) ∘ (up_2 · down_2) |
| `kronecker` (LoKr) | left [a, b], right [out/a, in·k/b] | left ⊗ right |
| `dense` | delta [out, in·k] | delta |

each times `scale` (alpha ÷ rank, kept beside the factors and not multiplied into them: a half-precision file stays
exact). DoRA is a `low_rank` term over rescaled factors plus `row` [out, 1] or `column` [1, in·k], which multiplies the
base weight itself; IA3 is nothing but such a row or column. A norm's weight and a bias are columns: [features, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ...common.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    Factors = Mapping[str, torch.Tensor]

Tensors = dict[str, torch.Tensor]
DORA_ROLES = frozenset(("dora_scale", "magnitude"))
_RANKED = ("down", "hada_w1_b", "lokr_w1_b", "lokr_w2_b", "a2")
_UNSCALED = frozenset(("diff", "weight", "oft_blocks"))


@dataclass(frozen=True)
class Place:
    """What a term is for.

    Attributes:
        shape: Of the weight: [out, in] or [out, in, kh, kw]; of a norm's weight or a bias [features].
        weight: Reads it.
        max_rank: Highest rank.
    """

    shape: tuple[int, ...]
    weight: Callable[[], torch.Tensor]
    max_rank: int


@dataclass(frozen=True)
class Term:
    """One module's part of a LoRA.

    Attributes:
        form: `low_rank`, `hadamard`, `kronecker` or `dense`.
        tensors: By the names of the table above; of the file's precision.
        scale: alpha ÷ rank.
    """

    form: str
    tensors: Tensors
    scale: float


def rank_of(tensors: Mapping[str, torch.Tensor]) -> int | None:
    """The rank of a module's factors, by their roles; None where they have none."""
    ranked = next((tensors[role] for role in _RANKED if role in tensors), None)
    return None if ranked is None or not ranked.ndim else ranked.shape[0]


def has_scale(roles: Collection[str]) -> bool:
    """Whether alpha ÷ rank scales a module's tensors: not differences, IA3, and OFT, whose alpha is a constraint."""
    return not _UNSCALED.intersection(roles)


def delta(form: str, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The delta [..., out, in·k] of one term or of a stack of them, before `scale`, `row` and `column`; float32."""
    parts = {name: tensor.float() for name, tensor in tensors.items()}
    if form == "low_rank":
        return parts["up"] @ parts["down"]
    if form == "hadamard":
        return (parts["up"] @ parts["down"]).mul_(parts["up_2"] @ parts["down_2"])
    if form == "kronecker":
        left, right = parts["left"], parts["right"]
        product = left[..., :, None, :, None] * right[..., None, :, None, :]
        return product.flatten(-4, -3).flatten(-2, -1)
    return parts["delta"]


def matrix(tensor: torch.Tensor, name: str) -> torch.Tensor:
    """A factor with its kernel flattened.

    Raises:
        InvalidRequestError: If it is none.
    """
    if tensor.ndim not in (2, 4) or 0 in tensor.shape:
        raise InvalidRequestError(f"its {name} has the shape {list(tensor.shape)}; wanted: two or four dimensions")
    return tensor.flatten(1)


def flat(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a weight with its kernel flattened."""
    return shape[0], math.prod(shape[1:])


def check_pair(up: torch.Tensor, down: torch.Tensor, place: Place) -> int:
    """The rank of two factors.

    Raises:
        InvalidRequestError: If they do not make a weight of that shape, or the rank is too high.
    """
    rank = down.shape[0]
    if not 1 <= rank <= place.max_rank:
        raise InvalidRequestError(f"its rank is {rank}; allowed: 1 to {place.max_rank}")
    rows, columns = flat(place.shape)
    if tuple(up.shape) != (rows, rank) or tuple(down.shape) != (rank, columns):
        raise InvalidRequestError(
            f"its factors are {list(up.shape)} and {list(down.shape)}; "
            f"wanted for this checkpoint: [{rows}, rank] and [rank, {columns}]"
        )
    return rank


def finite(**tensors: torch.Tensor) -> Tensors:
    """Tensors by their names, computed from finite ones.

    Raises:
        InvalidRequestError: If they overflowed.
    """
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise InvalidRequestError(f"its numbers are too large: its {name} does not fit into float32")
    return tensors


def scale_of(alpha: float | None, rank: int) -> float:
    """Alpha ÷ rank; 1 without alpha, and for an alpha of 0."""
    return 1.0 if not alpha else alpha / rank
