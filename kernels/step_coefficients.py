"""Samplers whose step is affine, as six numbers per step.

Many samplers are, at a given step, nothing but

    x0          = a · sample + b · output
    next sample = c · sample + d · output + e · previous x0

with numbers that depend on the noise schedule alone. They are computed here in float64 from a diffusers scheduler and
rounded to float32 once; diffusers evaluates the same expressions in float32 on every element.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from typing import Any

GUIDANCE, X0_OF_SAMPLE, X0_OF_OUTPUT, OF_SAMPLE, OF_OUTPUT, OF_PREVIOUS = range(6)
"""Columns of `cfg_step`'s coefficients."""


class NotAffineError(ValueError):
    """A scheduler, or its configuration, whose step is more than an affine function: use its own `step`."""


@dataclass(frozen=True)
class StepCoefficients:
    """One step of one request.

    Attributes:
        x0_of_sample: a above.
        x0_of_output: b.
        of_sample: c.
        of_output: d.
        of_previous: e; 0 for samplers, and first steps, without memory.
    """

    x0_of_sample: float
    x0_of_output: float
    of_sample: float
    of_output: float
    of_previous: float = 0.0

    def row(self, guidance: float) -> tuple[float, ...]:
        """A row of `cfg_step`'s coefficients.

        Args:
            guidance: Scale of classifier-free guidance; without an unconditional output it plays no part.
        """
        return guidance, *astuple(self)


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
    name = type(scheduler).__name__
    if name not in _SAMPLERS:
        raise NotAffineError(f"{name} is not known to be affine; known: {', '.join(_SAMPLERS)}")
    if not 0 <= step < len(scheduler.timesteps):
        raise IndexError(f"step {step} of {len(scheduler.timesteps)}")
    return _SAMPLERS[name](scheduler, step, step > 0 if has_previous is None else has_previous)


def _euler(scheduler: Any, step: int, has_previous: bool) -> StepCoefficients:
    sigma, following = float(scheduler.sigmas[step]), float(scheduler.sigmas[step + 1])
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        a, b = 1.0, -sigma
    elif kind == "v_prediction":
        a, b = 1 / (sigma**2 + 1), -sigma / math.sqrt(sigma**2 + 1)
    elif kind in ("sample", "original_sample"):
        a, b = 0.0, 1.0
    else:
        raise NotAffineError(f"EulerDiscreteScheduler predicting {kind}")
    ratio = (following - sigma) / sigma
    return StepCoefficients(a, b, 1 + ratio * (1 - a), -ratio * b)


def _ddim(scheduler: Any, step: int, has_previous: bool) -> StepCoefficients:
    """Equation 12 of DDIM (arXiv 2010.02502) with σ = 0: √ᾱ' · x0 + √(1 - ᾱ') · ε, ε = p · sample + q · output."""
    config = scheduler.config
    if config.clip_sample or config.thresholding:
        raise NotAffineError("DDIMScheduler with clip_sample or thresholding")
    timestep = int(scheduler.timesteps[step])
    earlier = timestep - config.num_train_timesteps // scheduler.num_inference_steps
    alpha = float(scheduler.alphas_cumprod[timestep])
    following = float(scheduler.alphas_cumprod[earlier] if earlier >= 0 else scheduler.final_alpha_cumprod)
    signal, noise = math.sqrt(alpha), math.sqrt(1 - alpha)
    kind = config.prediction_type
    if kind == "v_prediction":
        a, b, p, q = signal, -noise, noise, signal
    elif kind == "epsilon" and alpha > 0:
        a, b, p, q = 1 / signal, -noise / signal, 0.0, 1.0
    elif kind == "sample" and alpha < 1:
        a, b, p, q = 0.0, 1.0, 1 / noise, -signal / noise
    else:
        raise NotAffineError(f"DDIMScheduler predicting {kind} at ᾱ = {alpha:g}")
    to_signal, to_noise = math.sqrt(following), math.sqrt(1 - following)
    return StepCoefficients(a, b, to_signal * a + to_noise * p, to_signal * b + to_noise * q)


def _dpm_solver(scheduler: Any, step: int, has_previous: bool) -> StepCoefficients:
    """DPM-Solver++ (arXiv 2211.01095), first order or 2M; e^-h is the ratio of noise-to-signal ratios."""
    config = scheduler.config
    if config.algorithm_type != "dpmsolver++" or config.solver_order > 2 or config.thresholding:
        raise NotAffineError(
            f"DPMSolverMultistepScheduler with {config.algorithm_type}, order {config.solver_order}"
            f"{', thresholding' if config.thresholding else ''}"
        )
    (signal, noise), (to_signal, to_noise) = (_levels(scheduler, place) for place in (step, step + 1))
    kind = config.prediction_type
    if kind == "epsilon" and config.variance_type not in ("learned", "learned_range"):
        a, b = 1 / signal, -noise / signal
    elif kind == "v_prediction":
        a, b = signal, -noise
    elif kind == "sample":
        a, b = 0.0, 1.0
    else:
        raise NotAffineError(f"DPMSolverMultistepScheduler predicting {kind}")
    shrink = (to_noise / to_signal) / (noise / signal)
    of_x0, of_previous = to_signal * (1 - shrink), 0.0
    if has_previous and config.solver_order == 2 and not _ends_in_first_order(scheduler, step):
        before_signal, before_noise = _levels(scheduler, step - 1)
        h = -math.log(shrink)
        ratio = math.log((before_noise / before_signal) / (noise / signal)) / h
        slope = of_x0 / 2 if config.solver_type == "midpoint" else to_signal * ((shrink - 1) / h + 1)
        of_x0, of_previous = of_x0 + slope / ratio, -slope / ratio
    return StepCoefficients(a, b, to_noise / noise + of_x0 * a, of_x0 * b, of_previous)


def _ends_in_first_order(scheduler: Any, step: int) -> bool:
    config, steps = scheduler.config, len(scheduler.timesteps)
    lower = config.euler_at_final or (config.lower_order_final and steps < 15) or config.final_sigmas_type == "zero"
    return step == steps - 1 and lower


def _levels(scheduler: Any, place: int) -> tuple[float, float]:
    """Signal and noise, by the scheduler's own rule."""
    signal, noise = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[place].double())
    return float(signal), float(noise)


_SAMPLERS = {
    "EulerDiscreteScheduler": _euler,
    "DDIMScheduler": _ddim,
    "DPMSolverMultistepScheduler": _dpm_solver,
}
