"""Every scheduler of diffusers: run as diffusers' pipelines run it, or refused where they cannot or do not repeat."""

from __future__ import annotations

import json
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch

import checkpoints
from swiftdiffusion.python_backends.common.errors import InvalidRequestError
from swiftdiffusion.python_backends.engine.run import Denoising, LatentGeometry
from swiftdiffusion.python_backends.engine.schedulers import Sampler, SchedulerError, evaluations_of, schedulers_for
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint, CheckpointError
from swiftdiffusion.python_backends.request.completed import CompletedRequest
from swiftdiffusion.python_backends.request.schedulers import SCHEDULERS

CLASSES = sorted(name for name in dir(diffusers) if name.endswith("Scheduler") and not name.startswith("Flax"))
SIDE, WIDTH = 4, 8
OLD = {"steps_offset": 0, "clip_sample": True}
"""What configurations of early checkpoints say, or do by saying nothing: Stable Diffusion's pipeline puts it right."""
SDXL = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}


class Noise(torch.nn.Module):
    """In the place of a UNet: a smooth function of all that one takes, elementwise: batches change nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(
            in_channels=4, sample_size=SIDE, time_cond_proj_dim=None, addition_time_embed_dim=1
        )
        self.add_embedding = SimpleNamespace(linear_1=SimpleNamespace(in_features=6 + WIDTH))
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor, **_: object
    ) -> tuple[torch.Tensor]:
        time = 0.3 * torch.sin(timestep.float() / 100)
        return (torch.tanh(sample + time) + encoder_hidden_states.mean(dim=(1, 2)).view(-1, 1, 1, 1),)


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, whose scheduler each test replaces."""
    return getattr(checkpoints, request.param)(tmp_path_factory.mktemp(request.param), depth=2)


