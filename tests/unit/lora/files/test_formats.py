"""Every LoRA file format, against a dense computation of its own and, where diffusers is right, against diffusers."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

import checkpoints
import lora_files
from lora_files import MadeLora
from swiftdiffusion.python_backends.lora.files.canonical import CanonicalLora
from swiftdiffusion.python_backends.lora.files.canonicaliser import Canonicaliser
from swiftdiffusion.python_backends.lora.files.modules import BaseModules, adaptable_weights
from swiftdiffusion.python_backends.lora.patching.patcher import Patcher
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint

Shapes = dict[str, dict[str, tuple[int, ...]]]


@pytest.fixture(scope="module", params=["sdxl", "sd15"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(getattr(checkpoints, request.param)(tmp_path_factory.mktemp(request.param)))


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(checkpoints.sdxl(tmp_path_factory.mktemp("sdxl")))


def shapes_of(checkpoint: Checkpoint, kernel: int | None = None) -> Shapes:
    """All modules, or the UNet's convolutions of a kernel size."""
    shapes = {name: dict(modules) for name, modules in base_modules(checkpoint).shapes.items()}
    if kernel is None:
        return shapes
    return {"unet": {name: shape for name, shape in shapes["unet"].items() if shape[2:] == (kernel, kernel)}}


base_modules = cache(BaseModules.of)
canonicaliser = cache(Canonicaliser)


def models(checkpoint: Checkpoint) -> dict[str, torch.nn.Module]:
    """Of a test's own."""
    return copy.deepcopy(loaded(checkpoint))


@cache
def loaded(checkpoint: Checkpoint) -> dict[str, torch.nn.Module]:
    cpu = torch.device("cpu")
    pipeline = checkpoint.load_text_pipeline(cpu, torch.float32)
    parts = {"unet": checkpoint.load_unet(cpu, torch.float32), "text_encoder": pipeline.text_encoder}
    return parts | ({"text_encoder_2": pipeline.text_encoder_2} if checkpoint.family == "sdxl" else {})


