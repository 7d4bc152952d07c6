"""What `doctor` and `export` say a repository needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from swiftdiffusion.python_backends.launcher import free_memory, needs, options
from swiftdiffusion.python_backends.launcher.binary import ServerBinary
from swiftdiffusion.python_backends.launcher.checks import Check, Status
from swiftdiffusion.python_backends.launcher.cuda_pools import MOST_MIB, cuda_pools
from swiftdiffusion.python_backends.launcher.needs import (
    EMBEDDINGS_MIB,
    PLAIN_MIB,
    REGION_MIB,
    SHARED_MIB,
    TORCH_MIB,
    check_needs,
)
from swiftdiffusion.python_backends.launcher.options import ServerOptions

SHARD = {"needs_mib": "1000", "gflop": "400", "threads": "1", "controlnet_urls": "{}"}
ELSEWHERE = "CPUs are not asked"


def write(
    repository: Path,
    name: str,
    parameters: Mapping[str, str],
    gpus: tuple[int, ...] = (),
    count: int = 1,
    rows: int = 0,
) -> None:
    config = model_config_pb2.ModelConfig(name=name, backend="python", max_batch_size=rows)
    config.instance_group.append(model_config_pb2.ModelInstanceGroup(count=count, gpus=gpus))
    for key, value in parameters.items():
        config.parameters[key].string_value = value
    (repository / name).mkdir(parents=True, exist_ok=True)
    (repository / name / "config.pbtxt").write_text(text_format.MessageToString(config))


def speed() -> tuple[float, float]:
    return 100.0, 200.0


def unasked() -> tuple[float, float]:
    raise AssertionError(ELSEWHERE)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of one shard, on a machine that has room for it."""
    monkeypatch.setattr(needs, "available_mib", lambda: 10_000)
    monkeypatch.setattr(needs, "free_gpu_mib", lambda: {0: 4000})
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3})
    write(tmp_path, "unet_shard0", SHARD)
    write(tmp_path, "denoiser", {"threads": "1", "unet_shards": "unet_shard0"})
    write(tmp_path, "vae_decoder", {"needs_mib": "500", "gflop": "600", "threads": "1"})
    write(tmp_path, "cancel", {})
    return tmp_path


def checks(repository: Path, speed: needs.Speed = speed) -> dict[str, Check]:
    return {check.subject: check for check in check_needs(repository, speed)}


def test_processes_are_added_up(repository: Path) -> None:
    found = checks(repository)
    assert found["memory of unet_shard0"].found == f"{1000 + TORCH_MIB} MiB"
    assert found["memory of vae_decoder"].found == f"{500 + TORCH_MIB} MiB"
    needed = SHARED_MIB + 1500 + 3 * TORCH_MIB + PLAIN_MIB
    shared = 4 * REGION_MIB + EMBEDDINGS_MIB
    assert found["memory"].found == (
        f"{needed} MiB for 4 processes and at most {shared} MiB that they share; 10000 MiB available"
    )
    assert {check.status for check in found.values()} == {Status.OK}


def test_what_does_not_fit_is_a_warning(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "available_mib", lambda: 2000)
    memory = checks(repository)["memory"]
    assert memory.status is Status.WARNING
    assert "killed for memory" in memory.advice


def test_a_full_cache_of_loras_may_not_fit(repository: Path) -> None:
    write(repository, "lora_store", {"loras": "../loras", "lora_host_bytes": str(9 << 30)})
    memory = checks(repository)["memory"]
    assert memory.status is Status.WARNING
    assert "--lora-host-mib" in memory.advice
    write(repository, "lora_store", {"loras": "", "lora_host_bytes": str(9 << 30)})
    assert checks(repository)["memory"].status is Status.OK


def test_residuals_are_in_the_regions_of_controlnets_and_shards(repository: Path) -> None:
    def shared() -> int:
        return int(checks(repository)["shared memory"].found.split()[2])

    network = {"needs_mib": "100", "answer_mib": "0", "threads": "1"}
    write(repository, "controlnet_edges", network, count=2)
    before = shared()
    write(repository, "controlnet_edges", network | {"answer_mib": "50"}, count=2)
    assert shared() == before + 3 * 50
    assert checks(repository)["memory of controlnet_edges"].found == f"{100 + TORCH_MIB} MiB, 2 times"


def test_gpus_are_added_up_one_by_one(repository: Path) -> None:
    write(repository, "unet_shard0", SHARD, gpus=(0,))
    write(repository, "unet_shard1", SHARD | {"needs_mib": "3500"}, gpus=(0,))
    write(repository, "controlnet_edges", {"needs_mib": "100", "threads": "1"}, gpus=(0, 1))
    found = checks(repository)
    assert found["memory of GPU 0"].found == "4664 MiB, of them 64 between models, and CUDA's own; 4000 MiB free"
    assert found["memory of GPU 0"].status is Status.WARNING
    assert found["memory of GPU 1"].found == "164 MiB, of them 64 between models, and CUDA's own"
    assert found["memory of GPU 1"].status is Status.OK
    assert found["memory of unet_shard0"].found == f"1000 MiB on GPU 0, {TORCH_MIB} MiB"


