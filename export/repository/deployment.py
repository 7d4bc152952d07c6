"""What an operator asks the exporter for, as options of its command or as a TOML file."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from ...python_backends.common.sentences import in_a_sentence
from ...python_backends.lora.loading.catalogue import Catalogue
from ...python_backends.networks.checkpoint import Checkpoint, CheckpointError
from ...python_backends.networks.checkpoint_checks import check_checkpoint
from ...python_backends.tensorrt.flavours import FLAVOURS
from .controlnet_placement import NAME, ControlNetPlacement, DeploymentError, Gpu, Table, first_mistake
from .controlnets import fitting
from .serving_options import ServedControlNet, ServedPipeline, ServingOptions

if TYPE_CHECKING:
    from collections.abc import Sequence


class Pipeline(Table):
    """A checkpoint and how to serve it; what is None is the checkpoint's own or follows from the rest."""

    checkpoint: Path
    unet_shards: int = Field(default=2, ge=1, le=64)
    unet_gpus: tuple[Gpu, ...] = ()
    text_encoder_gpu: Gpu | None = None
    vae_gpu: Gpu | None = None
    vae_float16: bool = False
    threads: int = Field(default=1, ge=1)
    dtype: Literal["float32", "float16", "bfloat16"] = "float16"
    runtime: Literal["torch", "compile", "tensorrt", "tensorrt-rtx"] = "torch"
    engines: Path | None = None
    fp8: bool = False
    max_batch_size: int = Field(default=8, ge=1, le=64)
    steps: int | None = Field(default=None, ge=1)
    guidance_scale: float | None = Field(default=None, ge=0)
    max_size: int | None = Field(default=None, ge=8)
    loras: Path | None = None
    lora_bound: int = Field(default=0, ge=0)
    lora_host_mib: int = Field(default=4096, ge=1)
    lora_disk_mib: int = Field(default=65536, ge=1)
    template_host_mib: int = Field(default=4096, ge=0)
    template_disk_mib: int = Field(default=0, ge=0)
    controlnet_timeout: float = Field(default=60.0, ge=0.1)
    ignored_parameters: str = ""
    slo_ms: int | None = Field(default=None, ge=1)
    slo_factor: float | None = Field(default=None, ge=1.0)

    @field_validator("ignored_parameters")
    @classmethod
    def _is_an_expression(cls, expression: str) -> str:
        try:
            re.compile(expression)
        except re.error as error:
            raise ValueError(f"{expression!r} is no regular expression: {error}") from None
        return expression

    @model_validator(mode="after")
    def _every_gpu_has_work(self) -> Pipeline:
        if len(self.unet_gpus) > self.unet_shards:
            raise ValueError(
                f"unet_gpus names {len(self.unet_gpus)} GPUs for {self.unet_shards} UNet shards; wanted: at most one "
                "GPU per shard"
            )
        return self

    @model_validator(mode="after")
    def _a_gpu_for_half_precision(self) -> Pipeline:
        if self.vae_float16 and self.vae_gpu is None and not self.unet_gpus:
            raise ValueError("vae_float16 is given and the VAE is on the CPU; wanted: vae_gpu, or unet_gpus")
        return self

    @model_validator(mode="after")
    def _one_slo(self) -> Pipeline:
        if self.slo_ms is not None and self.slo_factor is not None:
            raise ValueError("slo_ms and slo_factor are both given; wanted: one of them")
        return self

    @model_validator(mode="after")
    def _can_run(self) -> Pipeline:
        if self.runtime in FLAVOURS and not (self.unet_gpus and self.engines):
            lacking = [key for key in ("unet_gpus", "engines") if not getattr(self, key)]
            raise ValueError(f"runtime is {self.runtime}; wanted with it: {' and '.join(lacking)}")
        if self.engines is not None and self.runtime not in FLAVOURS:
            raise ValueError(f"engines is given; wanted with it: runtime {' or '.join(FLAVOURS)}, not {self.runtime}")
        if self.fp8 and self.runtime != "torch":
            raise ValueError(f"fp8 is on; wanted with it: runtime torch, not {self.runtime}")
        if self.fp8 and not self.unet_gpus:
            raise ValueError("fp8 is on; wanted with it: unet_gpus, since a CPU would only emulate it")
        return self


