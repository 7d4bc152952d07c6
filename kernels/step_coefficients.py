"""Samplers whose step is affine, as numbers for each step.

Many samplers are, at a given step, nothing but

    denoised  = (a · output + b · (sample / c)) / d
    direction = (e · sample + f · output + g · denoised + h · previous denoised) / i
    next      = j · sample + k · denoised + m · (n · direction)

with numbers that depend on the noise schedule alone. The numbers here are the float32 scalars of a diffusers scheduler,
made by its own expressions, and the form is the order in which its `step` applies them to every element; what a sampler
has no use for is a factor of 1 or a summand of 0, which change no finite value. So float32 results equal those of
`step` bit for bit on the CPU. (On a GPU, PyTorch divides by a scalar by multiplying with its reciprocal.)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch


class NotAffineError(ValueError):
    """A scheduler, or its configuration, whose step is more than an affine function: use its own `step`."""


class StepCoefficients(NamedTuple):
    """One step of one request; every number is a float32.

    Attributes:
        x0_of_output: a above.
        x0_of_sample: b.
        sample_divisor: c.
        x0_divisor: d.
        along_sample: e.
        along_output: f.
        along_x0: g.
        along_previous: h; 0 for samplers, and first steps, without memory.
        direction_divisor: i.
        of_sample: j.
        of_x0: k.
        of_direction: m.
        direction_factor: n.
        input_divisor: The UNet takes sample / this.
    """

    x0_of_output: float
    x0_of_sample: float = 1.0
    sample_divisor: float = 1.0
    x0_divisor: float = 1.0
    along_sample: float = 0.0
    along_output: float = 0.0
    along_x0: float = 0.0
    along_previous: float = 0.0
    direction_divisor: float = 1.0
    of_sample: float = 0.0
    of_x0: float = 0.0
    of_direction: float = 0.0
    direction_factor: float = 1.0
    input_divisor: float = 1.0

    def row(self, guidance: float) -> tuple[float, ...]:
        """A row of `cfg_step`'s coefficients.

        Args:
            guidance: Scale of classifier-free guidance; without an unconditional output it plays no part.
        """
        return guidance, *self[:-1]


COLUMNS = len(StepCoefficients(x0_of_output=0.0).row(1.0))
"""Of `cfg_step`'s coefficients."""


def run_coefficients(scheduler: Any, begin: int = 0) -> tuple[StepCoefficients, ...]:
    """The coefficients of all steps of a run.

    Args:
        scheduler: As for `step_coefficients`; with `set_begin_index` called if it will be.
        begin: The first step that is taken, as an index into its timesteps.

    Raises:
        NotAffineError: As `step_coefficients`; or if `step` would not count from there: told only the first timestep,
            where that comes twice.
    """
    _check_known(scheduler)
    if (
        getattr(scheduler, "begin_index", 0) is None
        and scheduler.index_for_timestep(scheduler.timesteps[begin]) != begin
    ):
        raise NotAffineError(f"{type(scheduler).__name__} whose first timestep comes twice")
    return tuple(step_coefficients(scheduler, step, step > begin) for step in range(begin, len(scheduler.timesteps)))


def step_coefficients(scheduler: Any, step: int, has_previous: bool | None = None) -> StepCoefficients:
    """The coefficients of one step.

    Args:
        scheduler: `EulerDiscreteScheduler`, `DDIMScheduler` (eta 0) or `DPMSolverMultistepScheduler` (`dpmsolver++` of
            order 1 or 2) of diffusers after `set_timesteps`; it is only read.
        step: Index into its timesteps.
        has_previous: Whether there is a step before this one; by default for every step but the first. Runs that begin
            in the middle of the schedule say False once.

    Raises:
        NotAffineError: For another class, or a configuration that clips, thresholds or adds noise.
        IndexError: If there is no such step.
    """
    _check_known(scheduler)
    if not 0 <= step < len(scheduler.timesteps):
        raise IndexError(f"step {step} of {len(scheduler.timesteps)}")
    numbers = _SAMPLERS[type(scheduler).__name__](scheduler, step, step > 0 if has_previous is None else has_previous)
    return StepCoefficients(**{name: float(number) for name, number in numbers.items()})


Numbers = dict[str, torch.Tensor | float]
"""Of a step; the tensors are float32 scalars."""


def _euler(scheduler: Any, step: int, has_previous: bool) -> Numbers:
    """x0 = sample - σ · output; next = sample + (σ' - σ) · (sample - x0) / σ."""
    sigma, following = scheduler.sigmas[step], scheduler.sigmas[step + 1]
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        x0: Numbers = {"x0_of_output": -sigma}
    elif kind == "v_prediction":
        x0 = {"sample_divisor": sigma**2 + 1, "x0_of_output": -sigma / (sigma**2 + 1) ** 0.5}
    elif kind in ("sample", "original_sample"):
        x0 = {"x0_of_sample": 0.0, "x0_of_output": 1.0}
    else:
        raise NotAffineError(f"EulerDiscreteScheduler predicting {kind}")
    return x0 | {
        "along_sample": 1.0,
        "along_x0": -1.0,
        "direction_divisor": sigma,
        "of_sample": 1.0,
        "of_direction": following - sigma,
        "input_divisor": (sigma**2 + 1) ** 0.5,
    }


