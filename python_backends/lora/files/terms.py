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
base weight itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ...common.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Tensors = dict[str, torch.Tensor]
DORA_ROLES = frozenset(("dora_scale", "magnitude"))
_RANKED = ("down", "hada_w1_b", "lokr_w1_b", "lokr_w2_b")


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


def make_term(
    tensors: Mapping[str, torch.Tensor],
    shape: tuple[int, ...],
    alpha: float | None,
    max_rank: int,
    base_weight: Callable[[], torch.Tensor],
) -> Term:
    """One module's tensors, by their roles in the file, as a term.

    Args:
        tensors: Role (`keys.assign`) → tensor; without `alpha`.
        shape: Of the module's weight: [out, in] or [out, in, kh, kw].
        alpha: Of the file or its metadata; None or 0 means the rank, as for kohya and LyCORIS.
        max_rank: Highest rank.
        base_weight: Reads the module's weight; called for DoRA only.

    Raises:
        InvalidRequestError: If the tensors are not one complete factorisation of that shape.
    """
    factors = {role: tensor for role, tensor in tensors.items() if role not in DORA_ROLES}
    roles = frozenset(factors)
    for form in _FORMS:
        if roles and form.required <= roles <= form.required | form.optional:
            term = form.read(factors, shape, alpha, max_rank)
            break
    else:
        raise InvalidRequestError(f"its tensors ({', '.join(sorted(roles))}) are not one complete factorisation")
    if "magnitude" in tensors:  # PEFT: per output
        return _dora(term, tensors["magnitude"].flatten(), shape, False, base_weight())
    if "dora_scale" in tensors:  # LyCORIS: [out, 1 …], or in its first versions [1, in …]
        scale = tensors["dora_scale"]
        return _dora(term, scale.flatten(), shape, scale.ndim > 1 and scale.shape[0] != shape[0], base_weight())
    return term


def _lora(factors: Mapping[str, torch.Tensor], shape: tuple[int, ...], alpha: float | None, most: int) -> Term:
    up, down = factors["up"], factors["down"]
    if "mid" in factors:
        down = _tucker(factors["mid"], _matrix(down, "lora_down"), shape, "lora_mid", most)
    up, down = _matrix(up, "lora_up"), _matrix(down, "lora_down")
    rank = _check_pair(up, down, shape, most)
    return Term("low_rank", {"up": up, "down": down}, _scale(alpha, rank))


def _loha(factors: Mapping[str, torch.Tensor], shape: tuple[int, ...], alpha: float | None, most: int) -> Term:
    tensors: Tensors = {}
    rank = 0
    for number, suffix in (("1", ""), ("2", "_2")):
        up, down = factors[f"hada_w{number}_a"], factors[f"hada_w{number}_b"]
        if f"hada_t{number}" in factors:  # rank [i, j, kh, kw] with w_a [i, out] and w_b [j, in]
            up = _matrix(up, f"hada_w{number}_a").T
            core = f"hada_t{number}"
            down = _tucker(factors[core], _matrix(down, f"hada_w{number}_b"), shape, core, most)
        up, down = _matrix(up, f"hada_w{number}_a"), _matrix(down, f"hada_w{number}_b")
        rank = _check_pair(up, down, shape, most)
        tensors |= {f"up{suffix}": up, f"down{suffix}": down}
    return Term("hadamard", tensors, _scale(alpha, rank))


def _lokr(factors: Mapping[str, torch.Tensor], shape: tuple[int, ...], alpha: float | None, most: int) -> Term:
    left, left_rank = _kronecker_factor(factors, "lokr_w1", shape, most)
    right, right_rank = _kronecker_factor(factors, "lokr_w2", shape, most)
    rank = left_rank or right_rank
    rows, columns = left.shape[0] * right.shape[0], left.shape[1] * right.shape[1]
    if (rows, columns) != _flat(shape):
        raise InvalidRequestError(f"its lokr factors make {rows} × {columns}; wanted: {_flat(shape)}")
    return Term("kronecker", {"left": left, "right": right}, 1.0 if rank is None else _scale(alpha, rank))


def _kronecker_factor(
    factors: Mapping[str, torch.Tensor], name: str, shape: tuple[int, ...], most: int
) -> tuple[torch.Tensor, int | None]:
    """A factor as a matrix, and its rank if it is itself factorised."""
    whole, a, b = name, f"{name}_a", f"{name}_b"
    if whole in factors:
        if a in factors or b in factors:
            raise InvalidRequestError(f"it has both {whole} and its factors")
        return _matrix(factors[whole], whole), None
    if a not in factors or b not in factors:
        raise InvalidRequestError(f"it lacks {whole}, or {a} and {b}")
    left, right = _matrix(factors[a], a), _matrix(factors[b], b)
    rank = right.shape[0]
    if name == "lokr_w2" and "lokr_t2" in factors:
        left, right = left.T, _tucker(factors["lokr_t2"], right, shape, "lokr_t2", most)
    rows, columns = _flat(shape)
    if left.shape[1] != len(right) or not 1 <= rank <= most or len(left) > rows or right.shape[1] > columns:
        raise InvalidRequestError(f"its {a} and {b} are {list(left.shape)} and {list(right.shape)}")
    return (left.float() @ right.float()), rank


def _tucker(core: torch.Tensor, last: torch.Tensor, shape: tuple[int, ...], name: str, most: int) -> torch.Tensor:
    """Folds core [i, j, kh, kw] and last [j, in] into one factor [i, in·kh·kw], float32."""
    fits = core.ndim == 4 and core.shape[2:] == shape[2:] and core.shape[1] == len(last) and last.shape[1] <= shape[1]
    if not fits or max(core.shape[:2]) > most:
        raise InvalidRequestError(f"its {name} is {list(core.shape)} beside a factor of {list(last.shape)}")
    return torch.einsum("ijkl,jr->irkl", core.float(), last.float()).flatten(1)


def _dora(
    term: Term, magnitude: torch.Tensor, shape: tuple[int, ...], by_input: bool, base_weight: torch.Tensor
) -> Term:
    """The exact merge of DoRA: W → m · (W0 + Δ) ÷ ‖W0 + Δ‖, the norm per output, or per input channel.

    As a difference to W0, so that a request's scale goes linearly from the base model (0) to the exact merge (1).
    """
    rows, columns = _flat(shape)
    wanted = shape[1] if by_input else rows
    if magnitude.numel() != wanted:
        raise InvalidRequestError(f"its DoRA magnitude has {magnitude.numel()} values; wanted: {wanted}")
    base = base_weight.flatten(1).float()
    merged = base + term.scale * delta(term.form, term.tensors)
    if by_input:
        kernel = columns // shape[1]
        norm = torch.linalg.vector_norm(merged.reshape(rows, shape[1], kernel), dim=(0, 2))
        gain = (magnitude.float() / norm).repeat_interleave(kernel)[None, :]
    else:
        gain = (magnitude.float() / torch.linalg.vector_norm(merged, dim=1))[:, None]
    if not torch.isfinite(gain).all():
        raise InvalidRequestError("its DoRA magnitude rescales a row or column of zeros")
    if term.form != "low_rank":
        return Term("dense", {"delta": gain * merged - base}, 1.0)
    up, down = term.tensors["up"].float(), term.tensors["down"].float()
    if by_input:
        return Term("low_rank", {"up": up, "down": gain * down, "column": gain - 1}, term.scale)
    return Term("low_rank", {"up": gain * up, "down": down, "row": gain - 1}, term.scale)


@dataclass(frozen=True)
class _Form:
    required: frozenset[str]
    optional: frozenset[str]
    read: Callable[[Mapping[str, torch.Tensor], tuple[int, ...], float | None, int], Term]


_FORMS = (
    _Form(frozenset({"up", "down"}), frozenset({"mid"}), _lora),
    _Form(frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}), frozenset({"hada_t1", "hada_t2"}), _loha),
    _Form(
        frozenset(),
        frozenset({"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"}),
        _lokr,
    ),
)


def _matrix(tensor: torch.Tensor, name: str) -> torch.Tensor:
    if tensor.ndim not in (2, 4) or 0 in tensor.shape:
        raise InvalidRequestError(f"its {name} has the shape {list(tensor.shape)}; wanted: two or four dimensions")
    return tensor.flatten(1)


def _flat(shape: tuple[int, ...]) -> tuple[int, int]:
    return shape[0], math.prod(shape[1:])


def _check_pair(up: torch.Tensor, down: torch.Tensor, shape: tuple[int, ...], most: int) -> int:
    rank = down.shape[0]
    if not 1 <= rank <= most:
        raise InvalidRequestError(f"its rank is {rank}; allowed: 1 to {most}")
    rows, columns = _flat(shape)
    if tuple(up.shape) != (rows, rank) or tuple(down.shape) != (rank, columns):
        raise InvalidRequestError(
            f"its factors are {list(up.shape)} and {list(down.shape)}; "
            f"wanted for this checkpoint: [{rows}, rank] and [rank, {columns}]"
        )
    return rank


def _scale(alpha: float | None, rank: int) -> float:
    return 1.0 if not alpha else alpha / rank
