"""What a checkpoint lacks is said in a sentence before it is served; what is rarer than most works as in diffusers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file

import checkpoints
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint, CheckpointError
from swiftdiffusion.python_backends.networks.checkpoint_checks import check_checkpoint
from swiftdiffusion.python_backends.networks.latent_decoding import decode_latents

CPU = torch.device("cpu")
WEIGHTS = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.sdxl(tmp_path_factory.mktemp("checkpoints") / "sdxl", depth=2)


@pytest.fixture
def directory(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "checkpoint"))


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def of_index(**entries: Any) -> Callable[[Path], None]:
    return lambda directory: change(directory / "model_index.json", **entries)


def of_config(part: str, **values: Any) -> Callable[[Path], None]:
    return lambda directory: change(directory / part / "config.json", **values)


def sharded(directory: Path) -> None:
    UNet2DConditionModel.from_pretrained(directory / "unet").save_pretrained(directory / "unet", max_shard_size="50KB")
    (directory / "unet/diffusion_pytorch_model.safetensors").unlink(missing_ok=True)


def without_a_shard(directory: Path) -> None:
    sharded(directory)
    next(iter(sorted((directory / "unet").glob("*-00002-of-*")))).unlink()


def pickled(directory: Path) -> None:
    file = directory / "vae/diffusion_pytorch_model.safetensors"
    file.rename(file.with_suffix(".bin"))


def removed(*names: str) -> Callable[[Path], None]:
    return lambda directory: [(directory / name).unlink() for name in names] and None


def pointer(directory: Path) -> None:
    file = directory / "text_encoder/model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def with_tensors(file: str, **added: torch.Tensor) -> Callable[[Path], None]:
    return lambda directory: save_file(load_file(directory / file) | added, directory / file)


def an_index(weight_map: dict[str, object]) -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        (directory / WEIGHTS["unet"]).unlink()
        (directory / f"{WEIGHTS['unet']}.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return write


def scheduler_without_a_class(directory: Path) -> None:
    change(directory / "model_index.json", scheduler=["diffusers", "NextYearsScheduler"])


MISTAKES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a missing shard": (without_a_shard, "diffusion_pytorch_model-00002-of-.*, which is not there"),
    "pickles": (pickled, "/vae holds diffusion_pytorch_model.bin, a pickle"),
    "no weights": (removed("text_encoder_2/model.safetensors"), "/text_encoder_2 holds no weights"),
    "a tensor that nothing uses": (
        with_tensors(WEIGHTS["unet"], extra=torch.zeros(1)),
        r"/unet does not hold what its config\.json says: it has extra besides \(1 in all\)",
    ),
    "a tensor of the VAE that nothing uses": (with_tensors(WEIGHTS["vae"], ema=torch.zeros(1)), "it has ema besides"),
    "a tensor of the text encoder that nothing uses": (
        with_tensors(WEIGHTS["text_encoder"], logit=torch.zeros(1)),
        "/text_encoder .* it has logit besides",
    ),
    "a weight of another shape": (
        with_tensors(WEIGHTS["unet"], **{"conv_in.bias": torch.zeros(3)}),
        r"its conv_in\.bias is 3; wanted: 16",
    ),
    "quantised weights": (
        with_tensors(WEIGHTS["unet"], **{"conv_in.bias": torch.zeros(16, dtype=torch.int8)}),
        r"its conv_in\.bias holds whole numbers",
    ),
    "an index of numbers": (an_index({"a": 1, "b": 2}), "is no index of weights: it names 1"),
    "an index that leads elsewhere": (an_index({"a": "../x.safetensors"}), "is no index of weights: it names '../x"),
    "a git-lfs pointer": (pointer, "/text_encoder.*model.safetensors is no safetensors file"),
    "no configuration": (removed("text_encoder/config.json"), "it has no text_encoder/config.json"),
    "no tokeniser": (removed("tokenizer_2/tokenizer.json"), "/tokenizer_2 holds no vocabulary; wanted: tokenizer.json"),
    "an unknown UNet": (of_index(unet=["diffusers", "UNet3DConditionModel"]), "unet is of class UNet3DConditionModel"),
    "an unknown VAE": (of_index(vae=["diffusers", "AutoencoderDC"]), "served are AutoencoderKL, AutoencoderTiny"),
    "another text encoder": (of_index(text_encoder=["transformers", "T5EncoderModel"]), "text_encoder is of class T5"),
    "no second text encoder": (of_index(text_encoder_2=[None, None]), "its text_encoder_2 is of class None"),
    "an unknown scheduler": (scheduler_without_a_class, "its scheduler NextYearsScheduler cannot be made"),
    "somebody's own scheduler": (
        of_index(scheduler=["mine", "Mine"]),
        "its scheduler is mine.Mine; served are those of",
    ),
    "no scheduler": (of_index(scheduler=[None, None]), "its scheduler is None.None"),
    "unknown blocks": (of_config("unet", down_block_types=["NewBlock", "NewBlock"]), "NewBlock"),
    "texts of another width": (of_config("unet", cross_attention_dim=48), "/unet cannot be called: .*77, 40"),
    "classes in the UNet": (of_config("unet", class_embed_type="timestep"), "it has class_embedding"),
    "pictures of another size": (of_config("vae", out_channels=4), "/vae cannot be called: it decodes to"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_cannot_be_served_is_said_in_a_sentence(directory: Path, mistake: str) -> None:
    check_checkpoint(Checkpoint(directory))
    spoil, said = MISTAKES[mistake]
    spoil(directory)
    with pytest.raises(CheckpointError, match=said) as caught:
        checkpoint = Checkpoint(directory)
        check_checkpoint(checkpoint)
        assert checkpoint.scheduler_config
    assert "\n" not in str(caught.value)


def test_names_and_values_of_older_files_are_known(directory: Path) -> None:
    file = directory / WEIGHTS["vae"]
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(file)
    for name in list(tensors):
        layer, _, parameter = name.rpartition(".")
        for new, former in old.items():
            if layer.endswith(f"attentions.0.{new}"):
                tensors[f"{layer.removesuffix(new)}{former}.{parameter}"] = tensors.pop(name)
    assert any(".query." in name for name in tensors)
    save_file(tensors, file)
    encoder = directory / WEIGHTS["text_encoder"]
    texts = {f"text_model.{name.removeprefix('text_model.')}": each for name, each in load_file(encoder).items()}
    positions = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    save_file(texts | positions, encoder, {"format": "pt"})
    checkpoint = Checkpoint(directory)
    check_checkpoint(checkpoint)
    checkpoint.load_vae(CPU, torch.float32)


def test_shards_are_as_good_as_one_file(directory: Path) -> None:
    sharded(directory)
    checkpoint = Checkpoint(directory)
    check_checkpoint(checkpoint)
    assert len(checkpoint.weight_files("unet")) > 1
    checkpoint.load_unet(CPU, torch.float32)


def test_weights_that_nobody_reads_are_not_the_checkpoints(directory: Path) -> None:
    file = directory / "unet/diffusion_pytorch_model.safetensors"
    shutil.copy(file, file.with_name("diffusion_pytorch_model.non_ema.safetensors"))
    assert Checkpoint(directory).weight_files("unet") == [file]


@pytest.mark.parametrize("sample_size", [32, 64, [8, 12]])
@pytest.mark.parametrize("written_by", ["0.6.0", "0.8.0.dev0", "0.9.0", None])
def test_the_default_size_is_what_the_pipeline_corrects_old_configurations_to(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, sample_size: int | list[int], written_by: str | None
) -> None:
    directory = checkpoints.sd15(tmp_path, depth=2)
    file = directory / "unet/config.json"
    config = json.loads(file.read_text()) | {"sample_size": sample_size, "_diffusers_version": written_by}
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    pipeline = DiffusionPipeline.from_pretrained(directory)
    corrected = pipeline.unet.config.sample_size
    height, width = (corrected, corrected) if isinstance(corrected, int) else corrected
    factor = pipeline.vae_scale_factor
    assert Checkpoint(directory).default_size == (height * factor, width * factor)


@pytest.mark.parametrize("family", ["sdxl", "sd15"])
def test_a_tiny_autoencoder_decodes_as_in_diffusers(tmp_path: Path, family: str) -> None:
    directory = checkpoints.with_tiny_vae(getattr(checkpoints, family)(tmp_path))
    config = directory / "vae/config.json"
    said = {key: value for key, value in json.loads(config.read_text()).items() if key != "block_out_channels"}
    config.write_text(json.dumps(said | {"scaling_factor": 0.8}))  # as the files that are published: without that key
    checkpoint = Checkpoint(directory)
    check_checkpoint(checkpoint)
    assert checkpoint.vae_scale_factor == 4
    pipeline = DiffusionPipeline.from_pretrained(directory)
    assert pipeline.vae_scale_factor == 4
    pipeline.set_progress_bar_config(disable=True)
    given = {"prompt": "a cat", "num_inference_steps": 2, "height": 64, "width": 96}
    latents, pixels = (
        pipeline(**given, output_type=kind, generator=torch.Generator().manual_seed(3)).images
        for kind in ("latent", "pt")
    )
    found = decode_latents(checkpoint.load_vae(CPU, torch.float32), latents).permute(0, 3, 1, 2) / 255
    assert (found - pixels).abs().max() <= 0.5001 / 255
    assert checkpoint.load_vae(CPU, torch.float16).dtype == torch.float16