def _ddim(scheduler: Any, step: int, has_previous: bool) -> Numbers:
    """Equation 12 of DDIM (arXiv 2010.02502) with σ = 0: √ᾱ' · x0 + √(1 - ᾱ') · ε."""
    config = scheduler.config
    if config.clip_sample or config.thresholding:
        raise NotAffineError("DDIMScheduler with clip_sample or thresholding")
    timestep = scheduler.timesteps[step]
    earlier = timestep - config.num_train_timesteps // scheduler.num_inference_steps
    alpha = scheduler.alphas_cumprod[timestep]
    following = scheduler.alphas_cumprod[earlier] if earlier >= 0 else scheduler.final_alpha_cumprod
    signal, noise = alpha**0.5, (1 - alpha) ** 0.5
    kind = config.prediction_type
    if kind == "epsilon" and alpha > 0:
        x0_and_noise: Numbers = {"x0_of_output": -noise, "x0_divisor": signal, "along_output": 1.0}
    elif kind == "v_prediction":
        x0_and_noise = {
            "x0_of_sample": signal,
            "x0_of_output": -noise,
            "along_sample": noise,
            "along_output": signal,
        }
    elif kind == "sample" and alpha < 1:
        x0_and_noise = {
            "x0_of_sample": 0.0,
            "x0_of_output": 1.0,
            "along_sample": 1.0,
            "along_x0": -signal,
            "direction_divisor": noise,
        }
    else:
        raise NotAffineError(f"DDIMScheduler predicting {kind} at ᾱ = {float(alpha):g}")
    return x0_and_noise | {"of_x0": following**0.5, "of_direction": (1 - following) ** 0.5}


def _dpm_solver(scheduler: Any, step: int, has_previous: bool) -> Numbers:
    """DPM-Solver++ (arXiv 2211.01095), first order or 2M."""
    config = scheduler.config
    if config.algorithm_type != "dpmsolver++" or config.solver_order > 2 or config.thresholding:
        raise NotAffineError(
            f"DPMSolverMultistepScheduler with {config.algorithm_type}, order {config.solver_order}"
            f"{', thresholding' if config.thresholding else ''}"
        )
    signal, noise, level = _levels(scheduler, step)
    to_signal, to_noise, to_level = _levels(scheduler, step + 1)
    kind = config.prediction_type
    if kind == "epsilon" and config.variance_type not in ("learned", "learned_range"):
        x0: Numbers = {"x0_of_output": -noise, "x0_divisor": signal}
    elif kind == "v_prediction":
        x0 = {"x0_of_sample": signal, "x0_of_output": -noise}
    elif kind == "sample":
        x0 = {"x0_of_sample": 0.0, "x0_of_output": 1.0}
    else:
        raise NotAffineError(f"DPMSolverMultistepScheduler predicting {kind}")
    h = to_level - level
    shrink = torch.exp(-h) - 1.0
    numbers = x0 | {"of_sample": to_noise / noise, "of_x0": -(to_signal * shrink)}
    if not has_previous or config.solver_order == 1 or _ends_in_first_order(scheduler, step):
        return numbers
    ratio = (level - _levels(scheduler, step - 1)[2]) / h
    midpoint = config.solver_type == "midpoint"
    return numbers | {
        "along_x0": 1.0,
        "along_previous": -1.0,
        "direction_factor": 1.0 / ratio,
        "of_direction": -0.5 * (to_signal * shrink) if midpoint else to_signal * (shrink / h + 1.0),
    }


def _ends_in_first_order(scheduler: Any, step: int) -> bool:
    config, steps = scheduler.config, len(scheduler.timesteps)
    lower = config.euler_at_final or (config.lower_order_final and steps < 15) or config.final_sigmas_type == "zero"
    return step == steps - 1 and lower


def _levels(scheduler: Any, place: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Signal, noise and the logarithm of their ratio, by the scheduler's own rule."""
    signal, noise = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[place])
    return signal, noise, torch.log(signal) - torch.log(noise)


_SAMPLERS = {
    "EulerDiscreteScheduler": _euler,
    "DDIMScheduler": _ddim,
    "DPMSolverMultistepScheduler": _dpm_solver,
}


def _check_known(scheduler: Any) -> None:
    name = type(scheduler).__name__
    if name not in _SAMPLERS:
        raise NotAffineError(f"{name} is not known to be affine; known: {', '.join(_SAMPLERS)}")
