"""Samplers by the names of the wire contract, made from the checkpoint's scheduler configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from diffusers import SchedulerMixin

SCHEDULERS = {
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "ddim": "DDIMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "lcm": "LCMScheduler",
}
"""Name in a request → diffusers' class."""


def make_scheduler(own_config: Mapping[str, Any], name: str | None) -> SchedulerMixin:
    """A fresh scheduler for one request.

    Args:
        own_config: `scheduler.config` of the checkpoint's scheduler; it parametrises every other class too.
        name: A key of SCHEDULERS; None for the checkpoint's own class.
    """
    import diffusers

    class_name = own_config["_class_name"] if name is None else SCHEDULERS[name]
    return getattr(diffusers, class_name).from_config(dict(own_config))


def scheduler_name(own_config: Mapping[str, Any], name: str | None) -> str:
    """What INFO reports: the request's name, else the own scheduler's name of the contract or its class."""
    own_class = str(own_config["_class_name"])
    return name or next((short for short, of_class in SCHEDULERS.items() if of_class == own_class), own_class)
