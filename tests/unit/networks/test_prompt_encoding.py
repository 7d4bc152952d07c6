"""Embeddings of prompts equal those of diffusers' `encode_prompt`."""

from __future__ import annotations

import pytest
import torch
from diffusers import DiffusionPipeline

import checkpoints
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.networks.prompt_encoding import Embedding, PromptEncoder
from swiftdiffusion.python_backends.request.completed import CompletedRequest

CPU = torch.device("cpu")
DEPTH = 2
"""Layers of each text encoder."""


@pytest.fixture(scope="module", params=["sdxl", "sd15"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    made = getattr(checkpoints, request.param)(tmp_path_factory.mktemp(request.param), depth=DEPTH)
    return Checkpoint(made)


@pytest.fixture(scope="module")
def pipeline(checkpoint: Checkpoint) -> DiffusionPipeline:
    loaded = checkpoint.load_text_pipeline(CPU, torch.float32)
    if checkpoint.family == "sd15":  # diffusers 0.42 looks for it there; with this transformers it is not
        vars(loaded.text_encoder).setdefault("text_model", loaded.text_encoder)
    return loaded


@pytest.fixture(scope="module")
def encoder(checkpoint: Checkpoint) -> PromptEncoder:
    return PromptEncoder(checkpoint, CPU, torch.float32, lora_directory=checkpoint.path)


def asked(prompt: str, negative: str | None = "blurry", **options: object) -> CompletedRequest:
    return CompletedRequest("run", prompt, negative, 5, 4, 5.0, 32, 32, None, **options)  # type: ignore[arg-type]


def encode(encoder: PromptEncoder, request: CompletedRequest) -> tuple[Embedding, Embedding]:
    """Negative prompt, prompt."""
    negative, prompt = encoder.texts(request)
    found, _ = encoder.encode([text for text in (negative, prompt) if text is not None])
    return found[prompt].zeros() if negative is None else found[negative], found[prompt]


@torch.no_grad()
def theirs(pipeline: DiffusionPipeline, request: CompletedRequest) -> list[torch.Tensor]:
    """Prompt, negative prompt, and for SDXL both pooled."""
    return list(
        pipeline.encode_prompt(
            prompt=request.prompt,
            device=CPU,
            num_images_per_prompt=1,
            do_classifier_free_guidance=True,
            negative_prompt=request.negative_prompt,
            clip_skip=request.clip_skip,
        )
    )


def assert_same(ours: tuple[Embedding, Embedding], expected: list[torch.Tensor]) -> None:
    negative, prompt = ours
    torch.testing.assert_close(prompt.tokens, expected[0][0])
    torch.testing.assert_close(negative.tokens, expected[1][0])
    if len(expected) == 4:
        torch.testing.assert_close(prompt.pooled, expected[2][0])
        torch.testing.assert_close(negative.pooled, expected[3][0])


@pytest.mark.parametrize("negative", [None, "", "blurry"])
@pytest.mark.parametrize("words", [3, 90])
def test_every_clip_skip_is_that_of_diffusers(
    checkpoint: Checkpoint, encoder: PromptEncoder, pipeline: DiffusionPipeline, words: int, negative: str | None
) -> None:
    assert checkpoint.max_clip_skip == (DEPTH - 1 if checkpoint.family == "sdxl" else DEPTH)
    seen = []
    for clip_skip in (None, *range(checkpoint.max_clip_skip + 1)):
        request = asked("a red cat " * words, negative, clip_skip=clip_skip)
        ours = encode(encoder, request)
        assert_same(ours, theirs(pipeline, request))
        assert ours[1].truncated == (words == 90)
        seen.append(ours[1].tokens)
    assert torch.equal(seen[0], seen[1])  # skipping nothing
    assert not any(torch.allclose(seen[1], other) for other in seen[2:])
    with pytest.raises(IndexError):
        theirs(pipeline, asked("a cat", clip_skip=checkpoint.max_clip_skip + 1))


def test_embeddings_are_remembered_by_text_and_clip_skip(encoder: PromptEncoder) -> None:
    _, plain = encoder.texts(asked("a blue cat"))
    _, skipped = encoder.texts(asked("a blue cat", clip_skip=1))
    assert encoder.encode([plain, skipped])[1] == {plain, skipped}
    assert encoder.encode([plain, skipped])[1] == set()
