"""A request's sampler: diffusers' scheduler, made from the checkpoint's scheduler configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..request.schedulers import SCHEDULERS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from diffusers import SchedulerMixin


def make_scheduler(own_config: Mapping[str, Any], name: str | None) -> SchedulerMixin:
    """A fresh scheduler for one request.

    Args:
        own_config: `scheduler.config` of the checkpoint's scheduler; it parametrises every other class too.
        name: A key of SCHEDULERS; None for the checkpoint's own class.
    """
    import diffusers

    class_name = own_config["_class_name"] if name is None else SCHEDULERS[name]
    return getattr(diffusers, class_name).from_config(dict(own_config))
