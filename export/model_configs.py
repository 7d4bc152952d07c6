"""The Triton model configurations of one served checkpoint (`ModelConfig` of Triton's model_config.proto)."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from tritonclient.grpc import model_config_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from ..python_backends.checkpoint import Checkpoint
    from .serving_options import ServedControlNet, ServingOptions

CANDIDATES_PER_PLACE = 8
"""Requests that a denoiser holds per place in its running batch: one that waits for a LoRA takes no place."""

CLIENT_INPUTS: tuple[tuple[str, str, tuple[int, ...], bool], ...] = (
    ("PROMPT", "STRING", (1,), True),
    ("NEGATIVE_PROMPT", "STRING", (1,), True),
    ("SEED", "INT64", (1,), True),
    ("STEPS", "INT32", (1,), True),
    ("GUIDANCE_SCALE", "FP32", (1,), True),
    ("HEIGHT", "INT32", (1,), True),
    ("WIDTH", "INT32", (1,), True),
    ("SCHEDULER", "STRING", (1,), True),
    ("LORAS", "STRING", (1,), True),
    ("LORA_BOUND", "INT32", (1,), True),
    ("LORA_PATCH_STEP", "INT32", (1,), True),
    ("CONTROLNETS", "STRING", (1,), True),
    ("CONTROL_IMAGES", "UINT8", (-1, -1, -1, 3), True),
    ("REQUEST_ID", "STRING", (1,), True),
    ("TIMEOUT_MS", "INT32", (1,), True),
)
"""The wire contract's inputs: name, type, shape without the batch dimension, optional for Triton.

