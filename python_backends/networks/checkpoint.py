"""A diffusers-format checkpoint: what it is, and its parts loaded one by one."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, PreTrainedModel

FAMILIES = {"StableDiffusionXLPipeline": "sdxl", "StableDiffusionPipeline": "sd15"}
"""diffusers' pipeline class of a checkpoint → name of its public model."""


class CheckpointError(ValueError):
    """The directory is not a checkpoint that can be served; the message says why."""


def weights_variant(directory: Path) -> str | None:
    """`fp16` where a network's weights exist only under that name (`….fp16.safetensors`), else None."""
    names = [file.name for file in directory.glob("*model*.safetensors")]  # diffusion_pytorch_model, model
    of_variant = [name for name in names if ".fp16." in name or ".fp16-" in name]
    return "fp16" if names and len(of_variant) == len(names) else None


def missing_weights(network: torch.nn.Module) -> list[str]:
    """Names of the weights that diffusers did not find in the network's file: it leaves them without memory."""
    return [name for name, parameter in network.named_parameters() if parameter.is_meta]


def _raise_if_missing(weights: list[str], part: Path) -> None:
    if weights:
        raise CheckpointError(f"{part} is not whole: it lacks {weights[0]} ({len(weights)} in all)")


@dataclass(frozen=True)
class Checkpoint:
    """A directory that `DiffusionPipeline.from_pretrained` loads.

    Reading a property reads JSON only; weights are read by the `load_…` methods, each its own part and no other.

    Attributes:
        path: The directory that holds `model_index.json`.
    """

    path: Path

    def __post_init__(self) -> None:
        if self.pipeline_class_name not in FAMILIES:
            raise CheckpointError(
                f"{self.path} holds a {self.pipeline_class_name}; served are {', '.join(sorted(FAMILIES))}"
            )
        if not any((self.path / "unet").glob("diffusion_pytorch_model*.safetensors")):
            raise CheckpointError(f"{self.path}/unet holds no weights (diffusion_pytorch_model.safetensors)")
        taken, given = self.unet_config["in_channels"], self.vae_config["latent_channels"]
        if taken != given:
            raise CheckpointError(
                f"{self.path}: the UNet takes {taken} channels, the VAE gives {given}; "
                "inpainting and other image-conditioned UNets are not served"
            )
        unserved = {"text", "text_image", "image", "image_hint"}
        if self.unet_config.get("addition_embed_type") in unserved or self.unet_config.get("encoder_hid_dim_type"):
            raise CheckpointError(f"{self.path}: the UNet wants conditioning that is not served")

    @cached_property
    def _index(self) -> dict[str, Any]:
        return self._read("model_index.json")

    @property
    def pipeline_class_name(self) -> str:
        """Name of diffusers' pipeline class."""
        return str(self._index["_class_name"])

    @property
    def family(self) -> str:
        """Name of the public model: `sdxl` or `sd15`."""
        return FAMILIES[self.pipeline_class_name]

    @cached_property
    def unet_config(self) -> dict[str, Any]:
        """`unet/config.json`."""
        return self._read("unet/config.json")

    @cached_property
    def vae_config(self) -> dict[str, Any]:
        """`vae/config.json`."""
        return self._read("vae/config.json")

    @cached_property
    def force_zeros_for_empty_prompt(self) -> bool:
        """Whether an absent negative prompt means embeddings of zeros (SDXL) and not those of the empty prompt."""
        if self.family != "sdxl":
            return False
        default = inspect.signature(self._pipeline_class.__init__).parameters["force_zeros_for_empty_prompt"].default
        return bool(self._index.get("force_zeros_for_empty_prompt", default))

    @property
    def has_safety_checker(self) -> bool:
        """Whether the checkpoint brings a safety checker (which is not run by this server)."""
        return (self._index.get("safety_checker") or [None])[0] is not None

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent cell along one axis, as diffusers' pipelines derive it."""
        return 2 ** (len(self.vae_config["block_out_channels"]) - 1)

    @property
    def size_multiple(self) -> int:
        """Heights and widths are multiples of this: VAE factor × stride of the UNet's down blocks, in pixels."""
        return self.vae_scale_factor * 2 ** (len(self.unet_config["block_out_channels"]) - 1)

    @property
    def default_size(self) -> tuple[int, int]:
        """Height and width in pixels that diffusers' pipelines default to."""
        size = self.unet_config["sample_size"]
        height, width = (size, size) if isinstance(size, int) else size
        return height * self.vae_scale_factor, width * self.vae_scale_factor

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return int(self.unet_config["in_channels"])

    @property
    def text_embedding_shape(self) -> tuple[int, int]:
        """(tokens, width) of a prompt's embedding."""
        configs = [self._text_config(encoder) for encoder in self._text_encoders]
        tokens = self._read("tokenizer/tokenizer_config.json").get(
            "model_max_length", configs[0].max_position_embeddings
        )
        return int(tokens), sum(config.hidden_size for config in configs)

    @property
    def pooled_width(self) -> int | None:
        """Width of the pooled embedding that SDXL's UNet takes beside the tokens; None for SD 1.5."""
        return int(self._text_config("text_encoder_2").projection_dim) if self.family == "sdxl" else None

    @property
    def guidance_embedding_width(self) -> int | None:
        """Width of the guidance embedding of a guidance-distilled UNet (LCM); None for every other UNet."""
        return self.unet_config.get("time_cond_proj_dim")

    @property
    def pipeline_defaults(self) -> tuple[int, float]:
        """(steps, guidance scale) that diffusers' pipeline call defaults to."""
        parameters = inspect.signature(self._pipeline_class.__call__).parameters
        return int(parameters["num_inference_steps"].default), float(parameters["guidance_scale"].default)

    def load_unet(self, device: torch.device, dtype: torch.dtype) -> UNet2DConditionModel:
        """The UNet in evaluation mode.

        Raises:
            CheckpointError: If its file lacks weights, as of every `load_…` that reads weights.
        """
        from diffusers import UNet2DConditionModel

        return self._load_network(UNet2DConditionModel, "unet", dtype).to(device)

    def load_vae(self, device: torch.device, dtype: torch.dtype) -> AutoencoderKL:
        """The autoencoder in evaluation mode; in float32 if it overflows in float16 (`force_upcast`)."""
        import torch
        from diffusers import AutoencoderKL

        if dtype == torch.float16 and self.vae_config.get("force_upcast", True):
            dtype = torch.float32
        return self._load_network(AutoencoderKL, "vae", dtype).to(device)

    def load_text_pipeline(self, device: torch.device, dtype: torch.dtype) -> DiffusionPipeline:
        """A pipeline of tokenisers and text encoders only: its `encode_prompt` is the reference."""
        encoders = {name: self._load_text_encoder(name, dtype) for name in self._text_encoders}
        return self._load_pipeline(("tokenizer", "tokenizer_2"), **encoders).to(device)

    def empty_parts(self) -> dict[str, torch.nn.Module]:
        """The UNet and the text encoders by name, without weights (on the meta device): their modules and shapes."""
        from accelerate import init_empty_weights
        from diffusers import UNet2DConditionModel

        with init_empty_weights():
            parts = {"unet": UNet2DConditionModel.from_config(self.unet_config)}
            for encoder in self._text_encoders:
                parts[encoder] = self._text_encoder_class(encoder)(self._text_config(encoder))
        return parts

    def weight_files(self, part: str) -> list[Path]:
        """The safetensors files of a part such as `unet`."""
        files = sorted((self.path / part).glob("*.safetensors"))
        variant = weights_variant(self.path / part)
        return [file for file in files if variant or ".fp16" not in file.name]

    @cached_property
    def scheduler_config(self) -> dict[str, Any]:
        """Of the checkpoint's own scheduler, as diffusers' pipeline amends it (`steps_offset`, `clip_sample`)."""
        library, class_name = self._index["scheduler"]
        try:
            scheduler = self._load_pipeline(("scheduler",)).scheduler
        except (ImportError, AttributeError, TypeError, ValueError, OSError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"{self.path}: its scheduler {library}.{class_name} cannot be made: {reason}"
            ) from None
        return {**scheduler.config, "_class_name": type(scheduler).__name__}

    @property
    def _text_encoders(self) -> tuple[str, ...]:
        return ("text_encoder", "text_encoder_2") if self.family == "sdxl" else ("text_encoder",)

    def _text_config(self, encoder: str) -> CLIPTextConfig:
        from transformers import CLIPTextConfig

        return CLIPTextConfig.from_pretrained(self.path / encoder)

    def _load_network(self, kind: Any, part: str, dtype: torch.dtype) -> Any:
        path = self.path / part
        network = kind.from_pretrained(path, dtype=dtype, variant=weights_variant(path), use_safetensors=True)
        _raise_if_missing(missing_weights(network), path)
        return network.requires_grad_(False).eval()

    def _text_encoder_class(self, encoder: str) -> Any:
        import transformers

        return getattr(transformers, self._index[encoder][1])

    def _load_text_encoder(self, encoder: str, dtype: torch.dtype) -> PreTrainedModel:
        """As the pipeline would load it; transformers would give weights that the file lacks random values."""
        path = self.path / encoder
        options = {"variant": weights_variant(path), "use_safetensors": True, "output_loading_info": True}
        model, report = self._text_encoder_class(encoder).from_pretrained(path, dtype=dtype, **options)
        _raise_if_missing(sorted(report["missing_keys"]), path)
        return model

    @property
    def _pipeline_class(self) -> type[DiffusionPipeline]:
        import diffusers

        return getattr(diffusers, self.pipeline_class_name)

    def _load_pipeline(self, parts: tuple[str, ...], **options: Any) -> DiffusionPipeline:
        unused = {name: None for name, value in self._index.items() if isinstance(value, list) and name not in parts}
        if self.family == "sd15":
            options["requires_safety_checker"] = False
        return self._pipeline_class.from_pretrained(self.path, **(unused | options))

    def _read(self, name: str) -> dict[str, Any]:
        file = self.path / name
        try:
            return json.loads(file.read_text("utf-8"))
        except FileNotFoundError:
            raise CheckpointError(f"{self.path} is not a diffusers checkpoint: it has no {name}") from None
        except ValueError as error:
            raise CheckpointError(f"{file} is not JSON: {error}") from error
