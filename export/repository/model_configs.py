"""The models of a repository: those of each pipeline, and those that pipelines share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...python_backends.request.description import to_json
from . import needs
from .config_parts import Model, batched, python_model
from .engine_checks import controlnet_rows, users_of
from .model_parameters import compute_parameters, runtime_parameters
from .pipeline_models import PipelineModels, unet_inputs
from .text_encoders import shared_text_encoders

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tritonclient.grpc import model_config_pb2 as pb

    from .serving_options import ServedControlNet, ServedPipeline

RESIDUAL_TYPES = {"float32": "FP32", "float16": "FP16", "bfloat16": "BF16"}


def repository_models(pipelines: Mapping[str, ServedPipeline], reference: Callable[[Path], str]) -> list[Model]:
    """Every model of a repository.

    A pipeline that is alone has models of plain names, such as `denoiser`; of several, each has models of its own that
    begin with its name, such as `NAME_denoiser`. ControlNets are shared by all, text encoders by those with the same.

    Args:
        pipelines: By the names of their public models.
        reference: A path as the backends find it: absolute, or relative to the repository's directory.
    """
    prefixes = {name: f"{name}_" if len(pipelines) > 1 else "" for name in pipelines}
    encoders = shared_text_encoders(pipelines, prefixes)
    parts = {
        name: PipelineModels(name, prefixes[name], served, encoders[name], reference)
        for name, served in pipelines.items()
    }
    models = [model for each in parts.values() for model in each.models()]
    described = {name: each.described() for name, each in parts.items()}
    of_all = [Model(_pipelines(to_json(described)), "pipelines"), Model(_cancel(), "cancel")]
    return [*models, *controlnet_models(pipelines, reference), *of_all]


def controlnet_models(pipelines: Mapping[str, ServedPipeline], reference: Callable[[Path], str]) -> list[Model]:
    """The ControlNets that run on this server, and where other servers put pictures for them."""
    here = {each.name: each for served in pipelines.values() for each in served.options.controlnets if not each.url}
    models = []
    for name, network in here.items():
        models.append(_controlnet(network, users_of(name, pipelines), reference))
    return [*models, Model(_control_images(), "control_image_store")] if models else []


def _controlnet(network: ServedControlNet, users: list[ServedPipeline], reference: Callable[[Path], str]) -> Model:
    """Rows of all shards, requests and pipelines, batched by Triton; an instance per GPU or process."""
    first = users[0]
    dtype = first.options.dtype_on(network.gpus[0] if network.gpus else None)
    inputs = unet_inputs(first.checkpoint, first.checkpoint.latent_channels)
    taken = [tensor for tensor in inputs if tensor[0] != "TIMESTEP_COND"]
    config = python_model(
        f"controlnet_{network.name}",
        [*taken, ("CONTROL", "STRING", (1,))],
        [("RESIDUALS", RESIDUAL_TYPES[dtype], (-1,)), ("FAILURES", "STRING", (1,))],
        {
            **compute_parameters(first, dtype, reference),
            **runtime_parameters(first, network.gpus[0] if network.gpus else None, reference),
            **needs.controlnet(network, first.checkpoint, first.options),
            "controlnet": reference(network.path),
        },
        max_batch_size=controlnet_rows(users),
        gpus=network.gpus,
        processes=network.processes,
    )
    return Model(batched(config), "controlnet")


def _control_images() -> pb.ModelConfig:
    return python_model(
        "control_images", [("IMAGE", "UINT8", (-1, -1, -1))], [("KEY", "STRING", (1,))], {}, max_batch_size=1
    )


def _pipelines(described: str) -> pb.ModelConfig:
    return python_model(
        "pipelines",
        [("PIPELINE", "STRING", (1,))],
        [("PIPELINES", "STRING", (1,))],
        {"pipelines": described},
        max_batch_size=1,
    )


def _cancel() -> pb.ModelConfig:
    return python_model("cancel", [("REQUEST_ID", "STRING", (1,))], [("CANCELLED", "BOOL", (1,))], {}, max_batch_size=1)