PROMPT is required all the same: of an ensemble whose required input is missing Triton says only "unexpected deadlock",
`preprocess` says what is missing."""


Tensor = tuple[str, str, tuple[int, ...]]


def model_configs(
    checkpoint: Checkpoint, options: ServingOptions, reference: Callable[[Path], str]
) -> list[pb.ModelConfig]:
    """Configurations of every model of the repository.

    Args:
        checkpoint: The served checkpoint.
        options: How it is served.
        reference: A path as the backends find it: absolute, or relative to the repository's directory.
    """
    checkpoint_path = reference(checkpoint.path)
    catalogue = {"loras": "" if options.loras is None else reference(options.loras)}
    compute = {"checkpoint": checkpoint_path, "dtype": options.dtype, "threads": str(options.threads)}
    geometry = {
        "channels": checkpoint.latent_channels,
        "scale_factor": checkpoint.vae_scale_factor,
        "guidance_embedding_width": checkpoint.guidance_embedding_width,
    }
    sampling = {
        "scheduler": json.dumps(dict(checkpoint.load_scheduler().config), sort_keys=True),
        "latents": json.dumps(geometry),
        "threads": str(options.threads),
    }
    tokens, width = checkpoint.text_embedding_shape
    embeddings: list[Tensor] = [("PROMPT_EMBEDS", "FP32", (2, tokens, width))]
    conditioning: list[Tensor] = [("ENCODER_HIDDEN_STATES", "FP32", (tokens, width))]
    if checkpoint.pooled_width is not None:
        embeddings.append(("POOLED_PROMPT_EMBEDS", "FP32", (2, checkpoint.pooled_width)))
        conditioning += [("TEXT_EMBEDS", "FP32", (checkpoint.pooled_width,)), ("TIME_IDS", "FP32", (6,))]
    if checkpoint.guidance_embedding_width is not None:
        conditioning.append(("TIMESTEP_COND", "FP32", (checkpoint.guidance_embedding_width,)))
    request: list[Tensor] = [("REQUEST", "STRING", (1,))]
    encoding: list[Tensor] = [("ENCODING", "STRING", (1,))]
    info: list[Tensor] = [("INFO", "STRING", (1,))]
    tickets: list[Tensor] = [("TICKETS", "STRING", (1,))]
    store = {
        **catalogue,
        "checkpoint": checkpoint_path,
        "lora_host_bytes": str(options.lora_host_bytes),
        "lora_disk_bytes": str(options.lora_disk_bytes),
    }
    latents: list[Tensor] = [("LATENTS", "FP32", (checkpoint.latent_channels, -1, -1))]
    progress: list[Tensor] = [*latents, ("PREVIEW", "BOOL", (1,)), *info]
    timesteps: list[Tensor] = [("TIMESTEPS", "FP32", (1,))]
    lora_set: list[Tensor] = [("LORA_SET", "STRING", (1,))]
    image: list[Tensor] = [("IMAGE", "UINT8", (-1, -1, 3))]

    shard_names = [f"unet_shard{index}" for index in range(options.unet_shards)]
    configs = [
        _preprocess([*request, *tickets], checkpoint, options, catalogue),
        _text_encoder(request, [*embeddings, *encoding], compute, options),
        _python("lora_store", request, tickets, store, options),
        *(
            _denoiser(name, [*request, *embeddings, *encoding, *tickets], progress, sampling, shard_names, options)
            for name in ("denoiser", "denoiser_stream")
        ),
        *(
            _batched(
                _python(
                    name,
                    [*latents, *timesteps, *conditioning, *lora_set, ("CONTROLS", "STRING", (1,))],
                    [
                        ("NOISE_PRED", "FP32", latents[0][2]),
                        ("PATCH_MS", "FP32", (1,)),
                        ("FAILURES", "STRING", (1,)),
                    ],
                    {**compute, "controlnet_timeout_s": f"{options.controlnet_timeout_s:g}"},
                    options,
                    gpu=index,
                ),
                2,
            )
            for index, name in enumerate(shard_names)
        ),
        *(
            _controlnet(served, [*latents, *timesteps, *conditioning], compute, reference(served.path), options)
            for served in options.controlnets
        ),
        _batched(_python("vae_decoder", progress, [*image, *info], compute, options, gpu=0)),
        _single(_python("cancel", [("REQUEST_ID", "STRING", (1,))], [("CANCELLED", "BOOL", (1,))], {}, options)),
    ]
    embedding_names = [name for name, _, _ in (*embeddings, *encoding)]
    for suffix in ("", "_stream"):
        configs.append(_ensemble(checkpoint.family + suffix, f"denoiser{suffix}", embedding_names, [*image, *info]))
    return configs


def _python(
    name: str,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    parameters: dict[str, str],
    options: ServingOptions,
    gpu: int | None = None,
) -> pb.ModelConfig:
    """A Python model; `gpu` is the index into `options.gpus` of a model that computes, None for one that does not."""
    config = pb.ModelConfig(name=name, backend="python", max_batch_size=options.max_batch_size)
    config.input.extend(_input(*tensor) for tensor in inputs)
    config.output.extend(_output(*tensor) for tensor in outputs)
    group = pb.ModelInstanceGroup(count=1, kind=pb.ModelInstanceGroup.KIND_CPU)
    if gpu is not None and options.gpus:
        group = pb.ModelInstanceGroup(count=1, kind=pb.ModelInstanceGroup.KIND_GPU)
        group.gpus.append(options.gpus[gpu % len(options.gpus)])
    config.instance_group.append(group)
    for key, value in sorted(parameters.items()):
        config.parameters[key].string_value = value
    return config


def _batched(config: pb.ModelConfig, rows_per_request: int = 1) -> pb.ModelConfig:
    """Lets Triton batch requests that wait; a model called with several rows a request takes so many times more."""
    config.dynamic_batching.SetInParent()
    config.max_batch_size *= rows_per_request
    return config


def _single(config: pb.ModelConfig) -> pb.ModelConfig:
    """A model of the wire contract's batch-1 requests."""
    config.max_batch_size = 1
    return config


def _text_encoder(
    inputs: Sequence[Tensor], outputs: Sequence[Tensor], compute: dict[str, str], options: ServingOptions
) -> pb.ModelConfig:
    """Ensembles call it without LORA_SET; a denoiser with it, once a LoRA's text parts are ready."""
    config = _batched(_python("text_encoder", inputs, outputs, compute, options, gpu=0))
    config.input.append(_input("LORA_SET", "STRING", (1,), optional=True))
    return config


def _preprocess(
    outputs: Sequence[Tensor], checkpoint: Checkpoint, options: ServingOptions, catalogue: dict[str, str]
) -> pb.ModelConfig:
    rules = {key: str(value) for key, value in asdict(options.request_rules(checkpoint)).items()}
    names = json.dumps(sorted(served.name for served in options.controlnets))
    parameters = {**rules, **catalogue, "controlnets": names}
    config = _single(_python("preprocess", [], outputs, parameters, options))
    config.input.extend(_input(*tensor) for tensor in CLIENT_INPUTS)
    return config


def _denoiser(
    name: str,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    settings: dict[str, str],
    shard_names: Sequence[str],
    options: ServingOptions,
) -> pb.ModelConfig:
    parameters = {**settings, "unet_shards": ",".join(shard_names), "places": str(options.max_batch_size)}
    config = _python(name, inputs, outputs, parameters, options)
    config.max_batch_size = CANDIDATES_PER_PLACE * options.max_batch_size
    batching = config.sequence_batching
    batching.iterative_sequence = True
    batching.max_sequence_idle_microseconds = 600_000_000  # a step of a large picture on a CPU takes its time
    batching.oldest.max_candidate_sequences = config.max_batch_size  # the denoiser itself keeps to its places
    batching.oldest.max_queue_delay_microseconds = 100  # a step's requests come back one by one: wait for the last
    config.model_transaction_policy.decoupled = name.endswith("_stream")
    return config


def _controlnet(
    served: ServedControlNet,
    inputs: Sequence[Tensor],
    compute: dict[str, str],
    path: str,
    options: ServingOptions,
) -> pb.ModelConfig:
    """Rows of all shards and requests, batched by Triton; an instance per GPU."""
    own: list[Tensor] = [("IMAGE", "STRING", (1,)), ("SCALE", "FP32", (1,)), ("GUESS_MODE", "BOOL", (1,))]
    taken = [tensor for tensor in inputs if tensor[0] != "TIMESTEP_COND"]
    config = _python(
        f"controlnet_{served.name}",
        [*taken, *own],
        [("RESIDUALS", "FP32", (-1,))],
        {**compute, "controlnet": path, "dtype": options.dtype if served.gpus else "float32"},
        options,
    )
    if served.gpus:
        config.instance_group[0].kind = pb.ModelInstanceGroup.KIND_GPU
        config.instance_group[0].gpus.extend(served.gpus)
    return _batched(config, 2 * options.unet_shards)


def _ensemble(name: str, denoiser: str, embedding_names: Sequence[str], outputs: Sequence[Tensor]) -> pb.ModelConfig:
    config = pb.ModelConfig(name=name, platform="ensemble", max_batch_size=1)
    config.input.extend(_input(*tensor) for tensor in CLIENT_INPUTS)
    config.output.extend(_output(*tensor) for tensor in outputs)
    embeddings = {embedding: embedding.lower() for embedding in embedding_names}
    latents = {"LATENTS": "latents", "PREVIEW": "preview", "INFO": "denoiser_info"}
    steps: list[tuple[str, dict[str, str], dict[str, str]]] = [
        ("preprocess", {field[0]: field[0] for field in CLIENT_INPUTS}, {"REQUEST": "request", "TICKETS": "tickets"}),
        ("text_encoder", {"REQUEST": "request"}, embeddings),
        (denoiser, {"REQUEST": "request", **embeddings, "TICKETS": "tickets"}, latents),
        ("vae_decoder", latents, {"IMAGE": "IMAGE", "INFO": "INFO"}),
    ]
    for model, inputs, results in steps:
        step = config.ensemble_scheduling.step.add(model_name=model, model_version=-1)
        step.input_map.update(inputs)
        step.output_map.update(results)
    return config


def _input(name: str, dtype: str, dims: tuple[int, ...], optional: bool = False) -> pb.ModelInput:
    return pb.ModelInput(name=name, data_type=getattr(pb, f"TYPE_{dtype}"), dims=dims, optional=optional)


def _output(name: str, dtype: str, dims: tuple[int, ...]) -> pb.ModelOutput:
    return pb.ModelOutput(name=name, data_type=getattr(pb, f"TYPE_{dtype}"), dims=dims)
