"""Writes a Triton model repository for a diffusers checkpoint."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf import text_format

from ...python_backends.tensorrt.metadata import EngineMismatchError
from .engine_checks import check_engines
from .model_configs import controlnet_models, repository_models
from .serving_options import ServedPipeline

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ...python_backends.networks.checkpoint import Checkpoint
    from .config_parts import Model
    from .serving_options import ServingOptions

HEADER = "# Written by `swiftdiffusion export`; write it again rather than edit it.\n"
"""First line of every config.pbtxt that is ours to replace."""

LEAN = {
    "unet_shard": "import_diffusers",
    "controlnet": "import_diffusers",
    "vae_encoder": "import_diffusers",
    "vae_decoder": "import_diffusers",
    "lora_store": "import_diffusers",
    "text_encoder": "import_pipelines",
}
"""Backends whose processes start by this function of `lean_diffusers`, except where they run `torch.compile`."""


class RepositoryError(ValueError):
    """The repository cannot be written where it was asked for; the message says why."""


def write_repository(checkpoint: Checkpoint, repository: Path, options: ServingOptions) -> list[str]:
    """Writes the repository of one pipeline, called after its family; see `write_pipelines`."""
    return write_pipelines({checkpoint.family: ServedPipeline(checkpoint, options)}, repository)


def write_pipelines(
    pipelines: Mapping[str, ServedPipeline], repository: Path, only_controlnets: bool = False
) -> list[str]:
    """Writes a repository, replacing one that was written before.

    The models refer to checkpoints by path and hold no weights: Triton copies what lies in a model's directory at
    every load. What lies below the repository's parent directory is referred to relatively, so that both can move.

    Args:
        pipelines: What to serve, by the names of the public models.
        repository: Directory for the repository; absent, empty, or one that was written by this function.
        only_controlnets: Write those that other servers call, and nothing else.

    Returns:
        Names of the models.

    Raises:
        RepositoryError: If the directory holds anything else, or cannot be written, or engines do not fit.
    """
    repository = repository.resolve()
    _check_replaceable(repository)
    try:
        check_engines(pipelines, only_controlnets)
    except EngineMismatchError as error:
        raise RepositoryError(str(error)) from error
    write = controlnet_models if only_controlnets else repository_models
    models = write(pipelines, lambda path: _reference(path.resolve(), repository))
    names = [model.config.name for model in models]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RepositoryError(f"two models would be called {twice[0]}; wanted: another name for the pipeline")
    if not models:
        raise RepositoryError("no ControlNet of these runs on this server; wanted: one without a URL")
    try:
        repository.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=repository) as directory:
            written = Path(directory)
            for model in models:
                _write_model(written / model.config.name, model)
            _replace_models(repository, written)
    except OSError as error:
        raise RepositoryError(f"{repository} cannot be written: {error}") from error
    return names


def _reference(path: Path, repository: Path) -> str:
    if path.is_relative_to(repository.parent) and repository.parent != Path(repository.anchor):
        return Path(os.path.relpath(path, repository)).as_posix()
    return path.as_posix()


def _check_replaceable(repository: Path) -> None:
    if not repository.exists():
        return
    if not repository.is_dir():
        raise RepositoryError(f"{repository} is a file; wanted: a directory for the repository")
    for entry in sorted(repository.iterdir()):
        config = entry / "config.pbtxt"
        if not config.is_file() or not config.read_text("utf-8").startswith(HEADER):
            raise RepositoryError(
                f"{repository} holds {entry.name}, which this command did not write; wanted: a new or empty directory"
            )


def _replace_models(repository: Path, written: Path) -> None:
    """Moves the written models in, one by one: the directory itself may be a mount and stays."""
    replaced = written / ".replaced"
    replaced.mkdir()
    for model in repository.iterdir():
        if model != written:
            model.rename(replaced / model.name)
    for model in written.iterdir():
        if model != replaced:
            model.rename(repository / model.name)


def _write_model(directory: Path, model: Model) -> None:
    version = directory / "1"
    version.mkdir(parents=True)
    (directory / "config.pbtxt").write_text(HEADER + text_format.MessageToString(model.config), "utf-8")
    if model.backend is None:
        (version / ".gitkeep").touch()
        return
    own = f"from swiftdiffusion.python_backends.{model.backend} import TritonPythonModel"
    compiles = any(key == "runtime" and each.string_value == "compile" for key, each in model.config.parameters.items())
    lines, lean = [own], LEAN.get(model.backend)
    if lean is not None and not compiles:
        start = f"from swiftdiffusion.python_backends.common.lean_diffusers import {lean}"
        lines = [start, "", f"{lean}()", f"{own}  # noqa: E402"]
    (version / "model.py").write_text("\n".join([*lines, "", '__all__ = ["TritonPythonModel"]', ""]), "utf-8")
