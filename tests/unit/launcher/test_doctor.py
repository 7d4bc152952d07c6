"""`swiftdiffusion doctor` finds what is missing."""

import os
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from engine_descriptions import described
from swiftdiffusion.clients.cli import app
from swiftdiffusion.python_backends.common.filesystem import sha256_of
from swiftdiffusion.python_backends.launcher import doctor
from swiftdiffusion.python_backends.launcher.checks import Check, Status
from swiftdiffusion.python_backends.launcher.doctor import run_checks
from swiftdiffusion.python_backends.launcher.python_stub import STUB
from swiftdiffusion.python_backends.launcher.repository_weights import check_weights
from swiftdiffusion.python_backends.tensorrt.flavours import FLAVOURS, Flavour

CONFIG = 'name: "{name}"\nbackend: "python"\nparameters {{ key: "checkpoint" value {{ string_value: "{path}" }} }}\n'


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name, path in (("vae_decoder", "../weights"), ("unet_shard0", str(tmp_path / "weights"))):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "config.pbtxt").write_text(CONFIG.format(name=name, path=path))
    (tmp_path / "models" / "cancel").mkdir()
    (tmp_path / "models" / "cancel" / "config.pbtxt").write_text('backend: "python"\n')
    return tmp_path / "models"


def check(repository: Path) -> Check:
    (found,) = check_weights(repository)  # absolute and relative paths lead to the same one
    assert found.subject == "weights of unet_shard0, vae_decoder"
    return found


def test_checkpoint_that_is_not_there(repository: Path) -> None:
    assert "not there" in check(repository).advice


def test_checkpoint_without_weights(repository: Path) -> None:
    (repository.parent / "weights").mkdir()
    assert "no .safetensors" in check(repository).advice


def test_checkpoint_of_pointers(repository: Path) -> None:
    (repository.parent / "weights" / "unet").mkdir(parents=True)
    weights = repository.parent / "weights" / "unet" / "model.safetensors"
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "git lfs pull" in check(repository).advice


def test_complete_checkpoint(repository: Path) -> None:
    (repository.parent / "weights").mkdir()
    weights = repository.parent / "weights" / "model.safetensors"
    save_file({"weight": np.zeros(3 << 20, np.uint8)}, weights)
    assert check(repository).status is Status.OK
    assert "3 MiB" in check(repository).found


def test_a_file_that_was_cut_off(repository: Path) -> None:
    (repository.parent / "weights").mkdir()
    weights = repository.parent / "weights" / "model.safetensors"
    save_file({"weight": np.zeros(100, np.uint8)}, weights)
    for length in (weights.stat().st_size - 1, 2):
        os.truncate(weights, length)
        assert "model.safetensors is no safetensors file" in check(repository).advice


def test_a_gpu_that_is_not_there(repository: Path) -> None:
    config = repository / "unet_shard0" / "config.pbtxt"
    config.write_text(config.read_text() + "instance_group [ { kind: KIND_GPU gpus: [ 97 ] } ]\n")
    (check,) = (check for check in run_checks(repository) if check.subject == "GPU 97")
    assert check.status is Status.MISSING
    assert check.found.startswith("wanted by unet_shard0; this machine has")


@pytest.mark.parametrize("flavour", FLAVOURS.values(), ids=FLAVOURS)
def test_a_runtime_that_is_not_there(repository: Path, flavour: Flavour, monkeypatch: pytest.MonkeyPatch) -> None:
    subjects = {"Triton language", "TensorRT", "TensorRT-RTX"}
    assert not subjects & {check.subject for check in run_checks(repository)}
    config = repository / "unet_shard0" / "config.pbtxt"
    runtime = f'parameters {{ key: "runtime" value {{ string_value: "{flavour.name}" }} }}\n'
    runtime += 'parameters { key: "engines" value { string_value: "../engines" } }\n'
    config.write_text(config.read_text() + runtime + "instance_group [ { kind: KIND_GPU gpus: [ 97 ] } ]\n")
    for package in ("triton", flavour.package):
        monkeypatch.setitem(sys.modules, package, None)
    checks = {check.subject: check for check in run_checks(repository) if check.subject in subjects}
    assert {check.status for check in checks.values()} == {Status.MISSING}
    assert {check.found for check in checks.values()} == {"wanted by unet_shard0"}
    assert "swiftdiffusion[kernels]" in checks["Triton language"].advice
    assert checks.keys() == {"Triton language", flavour.title}
    assert flavour.install in checks[flavour.title].advice


