"""Whether the weights and GPUs that a model repository refers to are there."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .checks import Check, Status

REFERENCES = ("checkpoint", "controlnet")
"""Parameters of models that are paths of weights."""

_POINTER = b"version https://git-lfs"


def check_weights(repository: Path) -> Iterator[Check]:
    """The checkpoints and ControlNets that the models' configurations name in their parameters."""
    subject = "weights of the repository"
    if not repository.is_dir():
        advice = "no such directory: `swiftdiffusion export` makes one"
        yield Check(subject, Status.MISSING, str(repository), advice)
        return
    if not any(repository.glob("*/config.pbtxt")):
        yield Check(subject, Status.MISSING, str(repository), "it holds no models: `swiftdiffusion export` makes one")
    users: dict[Path, list[str]] = defaultdict(list)
    for config_file in sorted(repository.glob("*/config.pbtxt")):
        for reference in _references(config_file):
            users[(repository / reference).resolve()].append(config_file.parent.name)
    for path, models in users.items():
        yield _check(path, ", ".join(models))


def wanted_gpus(repository: Path) -> dict[int, list[str]]:
    """GPU → the models that run on it."""
    wanted: dict[int, list[str]] = defaultdict(list)
    for config_file in sorted(repository.glob("*/config.pbtxt")):
        for group in read_config(config_file).instance_group:
            for gpu in group.gpus:
                wanted[gpu].append(config_file.parent.name)
    return dict(sorted(wanted.items()))


def models_of_runtime(repository: Path, runtime: str) -> dict[str, Path]:
    """The models that a runtime evaluates → the directory of their engines, where it has any."""
    configs = {file.parent.name: read_config(file).parameters for file in sorted(repository.glob("*/config.pbtxt"))}
    return {
        model: (repository / parameters["engines"].string_value).resolve()
        for model, parameters in configs.items()
        if parameters["runtime"].string_value == runtime
    }


def _references(config_file: Path) -> list[str]:
    config = read_config(config_file)
    return [config.parameters[name].string_value for name in REFERENCES if name in config.parameters]


def processes_of(config_file: Path) -> int:
    """Processes of a model; 0 if it is not a Python backend's, or cannot be read."""
    config = readable_config(config_file)
    if config is None or config.backend != "python":
        return 0
    return sum((group.count or 1) * max(1, len(group.gpus)) for group in config.instance_group) or 1


def readable_config(config_file: Path) -> Any | None:
    """A model's configuration; None for one that cannot be read, of which the server says what is wrong with it."""
    from google.protobuf import text_format

    try:
        return read_config(config_file)
    except (OSError, ValueError, text_format.ParseError):
        return None


def read_config(config_file: Path) -> Any:
    """A model's configuration."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    return text_format.Parse(config_file.read_text(), model_config_pb2.ModelConfig())


def _check(path: Path, models: str) -> Check:
    subject = f"weights of {models}"
    if not path.exists():
        return Check(subject, Status.MISSING, str(path), "not there: get the weights or export with others")
    weights = [path] if path.is_file() else list(path.rglob("*.safetensors"))
    if not weights:
        return Check(subject, Status.MISSING, str(path), "it holds no .safetensors file: get the complete weights")
    pointers = [weight for weight in weights if _is_pointer(weight)]
    if pointers:
        return Check(subject, Status.MISSING, str(path), f"{pointers[0].name} is a git-lfs pointer: run `git lfs pull`")
    broken = next((weight for weight in weights if not _has_header(weight)), None)
    if broken is not None:
        return Check(
            subject, Status.MISSING, str(path), f"{broken.name} is no safetensors file: get the complete weights"
        )
    mebibytes = sum(weight.stat().st_size for weight in weights) / (1 << 20)
    return Check(subject, Status.OK, f"{path}, {mebibytes:.0f} MiB")


def _has_header(weight: Path) -> bool:
    """Whether a safetensors file begins and ends where its header says."""
    from safetensors import SafetensorError, safe_open  # clients are installed without

    try:
        with safe_open(weight, "np"):
            return True
    except (OSError, SafetensorError):
        return False


def _is_pointer(weight: Path) -> bool:
    with weight.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER
