"""Engines that do not take what a repository would ask of them are refused when it is written."""

from __future__ import annotations

from pathlib import Path

import pytest

import checkpoints
from engine_descriptions import described
from swiftdiffusion.export.repository.deployment import Deployment
from swiftdiffusion.export.repository.engine_checks import check_engines
from swiftdiffusion.export.repository.model_configs import repository_models
from swiftdiffusion.export.repository.writing import RepositoryError, write_pipelines
from swiftdiffusion.python_backends.tensorrt.metadata import EngineMismatchError

Rows = tuple[int, int]
TABLE = """
[pipelines.a]
checkpoint = "checkpoint"
unet_gpus = [0]
max_batch_size = 4
unet_shards = 2
runtime = "tensorrt"
engines = "engines"
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = checkpoints.sd15(tmp_path_factory.mktemp("models") / "checkpoint")
    checkpoints.controlnet(path, path.parent / "edges", 0)
    return path


OTHERS = ("unet_decoder", "text_encoder", "vae_decoder")


def write_engine(
    directory: Path,
    name: str,
    *rows: Rows,
    precision: str = "float16",
    runtime: str = "tensorrt",
    size: Rows = (16, 16),
) -> None:
    directory.mkdir(exist_ok=True)
    profiles = [
        dict.fromkeys(("latents", "mid"), ((low, 4, *size), (low, 4, *size), (high, 4, *size))) for low, high in rows
    ]
    described(name, *profiles, precision=precision, runtime=runtime).save(directory)


def deployed(checkpoint: Path, directory: Path, more: str = "") -> Deployment:
    for name in ("checkpoint", "edges"):
        (directory / name).symlink_to(checkpoint.parent / name)
    (directory / "d.toml").write_text(TABLE + more)
    return Deployment.read(directory / "d.toml")


EDGES = "[controlnets.edges]\npath = 'edges'\n"
ON_GPU = EDGES + "gpus = [1]\n"
SECOND = "[pipelines.b]\ncheckpoint = 'checkpoint'\nunet_gpus = [0]\n"


def test_what_takes_every_batch_is_served_and_the_cpu_has_no_engines(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("unet_encoder", *OTHERS):
        write_engine(tmp_path / "engines", name, (1, 1), (2, 8))
    pipelines = deployed(checkpoint, tmp_path, EDGES).resolve()
    check_engines(pipelines)
    models = {model.config.name: model.config for model in repository_models(pipelines, str)}
    runtimes = {
        name: (config.parameters["runtime"].string_value, config.parameters["engines"].string_value)
        for name, config in models.items()
        if "runtime" in config.parameters
    }
    engines = ("tensorrt", str((tmp_path / "engines").resolve()))
    evaluated = dict.fromkeys(("unet_shard0", "unet_shard1", "text_encoder", "vae_decoder"), engines)
    assert runtimes == evaluated | {"controlnet_edges": ("torch", "")}
    store = models["lora_store"].parameters
    assert (store["engines"].string_value, store["engine_components"].string_value) == (engines[1], "unet,text_encoder")
    assert all(int(models[name].parameters["needs_mib"].string_value) >= 1 for name in evaluated)
    assert models["preprocess"].parameters["max_prompt_chunks"].string_value == "1"


@pytest.mark.parametrize(
    ("rows", "precision", "more", "said"),
    [
        ([(1, 2)], "float16", "", "unet_encoder: it takes no batch of 3 rows; wanted: 1 to 8, .*--rows 1:2:8"),
        ([(1, 1), (3, 8)], "float16", "", "it takes no batch of 2 rows"),
        ([(1, 8)], "bfloat16", "", "computes in bfloat16; wanted: float16"),
        ([(1, 8)], "float16", ON_GPU, "no engine controlnet_edges"),
        ([(1, 8)], "float16", ON_GPU + SECOND, "edges is shared by pipelines of runtimes tensorrt .* and torch"),
    ],
)
def test_what_does_not_is_refused(
    checkpoint: Path, tmp_path: Path, rows: list[Rows], precision: str, more: str, said: str
) -> None:
    for name in ("unet_encoder", *OTHERS):
        write_engine(tmp_path / "engines", name, *rows, precision=precision)
    pipelines = deployed(checkpoint, tmp_path, more).resolve()
    with pytest.raises(RepositoryError, match=said):
        write_pipelines(pipelines, tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


def test_every_network_has_to_have_one_of_the_runtime(checkpoint: Path, tmp_path: Path) -> None:
    pipelines = deployed(checkpoint, tmp_path).resolve()
    for name in ("unet_encoder", *OTHERS):
        with pytest.raises(EngineMismatchError, match=f"no engine {name}: .* is missing; build it"):
            check_engines(pipelines)
        write_engine(tmp_path / "engines", name, (1, 8), precision="float32" if name == "vae_decoder" else "float16")
    check_engines(pipelines)
    write_engine(tmp_path / "engines", "unet_encoder", (1, 8), size=(16, 24))
    with pytest.raises(EngineMismatchError, match=r"no latents of 16x16, as pictures of .*--latents 16x16"):
        check_engines(pipelines)
    write_engine(tmp_path / "engines", "unet_encoder", (1, 8))
    write_engine(tmp_path / "engines", "unet_decoder", (1, 8), runtime="tensorrt-rtx")
    with pytest.raises(EngineMismatchError, match="the runtime is tensorrt, and the plan is for tensorrt-rtx"):
        check_engines(pipelines)


def test_a_vae_in_float16_stays_in_pytorch(checkpoint: Path, tmp_path: Path) -> None:
    pipelines = deployed(checkpoint, tmp_path, "vae_float16 = true\n").resolve()
    for name in ("unet_encoder", "unet_decoder", "text_encoder"):
        write_engine(tmp_path / "engines", name, (1, 8))
    check_engines(pipelines)
    models = {model.config.name: model.config for model in repository_models(pipelines, str)}
    assert "runtime" not in models["vae_decoder"].parameters


def test_a_controlnet_takes_the_rows_of_all_shards(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("unet_encoder", *OTHERS):
        write_engine(tmp_path / "engines", name, (1, 8))
    write_engine(tmp_path / "engines", "controlnet_edges", (1, 8))
    pipelines = deployed(checkpoint, tmp_path, ON_GPU).resolve()
    with pytest.raises(EngineMismatchError, match=r"controlnet_edges: it takes no batch of 9 rows; wanted: 1 to 16"):
        check_engines(pipelines)
    write_engine(tmp_path / "engines", "controlnet_edges", (1, 16))
    check_engines(pipelines)
    (edges,) = (model.config for model in repository_models(pipelines, str) if model.config.name == "controlnet_edges")
    assert edges.max_batch_size == 16
    assert int(edges.parameters["needs_mib"].string_value) >= 1
    assert int(edges.parameters["answer_mib"].string_value) >= 1  # for the GPU's pool


@pytest.mark.parametrize(("engines", "models"), [("engines", 1), ("others", 2)])
def test_pipelines_share_text_encoders_of_the_same_engines(
    checkpoint: Path, tmp_path: Path, engines: str, models: int
) -> None:
    second = TABLE.replace("pipelines.a", "pipelines.b").replace('"engines"', f'"{engines}"')
    pipelines = deployed(checkpoint, tmp_path, second).resolve()
    names = [model.config.name for model in repository_models(pipelines, str)]
    assert len([name for name in names if name.endswith("text_encoder")]) == models


def test_a_controlnet_on_the_cpu_serves_pipelines_of_any_runtime(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("unet_encoder", *OTHERS):
        write_engine(tmp_path / "engines", name, (1, 8))
    check_engines(deployed(checkpoint, tmp_path, EDGES + SECOND).resolve())
