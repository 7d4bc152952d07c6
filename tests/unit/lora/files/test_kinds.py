"""What people's files hold beside factors: whole numbers, eight bits, odd prefixes, leftovers, and other kinds."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import checkpoints
import lora_files
from lora_files import MadeLora
from swiftdiffusion.python_backends.common.errors import InvalidRequestError
from swiftdiffusion.python_backends.lora.files.canonical import CanonicalLora
from swiftdiffusion.python_backends.lora.files.canonicaliser import Canonicaliser
from swiftdiffusion.python_backends.lora.files.modules import BaseModules, adaptable_weights
from swiftdiffusion.python_backends.networks.checkpoint import Checkpoint

QUERY = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
KEY = QUERY.replace("to_q", "to_k")
SHAPES = {"unet": {QUERY: (32, 32), KEY: (32, 32)}}


class Base:
    """A tiny SDXL and what reads LoRAs for it."""

    def __init__(self, directory: Path) -> None:
        self.checkpoint = Checkpoint(checkpoints.sdxl(directory))
        self.modules, self.canonicaliser = BaseModules.of(self.checkpoint), Canonicaliser(self.checkpoint)
        cpu = torch.device("cpu")
        pipeline = self.checkpoint.load_text_pipeline(cpu, torch.float32)
        self._parts = {"unet": self.checkpoint.load_unet(cpu, torch.float32), "text_encoder": pipeline.text_encoder}
        self._parts |= {"text_encoder_2": pipeline.text_encoder_2}
        self.weights = {
            name: weight.detach().clone() for name, weight in adaptable_weights(self._parts["unet"]).items()
        }

    def check(self, made: MadeLora, directory: Path, scale: float = 0.7, error: float = 1e-6) -> CanonicalLora:
        """Canonicalised, saved, mapped and patched in, a file adds what it should, and goes again."""
        self.canonicaliser(made.save(directory / "lora.safetensors"), directory / "canonical.safetensors")
        lora = CanonicalLora.open(directory / "canonical.safetensors")
        lora_files.check_patched(copy.deepcopy(self._parts), lora, made, scale, error)
        return lora


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return Base(tmp_path_factory.mktemp("sdxl"))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_alphas_that_are_whole_numbers(base: Base, tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    made = lora_files.kohya(SHAPES)
    for name, tensor in made.tensors.items():
        if name.endswith(".alpha"):
            made.tensors[name] = tensor.to(dtype).reshape(shape)
    base.check(made, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_weights_of_eight_bits(base: Base, tmp_path: Path, dtype: torch.dtype) -> None:
    base.check(lora_files.kohya({"unet": dict(base.modules.shapes["unet"])}, dtype=dtype), tmp_path)


@pytest.mark.parametrize(
    ("start", "dotted"),
    [
        ("lycoris_", False),
        ("lycoris_lora_unet_", False),
        ("lora_unet_lora_unet_", False),
        ("unet.unet.", True),
        ("base_model.model.base_model.model.", True),
        ("unet.base_model.model.", True),
        ("base_model.model.unet.", True),
        ("diffusion_model.diffusion_model.", True),
    ],
)
def test_prefixes_that_stand_twice_or_come_from_another_tool(
    base: Base, tmp_path: Path, start: str, dotted: bool
) -> None:
    made, prefixed = lora_files.kohya(SHAPES), {}
    for name, tensor in made.tensors.items():
        module, _, role = name.partition(".")
        original = next(each for each in SHAPES["unet"] if lora_files.kohya_name("unet", each) == module)
        prefixed[f"{start}{original if dotted else original.replace('.', '_')}.{role}"] = tensor
    made.tensors = prefixed
    base.check(made, tmp_path)


def test_prefixes_that_contradict_each_other_are_no_names(base: Base, tmp_path: Path) -> None:
    made = lora_files.kohya(SHAPES)
    made.tensors = {f"lora_te1_{name}": tensor for name, tensor in made.tensors.items()}
    with pytest.raises(
        InvalidRequestError, match="6 of the file's tensors name nothing that this checkpoint has: lora_te1_"
    ):
        base.canonicaliser.read(made.save(tmp_path / "lora.safetensors"))


def test_leftovers_are_skipped_and_counted(base: Base, tmp_path: Path) -> None:
    made = lora_files.kohya(SHAPES)
    for module in ("conv_in", "time_embedding.linear_1"):
        made.tensors[f"{lora_files.kohya_name('unet', module)}.alpha"] = torch.tensor(4.0)
    name = lora_files.kohya_name("unet", QUERY.replace("to_q", "to_v"))
    made.tensors |= {f"{name}.lora_up.weight": torch.ones(32, 0), f"{name}.lora_down.weight": torch.ones(0, 32)}
    lora = base.check(made, tmp_path)
    assert lora.notes == ("skipped: 2 × alpha without factors", "skipped: 1 × module of rank 0")


@pytest.mark.parametrize("norm_roles", [("w_norm", "b_norm"), ("diff", "diff_b")])
def test_differences_of_everything(base: Base, tmp_path: Path, norm_roles: tuple[str, str]) -> None:
    """Weights, biases and norms of the UNet and both text encoders."""
    base.check(lora_files.differences(base.modules.shapes, base.modules.vectors, norm_roles=norm_roles), tmp_path)


def test_biases_and_norms_beside_factors(base: Base, tmp_path: Path) -> None:
    made = lora_files.kohya({"unet": dict(base.modules.shapes["unet"])})
    vectors = lora_files.differences({}, {"unet": base.modules.vectors["unet"]}, norm_roles=("w_norm", "diff_b"))
    made.tensors |= vectors.tensors
    made.deltas |= vectors.deltas
    base.check(made, tmp_path)


def test_differences_by_the_names_of_stabilitys_code(base: Base, tmp_path: Path) -> None:
    layers = base.checkpoint.unet_config["layers_per_block"]

    def name(component: str, module: str) -> str:
        """Norms of residual blocks lie beside their convolutions, and the last one beside the last."""
        for norm, neighbour, ours, theirs in (
            ("norm1", "conv1", "in_layers.2", "in_layers.0"),
            ("norm2", "conv2", "out_layers.3", "out_layers.0"),
        ):
            if ".resnets." in module and module.endswith(norm):
                return name(component, module.replace(norm, neighbour)).replace(
                    ours.replace(".", "_"), theirs.replace(".", "_")
                )
        if module == "conv_norm_out":
            return "lora_unet_out_0"
        return lora_files.kohya_name(component, module, layers)

    unet = {"unet": base.modules.shapes["unet"]}, {"unet": base.modules.vectors["unet"]}
    base.check(lora_files.differences(*unet, name=name), tmp_path)


def test_glora(base: Base, tmp_path: Path) -> None:
    base.check(lora_files.glora(base.weights), tmp_path, error=1e-5)


@pytest.mark.parametrize("by_input", [False, True])
def test_ia3(base: Base, tmp_path: Path, by_input: bool) -> None:
    base.check(lora_files.ia3(base.weights, by_input), tmp_path)


@pytest.mark.parametrize(
    ("stages", "constraint", "rescaled"),
    [(0, 0.0, False), (0, 0.05, False), (0, 0.0, True), (2, 0.0, False), (2, 0.02, True)],
)
def test_oft_and_boft(base: Base, tmp_path: Path, stages: int, constraint: float, rescaled: bool) -> None:
    weights = {name: weight for name, weight in base.weights.items() if len(weight) % 8 == 0}
    base.check(lora_files.oft(weights, stages, constraint, rescaled), tmp_path, scale=1.0, error=1e-5)


def test_oft_by_kohyas_prefix(base: Base, tmp_path: Path) -> None:
    made = lora_files.oft({QUERY: base.weights[QUERY]})
    made.tensors = {name.replace("lora_unet_", "oft_unet_"): tensor for name, tensor in made.tensors.items()}
    base.check(made, tmp_path, error=1e-5)


def test_an_alpha_that_scales_nothing_is_counted(base: Base, tmp_path: Path) -> None:
    made = lora_files.differences(SHAPES, {})
    made.tensors[f"{lora_files.kohya_name('unet', QUERY)}.alpha"] = torch.tensor(1.0)
    assert base.check(made, tmp_path).notes == ("skipped: 1 × alpha without factors",)
