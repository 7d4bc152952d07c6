"""The tensors of one module, by their roles in a file, as a term: which format they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...common.errors import InvalidRequestError
from .factorisations import read_loha, read_lokr, read_lora
from .merges import dora, glora, ia3, oft
from .terms import DORA_ROLES, Term, flat

if TYPE_CHECKING:
    from collections.abc import Callable

    from .terms import Factors, Place


@dataclass(frozen=True)
class _Form:
    """A format: the roles that it has, may have, and how they are read with alpha; whether DoRA may be over it."""

    required: frozenset[str]
    optional: frozenset[str]
    read: Callable[[Factors, Place, float | None], Term]
    below_dora: bool = False


def make_term(tensors: Factors, place: Place, alpha: float | None) -> Term:
    """One module's tensors as a term.

    Args:
        tensors: Role (`keys.assign`) → tensor; without `alpha`.
        place: The module.
        alpha: Of the file or its settings; None or 0 means the rank, as for kohya and LyCORIS.

    Raises:
        InvalidRequestError: If the tensors are not one complete set of one format, of that shape.
    """
    factors = {role: tensor for role, tensor in tensors.items() if role not in DORA_ROLES}
    roles = frozenset(factors)
    forms = [form for form in _FORMS if roles and form.required <= roles <= form.required | form.optional]
    if not forms or (len(place.shape) < 2 and roles != {"diff"}) or (roles != set(tensors) and not forms[0].below_dora):
        raise InvalidRequestError(f"its tensors ({', '.join(sorted(tensors))}) are not one complete factorisation")
    term = forms[0].read(factors, place, alpha)
    if "magnitude" in tensors:  # PEFT: per output
        return dora(term, tensors["magnitude"].flatten(), place.shape, False, place.weight())
    if "dora_scale" in tensors:  # LyCORIS: [out, 1 …], or in its first versions [1, in …]
        scale = tensors["dora_scale"]
        by_input = scale.ndim > 1 and scale.shape[0] != place.shape[0]
        return dora(term, scale.flatten(), place.shape, by_input, place.weight())
    return term


def _difference(factors: Factors, place: Place, alpha: float | None) -> Term:
    change, wanted = factors["diff"], flat(place.shape)
    dimensions = (1,) if len(place.shape) == 1 else (2, 4)
    if change.ndim not in dimensions or flat(tuple(change.shape)) != wanted:
        raise InvalidRequestError(f"its difference is {list(change.shape)}; wanted: {list(place.shape)}")
    return Term("dense", {"delta": change.reshape(wanted).contiguous()}, 1.0)


_FORMS = (
    _Form(frozenset({"up", "down"}), frozenset({"mid"}), read_lora, below_dora=True),
    _Form(
        frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}),
        frozenset({"hada_t1", "hada_t2"}),
        read_loha,
        below_dora=True,
    ),
    _Form(frozenset({"diff"}), frozenset(), _difference),
    _Form(frozenset({"a1", "a2", "b1", "b2"}), frozenset(), glora),
    _Form(frozenset({"weight", "on_input"}), frozenset(), ia3),
    _Form(frozenset({"oft_blocks"}), frozenset({"rescale"}), oft),
    _Form(
        frozenset(),
        frozenset({"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"}),
        read_lokr,
        below_dora=True,
    ),
)
