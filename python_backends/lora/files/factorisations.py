"""LoRA, LoHa and LoKr, as their files have them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ...common.errors import InvalidRequestError
from .terms import Tensors, Term, check_pair, finite, flat, matrix, scale_of

if TYPE_CHECKING:
    from collections.abc import Mapping


def read_lora(factors: Mapping[str, torch.Tensor], shape: tuple[int, ...], alpha: float | None, most: int) -> Term:
    """LoRA and LoCon: `up`, `down` and for Tucker's form `mid`."""
    up, down = factors["up"], factors["down"]
    if "mid" in factors:
        down = _tucker(factors["mid"], matrix(down, "lora_down"), shape, "lora_mid", most)
    up, down = matrix(up, "lora_up"), matrix(down, "lora_down")
    rank = check_pair(up, down, shape, most)
    return Term("low_rank", {"up": up, "down": down}, scale_of(alpha, rank))


def read_loha(factors: Mapping[str, torch.Tensor], shape: tuple[int, ...], alpha: float | None, most: int) -> Term:
    """LoHa: the elementwise product of two low-rank matrices, of a convolution in Tucker's form too."""
    tensors: Tensors = {}
    rank = 0
    for number, suffix in (("1", ""), ("2", "_2")):
        up, down = factors[f"hada_w{number}_a"], factors[f"hada_w{number}_b"]
        if f"hada_t{number}" in factors:  # rank [i, j, kh, kw] with w_a [i, out] and w_b [j, in]
            up = matrix(up, f"hada_w{number}_a").T
            core = f"hada_t{number}"
            down = _tucker(factors[core], matrix(down, f"hada_w{number}_b"), shape, core, most)
        up, down = matrix(up, f"hada_w{number}_a"), matrix(down, f"hada_w{number}_b")
        rank = check_pair(up, down, shape, most)
        tensors |= {f"up{suffix}": up, f"down{suffix}": down}
    return Term("hadamard", tensors, scale_of(alpha, rank))


def read_lokr(factors: Mapping[str, torch.Tensor], shape: tuple[int, ...], alpha: float | None, most: int) -> Term:
    """LoKr: a Kronecker product of two matrices, each whole or low-rank."""
    left, left_rank = _kronecker_factor(factors, "lokr_w1", shape, most)
    right, right_rank = _kronecker_factor(factors, "lokr_w2", shape, most)
    rank = left_rank or right_rank
    rows, columns = left.shape[0] * right.shape[0], left.shape[1] * right.shape[1]
    if (rows, columns) != flat(shape):
        raise InvalidRequestError(f"its lokr factors make {rows} × {columns}; wanted: {flat(shape)}")
    return Term("kronecker", {"left": left, "right": right}, 1.0 if rank is None else scale_of(alpha, rank))


def _kronecker_factor(
    factors: Mapping[str, torch.Tensor], name: str, shape: tuple[int, ...], most: int
) -> tuple[torch.Tensor, int | None]:
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
        left, right = left.T, _tucker(factors["lokr_t2"], right, shape, "lokr_t2", most)
    rows, columns = flat(shape)
    if left.shape[1] != len(right) or not 1 <= rank <= most or len(left) > rows or right.shape[1] > columns:
        raise InvalidRequestError(f"its {a} and {b} are {list(left.shape)} and {list(right.shape)}")
    return finite(**{name: left.float() @ right.float()})[name], rank


def _tucker(core: torch.Tensor, last: torch.Tensor, shape: tuple[int, ...], name: str, most: int) -> torch.Tensor:
    """Folds core [i, j, kh, kw] and last [j, in] into one factor [i, in·kh·kw], float32."""
    fits = core.ndim == 4 and core.shape[2:] == shape[2:] and core.shape[1] == len(last) and last.shape[1] <= shape[1]
    if not fits or max(core.shape[:2]) > most:
        raise InvalidRequestError(f"its {name} is {list(core.shape)} beside a factor of {list(last.shape)}")
    return finite(**{name: torch.einsum("ijkl,jr->irkl", core.float(), last.float()).flatten(1)})[name]
