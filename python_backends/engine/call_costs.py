"""How long a UNet call takes whose rows may leave tokens out: a sum over what is counted of them, learnt from calls.

Seconds = c0 + c1 · cells + c2 · dense + c3 · score + c4 · cached + c5 · modules. Recursive least squares, of seconds
for each multiply-add, where older calls count less and no coefficient is below 0. What no call has told yet is as if
every multiply-add took the same time.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import astuple
from typing import TYPE_CHECKING

import numpy as np

from .token_plan import StackCost

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..networks.token_costs import Features

FORGETS, OUTLIER = 0.98, 2.0
"""Of what earlier calls weigh, what is left after another one; and the most of a call that counts, in times of what was
expected: a machine's pace changes, a burst is noise."""

PRIOR = 0.01
"""What multiply-adds tell weighs so many calls: these vary by a tenth, coefficients by as much as they are."""

CONSTANT, BYTE = 0.1, 256.0
"""How large constants may well be, in times of the first call; and a byte that is read, in multiply-adds."""

UNMEASURED_S = 1e-12
"""Of a multiply-add, while nothing is known."""

LEAST = 1 / 8
"""Of a call of one row. Where the constant is all but so much of it, coefficients tell nothing of rows, and
multiply-adds are compared."""

UNSOLVED = 8
"""Calls that may be noted before coefficients are found anew; nobody waits for that in between."""

LAST = 256
"""Calls that `fit` looks at."""

FINENESS = 8
"""Values that agree to a part of so many of their doubling are one where few are wanted."""


class CallCosts:
    """Seconds of one shard's calls; any thread may ask and tell."""

    def __init__(self, convolutions: float) -> None:
        """Knows nothing.

        Args:
            convolutions: Multiply-adds for each latent cell.
        """
        self._unit = np.array([0.0, convolutions, 1.0, 1.0, BYTE, 0.0])  # multiply-adds
        self._usual = np.array([0.0, 1.0, 1.0, 1.0, 0.0, 0.0])  # coefficients, in seconds of a multiply-add
        self._squares, self._products = np.zeros((len(self._unit),) * 2), np.zeros(len(self._unit))
        self._calls, self._pace = 0.0, 0.0  # as far as they still weigh; the sum of their seconds of a multiply-add
        self._coefficients, self._unsolved = UNMEASURED_S * self._usual, 0
        self._last: deque[tuple[float, float]] = deque(maxlen=LAST)
        self._mutex = threading.RLock()

    def expected(self, features: Features) -> float:
        """Seconds of a call; before any was measured right in proportion only.

        Args:
            features: All its rows together.
        """
        return float(self._solved() @ self._counted(features))

    def ratio(self, features: Features, whole: Features) -> float:
        """How many rows like `whole`, in a call of others, take as long as what `features` says."""
        known, counted, one = self._solved(), self._counted(features), self._counted(whole)
        constant = known[0] * self._unit[0]
        if known @ one - constant <= LEAST * (known @ one):
            return float(self._usual @ counted / (self._usual @ one))
        return float((known @ counted - constant) / (known @ one - constant))

    def note(self, features: Features, seconds: float) -> None:
        """A call took so long."""
        with self._mutex:
            self._note(features, seconds)

    def _note(self, features: Features, seconds: float) -> None:
        known = self._coefficients if self._unsolved < min(UNSOLVED, self._calls) else self._solved()
        counted = self._counted(features)
        expected, multiply_adds = float(known @ counted), float(self._usual @ counted)
        if self._last:
            self._last.append((seconds, expected))
            seconds = min(seconds, OUTLIER * expected) if expected else seconds
        else:
            self._last.append((seconds, seconds))
            self._unit[[0, -1]] = CONSTANT * multiply_adds
        shares, pace = self._counted(features) / multiply_adds, seconds / multiply_adds
        self._squares = FORGETS * self._squares + np.outer(shares, shares)
        self._products = FORGETS * self._products + pace * shares
        self._calls, self._pace = FORGETS * self._calls + 1, FORGETS * self._pace + pace
        self._unsolved += 1

    @property
    def coefficients(self) -> tuple[float, ...]:
        """c0 … c5, in seconds."""
        return tuple(map(float, self._solved() * self._unit))

    @property
    def fit(self) -> float | None:
        """R² of what was expected of the last calls before they were made; None while they tell nothing."""
        seconds, expected = np.array(list(self._last)[1:]).reshape(-1, 2).T
        spread = float(np.square(seconds - seconds.mean()).sum()) if len(seconds) > 1 else 0.0
        return 1 - float(np.square(seconds - expected).sum()) / spread if spread else None

    def stacks(
        self, whole: Sequence[Features], masked: Sequence[Features], bytes_per_second: float
    ) -> tuple[StackCost, ...]:
        """What the planner takes of a call.

        Args:
            whole: By stack, of all rows together, where all tokens are computed.
            masked: The same where masked ones are.
            bytes_per_second: Of loads.
        """
        known, found = self._solved(), list[StackCost]()
        for every, own in zip(whole, masked, strict=True):
            _, before, *parts = known * self._counted(every)
            _, _, *own_parts = known * self._counted(own)
            constant = 0.0 if found else self.coefficients[0] + self.coefficients[-1]
            load = own.cached / bytes_per_second
            found.append(StackCost(load, float(sum(own_parts)), float(sum(parts)), float(before) + constant))
        return tuple(found)

    def _counted(self, features: Features) -> np.ndarray:
        """In multiply-adds."""
        return self._unit * (1.0, *astuple(features))

    def _solved(self) -> np.ndarray:
        """The coefficients, in seconds of a multiply-add; those that would be below 0 are 0, the lowest first."""
        with self._mutex:
            if not self._unsolved:
                return self._coefficients
            squares = self._squares + PRIOR * np.eye(len(self._unit))
            products = self._products + PRIOR * self._pace / self._calls * self._usual
            free, found = np.full(len(products), True), np.full(len(products), -1.0)
            while found.min() < 0:
                found = np.zeros(len(products))
                found[free] = np.linalg.solve(squares[np.ix_(free, free)], products[free])
                free[found.argmin()] &= found.min() >= 0
            self._coefficients, self._unsolved = found, 0
            return found


def coarse(value: float) -> float:
    """Of few values, the nearest in proportion."""
    return math.copysign(2 ** (round(FINENESS * math.log2(abs(value))) / FINENESS), value) if value else 0.0
