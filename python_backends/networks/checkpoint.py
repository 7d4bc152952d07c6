"""A diffusers-format checkpoint that is served, and its parts loaded one by one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..common.sentences import first_sentence
from .checkpoint_files import CheckpointError
from .checkpoint_settings import FAMILIES, CheckpointSettings
from .weight_files import WeightFileError, empty_tensors, weights_variant

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from diffusers import AutoencoderKL, AutoencoderTiny, DiffusionPipeline, UNet2DConditionModel
    from transformers import PreTrainedModel

DEFAULTED = "_use_default_values"
"""diffusers' key for the names of what a configuration leaves out."""

MASK_CHANNELS = 1


def missing_weights(network: torch.nn.Module) -> list[str]:
    """Names of the weights that diffusers did not find in the network's file: it leaves them without memory."""
    return [name for name, parameter in network.named_parameters() if parameter.is_meta]


def _raise_if_missing(weights: list[str], part: Path) -> None:
    if weights:
        raise CheckpointError(f"{part} is not whole: it lacks {weights[0]} ({len(weights)} in all)")


@dataclass(frozen=True)
class Checkpoint(CheckpointSettings):
    """A checkpoint that can be served.

    Reading a property reads JSON only; weights are read by the `load_…` methods, each its own part and no other.

    Attributes:
        path: The directory that holds `model_index.json`.
    """

    def __post_init__(self) -> None:
        if self.pipeline_class_name not in FAMILIES:
            raise CheckpointError(
                f"{self.path} holds a {self.pipeline_class_name}; served are {', '.join(sorted(FAMILIES))}"
            )
        self.weight_files("unet")  # raises, if there are none
        plain = self.latent_channels
        inpainting = 2 * plain + MASK_CHANNELS
        if self.unet_channels not in (plain, inpainting):
            raise CheckpointError(
                f"{self.path}: the UNet takes {self.unet_channels} channels, the VAE gives {plain}; served are UNets "
                f"that take {plain}, or {inpainting} to inpaint"
            )
        unserved = {"text", "text_image", "image", "image_hint"}
        if self.unet_config.get("addition_embed_type") in unserved or self.unet_config.get("encoder_hid_dim_type"):
            raise CheckpointError(f"{self.path}: the UNet wants conditioning that is not served")

    def load_unet(self, device: torch.device, dtype: torch.dtype) -> UNet2DConditionModel:
        """The UNet in evaluation mode.

        Raises:
            CheckpointError: If its file lacks weights, as of every `load_…` that reads weights.
        """
        return self._load_network("unet", dtype).to(device)

    def load_vae(
        self, device: torch.device, dtype: torch.dtype, encodes: bool = False
    ) -> AutoencoderKL | AutoencoderTiny:
        """The autoencoder in evaluation mode, of `vae_dtype`."""
        return self._load_network("vae", self.vae_dtype(dtype, encodes)).to(device)

    def load_half_vae(self, device: torch.device) -> AutoencoderKL | AutoencoderTiny:
        """The autoencoder in float16, to decode alone, scaled so that nothing overflows."""
        import torch
        from diffusers import AutoencoderKL

        from .half_decoder import scale_decoder

        vae = self._load_network("vae", torch.float16)
        if isinstance(vae, AutoencoderKL):
            scale_decoder(vae)
        return vae.to(device)

    def vae_dtype(self, dtype: torch.dtype, encodes: bool = False) -> torch.dtype:
        """What the autoencoder computes in where the rest is of this type: as diffusers' pipelines choose it.

        Those of SD 1.5 take the same. Those of SDXL take float32 for one that says `force_upcast`: to decode beside
        float16, to encode always.
        """
        import torch

        upcasts = self.family == "sdxl" and self._vae_setting("force_upcast")
        return torch.float32 if upcasts and (encodes or dtype == torch.float16) else dtype

    def load_text_pipeline(self, device: torch.device, dtype: torch.dtype) -> DiffusionPipeline:
        """A pipeline of tokenisers and text encoders only: its `encode_prompt` is the reference."""
        encoders = {name: self._load_text_encoder(name, dtype) for name in self.text_encoders}
        return self._load_pipeline(("tokenizer", "tokenizer_2"), **encoders).to(device)

    def load_tokenizers(self) -> DiffusionPipeline:
        """A pipeline of tokenisers only."""
        return self._load_pipeline(("tokenizer", "tokenizer_2"))

    def empty_parts(self) -> dict[str, torch.nn.Module]:
        """The UNet and the text encoders by name, without weights (on the meta device): their modules and shapes."""
        return {part: self.empty_part(part) for part in ("unet", *self.text_encoders)}

    def empty_part(self, part: str) -> torch.nn.Module:
        """One of `networks` without weights, on the meta device."""
        from accelerate import init_empty_weights

        kind = self.network_class(part)
        with init_empty_weights():
            if part in self.text_encoders:
                return kind(self._text_config(part))
            return kind.from_config(self.read(f"{part}/config.json"))

    @cached_property
    def scheduler_config(self) -> dict[str, Any]:
        """Of the checkpoint's own scheduler, as diffusers' pipeline amends it (`steps_offset`, `clip_sample`)."""
        library, class_name = self.class_name("scheduler")
        if library != "diffusers":
            raise CheckpointError(
                f"{self.path}: its scheduler is {library}.{class_name}; served are those of diffusers"
            )
        try:
            scheduler = self._load_pipeline(("scheduler",)).scheduler
        except Exception as error:  # noqa: BLE001  schedulers of all kinds raise what they like
            raise CheckpointError(
                f"{self.path}: its scheduler {class_name} cannot be made: {first_sentence(error)}"
            ) from None
        config = {**scheduler.config, "_class_name": type(scheduler).__name__}
        if (unwritten := config.get(DEFAULTED)) is not None:
            config[DEFAULTED] = sorted(unwritten)  # diffusers' order is another in each process
        return config

    def _load_network(self, part: str, dtype: torch.dtype) -> Any:
        path = self._read_headers(part)
        network = self.network_class(part).from_pretrained(
            path, dtype=dtype, variant=weights_variant(path), use_safetensors=True
        )
        _raise_if_missing(missing_weights(network), path)
        return network.requires_grad_(False).eval()

    def _load_text_encoder(self, encoder: str, dtype: torch.dtype) -> PreTrainedModel:
        """As the pipeline would load it; transformers would give weights that the file lacks random values."""
        path = self._read_headers(encoder)
        options = {"variant": weights_variant(path), "use_safetensors": True, "output_loading_info": True}
        model, report = self.network_class(encoder).from_pretrained(path, dtype=dtype, **options)
        _raise_if_missing(sorted(report["missing_keys"]), path)
        return model

    def _read_headers(self, part: str) -> Path:
        """A part's directory, whose files are whole: of those that are not, libraries would not say which."""
        try:
            empty_tensors(self.weight_files(part))
        except WeightFileError as error:
            raise CheckpointError(str(error)) from None
        return self.path / part

    def _load_pipeline(self, parts: tuple[str, ...], **options: Any) -> DiffusionPipeline:
        unused = {name: None for name, value in self.index.items() if isinstance(value, list) and name not in parts}
        if self.family == "sd15":
            options["requires_safety_checker"] = False
        return self._pipeline_class.from_pretrained(self.path, **(unused | options))
