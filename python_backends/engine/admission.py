"""Whether a request would be done in time, before anything is done for it: the shards' quotes, and a claim on the best.

Needs no torch.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from ..backend.stage_times import AFTER, BEFORE, StageTime
from ..common.errors import ModelDownError, OverloadedError, RequestError
from ..request.completed import PlaceClaim
from .claims import CLAIM_S
from .messages import Claim, Claimed, Quote

if TYPE_CHECKING:
    from ..request.completed import CompletedRequest
    from ..request.parsing import RequestRules
    from .shards import Shards


HELD_TIMES = 4.0
"""What a place is kept for, in times of what prompts take to be encoded."""


class Admission:
    """Claims places for the requests of one pipeline."""

    def __init__(self, shards: Shards, rules: RequestRules, pipeline: str) -> None:
        """Asks nobody yet.

        Args:
            shards: Where requests run.
            rules: With the repository's SLO, if it has one.
            pipeline: Prefix of its models' names.
        """
        self._shards, self._rules = shards, rules
        self._before, self._after = StageTime(BEFORE, pipeline), StageTime(AFTER, pipeline)

    def admit(self, request: CompletedRequest) -> CompletedRequest:
        """The request with a claim on a place; without one where no shard answers: it then waits for one.

        Raises:
            OverloadedError: If no shard would have it done in time, or all lines are full.
        """
        now = time.time()
        work = quote_of(request)
        try:
            quotes = self._shards.quotes(work)
        except ModelDownError:
            return request
        quotes = sorted(quotes, key=lambda quote: quote[0].seconds)
        helpers = sum(quoted.idle for quoted, _ in quotes) - 1
        before = self._before.expected()
        others = before + self._after.expected()
        hold = max(CLAIM_S, HELD_TIMES * before)
        limit, said = self._limit(request, others + min(quoted.alone_s for quoted, _ in quotes), now)
        denoising = None if limit is None else max(0.0, limit - others)
        refusals: list[Claimed] = []
        for quoted, shard in quotes:
            if refusals and denoising is not None and quoted.seconds > denoising:
                break
            try:
                claimed = self._shards.claim(shard, Claim(work, denoising, hold, helpers if quoted.idle else 0))
            except ModelDownError:
                continue
            if claimed.id is not None:
                return replace(request, claim=PlaceClaim(shard, claimed.id, before + claimed.forecast_s, now))
            refusals.append(claimed)
        if not refusals:
            return request
        raise _refusal(refusals, others, said)

    def give_back(self, request: CompletedRequest) -> None:
        """Gives up the place of a request that does not come."""
        if request.claim is not None:
            with suppress(RequestError):
                self._shards.cancel(request.claim.shard, [request.claim.id])

    def _limit(self, request: CompletedRequest, solo_s: float, now: float) -> tuple[float | None, str]:
        """Seconds from now in which the request has to be answered, and what says so."""
        if request.deadline is not None:
            return request.deadline - now, "TIMEOUT_MS"
        if self._rules.slo_ms:
            return self._rules.slo_ms / 1000, "the server's limit"
        if self._rules.slo_factor:
            return self._rules.slo_factor * solo_s, "the server's limit"
        return None, ""


def quote_of(request: CompletedRequest) -> Quote:
    """What a request costs a shard."""
    rows = 2 if request.guidance_scale > 1 else 1
    return Quote(rows, request.height * request.width, request.steps, request.priority)


def _refusal(refusals: list[Claimed], others: float, said: str) -> OverloadedError:
    forecast = 1000 * (min(refusal.forecast_s for refusal in refusals) + others)
    retries = [refusal.retry_after_s for refusal in refusals if refusal.retry_after_s is not None]
    limits = [refusal.limit_s for refusal in refusals if refusal.limit_s is not None]
    again = (
        f"retry_after_ms {1000 * min(retries):.0f}" if retries else "it would never be: ask for fewer steps or pixels"
    )
    if not limits:
        return OverloadedError(f"all lines are full: the request would be done in {forecast:.0f} ms; {again}")
    limit = 1000 * (max(limits) + others)
    close = "" if forecast > limit else ", which is too close to be sure of"
    return OverloadedError(
        f"the request would be done in {forecast:.0f} ms; {said} allows {limit:.0f} ms{close}; {again}"
    )
