"""Samplers by A1111's names."""

import re

from ..client.pipelines import NamedScheduler, PipelineDescription
from .errors import ApiError

AUTOMATIC, KARRAS = "Automatic", "Karras"


def scheduler_named(pipeline: PipelineDescription, sampler: str | None, schedule: str | None) -> str | None:
    """The contract's name for a sampler and a schedule type; None for the checkpoint's own.

    Args:
        pipeline: Whose samplers they are.
        sampler: Such as `Euler a`, also with the schedule behind it (`DPM++ 2M Karras`), or the contract's name.
        schedule: Such as `Karras`; absent or `Automatic` is what A1111 takes for the sampler, where it is here.

    Raises:
        ApiError: If the pipeline has no such pair.
    """
    if not sampler or sampler == pipeline.scheduler:
        if _plain(schedule) not in ("", _plain(AUTOMATIC)):
            said = f"scheduler is {str(schedule)[:80]!r}; allowed for the checkpoint's own sampler: {AUTOMATIC}"
            raise ApiError(400, said, param="scheduler")
        return None
    for each in pipeline.schedulers:
        both = _plain(each.sampler + each.schedule)
        if _plain(sampler) in (_plain(each.name), both) and _plain(schedule) in ("", _plain(AUTOMATIC)):
            return each.name
    of_sampler = {
        _plain(each.schedule): each.name for each in pipeline.schedulers if _plain(each.sampler) == _plain(sampler)
    }
    if not of_sampler:
        allowed = ", ".join(dict.fromkeys([*(each.sampler for each in pipeline.schedulers), pipeline.scheduler]))
        raise ApiError(400, f"sampler_name is {sampler[:80]!r}; allowed: {allowed}", param="sampler_name")
    wanted = _plain(schedule or AUTOMATIC)
    found = of_sampler.get(wanted)
    if found is None and wanted == _plain(AUTOMATIC):
        found = of_sampler.get(_plain(KARRAS))
    if found is None:
        labels = [each.schedule for each in pipeline.schedulers if each.name in of_sampler.values()]
        raise ApiError(
            400,
            f"scheduler is {str(schedule)[:80]!r}; allowed for {sampler[:80]}: {', '.join(labels)}",
            param="scheduler",
        )
    return found


def samplers(pipeline: PipelineDescription) -> dict[str, list[NamedScheduler]]:
    """What there is by A1111's name of the sampler."""
    found: dict[str, list[NamedScheduler]] = {}
    for each in pipeline.schedulers:
        found.setdefault(each.sampler, []).append(each)
    return found


def _plain(name: str | None) -> str:
    return re.sub(r"[^a-z0-9+]", "", (name or "").lower())
