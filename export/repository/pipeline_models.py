"""The models of one served checkpoint."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING

import torch

from ...python_backends.common.sentences import in_a_sentence
from ...python_backends.networks.checkpoint import CheckpointError
from ...python_backends.networks.linear_preview import LinearPreview, fit_linear_preview
from ...python_backends.request.controlnets import KnownControlNet
from ...python_backends.request.description import DescribedPipeline
from . import needs
from .config_parts import (
    CLIENT_INPUTS,
    Model,
    Tensor,
    batched,
    ensemble,
    iterative_sequence,
    model_input,
    python_model,
)
from .model_parameters import compute_parameters, constant_parameters, engine_parameters, runtime_parameters

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tritonclient.grpc import model_config_pb2 as pb

    from ...python_backends.networks.checkpoint import Checkpoint
    from .serving_options import ServedPipeline

CANDIDATES_PER_PLACE = 8
"""Requests that a denoiser holds per place in a shard's batch: one that waits for a LoRA takes no place."""

REQUEST: Tensor = ("REQUEST", "STRING", (1,))
TICKETS: Tensor = ("TICKETS", "STRING", (1,))
ENCODING: Tensor = ("ENCODING", "STRING", (1,))
LATENT_KEYS: Tensor = ("LATENT_KEYS", "STRING", (1,))
INFO: Tensor = ("INFO", "STRING", (1,))
PICTURE: list[Tensor] = [("IMAGE", "UINT8", (-1, -1, 3)), ("ENCODED_IMAGE", "STRING", (1,)), INFO]


def unet_inputs(checkpoint: Checkpoint, channels: int) -> list[Tensor]:
    """What a checkpoint's UNet takes, as tensors of its model; LATENTS, of so many channels, first."""
    _, width = checkpoint.text_embedding_shape
    tensors: list[Tensor] = [
        ("LATENTS", "FP32", (channels, -1, -1)),
        ("TIMESTEPS", "FP32", (1,)),
        ("ENCODER_HIDDEN_STATES", "FP32", (-1, width)),
    ]
    if checkpoint.pooled_width is not None:
        tensors += [("TEXT_EMBEDS", "FP32", (checkpoint.pooled_width,)), ("TIME_IDS", "FP32", (6,))]
    if checkpoint.guidance_embedding_width is not None:
        tensors.append(("TIMESTEP_COND", "FP32", (checkpoint.guidance_embedding_width,)))
    return tensors


@cache
def linear_preview(checkpoint: Checkpoint) -> LinearPreview:
    """Of a checkpoint's autoencoder, whose weights are read for it.

    Raises:
        CheckpointError: If they cannot be.
    """
    with in_a_sentence(f"{checkpoint.path}: its VAE cannot be read", CheckpointError):
        vae = checkpoint.load_vae(torch.device("cpu"), torch.float32)
        return fit_linear_preview(vae, checkpoint.vae_scale_factor)


