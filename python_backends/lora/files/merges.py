"""What multiplies the base weight: DoRA, GLoRA, IA3, OFT and BOFT, merged exactly.

As differences to W0, so that a request's scale goes linearly from the base model (0) to the exact merge (1). LyCORIS
scales GLoRA, IA3 and OFT linearly too; BOFT and DoRA only meet it at 0 and 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ...common.errors import InvalidRequestError
from .terms import Term, delta, finite, flat, matrix, scale_of

if TYPE_CHECKING:
    from .terms import Factors, Place


def dora(
    term: Term, magnitude: torch.Tensor, shape: tuple[int, ...], by_input: bool, base_weight: torch.Tensor
) -> Term:
    """The exact merge of DoRA: W → m · (W0 + Δ) ÷ ‖W0 + Δ‖, the norm per output, or per input channel."""
    rows, columns = flat(shape)
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
        norm = torch.linalg.vector_norm(merged, dim=1)
        gain = (magnitude.float() / norm)[:, None]
    finite(norm=norm)
    if not torch.isfinite(gain).all():
        raise InvalidRequestError("its DoRA magnitude rescales a row or column of zeros")
    if term.form != "low_rank":
        return Term("dense", finite(delta=gain * merged - base), 1.0)
    up, down = term.tensors["up"].float(), term.tensors["down"].float()
    if by_input:
        return Term("low_rank", finite(up=up, down=gain * down, column=gain - 1), term.scale)
    return Term("low_rank", finite(up=gain * up, down=down, row=gain - 1), term.scale)


def glora(factors: Factors, place: Place, alpha: float | None) -> Term:
    """W0 · a1 · a2 + b1 · b2, each over the input channels: of a linear layer that is one product of twice the rank."""
    base = place.weight()
    rows, columns = flat(tuple(base.shape))
    a1, a2, b1, b2 = (matrix(factors[name], name) for name in ("a1", "a2", "b1", "b2"))
    rank, channels = len(a2), base.shape[1]
    shapes = [tuple(factor.shape) for factor in (a1, a2, b1, b2)]
    if shapes != [(channels, rank), (rank, channels), (rows, rank), (rank, columns)] or rank > place.max_rank:
        raise InvalidRequestError(f"its GLoRA factors are {', '.join(str(list(shape)) for shape in shapes)}")
    inner = torch.einsum("oi...,ir->or...", base.float(), a1.float())
    if base.ndim == 2:
        tensors = finite(up=torch.cat([b1.float(), inner], 1), down=torch.cat([b2, a2]).float())
        return Term("low_rank", tensors, scale_of(alpha, rank))
    change = torch.einsum("or...,ri->oi...", inner, a2.float()).flatten(1) + b1.float() @ b2.float()
    return Term("dense", finite(delta=change), scale_of(alpha, rank))


def ia3(factors: Factors, place: Place, alpha: float | None) -> Term:
    """W0 with each output, or each input channel, times 1 + weight."""
    base = place.weight()
    rows, columns = flat(tuple(base.shape))
    if factors["on_input"].numel() != 1:
        raise InvalidRequestError(f"its on_input has {factors['on_input'].numel()} values; wanted: one")
    weight, by_input = factors["weight"].flatten().float(), bool(factors["on_input"].item())
    wanted = base.shape[1] if by_input else rows
    if weight.numel() != wanted:
        raise InvalidRequestError(f"its IA3 weight has {weight.numel()} values; wanted: {wanted}")
    nothing = {"up": torch.zeros(rows, 1), "down": torch.zeros(1, columns)}
    if by_input:
        return Term("low_rank", {**nothing, "column": weight.repeat_interleave(columns // wanted)[None]}, 1.0)
    return Term("low_rank", {**nothing, "row": weight[:, None]}, 1.0)


def oft(factors: Factors, place: Place, constraint: float | None) -> Term:
    """W0 with its outputs rotated: by blocks on the diagonal (OFT), or in stages of a butterfly (BOFT).

    Args:
        factors: `oft_blocks` [blocks, b, b] or [stages, blocks, b, b], and `rescale` [out, 1 …] for the outputs.
        place: Of W0.
        constraint: Of the blocks' norm, ÷ out; None or 0 for none. It is where other formats have their alpha.

    Raises:
        InvalidRequestError: If they do not fit.
    """
    base = place.weight()
    blocks, rows = factors["oft_blocks"].float(), len(base)
    if blocks.ndim not in (3, 4) or blocks.shape[-1] != blocks.shape[-2] or blocks.shape[-3] * blocks.shape[-1] != rows:
        raise InvalidRequestError(f"its oft_blocks are {list(blocks.shape)}; wanted: blocks of {rows} outputs")
    rescale = factors["rescale"].flatten() if "rescale" in factors else torch.ones(rows)
    if rescale.numel() != rows:
        raise InvalidRequestError(f"its rescale has {rescale.numel()} values; wanted: {rows}")
    rotations, weight = _cayley(blocks, (constraint or 0.0) * rows), base.flatten(1).float()
    if blocks.ndim == 3:
        rotated = torch.einsum("knm,knc->kmc", rotations, weight.unflatten(0, blocks.shape[:2])).flatten(0, 1)
    else:
        rotated = _butterfly(rotations, weight)
    return Term("dense", finite(delta=rescale.float()[:, None] * rotated - weight), 1.0)


def _cayley(blocks: torch.Tensor, constraint: float) -> torch.Tensor:
    """Rotations (I + Q) · (I - Q)⁻¹ of Q = blocks - blocksᵀ, whose norm over all blocks is constrained."""
    skew = blocks - blocks.mT
    norm = torch.linalg.vector_norm(skew) + 1e-8
    if 0 < constraint < norm:
        skew = skew * (constraint / norm)
    identity = torch.eye(blocks.shape[-1])
    inverse, failed = torch.linalg.inv_ex(identity - skew)  # of any skew matrix there is one, but not in float32
    if failed.any():
        raise InvalidRequestError("its oft_blocks are too large: their rotation does not fit into float32")
    return (identity + skew) @ inverse


def _butterfly(rotations: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Stage i rotates blocks of outputs that lie 2ⁱ · b/2 apart."""
    size = rotations.shape[-1]
    for stage, rotation in enumerate(rotations):
        apart = 2**stage * size // 2
        if size % 2 or len(weight) % (2 * apart):
            raise InvalidRequestError(
                f"its oft_blocks are {list(rotations.shape)}, no butterfly of {len(weight)} outputs"
            )
        pairs = weight.unflatten(0, (-1, 2, apart)).transpose(1, 2)
        turned = torch.einsum("kij,kjc->kic", rotation, pairs.flatten(0, 2).unflatten(0, (-1, size)))
        weight = turned.flatten(0, 1).unflatten(0, (-1, apart, 2)).transpose(1, 2).flatten(0, 2)
    return weight