class Deployment(Table):
    """Pipelines by the names of their public models, and the ControlNets that they share."""

    pipelines: Annotated[dict[str, Pipeline], Field(min_length=1)]
    controlnets: dict[str, ControlNetPlacement] = Field(default_factory=dict)

    @field_validator("pipelines", "controlnets")
    @classmethod
    def _are_names(cls, tables: dict[str, Any]) -> dict[str, Any]:
        for name in tables:
            if not NAME.fullmatch(name):
                raise ValueError(f'"{name}" is no name; wanted: letters, digits, - and _, at most 64')
        return tables

    @model_validator(mode="after")
    def _one_cache(self) -> Deployment:
        for key in ("lora_host_mib", "lora_disk_mib", "template_host_mib", "template_disk_mib"):
            if len({getattr(each, key) for each in self.pipelines.values()}) > 1:
                raise ValueError(f"{key} differs between pipelines; wanted: one value, since they share the cache")
        return self

    @classmethod
    def from_options(cls, name: str | None, pipeline: dict[str, Any], controlnets: Sequence[str]) -> Deployment:
        """One pipeline from the options of the command.

        Args:
            name: Of its public model; None for its family's.
            pipeline: Values of `Pipeline`; `unet_gpus` as text.
            controlnets: As `ControlNetPlacement.parse` takes them.

        Raises:
            DeploymentError: At the first mistake.
        """
        if name is not None and not NAME.fullmatch(name):
            raise DeploymentError(f'--name is "{name}"; wanted: letters, digits, - and _, at most 64')
        placed = [ControlNetPlacement.parse(text) for text in controlnets]
        names = [each for each, _ in placed]
        for each in names:
            if names.count(each) > 1:
                raise DeploymentError(f"--controlnet names {each} twice; wanted: a name of its own for each")
        gpus = [part.strip() for part in str(pipeline.get("unet_gpus", "")).split(",") if part.strip()]
        try:
            table = Pipeline(**(pipeline | {"unet_gpus": gpus}))
            return cls(
                pipelines={name or Checkpoint(table.checkpoint.resolve()).family: table}, controlnets=dict(placed)
            )
        except ValidationError as error:
            raise DeploymentError(first_mistake(error, as_option=True)) from None
        except CheckpointError as error:
            raise DeploymentError(str(error)) from None

    @classmethod
    def read(cls, file: Path) -> Deployment:
        """Reads a TOML file; paths in it count from its directory.

        Raises:
            DeploymentError: If it is not one, with the place in it.
        """
        try:
            tables = tomllib.loads(file.read_text("utf-8"))
            deployment = cls.model_validate(tables)
        except (OSError, ValueError) as error:
            said = first_mistake(error) if isinstance(error, ValidationError) else str(error)
            raise DeploymentError(f"{file}: {said}") from None
        base = file.resolve().parent

        def based(path: Path | None) -> Path | None:
            return None if path is None else base / path

        pipelines = {
            name: each.model_copy(update={key: based(getattr(each, key)) for key in ("checkpoint", "loras", "engines")})
            for name, each in deployment.pipelines.items()
        }
        networks = {
            name: each.model_copy(update={"path": based(each.path)}) for name, each in deployment.controlnets.items()
        }
        return cls(pipelines=pipelines, controlnets=networks)

    def resolve(self) -> dict[str, ServedPipeline]:
        """Looks into the files: what is to be served, by public name.

        Raises:
            DeploymentError: If anything of it cannot be.
        """
        try:
            checkpoints = {name: _checkpoint(each.checkpoint.resolve()) for name, each in self.pipelines.items()}
            networks = {name: fitting(_served(name, placed), checkpoints) for name, placed in self.controlnets.items()}
            pipelines = {
                name: ServedPipeline(
                    checkpoints[name],
                    _options(each, checkpoints[name], tuple(fits[name] for fits in networks.values() if name in fits)),
                )
                for name, each in self.pipelines.items()
            }
            for served in pipelines.values():
                served.options.request_rules(served.checkpoint)  # raises, if a default is beyond the limits
            return pipelines
        except ValueError as error:
            raise DeploymentError(str(error)) from error


def _checkpoint(path: Path) -> Checkpoint:
    with in_a_sentence(f"{path} cannot be read", CheckpointError):
        checkpoint = Checkpoint(path)
        check_checkpoint(checkpoint)
        return checkpoint


def _served(name: str, placed: ControlNetPlacement) -> ServedControlNet:
    return ServedControlNet(name, placed.path.absolute(), placed.gpus, placed.processes or 1, placed.url)


def _options(pipeline: Pipeline, checkpoint: Checkpoint, networks: tuple[ServedControlNet, ...]) -> ServingOptions:
    Catalogue(pipeline.loras)  # raises, if it cannot be read
    steps, guidance_scale = checkpoint.pipeline_defaults
    first = pipeline.unet_gpus[0] if pipeline.unet_gpus else None
    return ServingOptions(
        unet_shards=pipeline.unet_shards,
        unet_gpus=pipeline.unet_gpus,
        threads=pipeline.threads,
        dtype=pipeline.dtype,
        runtime=pipeline.runtime,
        engines=None if pipeline.engines is None else pipeline.engines.resolve(),
        fp8=pipeline.fp8,
        max_batch_size=pipeline.max_batch_size,
        steps=_given(pipeline.steps, steps),
        guidance_scale=_given(pipeline.guidance_scale, guidance_scale),
        max_size=_given(pipeline.max_size, max(512, 2 * max(checkpoint.default_size))),
        loras=pipeline.loras,
        lora_bound=pipeline.lora_bound,
        lora_host_bytes=pipeline.lora_host_mib * 2**20,
        lora_disk_bytes=pipeline.lora_disk_mib * 2**20,
        template_host_bytes=pipeline.template_host_mib * 2**20,
        template_disk_bytes=pipeline.template_disk_mib * 2**20,
        controlnets=networks,
        controlnet_timeout_s=pipeline.controlnet_timeout,
        text_encoder_gpu=_given(pipeline.text_encoder_gpu, first),
        vae_gpu=_given(pipeline.vae_gpu, first),
        vae_float16=pipeline.vae_float16,
        ignored_parameters=pipeline.ignored_parameters,
        slo_ms=_given(pipeline.slo_ms, 0),
        slo_factor=_given(pipeline.slo_factor, 0.0),
    )


def _given(value: Any, default: Any) -> Any:
    return default if value is None else value
