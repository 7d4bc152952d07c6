"""What the ControlNets of one step give, put together for the UNet shard that asked for it."""

from __future__ import annotations

import time
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..backend.responses import as_request_error
from ..common.errors import ControlNetUnavailableError, RequestError
from .answers import Answer, Wanted, late

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import torch


@dataclass(frozen=True)
class Residuals:
    """What a step's ControlNets gave.

    Attributes:
        total: [B, sum of C·h·w], summed per row in the request's order; None if no row has any.
        failures: Row → why its sum is not complete.
        nbytes: ControlNet → bytes that came from it and that no earlier step had.
        answers: They own the memory of `total`.
    """

    total: torch.Tensor | None
    failures: Mapping[int, RequestError]
    nbytes: Mapping[str, int]
    answers: Sequence[Answer] = field(repr=False)


def collect(wanted: Iterable[Wanted], shape: tuple[int, int], deadline: float) -> Residuals:
    """The sum, once all answers have come or are late.

    Args:
        wanted: What the step waits for.
        shape: Rows of the shard's call, and sum of C·h·w of its UNet.
        deadline: In seconds of the monotonic clock.
    """
    rows, size = shape
    answered: list[tuple[Wanted, Answer]] = []
    failures: dict[int, RequestError] = {}
    for each in wanted:
        failed: RequestError
        try:
            answer = each.answer.result(max(0.0, deadline - time.monotonic()))
            if all(row in answer.failures for row in each.rows) or answer.residuals.shape[1] == size:
                answered.append((each, answer))
                continue
            given = answer.residuals.shape[1]
            failed = ControlNetUnavailableError(
                f'CONTROLNETS names "{each.name}", which gives {given} values a row; this UNet wants {size}'
            )
        except (FutureTimeoutError, CancelledError):
            failed = late(each.name)
        except Exception as error:  # noqa: BLE001  one ControlNet's failure is that of the rows that use it
            failed = as_request_error(error, f'CONTROLNETS names "{each.name}", whose call')
        failures |= dict.fromkeys((row for row, _ in each.places), failed)
    nbytes: dict[str, int] = {}
    for each, answer in answered:
        if each.is_new:
            nbytes[each.name] = nbytes.get(each.name, 0) + answer.residuals[0].nbytes * len(each.rows)
        for row, (own, _) in zip(each.rows, each.places, strict=True):
            if row in answer.failures:
                failures[own] = answer.failures[row]
    return Residuals(_total(answered, rows, failures), failures, nbytes, [answer for _, answer in answered])


def _total(
    answered: Sequence[tuple[Wanted, Answer]], rows: int, failures: Mapping[int, RequestError]
) -> torch.Tensor | None:
    if len(answered) == 1 and [row for row, _ in answered[0][0].places] == list(range(rows)) and not failures:
        (wanted, answer), *_ = answered
        if list(wanted.rows) == list(range(len(answer.residuals))):
            return answer.residuals  # where it lies: for SDXL at 1024² a copy would be 100 MB a row
    found = {
        place: answer.residuals[row]
        for wanted, answer in answered
        for row, place in zip(wanted.rows, wanted.places, strict=True)
        if place[0] not in failures
    }
    total = None
    for (row, _), residual in sorted(found.items(), key=lambda item: item[0]):
        if total is None:
            total = residual.new_zeros(rows, residual.numel())
        total[row] += residual.to(total.device)
    return total
