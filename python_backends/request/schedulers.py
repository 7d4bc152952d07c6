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

    def of(self, steps: int, skipped: int = 0) -> int:
        """In a run of so many steps, of which the first are skipped."""
        return max(1, self.per_step * (steps - skipped) + self.more)


ONE_A_STEP = Evaluations()


@dataclass(frozen=True)
class NamedScheduler:
    """What a name stands for.

    Attributes:
        class_name: diffusers' class, made `from_config` of the checkpoint's own scheduler.
        changes: What it is told beside that configuration.
        eta: What diffusers' pipelines are given as `eta`, for classes whose `step` takes it.
        evaluations: Of the UNet.
        sampler: What A1111's web UI calls it.
        schedule: What that calls its "schedule type"; `Automatic` stands there for the one that suits the sampler,
            which is not the uniform one for DPM++.
    """

    class_name: str
    sampler: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    eta: float = 0.0
    evaluations: Evaluations = ONE_A_STEP
    schedule: str = "Automatic"


UNIFORM, SGM_UNIFORM, KARRAS = "Uniform", "SGM Uniform", "Karras"
_KARRAS = {"use_karras_sigmas": True}
_SDE = {"algorithm_type": "sde-dpmsolver++"}
_TRAILING = {"timestep_spacing": "trailing"}

SCHEDULERS = {
    "euler": NamedScheduler("EulerDiscreteScheduler", "Euler"),
    "euler_a": NamedScheduler("EulerAncestralDiscreteScheduler", "Euler a"),
    "euler_trailing": NamedScheduler("EulerDiscreteScheduler", "Euler", _TRAILING, schedule=SGM_UNIFORM),
    "ddim": NamedScheduler("DDIMScheduler", "DDIM"),
    "ddim_trailing": NamedScheduler("DDIMScheduler", "DDIM", _TRAILING, schedule=SGM_UNIFORM),
    "dpmpp_2m": NamedScheduler("DPMSolverMultistepScheduler", "DPM++ 2M", schedule=UNIFORM),
    "dpmpp_2m_karras": NamedScheduler("DPMSolverMultistepScheduler", "DPM++ 2M", _KARRAS, schedule=KARRAS),
    "dpmpp_2m_sde": NamedScheduler("DPMSolverMultistepScheduler", "DPM++ 2M SDE", _SDE, schedule=UNIFORM),
    "dpmpp_2m_sde_karras": NamedScheduler(
        "DPMSolverMultistepScheduler", "DPM++ 2M SDE", _SDE | _KARRAS, schedule=KARRAS
    ),
    "heun": NamedScheduler("HeunDiscreteScheduler", "Heun", evaluations=Evaluations(2, -1)),
    "unipc": NamedScheduler("UniPCMultistepScheduler", "UniPC"),
    "lcm": NamedScheduler("LCMScheduler", "LCM"),
    "tcd": NamedScheduler("TCDScheduler", "TCD", eta=0.3),
}
"""Those that requests may name: the samplers of few-step models as their authors call them in diffusers (Lightning:
`euler_trailing`; Hyper-SD: `ddim_trailing`, `tcd`; LCM: `lcm`), and those asked for most of the others, if diffusers'
class repeats by seed. TCD's eta is its paper's."""
