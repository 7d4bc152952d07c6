"""Which LoRA set is patched in, which are beside the weights: every row its own set, at the least cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from swiftdiffusion.python_backends.engine.mixing import LoraCosts, Part, difference, plan
from swiftdiffusion.python_backends.lora.files.lora_set import LoraSet

A, B, C, LOHA = ((((name * 16), 1.0),) for name in "abcd")
RANKS = {A[0][0]: 8, B[0][0]: 16, C[0][0]: 4}
PIXELS = 64


@dataclass
class Loras:
    """What is patched in, and for how many sets there is room beside the weights, and as weights of their own."""

    current: LoraSet = ()
    beside: int = 99
    kept: int = 0

    def rank(self, loras: LoraSet) -> int | None:
        ranks = [RANKS.get(key) for key, _ in loras]
        return None if None in ranks else sum(each or 0 for each in ranks)

    def fits_beside(self, ranks: Sequence[int]) -> bool:
        return len(ranks) <= self.beside

    def can_keep(self, count: int) -> bool:
        return count <= self.kept


def costs(swap: float, of_a_rank: float, step: float = 0.01) -> LoraCosts:
    """A step of one row takes `step`; rows are in proportion. Kept weights cost nothing."""
    made = LoraCosts()
    made.plain.note(PIXELS, step)
    made.note_swap(swap, kept=False)
    made.note_beside(PIXELS, PIXELS, step + of_a_rank)
    return made


def planned(sets: Sequence[LoraSet], loras: Loras | None = None, **given: float) -> list[Part]:
    return plan(sets, PIXELS, cast(Any, loras or Loras()), costs(**{"swap": 0.1, "of_a_rank": 1e-4, **given}))


def test_one_set_is_patched_in() -> None:
    assert planned([A, A]) == [Part(A, (0, 1), ((), ()))]
    assert planned([(), ()], Loras(A)) == [Part((), (0, 1), ((), ()))]


def test_different_sets_share_a_call() -> None:
    (part,) = planned([A, A, B, B, C, C, (), ()])
    assert (part.patched, part.rows) == ((), tuple(range(8)))
    assert part.beside == (A, A, B, B, C, C, (), ())


def test_the_set_that_most_rows_share_is_patched_in_and_the_others_are_differences_from_it() -> None:
    (part,) = planned([B] * 6 + [C] * 2, of_a_rank=1e-3)
    assert part.patched == B
    assert part.beside == ((),) * 6 + (difference(C, B),) * 2
    assert dict(difference(C, B)) == {C[0][0]: 1.0, B[0][0]: -1.0}


def test_apart_again_once_in_a_while_unless_that_costs_far_more() -> None:
    """Who always shares calls learns nothing of those apart, which may have been measured at a bad time."""
    sets = [A, A, B, B]
    for swap, parts in ((0.01, 2), (0.1, 1)):
        measured = costs(swap, of_a_rank=1e-5)
        assert len(plan(sets, PIXELS, cast(Any, Loras()), measured)) == 1
        assert len(plan(sets, PIXELS, cast(Any, Loras()), measured, look_again=True)) == parts


def test_what_sets_have_in_common_is_no_difference() -> None:
    assert difference(A + B, A) == B
    assert difference(A, A) == ()


def test_sets_go_one_after_the_other_where_swaps_cost_less() -> None:
    parts = planned([A, A, B, B], Loras(B), swap=1e-6, of_a_rank=0.1)
    assert [part.patched for part in parts] == [B, A]
    assert [part.rows for part in parts] == [(2, 3), (0, 1)]


def test_sets_whose_weights_are_kept_go_one_after_the_other() -> None:
    assert [part.patched for part in planned([A, A, B, B], Loras(kept=2), of_a_rank=1e-3)] == [A, B]
    assert len(planned([A, A, B, B, C, C], Loras(kept=2), of_a_rank=1e-3)) == 1


def test_what_has_no_low_rank_form_goes_alone() -> None:
    parts = planned([A, A, LOHA, LOHA, B, B])
    assert {part.patched for part in parts} == {(), LOHA}
    assert sorted(row for part in parts for row in part.rows) == list(range(6))


def test_what_has_no_room_goes_alone() -> None:
    parts = planned([A, B, C], Loras(beside=2))
    assert sorted(len(part.rows) for part in parts) == [1, 2]


loras = st.lists(st.tuples(st.sampled_from([*RANKS, LOHA[0][0]]), st.sampled_from([0.5, 1.0, -1.0])), max_size=3)
sets_of_rows = st.lists(loras.map(lambda pairs: tuple(sorted(dict(pairs).items()))), min_size=1, max_size=8)


@given(sets_of_rows, sets_of_rows, st.floats(0, 1), st.floats(0, 1))
def test_every_row_gets_its_set(sets: list[LoraSet], resident: list[LoraSet], swap: float, of_a_rank: float) -> None:
    parts = planned(sets, Loras(resident[0]), swap=swap, of_a_rank=of_a_rank)
    seen = []
    for part in parts:
        for row, beside in zip(part.rows, part.beside, strict=True):
            seen.append(row)
            assert difference(difference(sets[row], part.patched), beside) == ()
            assert Loras().rank(beside) is not None
    assert sorted(seen) == list(range(len(sets)))