class PipelineModels:
    """Writes the configurations of one pipeline."""

    def __init__(
        self, name: str, prefix: str, served: ServedPipeline, text_encoder: str, reference: Callable[[Path], str]
    ) -> None:
        """Reads what it needs of the checkpoint.

        Args:
            name: Of the public model.
            prefix: Of the inner models.
            served: The checkpoint.
            text_encoder: The model that encodes its texts; written here if the prefix is its.
            reference: A path as the backends find it.
        """
        self._served, self._options, self._checkpoint = served, served.options, served.checkpoint
        self._name, self._prefix, self._text_encoder = name, prefix, text_encoder
        self._reference = reference
        self._rules = self._options.request_rules(served.checkpoint)
        loras = self._options.loras
        self._catalogue = {"loras": "" if loras is None else reference(loras)}
        self._unet_inputs = unet_inputs(served.checkpoint, served.checkpoint.unet_channels)
        self._latents: Tensor = ("LATENTS", "FP32", (served.checkpoint.latent_channels, -1, -1))
        self._handed_over: list[Tensor] = [self._latents, ("HANDOVER", "STRING", (1,)), INFO]

    def models(self) -> list[Model]:
        """All of them."""
        models = [Model(self._preprocess(), "preprocess"), Model(self._lora_store(), "lora_store")]
        if self._text_encoder == f"{self._prefix}text_encoder":
            models.append(Model(self._text_encoders(), "text_encoder"))
        for suffix in ("", "_stream"):
            models.append(Model(self._denoiser(f"denoiser{suffix}"), "denoiser"))
            models.append(Model(self._ensemble(suffix), None))
        models += [Model(self._shard(index, name), "unet_shard") for index, name in enumerate(self._shards)]
        return [*models, Model(self._vae_encoder(), "vae_encoder"), Model(self._vae_decoder(), "vae_decoder")]

    def described(self) -> DescribedPipeline:
        """What clients may ask of the pipeline."""
        return DescribedPipeline(self._rules, self._known_controlnets, self._catalogue["loras"])

    @property
    def _known_controlnets(self) -> dict[str, KnownControlNet]:
        return {each.name: KnownControlNet(each.control_modes, each.pools) for each in self._options.controlnets}

    @property
    def _shards(self) -> list[str]:
        return [f"{self._prefix}unet_shard{index}" for index in range(self._options.unet_shards)]

    def _preprocess(self) -> pb.ModelConfig:
        rules = {key: _text(value) for key, value in asdict(self._rules).items()}
        known = {name: asdict(each) for name, each in self._known_controlnets.items()}
        names = {
            "controlnets": json.dumps(known, sort_keys=True),
            "text_encoder": self._text_encoder,
            "vae_encoder": f"{self._prefix}vae_encoder",
            "vae_decoder": f"{self._prefix}vae_decoder",
            "lora_store": f"{self._prefix}lora_store",
            "unet_shards": ",".join(self._shards),
            "pipeline": self._name,
        }
        parameters = {**rules, **self._catalogue, **names}
        config = python_model(f"{self._prefix}preprocess", [], [REQUEST, TICKETS], parameters, max_batch_size=1)
        config.input.extend(model_input(*tensor) for tensor in CLIENT_INPUTS)
        return config

    def _lora_store(self) -> pb.ModelConfig:
        options = self._options
        parameters = {
            **self._catalogue,
            "checkpoint": self._reference(self._checkpoint.path),
            "lora_host_bytes": str(options.lora_host_bytes),
            "lora_disk_bytes": str(options.lora_disk_bytes),
            **constant_parameters(self._served, self._reference),
        }
        name = f"{self._prefix}lora_store"
        return python_model(name, [REQUEST], [TICKETS], parameters, max_batch_size=options.max_batch_size)

    def _text_encoders(self) -> pb.ModelConfig:
        return self._computing(
            self._text_encoder,
            [REQUEST, TICKETS],
            [ENCODING],
            self._options.text_encoder_gpu,
            **self._catalogue,
            **engine_parameters(self._served, self._options.text_encoder_gpu, self._reference),
            **needs.text_encoder(self._checkpoint, self._options),
        )

    def _denoiser(self, name: str) -> pb.ModelConfig:
        """It carries small texts alone: an iterative sequence is handed its inputs again and again."""
        parameters = {
            "unet_shards": ",".join(self._shards),
            "text_encoder": self._text_encoder,
            "vae_encoder": f"{self._prefix}vae_encoder",
            "lora_store": f"{self._prefix}lora_store",
            "vae_decoder": f"{self._prefix}vae_decoder",
            "pipeline": self._name,
            "latent_channels": str(self._checkpoint.latent_channels),
        }
        config = python_model(
            f"{self._prefix}{name}",
            [REQUEST, ENCODING, LATENT_KEYS, TICKETS],
            self._handed_over,
            parameters,
            max_batch_size=CANDIDATES_PER_PLACE * self._options.max_batch_size,
        )
        return iterative_sequence(config, decoupled=name.endswith("_stream"))

    def _shard(self, index: int, name: str) -> pb.ModelConfig:
        """It takes one message at a time, beside which rows of other shards may come."""
        options, gpu = self._options, self._options.unet_gpu(index)
        urls = {each.name: each.url for each in options.controlnets if each.url is not None}
        config = python_model(
            name,
            [("MESSAGE", "STRING", (1, 1))],
            [
                ("ANSWER", "STRING", (1, 1)),
                ("LATENTS", "FP32", (-1,)),
                ("NOISE_PRED", "FP32", (-1, *self._latents[2])),
            ],
            {
                **compute_parameters(self._served, options.dtype_on(gpu), self._reference),
                **runtime_parameters(self._served, gpu, self._reference),
                **needs.shard(self._checkpoint, options, gpu),
                "scheduler_config": json.dumps(self._checkpoint.scheduler_config, sort_keys=True),
                "schedulers": _text(self._rules.schedulers),
                "places": str(options.max_batch_size),
                "longest_line": str(CANDIDATES_PER_PLACE * options.max_batch_size),
                "pipeline": self._name,
                "peers": ",".join(each for each in self._shards if each != name),
                "text_encoder": self._text_encoder,
                "lora_store": f"{self._prefix}lora_store",
                "patches": "0" if options.loras is None else "1",
                "template_host_bytes": str(options.template_host_bytes),
                "template_disk_bytes": str(options.template_disk_bytes),
                "controlnet_timeout_s": f"{options.controlnet_timeout_s:g}",
                "controlnet_urls": json.dumps(urls, sort_keys=True),
                **({"fp8": "1"} if options.fp8 else {}),
            },
            max_batch_size=0,
            gpus=() if gpu is None else (gpu,),
        )
        config.input.extend(
            model_input(name, dtype, (-1, *dims), optional=True) for name, dtype, dims in self._unet_inputs
        )
        return config

    def _vae_encoder(self) -> pb.ModelConfig:
        config = self._computing(
            f"{self._prefix}vae_encoder",
            [REQUEST],
            [LATENT_KEYS],
            self._options.vae_gpu,
            **needs.vae_encoder(self._checkpoint, self._options),
        )
        # Read by nobody: the encoders run one after the other by it. Triton 2.51 ends where a request is cancelled of
        # which two steps of the ensemble run beside each other.
        config.input.append(model_input("ENCODING", "STRING", (1,), optional=True))
        return config

    def _vae_decoder(self) -> pb.ModelConfig:
        engine = engine_parameters(self._served, self._options.vae_gpu, self._reference)
        return self._computing(
            f"{self._prefix}vae_decoder",
            self._handed_over,
            PICTURE,
            self._options.vae_gpu,
            pipeline=self._name,
            linear_preview=linear_preview(self._checkpoint).to_json(),
            vae_float16=str(int(self._options.vae_float16)),
            **({} if self._options.vae_float16 else engine),
            **needs.vae_decoder(self._checkpoint, self._options),
        )

    def _computing(
        self, name: str, inputs: list[Tensor], outputs: list[Tensor], gpu: int | None, **parameters: str
    ) -> pb.ModelConfig:
        config = python_model(
            name,
            inputs,
            outputs,
            {**compute_parameters(self._served, self._options.dtype_on(gpu), self._reference), **parameters},
            max_batch_size=self._options.max_batch_size,
            gpus=() if gpu is None else (gpu,),
        )
        return batched(config)

    def _ensemble(self, suffix: str) -> pb.ModelConfig:
        fields = {field[0]: field[0] for field in CLIENT_INPUTS}
        latents = {"LATENTS": "latents", "HANDOVER": "handover", "INFO": "denoiser_info"}
        given = {"REQUEST": "request", "ENCODING": "encoding", "LATENT_KEYS": "latent_keys", "TICKETS": "tickets"}
        steps = [
            (f"{self._prefix}preprocess", fields, {"REQUEST": "request", "TICKETS": "tickets"}),
            (self._text_encoder, {"REQUEST": "request", "TICKETS": "tickets"}, {"ENCODING": "encoding"}),
            (
                f"{self._prefix}vae_encoder",
                {"REQUEST": "request", "ENCODING": "encoding"},
                {"LATENT_KEYS": "latent_keys"},
            ),
            (f"{self._prefix}denoiser{suffix}", given, latents),
            (f"{self._prefix}vae_decoder", latents, {name: name for name, _, _ in PICTURE}),
        ]
        return ensemble(f"{self._name}{suffix}", steps, PICTURE)


def _text(value: object) -> str:
    return json.dumps(value) if isinstance(value, tuple) else str(value)
