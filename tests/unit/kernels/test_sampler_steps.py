"""Affine sampler steps beside diffusers' own `step`, over whole runs."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

from swiftdiffusion.kernels.cfg_step import cfg_step
from swiftdiffusion.kernels.step_coefficients import NotAffineError, step_coefficients

SDXL = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
NO_CLIP = {"clip_sample": False}

RUNS: list[tuple[str, dict[str, Any], int]] = [
    ("EulerDiscreteScheduler", {}, 20),
    ("EulerDiscreteScheduler", {"prediction_type": "v_prediction"}, 7),
    ("EulerDiscreteScheduler", {"prediction_type": "sample", "use_karras_sigmas": True}, 7),
    ("EulerDiscreteScheduler", ZERO_SNR, 20),
    ("DDIMScheduler", NO_CLIP, 20),
    ("DDIMScheduler", {"prediction_type": "v_prediction", "set_alpha_to_one": False, **NO_CLIP}, 7),
    ("DDIMScheduler", {"prediction_type": "sample", **NO_CLIP}, 7),
    ("DDIMScheduler", {**ZERO_SNR, **NO_CLIP}, 20),
    ("DPMSolverMultistepScheduler", {}, 20),
    ("DPMSolverMultistepScheduler", {"prediction_type": "v_prediction", "use_karras_sigmas": True}, 10),
    ("DPMSolverMultistepScheduler", {"prediction_type": "sample", "solver_order": 1}, 5),
    ("DPMSolverMultistepScheduler", {"solver_type": "heun", "final_sigmas_type": "sigma_min"}, 16),
    ("DPMSolverMultistepScheduler", {"lower_order_final": False, "final_sigmas_type": "sigma_min"}, 5),
]


def scheduler(name: str, settings: dict[str, Any], steps: int) -> Any:
    made = getattr(diffusers, name).from_config({**SDXL, **settings})
    made.set_timesteps(steps)
    return made


@pytest.mark.parametrize(("name", "settings", "steps"), RUNS)
def test_every_step_of_a_run_is_diffusers(name: str, settings: dict[str, Any], steps: int) -> None:
    """From the same latents at every step, to a few units in the last place of the largest summand."""
    oracle = scheduler(name, settings, steps)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 6, 6, generator=generator) * oracle.init_noise_sigma
    guidance = 5.0
    previous = None
    for number, timestep in enumerate(oracle.timesteps):
        coefficients = step_coefficients(oracle, number)
        oracle.scale_model_input(latents, timestep)
        unconditional, conditional = torch.randn(2, 1, 4, 6, 6, generator=generator)
        output = unconditional + guidance * (conditional - unconditional)
        expected = oracle.step(output, timestep, latents)
        row = torch.tensor([coefficients.row(guidance)])
        memory = previous if coefficients.of_previous else None
        ours, denoised = cfg_step(latents, conditional, row, unconditional, memory)
        scale = max(float(t.abs().max()) for t in (latents, output, expected.prev_sample, denoised))
        assert (ours - expected.prev_sample).abs().max() <= 3e-6 * scale, number
        if hasattr(expected, "pred_original_sample"):
            x0 = expected.pred_original_sample
            assert (denoised - x0).abs().max() <= 3e-6 * scale, number
        previous, latents = denoised, expected.prev_sample


def test_rows_of_a_batch_have_their_own_samplers() -> None:
    euler, ddim = scheduler("EulerDiscreteScheduler", {}, 5), scheduler("DDIMScheduler", NO_CLIP, 9)
    latents, conditional, unconditional = torch.randn(3, 2, 4, 5, 5)
    rows = [step_coefficients(euler, 3).row(2.0), step_coefficients(ddim, 0).row(7.5)]
    together = cfg_step(latents, conditional, torch.tensor(rows), unconditional)[0]
    for number, row in enumerate(rows):
        one = slice(number, number + 1)
        alone = cfg_step(latents[one], conditional[one], torch.tensor([row]), unconditional[one])[0]
        assert torch.equal(together[one], alone)


def test_a_run_that_begins_in_the_middle_has_no_previous_step() -> None:
    made = scheduler("DPMSolverMultistepScheduler", {}, 20)
    assert step_coefficients(made, 5).of_previous != 0
    assert step_coefficients(made, 5, has_previous=False).of_previous == 0


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("EulerAncestralDiscreteScheduler", {}),
        ("LCMScheduler", {}),
        ("DDIMScheduler", {"clip_sample": True}),
        ("DDIMScheduler", {"thresholding": True, **NO_CLIP}),
        ("DDIMScheduler", {**ZERO_SNR, **NO_CLIP, "prediction_type": "epsilon"}),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        ("DPMSolverMultistepScheduler", {"solver_order": 3}),
        ("DPMSolverMultistepScheduler", {"thresholding": True}),
    ],
)
def test_other_samplers_are_refused(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(NotAffineError, match=name):
        step_coefficients(scheduler(name, settings, 10), 0)


def test_there_is_no_step_after_the_last() -> None:
    with pytest.raises(IndexError, match="step 5 of 5"):
        step_coefficients(scheduler("EulerDiscreteScheduler", {}, 5), 5)