def with_scheduler(directory: Path, class_name: str, **config: Any) -> Checkpoint:
    index = json.loads((directory / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", class_name]
    (directory / "model_index.json").write_text(json.dumps(index))
    (directory / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    return Checkpoint(directory)


def embeddings() -> torch.Tensor:
    return torch.linspace(-1, 1, 2 * 3 * WIDTH).view(2, 3, WIDTH)


def ours(checkpoint: Checkpoint, steps: int, guidance: float, name: str | None = None) -> torch.Tensor:
    request = CompletedRequest("run", "", None, 5, steps, guidance, SIDE, SIDE, name)
    pooled = torch.ones(2, WIDTH) if checkpoint.family == "sdxl" else None
    run = Denoising(request, checkpoint.scheduler_config, LatentGeometry(4, 1), (embeddings(), pooled))
    unet = Noise()
    while not run.done:
        sample, timestep = run.model_input()
        states = run.conditioning["ENCODER_HIDDEN_STATES"]
        run.advance({half: unet(sample, timestep[0], states[half : half + 1])[0] for half in run.halves})
    return run.latents


def theirs(checkpoint: Checkpoint, steps: int, guidance: float, name: str | None = None) -> torch.Tensor:
    """What the pipeline itself makes of a fresh scheduler."""
    kind = getattr(diffusers, checkpoint.pipeline_class_name)
    scheduler = getattr(diffusers, json.loads((checkpoint.path / "model_index.json").read_text())["scheduler"][1])
    parts = ("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor")
    parts = ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2") if "XL" in kind.__name__ else parts
    options = {"add_watermarker": False} if "XL" in kind.__name__ else {"requires_safety_checker": False}
    made = scheduler.from_pretrained(checkpoint.path / "scheduler")
    pipeline = kind(unet=Noise(), scheduler=made, **dict.fromkeys(parts), **options)
    pipeline.set_progress_bar_config(disable=True)
    if name is not None:
        named = SCHEDULERS[name]
        target = getattr(diffusers, named.class_name)
        pipeline.scheduler = target.from_config(pipeline.scheduler.config, **named.changes)
        options = {"eta": named.eta}
    else:
        options = {}
    negative, positive = embeddings().split(1)
    pooled = {"pooled_prompt_embeds": torch.ones(1, WIDTH), "negative_pooled_prompt_embeds": torch.ones(1, WIDTH)}
    return pipeline(
        prompt_embeds=positive,
        negative_prompt_embeds=negative,
        num_inference_steps=steps,
        guidance_scale=guidance,
        height=SIDE * pipeline.vae_scale_factor,
        width=SIDE * pipeline.vae_scale_factor,
        generator=torch.Generator().manual_seed(5),
        output_type="latent",
        **(pooled if "XL" in kind.__name__ else {}),
        **options,
    ).images


def assert_equal_to_pipeline(checkpoint: Checkpoint, name: str | None = None) -> None:
    for steps, guidance in product((4, 9), (1.0, 5.0)):
        expected, found = theirs(checkpoint, steps, guidance, name), ours(checkpoint, steps, guidance, name)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, equal_nan=True)
        assert torch.equal(found.nan_to_num(), ours(checkpoint, steps, guidance, name).nan_to_num())


def evaluations(checkpoint: Checkpoint, steps: int, name: str | None = None) -> int:
    """Of the UNet, in a whole run."""
    shape, of_sdxl = (1, 4, SIDE, SIDE), checkpoint.family == "sdxl"
    sampler = Sampler(checkpoint.scheduler_config, name, steps=steps, seed=0, shape=shape, of_sdxl=of_sdxl)
    return len(sampler.timesteps)


def repeats(checkpoint: Checkpoint) -> bool:
    """Whether diffusers' pipeline can run a checkpoint's scheduler at all, and twice alike."""
    try:
        return torch.equal(theirs(checkpoint, 4, 5.0), theirs(checkpoint, 4, 5.0))
    except Exception:  # noqa: BLE001  whatever it is
        return False


@pytest.mark.parametrize("class_name", CLASSES)
def test_an_own_scheduler_is_run_as_the_pipeline_runs_it_or_refused_where_that_cannot(
    directory: Path, class_name: str
) -> None:
    checkpoint = with_scheduler(directory, class_name, **(SDXL if "sdxl" in directory.name else {}))
    try:
        schedulers_for(checkpoint.scheduler_config, checkpoint.family == "sdxl")
    except (SchedulerError, CheckpointError) as error:
        assert class_name in str(error)
        assert not repeats(checkpoint)
    else:
        assert_equal_to_pipeline(checkpoint)
        found = evaluations_of(checkpoint.scheduler_config)
        assert [found.of(steps) for steps in (7, 30)] == [evaluations(checkpoint, steps) for steps in (7, 30)]


@pytest.mark.skipif(find_spec("torchsde") is not None, reason="torchsde is installed")
def test_a_library_that_a_scheduler_lacks_is_named(directory: Path) -> None:
    with pytest.raises(CheckpointError, match=r"DPMSolverSDEScheduler cannot be made: .* the torchsde library"):
        assert with_scheduler(directory, "DPMSolverSDEScheduler").scheduler_config


def test_steps_that_a_scheduler_does_not_take(directory: Path) -> None:
    checkpoint = with_scheduler(directory, "LCMScheduler", **SDXL)
    with pytest.raises(InvalidRequestError, match=r"STEPS is 60; not allowed by the scheduler: .* 50 .* 60"):
        ours(checkpoint, 60, 5.0)


@pytest.mark.parametrize("class_name", ["PNDMScheduler", "DDIMScheduler", "DDPMScheduler", "LCMScheduler"])
def test_what_the_pipeline_puts_right_in_old_configurations(directory: Path, class_name: str) -> None:
    assert_equal_to_pipeline(with_scheduler(directory, class_name, **OLD))


def test_the_class_is_that_of_the_index_whatever_the_configuration_was_written_by(directory: Path) -> None:
    checkpoint = with_scheduler(directory, "DPMSolverMultistepScheduler", _class_name="PNDMScheduler", **SDXL)
    assert checkpoint.scheduler_config["_class_name"] == "DPMSolverMultistepScheduler"
    assert_equal_to_pipeline(checkpoint)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_of_the_contract_is_what_diffusers_makes_of_the_own_one(directory: Path, name: str) -> None:
    checkpoint = with_scheduler(directory, "PNDMScheduler", skip_prk_steps=True, **SDXL)
    assert name in schedulers_for(checkpoint.scheduler_config, checkpoint.family == "sdxl")
    assert_equal_to_pipeline(checkpoint, name)
    for steps in (1, 2, 7):
        assert SCHEDULERS[name].evaluations.of(steps) == evaluations(checkpoint, steps, name)


@pytest.mark.parametrize(
    ("class_name", "config"),
    [
        ("EDMEulerScheduler", {}),
        ("EDMDPMSolverMultistepScheduler", {"prediction_type": "v_prediction"}),
        ("CMStochasticIterativeScheduler", {}),
        ("EulerDiscreteScheduler", {"timestep_type": "continuous", "prediction_type": "v_prediction"}),
        ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
        ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
    ],
)
def test_networks_trained_for_another_schedule_have_their_own_scheduler_alone(
    directory: Path, class_name: str, config: dict[str, Any]
) -> None:
    checkpoint = with_scheduler(directory, class_name, **config)
    assert schedulers_for(checkpoint.scheduler_config, checkpoint.family == "sdxl") == ()
    assert_equal_to_pipeline(checkpoint)


def test_names_that_do_not_know_what_the_network_predicts_are_left_out(directory: Path) -> None:
    checkpoint = with_scheduler(directory, "DDIMScheduler", prediction_type="sample", **SDXL)
    names = schedulers_for(checkpoint.scheduler_config, checkpoint.family == "sdxl")
    assert "ddim" in names
    for name in names:
        assert_equal_to_pipeline(checkpoint, name)


def test_the_readme_names_every_scheduler_of_the_contract() -> None:
    said = (Path(__file__).resolve().parents[3] / "README.md").read_text("utf-8")
    assert [name for name in SCHEDULERS if f"`{name}`" not in said] == []
