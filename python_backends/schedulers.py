"""Samplers by the names of the wire contract, made from the checkpoint's scheduler configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

SCHEDULERS = {
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "ddim": "DDIMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "lcm": "LCMScheduler",
}
"""Name in a request → diffusers' class."""


def make_scheduler(own: SchedulerMixin, name: str | None) -> SchedulerMixin:
    """A fresh scheduler for one request.

    Args:
        own: The checkpoint's scheduler; its configuration parametrises every other class.
        name: A key of SCHEDULERS; None for the checkpoint's own class.
    """
    import diffusers

    scheduler_class = type(own) if name is None else getattr(diffusers, SCHEDULERS[name])
    return scheduler_class.from_config(own.config)


def scheduler_name(own: SchedulerMixin, name: str | None) -> str:
    """What INFO reports: the request's name, else the own scheduler's name of the contract or its class."""
    own_class = type(own).__name__
    return name or next((short for short, of_class in SCHEDULERS.items() if of_class == own_class), own_class)
