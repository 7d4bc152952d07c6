"""Which pipelines have the same text encoders: several of one family often do, and one model then serves them all."""

from __future__ import annotations

import hashlib
import sys
from typing import TYPE_CHECKING

from rich.progress import track

from ...python_backends.common.filesystem import sha256_of
from ...python_backends.lora.loading.catalogue import Catalogue
from ...python_backends.networks.textual_inversions import embedding_files

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ...python_backends.networks.checkpoint import Checkpoint
    from .serving_options import ServedPipeline

PARTS = ("tokenizer*/*", "text_encoder*/*")
"""Files that the model's answers depend on."""


def shared_text_encoders(pipelines: Mapping[str, ServedPipeline], prefixes: Mapping[str, str]) -> dict[str, str]:
    """The text encoder's model of every pipeline: that of the first one with the same files, run in the same way.

    A pipeline whose catalogue holds textual inversion embeddings shares with those of the same catalogue alone.

    Args:
        pipelines: By name.
        prefixes: Of their models.
    """
    if len(pipelines) == 1:
        return {name: f"{prefixes[name]}text_encoder" for name in pipelines}
    owners: dict[tuple[object, ...], str] = {}
    models = {}
    for name, served in pipelines.items():
        options = served.options
        gpu = options.text_encoder_gpu
        embeddings = options.loras if embedding_files(Catalogue(options.loras)) else None
        engines = options.engines if options.has_engines(gpu) else None
        kind = (_content(served.checkpoint), gpu, options.dtype_on(gpu), options.threads, embeddings, engines)
        models[name] = f"{prefixes[owners.setdefault(kind, name)]}text_encoder"
    return models


def _content(checkpoint: Checkpoint) -> str:
    digest = hashlib.sha256(f"{checkpoint.family} {checkpoint.force_zeros_for_empty_prompt}\n".encode())
    files = [file for pattern in PARTS for file in sorted(checkpoint.path.glob(pattern))]
    for file in track(
        files, f"text encoders of {checkpoint.path.name}", transient=True, disable=not sys.stderr.isatty()
    ):
        digest.update(f"{file.relative_to(checkpoint.path).as_posix()} {sha256_of(file)}\n".encode())
    return digest.hexdigest()
