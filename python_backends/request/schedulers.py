"""Samplers by the names of the wire contract."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping


class Evaluations(NamedTuple):
    """How many a run has of the UNet: `per_step` times its steps, and so many `more`."""

    per_step: int = 1
    more: int = 0

    def of(self, steps: int) -> int:
        """In a run of so many steps."""
        return max(1, self.per_step * steps + self.more)


ONE_A_STEP = Evaluations()


@dataclass(frozen=True)
class NamedScheduler:
    """What a name stands for.

    Attributes:
        class_name: diffusers' class, made `from_config` of the checkpoint's own scheduler.
        changes: What it is told beside that configuration.
        eta: What diffusers' pipelines are given as `eta`, for classes whose `step` takes it.
        evaluations: Of the UNet.
    """

    class_name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    eta: float = 0.0
    evaluations: Evaluations = ONE_A_STEP


_KARRAS = {"use_karras_sigmas": True}
_SDE = {"algorithm_type": "sde-dpmsolver++"}
_TRAILING = {"timestep_spacing": "trailing"}

SCHEDULERS = {
    "euler": NamedScheduler("EulerDiscreteScheduler"),
    "euler_a": NamedScheduler("EulerAncestralDiscreteScheduler"),
    "euler_trailing": NamedScheduler("EulerDiscreteScheduler", _TRAILING),
    "ddim": NamedScheduler("DDIMScheduler"),
    "ddim_trailing": NamedScheduler("DDIMScheduler", _TRAILING),
    "dpmpp_2m": NamedScheduler("DPMSolverMultistepScheduler"),
    "dpmpp_2m_karras": NamedScheduler("DPMSolverMultistepScheduler", _KARRAS),
    "dpmpp_2m_sde": NamedScheduler("DPMSolverMultistepScheduler", _SDE),
    "dpmpp_2m_sde_karras": NamedScheduler("DPMSolverMultistepScheduler", _SDE | _KARRAS),
    "heun": NamedScheduler("HeunDiscreteScheduler", evaluations=Evaluations(2, -1)),
    "unipc": NamedScheduler("UniPCMultistepScheduler"),
    "lcm": NamedScheduler("LCMScheduler"),
    "tcd": NamedScheduler("TCDScheduler", eta=0.3),
}
"""Those that requests may name: the samplers of few-step models as their authors call them in diffusers (Lightning:
`euler_trailing`; Hyper-SD: `ddim_trailing`, `tcd`; LCM: `lcm`), and those asked for most of the others, if diffusers'
class repeats by seed. TCD's eta is its paper's."""
