"""Whether the weights that a model repository refers to are there."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class CheckpointState:
    """One checkpoint of a repository.

    Attributes:
        models: who refers to it.
        found: what is there.
        problem: what is wrong and what to do; None if nothing is.
    """

    models: str
    found: str
    problem: str | None


def check_weights(repository: Path) -> Iterator[CheckpointState]:
    """The checkpoints named by the parameter `checkpoint` of the models' configurations."""
    if not repository.is_dir():
        yield CheckpointState("the repository", str(repository), "no such directory: `swiftdiffusion export` makes one")
        return
    users: dict[Path, list[str]] = defaultdict(list)
    for config_file in sorted(repository.glob("*/config.pbtxt")):
        reference = _reference(config_file)
        if reference is not None:
            users[(repository / reference).resolve()].append(config_file.parent.name)
    for path, models in users.items():
        yield _state(path, ", ".join(models))


def _reference(config_file: Path) -> str | None:
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    config = model_config_pb2.ModelConfig()
    text_format.Parse(config_file.read_text(), config)
    return config.parameters["checkpoint"].string_value if "checkpoint" in config.parameters else None


def _state(path: Path, models: str) -> CheckpointState:
    if not path.is_dir():
        return CheckpointState(models, str(path), "no such directory: get the checkpoint or export with another one")
    weights = list(path.rglob("*.safetensors"))
    if not weights:
        return CheckpointState(models, str(path), "it holds no .safetensors file: get the complete checkpoint")
    pointers = [weight for weight in weights if _is_pointer(weight)]
    if pointers:
        return CheckpointState(models, str(path), f"{pointers[0].name} is a git-lfs pointer: run `git lfs pull`")
    mebibytes = sum(weight.stat().st_size for weight in weights) / (1 << 20)
    return CheckpointState(models, f"{path}, {mebibytes:.0f} MiB", None)


def _is_pointer(weight: Path) -> bool:
    with weight.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER
