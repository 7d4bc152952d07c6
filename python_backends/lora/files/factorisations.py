"""LoRA, LoHa and LoKr, as their files have them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ...common.errors import InvalidRequestError
from .terms import Tensors, Term, check_pair, finite, flat, matrix, scale_of

if TYPE_CHECKING:
    from .terms import Factors, Place


def read_lora(factors: Factors, place: Place, alpha: float | None) -> Term:
    """LoRA and LoCon: `up`, `down` and for Tucker's form `mid`."""
    up, down = factors["up"], factors["down"]
    if "mid" in factors:
        down = _tucker(factors["mid"], matrix(down, "lora_down"), place, "lora_mid")
    up, down = matrix(up, "lora_up"), matrix(down, "lora_down")
    rank = check_pair(up, down, place)
    return Term("low_rank", {"up": up, "down": down}, scale_of(alpha, rank))


def read_loha(factors: Factors, place: Place, alpha: float | None) -> Term:
    """LoHa: the elementwise product of two low-rank matrices, of a convolution in Tucker's form too."""
    tensors: Tensors = {}
    rank = 0
    for number, suffix in (("1", ""), ("2", "_2")):
        up, down = factors[f"hada_w{number}_a"], factors[f"hada_w{number}_b"]
        if f"hada_t{number}" in factors:  # rank [i, j, kh, kw] with w_a [i, out] and w_b [j, in]
            up = matrix(up, f"hada_w{number}_a").T
            core = f"hada_t{number}"
            down = _tucker(factors[core], matrix(down, f"hada_w{number}_b"), place, core)
        up, down = matrix(up, f"hada_w{number}_a"), matrix(down, f"hada_w{number}_b")
        rank = check_pair(up, down, place)
        tensors |= {f"up{suffix}": up, f"down{suffix}": down}
    return Term("hadamard", tensors, scale_of(alpha, rank))


def read_lokr(factors: Factors, place: Place, alpha: float | None) -> Term:
    """LoKr: a Kronecker product of two matrices, each whole or low-rank."""
    left, left_rank = _kronecker_factor(factors, "lokr_w1", place)
    right, right_rank = _kronecker_factor(factors, "lokr_w2", place)
    rank = left_rank or right_rank
    rows, columns = left.shape[0] * right.shape[0], left.shape[1] * right.shape[1]
    if (rows, columns) != flat(place.shape):
        raise InvalidRequestError(f"its lokr factors make {rows} × {columns}; wanted: {flat(place.shape)}")
    return Term("kronecker", {"left": left, "right": right}, 1.0 if rank is None else scale_of(alpha, rank))


def _kronecker_factor(factors: Factors, name: str, place: Place) -> tuple[torch.Tensor, int | None]:
    """A factor as a matrix, and its rank if it is itself factorised."""
    whole, a, b = name, f"{name}_a", f"{name}_b"
    if whole in factors:
        if a in factors or b in factors:
            raise InvalidRequestError(f"it has both {whole} and its factors")
        return matrix(factors[whole], whole), None
    if a not in factors or b not in factors:
        raise InvalidRequestError(f"it lacks {whole}, or {a} and {b}")
    left, right = matrix(factors[a], a), matrix(factors[b], b)
    rank = right.shape[0]
    if name == "lokr_w2" and "lokr_t2" in factors:
        left, right = left.T, _tucker(factors["lokr_t2"], right, place, "lokr_t2")
    rows, columns = flat(place.shape)
    if left.shape[1] != len(right) or not 1 <= rank <= place.max_rank or len(left) > rows or right.shape[1] > columns:
        raise InvalidRequestError(f"its {a} and {b} are {list(left.shape)} and {list(right.shape)}")
    return finite(**{name: left.float() @ right.float()})[name], rank


def _tucker(core: torch.Tensor, last: torch.Tensor, place: Place, name: str) -> torch.Tensor:
    """Folds core [i, j, kh, kw] and last [j, in] into one factor [i, in·kh·kw], float32."""
    shape = place.shape
    fits = core.ndim == 4 and core.shape[2:] == shape[2:] and core.shape[1] == len(last) and last.shape[1] <= shape[1]
    if not fits or max(core.shape[:2]) > place.max_rank:
        raise InvalidRequestError(f"its {name} is {list(core.shape)} beside a factor of {list(last.shape)}")
    return finite(**{name: torch.einsum("ijkl,jr->irkl", core.float(), last.float()).flatten(1)})[name]
