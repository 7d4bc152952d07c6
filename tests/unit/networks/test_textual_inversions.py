"""Textual inversion embeddings of a catalogue are words of prompts, as diffusers loads them."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

import checkpoints
import weighted_prompts
from swiftdiffusion.python_backends.common.errors import InvalidRequestError
from swiftdiffusion.python_backends.lora.files.canonicaliser import Canonicaliser
from swiftdiffusion.python_backends.lora.loading.catalogue import Catalogue
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint
from swiftdiffusion.python_backends.networks.prompt_encoding import Embedding, PromptEncoder
from swiftdiffusion.python_backends.networks.textual_inversions import embedding_files, load_embeddings
from swiftdiffusion.python_backends.request.completed import CompletedRequest

CPU = torch.device("cpu")
VECTORS = {"toy": 1, "style": 3, "EasyNegative": 2}
WIDTHS = {"sdxl": {"clip_l": 16, "clip_g": 24}, "sd15": {"emb_params": 16}}


def vectors(family: str, count: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(count, width, generator=generator) for name, width in WIDTHS[family].items()}


@pytest.fixture(scope="module", params=["sdxl", "sd15"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(getattr(checkpoints, request.param)(tmp_path_factory.mktemp(request.param), depth=2))


@pytest.fixture(scope="module")
def loras(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("loras")
    for seed, (name, count) in enumerate(VECTORS.items()):
        save_file(vectors(checkpoint.family, count, seed), directory / f"{name}.safetensors")
    if checkpoint.family == "sd15":  # diffusers' own files call the tensor as the token
        save_file({"<toy>": vectors("sd15", 1)["emb_params"][0]}, directory / "toy.safetensors")
    return directory


@pytest.fixture(scope="module")
def encoder(checkpoint: Checkpoint, loras: Path) -> PromptEncoder:
    return PromptEncoder(checkpoint, CPU, torch.float32, lora_directory=loras, catalogue=Catalogue(loras))


@pytest.fixture(scope="module")
def pipeline(checkpoint: Checkpoint) -> DiffusionPipeline:
    loaded = checkpoint.load_text_pipeline(CPU, torch.float32)
    if checkpoint.family == "sd15":  # diffusers 0.42 looks for it there; with this transformers it is not
        vars(loaded.text_encoder).setdefault("text_model", loaded.text_encoder)
    for seed, (name, count) in enumerate(VECTORS.items()):
        for number, tensor in enumerate(vectors(checkpoint.family, count, seed).values()):
            suffix = "_2" if number else ""
            parts = {part: getattr(loaded, f"{part}{suffix}") for part in ("tokenizer", "text_encoder")}
            loaded.load_textual_inversion(tensor, token=name.lower(), **parts)
    return loaded


def encode(encoder: PromptEncoder, prompt: str, **options: object) -> Embedding:
    request = CompletedRequest("run", prompt, "", 5, 4, 5.0, 32, 32, None, **options)  # type: ignore[arg-type]
    _, text = encoder.texts(request)
    return encoder.encode([text])[text]


@pytest.mark.parametrize("clip_skip", [None, 1])
@pytest.mark.parametrize(
    "prompt",
    ["a toy cat", "style", "a red style, EasyNegative on " + "cat " * 69, "toys styled", "easynegative, EASYNEGATIVE"],
)
@torch.no_grad()
def test_plain_prompts_are_those_of_diffusers(
    encoder: PromptEncoder, pipeline: DiffusionPipeline, prompt: str, clip_skip: int | None
) -> None:
    expected = pipeline.encode_prompt(  # in lower case, else it leaves out an embedding's further vectors
        prompt=prompt.lower(),
        device="cpu",
        num_images_per_prompt=1,
        do_classifier_free_guidance=False,
        clip_skip=clip_skip,
    )
    found = encode(encoder, prompt, clip_skip=clip_skip)
    torch.testing.assert_close(found.tokens, expected[0][0])
    if found.pooled is not None:
        torch.testing.assert_close(found.pooled, expected[2][0])
    assert found.truncated == (len(prompt) > 100)  # with all vectors of what it names


def test_weighted_prompts_keep_an_embedding_in_one_chunk(encoder: PromptEncoder, pipeline: DiffusionPipeline) -> None:
    found = encode(encoder, "cat " * 73 + "Style toy", max_chunks=8)
    chunks: list[weighted_prompts.Words] = [[("cat " * 73, 1.0)], [("style toy", 1.0)]]
    torch.testing.assert_close(found.tokens, weighted_prompts.embeddings(pipeline, chunks)[0][0])
    filled = encode(encoder, "cat " * 72 + "style toy", max_chunks=8)
    chunks = [[("cat " * 72 + "style", 1.0)], [("toy", 1.0)]]
    torch.testing.assert_close(filled.tokens, weighted_prompts.embeddings(pipeline, chunks)[0][0])


def test_files_that_do_not_fit_are_named_and_left_out(
    checkpoint: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own, other = ("sdxl", "sd15") if checkpoint.family == "sdxl" else ("sd15", "sdxl")
    good = vectors(own, 2)
    wide = {name: tensor.repeat(1, 2) for name, tensor in good.items()}
    long = {name: tensor[:1].repeat(80, 1) for name, tensor in good.items()}
    files = {"foreign": vectors(other, 2), "wide": wide, "long": long, "A": good, "fine": good}
    for cut in ((0, slice(0)), (slice(0),), (slice(None), slice(0))):
        files[f"empty{len(files)}"] = {name: tensor[cut].contiguous() for name, tensor in good.items()}
    for name, tensors in files.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
    save_file({"unet.a.lora_A.weight": torch.ones(2, 2)}, tmp_path / "lora.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    save_file({"emb_params": torch.ones(40_000, 16)}, tmp_path / "large.safetensors")
    catalogue = Catalogue(tmp_path)
    assert set(embedding_files(catalogue)) == set(files)
    with caplog.at_level(logging.WARNING):
        encoder = PromptEncoder(checkpoint, CPU, torch.float32, lora_directory=tmp_path, catalogue=catalogue)
    said = [record.getMessage() for record in caplog.records if "is left out" in record.getMessage()]
    reasons = {Path(text.split(" is left out: ")[0]).stem: text.split(" is left out: ")[1] for text in said}
    assert reasons.keys() == files.keys() - {"fine"}
    assert "wanted: " in reasons["foreign"]
    assert reasons["wide"] == "its vectors have 32 values; text_encoder takes 16"
    assert reasons["long"].startswith("it holds 80 vectors; wanted: 1 to 75")
    assert reasons["A"] == 'its name "A" is the token "a" already; wanted: another'
    assert all("0 values" in text or "0 vectors" in text for name, text in reasons.items() if "empty" in name)
    assert not torch.equal(encode(encoder, "fine").tokens, encode(encoder, "wide").tokens)


def test_one_that_is_gone_or_unreadable_by_then_is_left_out(
    checkpoint: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = {name: tmp_path / f"{name}.safetensors" for name in ("gone", "locked", "fine")}
    files["locked"].mkdir()
    save_file(vectors(checkpoint.family, 1), files["fine"])
    pipeline = checkpoint.load_text_pipeline(CPU, torch.float32)
    load_embeddings(pipeline, files)
    assert [text.split(" is left out: ")[0] for text in caplog.messages if "left out" in text] == [
        f"the embedding {files[name]}" for name in ("gone", "locked")
    ]
    assert pipeline.tokenizer.tokenize("fine") == ["fine"]


@pytest.mark.parametrize(
    ("first", "second"),
    [(("Style", 1), ("style", 1)), (("style", 1), ("style_1", 1)), (("Style_2", 1), ("style", 3))],
    ids=str,
)
def test_of_two_that_prompts_cannot_tell_apart_the_later_one_is_left_out(
    checkpoint: Checkpoint,
    first: tuple[str, int],
    second: tuple[str, int],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for seed, (name, count) in enumerate((first, second)):
        save_file(vectors(checkpoint.family, count, seed), tmp_path / f"{name}.safetensors")
    pipeline = checkpoint.load_text_pipeline(CPU, torch.float32)
    before = len(pipeline.tokenizer)
    load_embeddings(pipeline, embedding_files(Catalogue(tmp_path)))
    (said,) = [text for text in caplog.messages if "left out" in text]
    assert said.startswith(f"the embedding {tmp_path / second[0]}.safetensors is left out: its name")
    assert f'the embedding "{first[0]}"' in said
    assert len(pipeline.tokenizer) == before + first[1]
    (expected, *_) = vectors(checkpoint.family, first[1]).values()
    assert torch.equal(pipeline.text_encoder.get_input_embeddings().weight[before:], expected)


def test_one_is_not_taken_for_a_lora(checkpoint: Checkpoint, loras: Path) -> None:
    for name in VECTORS:
        with pytest.raises(InvalidRequestError, match=r"^it is a textual inversion embedding; allowed: its name as a"):
            Canonicaliser(checkpoint).read(loras / f"{name}.safetensors")