def test_pools_leave_room(repository: Path) -> None:
    write(repository, "controlnet_edges", {"answer_mib": "106", "threads": "1"}, gpus=(0,), rows=64)
    assert cuda_pools(repository) == {0: MOST_MIB}


def test_residuals_that_gpus_give_are_in_their_pools(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(repository, "unet_shard0", SHARD, gpus=(0,))
    shared = checks(repository)["shared memory"].found
    network = {"needs_mib": "100", "answer_mib": "0", "threads": "1"}
    write(repository, "controlnet_edges", network, gpus=(0, 2), rows=16)
    without = int(checks(repository)["shared memory"].found.split()[2])
    assert without > int(shared.split()[2])  # pictures
    write(repository, "controlnet_edges", network | {"answer_mib": "106"}, gpus=(0, 2), rows=16)
    write(repository, "controlnet_poses", {"answer_mib": "106", "threads": "1"}, gpus=(2,), rows=16)  # an engine
    write(repository, "controlnet_depths", network | {"answer_mib": "106"}, rows=16)
    pools = {0: 106 * 16, 2: 2 * 106 * 16}
    assert cuda_pools(repository) == pools
    found = checks(repository)
    assert found["memory of GPU 0"].found.startswith(f"{1100 + pools[0]} MiB, of them {pools[0]} between models")
    assert found["memory of GPU 2"].found.startswith(f"{100 + pools[2]} MiB, of them {pools[2]} between models")
    assert int(found["shared memory"].found.split()[2]) == without + REGION_MIB * 2 + 2 * 106

    monkeypatch.setattr(options, "gpu_names", lambda: dict.fromkeys((0, 1, 2), "a GPU"))
    binary = ServerBinary(Path("/bin/true"))
    given = {"--cuda-memory-pool-byte-size=0:1778384896", "--cuda-memory-pool-byte-size=2:3556769792"}
    assert of_pools(ServerOptions().arguments(binary, repository)) == given
    own = of_pools(ServerOptions(cuda_memory_pool_mib=1).arguments(binary, repository))
    assert own == {f"--cuda-memory-pool-byte-size={gpu}:{1 << 20}" for gpu in range(3)}


def of_pools(arguments: list[str]) -> set[str]:
    return {each for each in arguments if each.startswith("--cuda-memory-pool")}


def test_a_step_takes_as_long_as_the_cpu_needs(repository: Path) -> None:
    assert checks(repository)["a step of denoiser"].found == (
        "0.4 TFLOP, about 4 s on 1 thread of this machine (estimated)"
    )
    assert checks(repository)["a picture of vae_decoder"].found == (
        "0.6 TFLOP, about 3 s on 1 thread of this machine (estimated)"
    )


def test_the_halves_of_guidance_go_to_two_shards(repository: Path) -> None:
    write(repository, "unet_shard1", SHARD)
    write(repository, "unet_shard2", SHARD)
    write(repository, "denoiser", {"threads": "1", "unet_shards": "unet_shard0,unet_shard1,unet_shard2"})
    assert checks(repository)["a step of denoiser"].found == (
        "0.4 TFLOP, about 2 s on 2 threads of this machine (estimated)"
    )


def test_of_gpus_no_time_is_said(repository: Path) -> None:
    write(repository, "unet_shard0", SHARD, gpus=(0,))
    write(repository, "vae_decoder", {"needs_mib": "500", "gflop": "600", "threads": "1"}, gpus=(0,))
    assert checks(repository, unasked)["a step of denoiser"].found == "0.4 TFLOP"


def test_where_pytorch_does_not_work_no_time_is_said(repository: Path) -> None:
    assert checks(repository, lambda: None)["a step of denoiser"].found == "0.4 TFLOP"


def test_a_repository_of_older_exporters_has_nothing_to_say(tmp_path: Path) -> None:
    write(tmp_path, "unet_shard0", {"threads": "1"})
    assert checks(tmp_path, unasked) == {}


@pytest.mark.parametrize("version", [1, 2])
def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    files = free_memory.VERSION_1 if version == 1 else free_memory.VERSION_2
    monkeypatch.setattr(free_memory, f"VERSION_{version}", free_memory.CgroupFiles(tmp_path, files.limit, files.usage))
    own = tmp_path / "cgroup"
    own.write_text("4:cpu,memory:/a/b\n3:cpu:/other\n" if version == 1 else "0::/a/b\n")
    monkeypatch.setattr(free_memory, "OWN", own)
    for group, limit, used in (("", "max", 0), ("a", str(300 << 20), 250 << 20), ("a/b", str(200 << 20), 150 << 20)):
        (tmp_path / group).mkdir(exist_ok=True)
        (tmp_path / group / files.limit).write_text(f"{limit}\n")
        (tmp_path / group / files.usage).write_text(f"{used}\n")
        (tmp_path / group / "memory.stat").write_text(f"anon 1\ninactive_file {10 << 20}\n")
    assert free_memory.available_mib() == 60