def test_engines_that_are_not_there_or_for_something_else(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = pytest.importorskip("tensorrt_rtx").__version__
    config, engines = repository / "unet_shard0" / "config.pbtxt", repository.parent / "engines"
    runtime = 'parameters { key: "runtime" value { string_value: "tensorrt-rtx" } }\n'
    runtime += 'parameters { key: "engines" value { string_value: "../engines" } }\n'
    config.write_text(config.read_text() + runtime + "instance_group [ { kind: KIND_GPU gpus: [ 0 ] } ]\n")

    def said() -> Check:
        (check,) = (check for check in run_checks(repository) if check.subject == "TensorRT-RTX")
        return check

    assert f"{engines} has no engines" in said().advice
    engines.mkdir()
    (engines / "unet_encoder.plan").write_bytes(b"plan")
    assert "no engine unet_encoder: unet_encoder.json is missing; build it" in said().advice
    profile = {"latents": ((1, 4, 8, 8), (2, 4, 8, 8), (4, 4, 8, 8))}
    made = described("unet_encoder", profile, runtime="tensorrt-rtx", release=release, gpu=None, capabilities=("8.9",))
    made.model_copy(update={"release": "1.7.0"}).save(engines)
    assert f"TensorRT-RTX is {release} here, and the plan is 1.7.0's" in said().advice
    made.model_copy(update={"plan_sha256": sha256_of(engines / "unet_encoder.plan")}).save(engines)
    monkeypatch.setattr(doctor, "_torch_gpus", lambda: 0)
    assert said().status is Status.OK, "nothing is known of a GPU that is not there"
    monkeypatch.setattr(doctor, "_torch_gpus", lambda: 1)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda gpu: "a GPU")
    for capability, words in (
        ((8, 9), ""),
        ((8, 6), "compute capability is 8.6, and the plan was built for 8.9"),
        ((9, 0), "no engines for GPUs of compute capability 9.0"),
        ((10, 0), "such a GPU is served by --runtime torch"),
    ):
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda gpu, found=capability: found)
        assert (said().status is Status.OK) == (not words)
        assert words in (said().advice or "")


def test_kernels_want_a_c_compiler_and_python_s_headers(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def checks() -> dict[str, Check]:
        return {check.subject: check for check in run_checks(repository) if check.subject in ("C compiler", "Python.h")}

    assert not checks()  # nothing is on a GPU
    config = repository / "unet_shard0" / "config.pbtxt"
    config.write_text(config.read_text() + "instance_group [ { kind: KIND_GPU gpus: [ 97 ] } ]\n")
    headers, programs = tmp_path / "include", tmp_path / "programs"
    monkeypatch.setattr(sysconfig, "get_paths", lambda scheme: {"include": str(headers)})
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.delenv("CC", raising=False)
    assert {check.status for check in checks().values()} == {Status.MISSING}
    assert all("wanted by unet_shard0" in check.found and "apt install" in check.advice for check in checks().values())
    for file in (headers / "Python.h", programs / "clang"):
        file.parent.mkdir()
        file.touch(0o755)
    assert {check.status for check in checks().values()} == {Status.OK}
    assert checks()["C compiler"].found == f"{programs / 'clang'}, for unet_shard0"
    monkeypatch.setenv("CC", str(programs / "cc"))
    assert checks()["C compiler"].found.startswith(f"CC is {programs / 'cc'}, which is no program")


def test_this_machine_can_serve(repository: Path) -> None:
    checks = {check.subject: check for check in run_checks(None)}
    assert {"Python", "tritonserver", "Python backend stub", "/dev/shm", "numpy", "torch", "GPU"} <= set(checks)
    assert not any(subject.startswith("weights") for subject in checks)
    assert [check for check in checks.values() if check.status is Status.MISSING] == []
    assert all(check.advice for check in checks.values() if check.status is not Status.OK)


def test_server_for_another_python_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server, stub = tmp_path / "bin" / "tritonserver", tmp_path / "backends" / "python" / STUB
    for file in (server, stub):
        file.parent.mkdir(parents=True)
        file.write_bytes(b"\x7fELF\0libpython3.9.so.1.0\0")
        file.chmod(0o755)
    monkeypatch.setenv("TRITONSERVER", str(server))
    checks = {check.subject: check for check in run_checks(None)}
    assert checks["Python backend stub"].status is Status.MISSING
    assert "virtual environment of Python 3.9" in checks["Python backend stub"].advice


def test_command_fails_for_what_is_missing(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert CliRunner().invoke(app, ["doctor", "-r", str(repository)]).exit_code == 1
    monkeypatch.setenv("TRITONSERVER", "/nowhere/tritonserver")
    result = CliRunner().invoke(app, ["doctor", "-r", str(repository.parent)])
    assert result.exit_code == 1
    assert "/nowhere/tritonserver" in result.output
