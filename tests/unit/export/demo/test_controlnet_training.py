"""ControlNets: fresh ones change nothing, training is resumable and reproducible, only the ControlNet learns."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, DDPMScheduler, StableDiffusionXLPipeline
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from swiftdiffusion.export.demo.controlnet import training
from swiftdiffusion.export.demo.controlnet.controls import KINDS, Kind
from swiftdiffusion.export.demo.controlnet.data import ControlledPictures, to_control_tensor
from swiftdiffusion.export.demo.controlnet.evaluate import draw_controlled, judge, sample_controls
from swiftdiffusion.export.demo.controlnet.training import (
    CONTROLNETS,
    ControlledUNet,
    Settings,
    build_controlnet,
    controlled_loss,
    load_controlnet,
    train_controlnet,
)
from swiftdiffusion.export.demo.pipeline import load_pipeline
from swiftdiffusion.export.demo.prompts import held_out_prompts
from swiftdiffusion.export.demo.scenes import is_held_out
from swiftdiffusion.export.demo.unet_training import NOISE_SCHEDULE, diffuse

PICTURES = 8

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionXLPipeline:
    return load_pipeline()


@pytest.fixture(scope="module")
def data(pipeline: StableDiffusionXLPipeline) -> ControlledPictures:
    return ControlledPictures(pipeline, "layout", PICTURES, seed=3)


def test_batches_hold_controls_of_their_pictures(data: ControlledPictures) -> None:
    rng = np.random.default_rng(0)
    batch = data.batch(rng, 4, unconditional_share=0.0)
    assert batch.latents.shape == (4, 4, 16, 16)
    assert batch.embeddings.shape == (4, 77, 256)
    assert batch.control.shape == (4, 3, 128, 128)
    assert set(batch.control.unique().tolist()) <= {0.0, 1.0}
    dropped = data.batch(rng, 4, unconditional_share=1.0)
    empty = data.captions.embeddings[PICTURES].float()
    assert all(torch.equal(embedding, empty) for embedding in dropped.embeddings)
    assert dropped.control.any()


def test_a_fresh_controlnet_changes_nothing_and_only_it_learns(
    pipeline: StableDiffusionXLPipeline, data: ControlledPictures
) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(1)
    batch = data.batch(rng, 2, unconditional_share=0.0)
    noisy, timesteps, velocity = diffuse(DDPMScheduler(**NOISE_SCHEDULE), batch.latents, rng)
    network = ControlledUNet(pipeline.unet, build_controlnet(pipeline.unet))
    inputs = (noisy, timesteps, batch.embeddings, batch.pooled)
    with torch.no_grad():
        assert torch.equal(network(*inputs, batch.control), network(*inputs, torch.zeros_like(batch.control)))
    controlled_loss(network, *inputs, batch.control, velocity).backward()
    assert all(parameter.grad is None for parameter in network.unet.parameters())
    assert network.controlnet.controlnet_down_blocks[0].weight.grad.abs().max() > 0


def test_the_conditioning_embedding_reduces_by_the_vaes_factor(pipeline: StableDiffusionXLPipeline) -> None:
    with torch.device("meta"):
        controlnet = ControlNetModel.from_unet(
            pipeline.unet,
            conditioning_embedding_out_channels=training.EMBEDDING_CHANNELS,
            load_weights_from_unet=False,
        )
        embedded = controlnet.controlnet_cond_embedding(torch.zeros(1, 3, 128, 128))
    assert embedded.shape[-1] * pipeline.vae_scale_factor == 128
    assert sum(parameter.numel() for parameter in controlnet.parameters()) * 2 < 12e6


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_controlnet_sees_its_control(pipeline: StableDiffusionXLPipeline, kind: Kind) -> None:
    torch.manual_seed(0)
    images = np.stack(sample_controls(held_out_prompts(8))[kind])
    with torch.no_grad():
        seen = build_controlnet(pipeline.unet).controlnet_cond_embedding(to_control_tensor(images))
    assert 0.1 < seen.std(dim=0).mean() < 3


def test_training_goes_on_where_it_stopped(
    pipeline: StableDiffusionXLPipeline, data: ControlledPictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "ControlledPictures", lambda *_: data)
    monkeypatch.setattr(training, "BATCH_SIZE", 2)
    settings = Settings(steps=2, save_every=1)

    train_controlnet(pipeline, "layout", tmp_path / "whole", settings)
    with monkeypatch.context() as patch:
        own = training.Checkpoint.save

        def save_then_stop(checkpoint: training.Checkpoint, **state: object) -> None:
            own(checkpoint, **state)
            raise InterruptedError

        patch.setattr(training.Checkpoint, "save", save_then_stop)
        with pytest.raises(InterruptedError):
            train_controlnet(pipeline, "layout", tmp_path / "parts", settings)
    figures = train_controlnet(pipeline, "layout", tmp_path / "parts", settings, go_on=True)
    assert figures["steps"] == 2
    whole, parts = (load_controlnet("layout", tmp_path / name) for name in ("whole", "parts"))
    assert {tensor.dtype for tensor in whole.state_dict().values()} == {torch.float32}
    assert all(torch.equal(tensor, parts.state_dict()[name]) for name, tensor in whole.state_dict().items())
    assert "_name_or_path" not in json.loads((tmp_path / "whole" / "layout" / "config.json").read_text())


def test_evaluation_uses_held_out_scenes_and_repeats_its_layouts() -> None:
    prompts = held_out_prompts(3)
    first, second = sample_controls(prompts), sample_controls(prompts)
    assert all(is_held_out(prompt.scene) for prompt in prompts)
    for kind in KINDS:
        assert all(np.array_equal(a, b) for a, b in zip(first[kind], second[kind], strict=True))


@pytest.mark.skipif(not (CONTROLNETS / "evaluation.json").exists(), reason="ControlNets are still in training")
def test_committed_controlnets_are_followed(pipeline: StableDiffusionXLPipeline) -> None:
    figures = json.loads((CONTROLNETS / "evaluation.json").read_text())
    assert figures["prompts"] >= 100
    prompts = held_out_prompts(3)
    controls = sample_controls(prompts)
    plain = judge(list(draw_controlled(pipeline, prompts, controls, [])), prompts, controls)
    for kind in KINDS:
        without, told = (figures["with"][way]["adherence"][kind]["mean"] for way in ("none", kind))
        assert told > without + 0.2
        assert sum(path.stat().st_size for path in (CONTROLNETS / kind).iterdir()) < 12e6
        found = judge(list(draw_controlled(pipeline, prompts, controls, [kind])), prompts, controls)
        assert found["adherence"][kind]["mean"] > plain["adherence"][kind]["mean"] + 0.1


def test_control_tensors_are_what_the_pipeline_makes_of_pictures(pipeline: StableDiffusionXLPipeline) -> None:
    prompt = held_out_prompts(1)[0]
    image = sample_controls([prompt])["layout"][0]
    processor = VaeImageProcessor(pipeline.vae_scale_factor, do_convert_rgb=True, do_normalize=False)
    expected = processor.preprocess(Image.fromarray(image), height=128, width=128)
    torch.testing.assert_close(to_control_tensor(image[None]), expected)