def check(checkpoint: Checkpoint, made: MadeLora, directory: Path, scale: float = 0.7, error: float = 1e-6) -> None:
    """Canonicalised, saved, mapped and patched in, the file adds what it should to every weight, and goes again."""
    canonicaliser(checkpoint)(made.save(directory / "lora.safetensors"), directory / "canonical.safetensors")
    lora_files.check_patched(
        models(checkpoint), CanonicalLora.open(directory / "canonical.safetensors"), made, scale, error
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_kohya_over_every_module_with_its_own_alpha_and_rank(
    checkpoint: Checkpoint, tmp_path: Path, dtype: torch.dtype
) -> None:
    made = lora_files.kohya(
        shapes_of(checkpoint),
        rank=lambda number: (2, 4, 8)[number % 3],
        alpha=lambda number, rank: (None, 1.0, 3.0, 0.0)[number % 4],
        dtype=dtype,
    )
    check(checkpoint, made, tmp_path)


def test_kohya_with_the_block_numbers_of_stabilitys_code(checkpoint: Checkpoint, tmp_path: Path) -> None:
    shapes = {"unet": shapes_of(checkpoint)["unet"]}
    made = lora_files.kohya(shapes, layers_per_block=checkpoint.unet_config["layers_per_block"])
    check(checkpoint, made, tmp_path)


def test_kohya_of_sd15_says_te(tmp_path: Path) -> None:
    checkpoint = Checkpoint(checkpoints.sd15(tmp_path / "sd15"))
    made = lora_files.kohya({"text_encoder": shapes_of(checkpoint)["text_encoder"]})
    made.tensors = {name.replace("lora_te1_", "lora_te_"): tensor for name, tensor in made.tensors.items()}
    check(checkpoint, made, tmp_path)


def test_peft_with_its_settings_in_the_metadata(sdxl: Checkpoint, tmp_path: Path) -> None:
    special = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    settings = {
        "unet.r": 4,
        "unet.lora_alpha": 8,
        "unet.alpha_pattern": {special: 2, "ff.net.2": 3},
        "text_encoder.lora_alpha": 1,
        "text_encoder.use_rslora": True,
    }

    def alpha(module: str, rank: int) -> float:
        if module.startswith(("encoder.", "text_model.")):
            return rank**0.5
        return 2.0 if module == special else 3.0 if module.endswith("ff.net.2") else 8.0

    shapes = {name: modules for name, modules in shapes_of(sdxl).items() if name != "text_encoder_2"}
    check(sdxl, lora_files.peft(shapes, metadata=settings, alpha=alpha), tmp_path)


@pytest.mark.parametrize(
    ("components", "prefix", "roles"),
    [
        (("unet", "text_encoder"), "{}.", ("lora_A.weight", "lora_B.weight")),
        (("unet", "text_encoder"), "{}.", ("lora.down.weight", "lora.up.weight")),
        (("text_encoder",), "{}.", ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight")),
        (("unet",), "base_model.model.", ("lora_A.default.weight", "lora_B.default.weight")),
        (("unet",), "base_model.model.", ("lora_A.weight", "lora_B.weight")),
        (("unet",), "diffusion_model.", ("lora_down.weight", "lora_up.weight")),
        (("unet",), "", ("lora.down.weight", "lora.up.weight")),
    ],
)
def test_dotted_names(
    checkpoint: Checkpoint, tmp_path: Path, components: tuple[str, ...], prefix: str, roles: tuple[str, str]
) -> None:
    shapes = {name: shapes_of(checkpoint)[name] for name in components}
    check(checkpoint, lora_files.peft(shapes, prefix=prefix.format, roles=roles), tmp_path)


def test_a_raw_dump_of_the_only_text_encoder(tmp_path: Path) -> None:
    checkpoint = Checkpoint(checkpoints.sd15(tmp_path / "sd15"))
    shapes = {"text_encoder": shapes_of(checkpoint)["text_encoder"]}
    check(checkpoint, lora_files.peft(shapes, prefix=lambda component: "base_model.model."), tmp_path)


def test_comfyui_names(sdxl: Checkpoint, tmp_path: Path) -> None:
    made = lora_files.kohya(shapes_of(sdxl), alpha=lambda number, rank: 1.0)
    places = {"unet": "diffusion_model.", "text_encoder": "text_encoders.clip_l.transformer.text_model."}
    places["text_encoder_2"] = "text_encoders.clip_g.transformer."
    renamed = {}
    for component, module in made.deltas:
        old = lora_files.kohya_name(component, module)
        new = lora_files.sgm_name(module, sdxl.unet_config["layers_per_block"]) if component == "unet" else module
        for role in ("lora_up.weight", "lora_down.weight", "alpha"):
            renamed[f"{places[component]}{new}.{role}"] = made.tensors[f"{old}.{role}"]
    made.tensors = renamed
    check(sdxl, made, tmp_path)


def test_old_diffusers_names(checkpoint: Checkpoint, tmp_path: Path) -> None:
    unet = {name: shape for name, shape in shapes_of(checkpoint)["unet"].items() if ".attn" in name}
    text = {name: shape for name, shape in shapes_of(checkpoint)["text_encoder"].items() if ".self_attn." in name}
    made = lora_files.peft({"unet": unet, "text_encoder": text}, roles=("lora.down.weight", "lora.up.weight"))

    def old(name: str) -> str:
        for new, former in {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out.0": "to_out"}.items():
            name = name.replace(f".{new}.lora.", f".processor.{former}_lora.")
        for new, former in {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}.items():
            name = name.replace(f".{new}.lora.", f".{former}_lora.")
        return name

    made.tensors = {old(name): tensor for name, tensor in made.tensors.items()}
    assert all("_lora." in name for name in made.tensors)
    check(checkpoint, made, tmp_path)


def test_locon_with_a_core(checkpoint: Checkpoint, tmp_path: Path) -> None:
    check(checkpoint, lora_files.locon_with_mid(shapes_of(checkpoint, kernel=3)["unet"]), tmp_path)


@pytest.mark.parametrize("tucker", [False, True])
def test_loha(checkpoint: Checkpoint, tmp_path: Path, tucker: bool) -> None:
    check(checkpoint, lora_files.loha(shapes_of(checkpoint)["unet"], tucker), tmp_path)


@pytest.mark.parametrize(
    ("left", "right", "tucker"), [(0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0), (0, 1, 1), (1, 1, 1)]
)
def test_lokr(checkpoint: Checkpoint, tmp_path: Path, left: bool, right: bool, tucker: bool) -> None:
    check(checkpoint, lora_files.lokr(shapes_of(checkpoint)["unet"], left, right, tucker), tmp_path)


@pytest.mark.parametrize("kind", ["output", "input", "peft"])
def test_dora(checkpoint: Checkpoint, tmp_path: Path, kind: str) -> None:
    parts = models(checkpoint)
    weights = {
        (part, name): weight.detach().clone()
        for part, model in parts.items()
        for name, weight in adaptable_weights(model).items()
    }
    shapes = shapes_of(checkpoint)
    plain = lora_files.peft(shapes) if kind == "peft" else lora_files.kohya(shapes)
    check(checkpoint, lora_files.dora(plain, weights, kind), tmp_path, error=1e-5)


def test_dora_over_loha(checkpoint: Checkpoint, tmp_path: Path) -> None:
    weights = {("unet", name): w.detach().clone() for name, w in adaptable_weights(models(checkpoint)["unet"]).items()}
    made = lora_files.dora(lora_files.loha(shapes_of(checkpoint)["unet"]), weights, "output")
    check(checkpoint, made, tmp_path, error=1e-5)


@pytest.mark.parametrize("names", ["kohya", "peft"])
def test_diffusers_agrees_where_it_is_right(sdxl: Checkpoint, tmp_path: Path, names: str) -> None:
    """Files with one alpha: diffusers' `load_lora_weights` and `fuse_lora` give the weights that the patcher gives."""
    shapes = shapes_of(sdxl)
    shapes["text_encoder"] = {f"text_model.{name}": shape for name, shape in shapes["text_encoder"].items()}
    if names == "kohya":
        layers = sdxl.unet_config["layers_per_block"]
        made = lora_files.kohya({"unet": shapes["unet"]}, alpha=lambda number, rank: 1.0, layers_per_block=layers)
    else:
        made = lora_files.peft(shapes)
    file = made.save(tmp_path / "lora.safetensors")
    pipeline: Any = StableDiffusionXLPipeline.from_pretrained(sdxl.path)
    pipeline.load_lora_weights(tmp_path, weight_name=file.name)
    pipeline.fuse_lora(lora_scale=0.7)
    pipeline.unload_lora_weights()
    parts = models(sdxl)
    Patcher(parts).apply([(canonicaliser(sdxl).read(file), 0.7)])
    for part, model in parts.items():
        theirs = adaptable_weights(getattr(pipeline, part))
        for name, weight in adaptable_weights(model).items():
            assert torch.allclose(weight, theirs[name], rtol=1e-5, atol=1e-6), (part, name)
