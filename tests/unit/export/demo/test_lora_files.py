"""The committed LoRAs are what their formats say, and fit the family's modules."""

import json
import re

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from swiftdiffusion.export.demo.lora.factors import Factors, resized
from swiftdiffusion.export.demo.lora.formats import kohya_name, read_lora, stability_name
from swiftdiffusion.export.demo.lora.merging import dense_deltas
from swiftdiffusion.export.demo.lora.recipes import LORAS, RECIPES
from swiftdiffusion.export.demo.pipeline import WEIGHTS


class Modules:
    """The family's networks without their weights: names and shapes."""

    def __init__(self) -> None:
        with torch.device("meta"):
            self.unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(WEIGHTS / "unet"))
            self.text_encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(WEIGHTS / "text_encoder"))
            config = CLIPTextConfig.from_pretrained(WEIGHTS / "text_encoder_2")
            self.text_encoder_2 = CLIPTextModelWithProjection(config)


@pytest.fixture(scope="module")
def modules() -> Modules:
    return Modules()


def contents(name: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(LORAS / f"{name}.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118


@pytest.mark.parametrize("name", RECIPES)
def test_every_module_exists_and_its_change_fits(name: str, modules: Modules) -> None:
    weights = read_lora(LORAS / f"{name}.safetensors", modules)
    assert len(weights.factors) >= 80
    for (part, module), delta in dense_deltas(weights).items():
        assert delta.shape == getattr(modules, part).get_submodule(module).weight.shape, module
        assert torch.isfinite(delta).all(), module
    assert sum(delta.norm() > 0 for delta in dense_deltas(weights).values()) >= 80


@pytest.mark.parametrize("name", RECIPES)
def test_files_are_small_and_half_precision(name: str) -> None:
    tensors, _ = contents(name)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert (LORAS / f"{name}.safetensors").stat().st_size < 1.6e6


def test_hatched_is_as_diffusers_saves_it() -> None:
    tensors, metadata = contents("hatched")
    assert all(re.fullmatch(r"unet\..+\.lora_[AB]\.weight", key) for key in tensors)
    config = json.loads(metadata["lora_adapter_metadata"])
    assert config["unet.r"] != config["unet.lora_alpha"]


def test_night_has_ranks_and_alphas_of_its_own_in_attention_layers() -> None:
    tensors, _ = contents("night")
    assert all(re.fullmatch(r"lora_unet_\w+\.(lora_down\.weight|lora_up\.weight|alpha)", key) for key in tensors)
    attention = [key.removesuffix(".alpha") for key in tensors if re.search(r"_to_(q|k|v|out_0)\.alpha", key)]
    ranks = {len(tensors[f"{stem}.lora_down.weight"]) for stem in attention}
    alphas = {float(tensors[f"{stem}.alpha"]) for stem in attention}
    assert len(ranks) >= 4
    assert len(alphas) >= 4


def test_outline_has_convolutions() -> None:
    tensors, _ = contents("outline")
    downs = {tuple(tensor.shape[2:]) for key, tensor in tensors.items() if "lora_down" in key}
    assert downs == {(), (1, 1), (3, 3)}
    ups = {tuple(tensor.shape[2:]) for key, tensor in tensors.items() if "lora_up" in key}
    assert ups == {(), (1, 1)}


def test_sunset_changes_both_text_encoders(modules: Modules) -> None:
    tensors, _ = contents("sunset")
    assert {key.split("_")[1] for key in tensors} == {"unet", "te1", "te2"}
    assert "lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight" in tensors
    deltas = dense_deltas(read_lora(LORAS / "sunset.safetensors", modules))
    for part in ("text_encoder", "text_encoder_2"):
        assert sum(float(delta.norm()) > 0.01 for key, delta in deltas.items() if key[0] == part) >= 12


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("down_blocks.0.resnets.0.conv1", "input_blocks.1.0.in_layers.2"),
        ("down_blocks.0.downsamplers.0.conv", "input_blocks.3.0.op"),
        ("down_blocks.1.attentions.0.proj_in", "input_blocks.4.1.proj_in"),
        ("mid_block.attentions.0.proj_out", "middle_block.1.proj_out"),
        ("mid_block.resnets.1.conv2", "middle_block.2.out_layers.3"),
        ("up_blocks.0.upsamplers.0.conv", "output_blocks.2.2.conv"),
        ("up_blocks.2.resnets.2.conv_shortcut", "output_blocks.8.0.skip_connection"),
        ("conv_in", "input_blocks.0.0"),
        ("conv_out", "out.2"),
    ],
)
def test_names_are_those_of_stability_for_the_full_size_unet(module: str, expected: str) -> None:
    assert stability_name(module, layers_per_block=2) == expected


def test_modules_without_a_stability_name_are_refused() -> None:
    with pytest.raises(ValueError, match="time_embedding"):
        stability_name("time_embedding.linear_1", layers_per_block=2)


def test_text_encoders_have_the_same_level_in_their_names() -> None:
    expected = "text_model_encoder_layers_0_mlp_fc1"
    assert kohya_name("text_encoder", "encoder.layers.0.mlp.fc1", 1) == f"lora_te1_{expected}"
    assert kohya_name("text_encoder_2", "text_model.encoder.layers.0.mlp.fc1", 1) == f"lora_te2_{expected}"


def test_resizing_keeps_most_of_the_change() -> None:
    generator = torch.Generator().manual_seed(0)
    factors = Factors(torch.randn(16, 48, generator=generator), torch.randn(32, 16, generator=generator), 8.0)
    factors.up[:, 4:] *= 0.05
    smaller = resized(factors, 0.95)
    assert smaller.rank <= 4
    assert smaller.alpha / smaller.rank == factors.alpha / factors.rank
    lost = (smaller.delta() - factors.delta()).square().sum() / factors.delta().square().sum()
    assert lost <= 0.05 + 1e-6
