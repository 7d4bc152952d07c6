"""Whether a request would be done in time, before anything is done for it: the shards' quotes, and a claim on the best.

Needs no torch.
"""

from __future__ import annotations

import math
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from ..backend.stage_times import AFTER, BEFORE, StageTime
from ..common.errors import LinesFullError, ModelDownError, OverloadedError, RequestError
from ..request.completed import PlaceClaim
from .claims import CLAIM_S
from .line import SAFETY
from .messages import Claim, Claimed
from .refusals import Refusals, Refused
from .work import Work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..request.completed import CompletedRequest
    from ..request.rules import RequestRules
    from .messages import Quoted
    from .shards import Shards


HELD_TIMES = 4.0
"""What a place is kept for, in times of what prompts take to be encoded."""

RELOADED_S = 10.0
"""A shard that is down is there again after so long, or longer."""

ALIKE = 1.3
"""Forecasts of like shards differ by so much: each learns from its own steps."""


class Admission:
    """Claims places for the requests of one pipeline."""

    def __init__(
        self,
        shards: Shards,
        rules: RequestRules,
        pipeline: str,
        clock: Callable[[], float] = time.monotonic,
        offered: Callable[[float], None] = lambda _: None,
    ) -> None:
        """Asks nobody yet.

        Args:
            shards: Where requests run.
            rules: With the repository's SLO, if it has one.
            pipeline: The public model.
            clock: Seconds, as in requests' deadlines.
            offered: Told of each request, refused or not, for how many seconds it would keep all shards busy.
        """
        self._shards, self._rules, self._clock = shards, rules, clock
        self._before, self._after = StageTime(BEFORE, pipeline), StageTime(AFTER, pipeline)
        self._refusals = Refusals(clock)
        self._offered, self._pace_s = offered, 0.0

    def admit(self, request: CompletedRequest) -> CompletedRequest:
        """The request with a claim on a place; without one where no shard answers: it then waits for one.

        Raises:
            OverloadedError: If no shard would have it done in time, or all lines are full.
        """
        now, work = self._clock(), Work.of(request)
        before = self._before.expected()
        others = before + self._after.expected()
        limit, said = self._limit(request, now, others, self._refusals.alone_s(work))
        if refused := self._refusals.of(work, limit):
            self._offered(self._pace_s * work.in_all)
            raise _overloaded(refused, others, limit, said)
        try:
            quotes = best_first(self._shards.quotes(work))
        except ModelDownError:
            self._offered(self._pace_s * work.in_all)
            return request
        offered_s = min(quoted.unhelped_s for quoted, _ in quotes) / len(self._shards.names)
        if not work.masked_steps or not self._pace_s:  # of these only shards know what they are worth
            self._pace_s = offered_s / work.in_all
        self._offered(offered_s)
        alone = min(quoted.alone_s for quoted, _ in quotes)
        limit, said = self._limit(request, now, others, alone)
        quotes.sort(key=lambda quote: SAFETY * quote[0].seconds > limit)  # who refuses would count it as a crowd
        limit_s = None if limit == math.inf else limit
        hold = max(CLAIM_S, HELD_TIMES * before)
        helpers = sum(quoted.idle for quoted, _ in quotes) - 1
        loosest_s = None
        if limit_s is not None:
            least = self._before.least() + self._after.least()
            loosest_s = max(limit_s, self._limit(request, now, least, alone)[0])
        refusals: list[Claimed] = []
        holds_s = math.inf
        for quoted, shard in quotes:
            if refusals and not quoted.idle and quoted.seconds > limit:
                holds_s = min(holds_s, quoted.seconds - limit / SAFETY)
                continue
            try:
                helped_in_s = self._helped_in_s(quotes, shard) if work.rows > 1 else 0.0
                asked = Claim(work, limit_s, loosest_s, hold, helpers if quoted.idle else 0, helped_in_s)
                claimed = self._shards.claim(shard, asked)
            except ModelDownError:
                continue
            if claimed.id is not None:
                due = None if limit_s is None else now + limit_s + others
                return replace(request, claim=PlaceClaim(shard, claimed.id, before + claimed.forecast_s, now, due))
            refusals.append(claimed)
        if not refusals:
            return request
        forecast = min(refusal.forecast_s for refusal in refusals)
        retry = min(math.inf if refusal.retry_after_s is None else refusal.retry_after_s for refusal in refusals)
        refused = Refused(work, limit, alone, forecast, retry)
        self._refusals.note(refused, min(retry, holds_s))
        raise _overloaded(refused, others, limit, said)

    def give_back(self, request: CompletedRequest) -> None:
        """Gives up the place of a request that does not come."""
        if request.claim is not None:
            with suppress(RequestError):
                self._shards.cancel(request.claim.shard, [request.claim.id])

    def _helped_in_s(self, quotes: Iterable[tuple[Quoted, str]], shard: str) -> float:
        """Seconds until another has nothing to do; those that do not answer are being loaded again."""
        answering = {name: quoted.empty_in_s for quoted, name in quotes}
        others = (answering.get(name, RELOADED_S) for name in self._shards.names if name != shard)
        return min(others, default=0.0)

    def _limit(self, request: CompletedRequest, now: float, others: float, alone: float) -> tuple[float, str]:
        """Seconds in which denoising has to end, negative where others take longer, and what says so.

        Args:
            request: Whose they are.
            now: Of the clock.
            others: Seconds of the stages before and after.
            alone: Seconds of denoising without others; infinite if that is not known.

        Returns:
            Infinity and nothing without a limit.
        """
        if request.deadline is not None:
            return request.deadline - now - others, "TIMEOUT_MS"
        if self._rules.slo_ms:
            return self._rules.slo_ms / 1000 - others, "the server's limit"
        if self._rules.slo_factor:
            return self._rules.slo_factor * (others + alone) - others, "the server's limit"
        return math.inf, ""


def best_first(quotes: Iterable[tuple[Quoted, str]]) -> list[tuple[Quoted, str]]:
    """Shards and what they said, by when they would be done; of those that hardly differ the one with least in line."""
    ordered = sorted(quotes, key=lambda quote: quote[0].seconds)
    alike = [quote for quote in ordered if quote[0].seconds <= ALIKE * ordered[0][0].seconds]
    return sorted(alike, key=lambda quote: quote[0].in_line) + ordered[len(alike) :]


def _overloaded(refused: Refused, others: float, limit: float, said: str) -> OverloadedError:
    forecast_ms, limit_ms = 1000 * (refused.forecast_s + others), 1000 * max(0.0, limit + others)
    again = "it would never be: ask for fewer steps or pixels"
    if refused.retry_after_s < math.inf:
        again = f"retry_after_ms {math.ceil(1000 * refused.retry_after_s)}"
    if limit == math.inf:
        return LinesFullError(f"all lines are full: the request would be done in {forecast_ms:.0f} ms; {again}")
    close = "" if refused.forecast_s > limit else ", which is too close to be sure of"
    return OverloadedError(
        f"the request would be done in {forecast_ms:.0f} ms; {said} allows {limit_ms:.0f} ms{close}; {again}"
    )
