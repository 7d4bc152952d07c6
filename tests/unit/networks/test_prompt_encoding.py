"""Embeddings of prompts equal those of diffusers' `encode_prompt`, and A1111's for weighted ones."""

from __future__ import annotations

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

import checkpoints
import weighted_prompts
from swiftdiffusion.python_backends.common.errors import InvalidRequestError
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.networks.prompt_encoding import Embedding, PromptEncoder
from swiftdiffusion.python_backends.request.completed import CompletedRequest

CPU = torch.device("cpu")
DEPTH = 2
"""Layers of each text encoder."""


@pytest.fixture(scope="module", params=["sdxl", "sd15"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    made = getattr(checkpoints, request.param)(tmp_path_factory.mktemp(request.param), depth=DEPTH)
    for file in made.glob("text_encoder*/*.safetensors"):
        tensors = load_file(file)
        [bias] = (tensor for name, tensor in tensors.items() if name.endswith("final_layer_norm.bias"))
        torch.nn.init.normal_(bias)  # else the norm's mean is 0, which the weighted syntax divides by
        save_file(tensors, file, {"format": "pt"})
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
    found = encoder.encode([text for text in (negative, prompt) if text is not None])
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
    found, again = (encoder.encode([plain, skipped]) for _ in range(2))
    assert found[plain] is again[plain]
    assert found[skipped] is again[skipped]
    assert not torch.equal(found[plain].tokens, found[skipped].tokens)


CATS = "cat " * 60
WEIGHTED: dict[str, tuple[str, list[weighted_prompts.Words]]] = {
    "weights": (
        "a (red:1.5) [cat on] (((blue), circle:-.3)",
        [[("a", 1), ("red", 1.5), ("cat on", 1 / 1.1), ("blue", -0.33 * 1.1), (", circle", -0.33)]],
    ),
    "breaks": ("red BREAK (cat:1.2) BREAK BREAK", [[("red", 1)], [("cat", 1.2)], []]),
    "long": ("(" + "red " * 80 + ":1.2) cat", [[("red " * 75, 1.2)], [("red " * 5, 1.2), ("cat", 1)]]),
    "near comma": (f"{CATS}, " + "red " * 20, [[(f"{CATS},", 1)], [("red " * 20, 1)]]),
    "far comma": ("cat " * 54 + ", " + "red " * 30, [[("cat " * 54 + "," + "red " * 20, 1)], [("red " * 10, 1)]]),
    "last comma": ("cat " * 55 + ", " + "red " * 30, [[("cat " * 55 + ",", 1)], [("red " * 30, 1)]]),
    "comma as the first": ("cat " * 75 + ", red", [[("cat " * 75, 1)], [(", red", 1)]]),
}


@pytest.mark.parametrize("clip_skip", [None, 1])
@pytest.mark.parametrize("case", WEIGHTED)
def test_weighted_prompts_are_a1111s(
    encoder: PromptEncoder, pipeline: DiffusionPipeline, case: str, clip_skip: int | None
) -> None:
    text, chunks = WEIGHTED[case]
    negative, prompt = encode(encoder, asked(text, "[blurry]", clip_skip=clip_skip, max_chunks=8))
    filled: list[weighted_prompts.Words] = [[("blurry", 1 / 1.1)], *[[("", 1.0)] for _ in chunks[1:]]]
    for ours, words, skipped in ((prompt, chunks, clip_skip), (negative, filled, None)):
        tokens, pooled = weighted_prompts.embeddings(pipeline, words, skipped)
        torch.testing.assert_close(ours.tokens, tokens[0], rtol=1e-4, atol=1e-4)
        assert not ours.truncated
        if pooled is not None:
            torch.testing.assert_close(ours.pooled, pooled[0])


@pytest.mark.parametrize("negative", [None, "", "blurry"])
def test_texts_without_marks_are_the_same_in_both_syntaxes(encoder: PromptEncoder, negative: str | None) -> None:
    plain, weighted = (encode(encoder, asked("a red cat, circle", negative, max_chunks=most)) for most in (None, 8))
    for one, other in zip(plain, weighted, strict=True):
        torch.testing.assert_close(one.tokens, other.tokens)
        torch.testing.assert_close(one.pooled, other.pooled)


def test_an_unused_negative_prompt_has_the_prompts_length(encoder: PromptEncoder) -> None:
    request = CompletedRequest("run", CATS * 3, "cat " * 500, 5, 4, 1.0, 32, 32, None, max_chunks=3)
    negative, prompt = encode(encoder, request)
    assert negative.tokens.shape == prompt.tokens.shape == (3 * 77, prompt.tokens.shape[1])
    assert not negative.tokens.any()


@pytest.mark.parametrize("field", ["PROMPT", "NEGATIVE_PROMPT"])
def test_more_chunks_than_allowed_are_refused_by_number(encoder: PromptEncoder, field: str) -> None:
    texts = {"PROMPT": "cat", "NEGATIVE_PROMPT": "cat", field: "cat " * 151}
    with pytest.raises(InvalidRequestError, match=rf"^{field} fills 3 chunks of 75 tokens; allowed: at most 2$"):
        encoder.texts(asked(*texts.values(), max_chunks=2))
    encoder.texts(asked(*texts.values(), max_chunks=3))


def test_the_length_of_the_other_prompt_is_part_of_what_is_remembered(encoder: PromptEncoder) -> None:
    short, long = (encoder.texts(asked(text, "blue photo", max_chunks=8))[0] for text in ("a", "a BREAK b"))
    assert short is not None and long is not None
    found = encoder.encode([short, long])
    assert len(found[long].tokens) == 2 * len(found[short].tokens)
    again = encoder.encode([short, long])
    assert again[short] is found[short]
    assert again[long] is found[long]
