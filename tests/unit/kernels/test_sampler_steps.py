"""Affine sampler steps beside diffusers' own `step`, over whole runs, bit for bit."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

from swiftdiffusion.kernels.cfg_step import cfg_step
from swiftdiffusion.kernels.step_coefficients import NotAffineError, run_coefficients, step_coefficients

SDXL = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
NO_CLIP = {"clip_sample": False}

RUNS: list[tuple[str, dict[str, Any]]] = [
    ("EulerDiscreteScheduler", {}),
    ("EulerDiscreteScheduler", {"prediction_type": "v_prediction"}),
    ("EulerDiscreteScheduler", {"prediction_type": "sample", "use_karras_sigmas": True}),
    ("EulerDiscreteScheduler", ZERO_SNR),
    ("DDIMScheduler", NO_CLIP),
    ("DDIMScheduler", {"prediction_type": "v_prediction", "set_alpha_to_one": False, **NO_CLIP}),
    ("DDIMScheduler", {"prediction_type": "sample", **NO_CLIP}),
    ("DDIMScheduler", {**ZERO_SNR, **NO_CLIP}),
    ("DPMSolverMultistepScheduler", {}),
    ("DPMSolverMultistepScheduler", {"prediction_type": "v_prediction", "use_karras_sigmas": True}),
    ("DPMSolverMultistepScheduler", {"prediction_type": "sample", "solver_order": 1}),
    ("DPMSolverMultistepScheduler", {"solver_type": "heun", "final_sigmas_type": "sigma_min"}),
    ("DPMSolverMultistepScheduler", {"lower_order_final": False, "final_sigmas_type": "sigma_min"}),
]


def scheduler(name: str, settings: dict[str, Any], steps: int) -> Any:
    made = getattr(diffusers, name).from_config({**SDXL, **settings})
    made.set_timesteps(steps)
    return made


def guided_step(oracle: Any, number: int, halves: torch.Tensor, guidance: float, latents: torch.Tensor) -> Any:
    """What the pipelines do in a step."""
    oracle.scale_model_input(latents, oracle.timesteps[number])
    unconditional, conditional = halves
    return oracle.step(unconditional + guidance * (conditional - unconditional), oracle.timesteps[number], latents)


@pytest.mark.parametrize("steps", [1, 4, 9, 20, 50])
@pytest.mark.parametrize(("name", "settings"), RUNS)
def test_a_run_is_diffusers_to_the_bit(name: str, settings: dict[str, Any], steps: int) -> None:
    oracle = scheduler(name, settings, steps)
    generator = torch.Generator().manual_seed(steps)
    ours = theirs = torch.randn(1, 4, 5, 7, generator=generator) * oracle.init_noise_sigma
    previous = None
    for number, coefficients in enumerate(run_coefficients(oracle)):
        halves = torch.randn(2, 1, 4, 5, 7, generator=generator)
        expected = guided_step(oracle, number, halves, 5.1, theirs)
        row = torch.tensor([coefficients.row(5.1)])
        ours, denoised = cfg_step(ours, halves[1], row, halves[0], previous)
        assert torch.equal(ours, expected.prev_sample), number
        assert torch.equal(denoised, getattr(expected, "pred_original_sample", denoised)), number
        previous, theirs = denoised, expected.prev_sample
    assert ours.isfinite().all()


@pytest.mark.parametrize("settings", [{}, {"prediction_type": "v_prediction"}])
def test_what_the_unet_takes_is_diffusers(settings: dict[str, Any]) -> None:
    oracle, latents = scheduler("EulerDiscreteScheduler", settings, 20), torch.randn(1, 4, 5, 7)
    for number, coefficients in enumerate(run_coefficients(oracle)):
        expected = oracle.scale_model_input(latents, oracle.timesteps[number])
        assert torch.equal(latents / coefficients.input_divisor, expected)
        oracle.step(latents, oracle.timesteps[number], latents)


def test_rows_of_a_batch_have_their_own_samplers() -> None:
    """And some of them no guidance."""
    made = [scheduler(name, settings, 20) for name, settings in RUNS]
    latents, conditional, unconditional, previous = torch.randn(4, len(made), 4, 5, 5)
    rows = torch.tensor([run_coefficients(each)[3 + n].row(1.1 + n) for n, each in enumerate(made)])
    guided = len(made) // 2
    together = cfg_step(latents, conditional, rows, unconditional[:guided], previous)
    for number in range(len(made)):
        one = slice(number, number + 1)
        base = unconditional[one] if number < guided else None
        alone = cfg_step(latents[one], conditional[one], rows[one], base, previous[one])
        assert all(torch.equal(of_batch[one], by_itself) for of_batch, by_itself in zip(together, alone, strict=True))


def test_results_are_memory_of_their_own() -> None:
    """Also where a sampler's x0, or its last latents, are a tensor that is there already."""
    made = scheduler("DPMSolverMultistepScheduler", {"prediction_type": "sample"}, 4)
    sample, output = torch.randn(2, 1, 4, 5, 5)
    results = cfg_step(sample, output, torch.tensor([run_coefficients(made)[-1].row(1.0)]))
    assert all(torch.equal(result, output) for result in results)
    assert len({tensor.data_ptr() for tensor in (sample, output, *results)}) == 4


def test_a_run_that_begins_in_the_middle_has_no_previous_step() -> None:
    made = scheduler("DPMSolverMultistepScheduler", {}, 20)
    assert step_coefficients(made, 5).along_previous != 0
    assert step_coefficients(made, 5, has_previous=False).along_previous == 0


def test_a_count_that_begins_elsewhere_is_refused() -> None:
    """diffusers' own, of a first timestep that is there twice."""
    made = scheduler("DPMSolverMultistepScheduler", {}, 2500)
    with pytest.raises(NotAffineError, match="first timestep comes twice"):
        run_coefficients(made)
    made.set_begin_index(0)
    assert len(run_coefficients(made)) == 2500


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
        run_coefficients(scheduler(name, settings, 10))


def test_there_is_no_step_after_the_last() -> None:
    with pytest.raises(IndexError, match="step 5 of 5"):
        step_coefficients(scheduler("EulerDiscreteScheduler", {}, 5), 5)
