"""Samplers by the names of the wire contract."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEDULERS = {
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "ddim": "DDIMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "lcm": "LCMScheduler",
}
"""Name in a request → diffusers' class."""


def scheduler_name(own_config: Mapping[str, Any], name: str | None) -> str:
    """What INFO reports: the request's name, else the own scheduler's name of the contract or its class."""
    own_class = str(own_config["_class_name"])
    return name or next((short for short, of_class in SCHEDULERS.items() if of_class == own_class), own_class)
