"""`swiftdiffusion lora-variants`: one LoRA file becomes many, for servers that shall have as many as a trace names."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.progress import track

_NOISE = 0.05
"""Of a factor's own deviation; the pictures stay like those of the original."""


def lora_variants(
    lora: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A LoRA of the checkpoint, safetensors.")],
    directory: Annotated[Path, typer.Argument(file_okay=False, help="Catalogue to write.")],
    count: Annotated[int, typer.Option(min=1, help="How many.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
) -> None:
    """Write variants of a LoRA, each with its factors changed a little: files of its size that differ in content.

    Their names are in the order of the ranks of a trace.
    """
    from safetensors import SafetensorError

    try:
        write_variants(lora, directory, count, seed)
    except (SafetensorError, TypeError) as error:
        raise typer.BadParameter(f"{lora} cannot be changed: {error}") from error
    typer.echo(f"{directory}: {count} variants of {lora.name}")


def write_variants(lora: Path, directory: Path, count: int, seed: int) -> None:
    """Writes `lora00000.safetensors` and so on, with the file's metadata.

    Raises:
        SafetensorError: it is no safetensors file.
        TypeError: its numbers are of a type that NumPy has not, such as bfloat16.
    """
    from safetensors import safe_open
    from safetensors.numpy import save_file

    with safe_open(lora, "np") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    directory.mkdir(parents=True, exist_ok=True)
    for number in track(range(count), "variants", disable=count < 100):
        random = np.random.default_rng((seed, number))
        changed = {name: _changed(tensor, random) for name, tensor in tensors.items()}
        save_file(changed, directory / f"lora{number:05}.safetensors", metadata)


def _changed(tensor: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Factors with noise; alphas and other numbers as they are."""
    if tensor.ndim < 2 or not np.issubdtype(tensor.dtype, np.floating):
        return tensor
    noise = random.standard_normal(tensor.shape, dtype=np.float32) * np.float32(_NOISE * np.float32(tensor.std()))
    return (tensor + noise).astype(tensor.dtype)
