"""A server whose administration is closed, and whose gRPC has TLS."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

import checkpoints
from certificates import Authority
from file_server import wait_for
from swiftdiffusion.clients import AdminKeyWanted, Client, GenerationRequest, Progress, ServerUnavailable
from swiftdiffusion.export.repository.deployment import Deployment
from swiftdiffusion.export.repository.writing import write_pipelines
from swiftdiffusion.python_backends.launcher import AdminKey, GrpcTls, ServerOptions, TritonServer
from swiftdiffusion.python_backends.launcher.running import find_server
from swiftdiffusion.python_backends.launcher.watcher import Watcher
from wire import stub_of, stubs_of

KEY = AdminKey("a-key_of-tests-0123456789")
MODEL = "sd15"
REQUEST = GenerationRequest("a red circle", seed=1, steps=3)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def restricted(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[TritonServer]:
    """One small pipeline."""
    base = tmp_path_factory.mktemp("restricted")
    options = {"checkpoint": checkpoints.sd15(base / "checkpoint"), "unet_shards": 1}
    write_pipelines(Deployment.from_options(None, options, []).resolve(), base / "repository")
    tls = GrpcTls(*authority.sign("server"))
    at_once = ServerOptions(stop_timeout_seconds=1.0)
    with TritonServer(base / "repository", admin_key=KEY, grpc_tls=tls, options=at_once) as server:
        yield server


def ask(server: TritonServer, path: str, body: dict[str, Any] | None, key: str | None) -> int:
    """HTTP status; a POST if there is a body."""
    headers = {} if key is None else {"admin-key": key}
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{server.http_url}/{path}", data, headers)) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def grpc_client(server: TritonServer, authority: Authority) -> grpc.InferenceServerClient:
    return grpc.InferenceServerClient(server.grpc_url.split("://")[-1], ssl=True, root_certificates=str(authority.cert))


CLOSED: dict[str, dict[str, Any] | None] = {
    "v2/repository/index": {},
    "v2/repository/models/cancel/load": {},
    "v2/repository/models/cancel/unload": {},
    "v2/systemsharedmemory/status": None,
    "v2/systemsharedmemory/region/x/register": {"key": "/x", "offset": 0, "byte_size": 1},
    "v2/systemsharedmemory/unregister": {},
    "v2/cudasharedmemory/status": None,
    "v2/trace/setting": None,
    f"v2/models/{MODEL}/trace/setting": {"trace_level": ["OFF"]},
    "v2/logging": {"log_verbose_level": 0},
    "v2/models/stats": None,
    f"v2/models/{MODEL}/stats": None,
}
OPEN = ("v2", "v2/health/live", "v2/health/ready", f"v2/models/{MODEL}", f"v2/models/{MODEL}/config")


@pytest.mark.parametrize("path", CLOSED)
def test_http_is_closed_to_who_has_no_key(restricted: TritonServer, path: str) -> None:
    assert ask(restricted, path, CLOSED[path], None) == 403
    assert ask(restricted, path, CLOSED[path], KEY.value[:-1]) == 403
    assert ask(restricted, path, CLOSED[path], KEY.value) == (500 if "/register" in path else 200)  # no such region
    if path.endswith("/unload"):
        restricted.api.load("cancel", 60)


@pytest.mark.parametrize("path", OPEN)
def test_http_is_open_to_all_for_the_rest(restricted: TritonServer, path: str) -> None:
    assert ask(restricted, path, None, None) == 200


CALLS: dict[str, Callable[[Any, dict[str, str] | None], Any]] = {
    "index": lambda client, key: client.get_model_repository_index(headers=key),
    "load": lambda client, key: client.load_model("cancel", headers=key),
    "shared memory": lambda client, key: client.get_system_shared_memory_status(headers=key),
    "CUDA shared memory": lambda client, key: client.get_cuda_shared_memory_status(headers=key),
    "trace": lambda client, key: client.get_trace_settings(headers=key),
    "trace change": lambda client, key: client.update_trace_settings(settings={"trace_level": "OFF"}, headers=key),
    "logging": lambda client, key: client.update_log_settings({"log_verbose_level": 0}, headers=key),
    "statistics": lambda client, key: client.get_inference_statistics(headers=key),
}


@pytest.mark.parametrize("call", CALLS)
def test_grpc_is_closed_to_who_has_no_key(restricted: TritonServer, authority: Authority, call: str) -> None:
    with grpc_client(restricted, authority) as client:
        for key in (None, {"admin-key": KEY.value}, {"triton-grpc-protocol-admin-key": "another"}):
            with pytest.raises(InferenceServerException, match="restricted, expecting header"):
                CALLS[call](client, key)
        CALLS[call](client, {"triton-grpc-protocol-admin-key": KEY.value})
        assert client.is_server_ready()
        client.get_server_metadata()
        client.get_model_config(MODEL)


def test_pictures_come_from_a_restricted_server(restricted: TritonServer, authority: Authority) -> None:
    with Client(restricted.http_url, retries=3) as http, Client(restricted.grpc_url, ca_file=authority.cert) as secure:
        over_http = http.generate(REQUEST)
        assert over_http.image.tobytes() == secure.generate(REQUEST).image.tobytes()
        assert any(isinstance(event, Progress) for event in secure.stream(REQUEST))


def test_who_trusts_nobody_is_not_connected(restricted: TritonServer) -> None:
    with Client(restricted.grpc_url) as client, pytest.raises(ServerUnavailable):
        client.generate(REQUEST)


def test_health_wants_the_key(restricted: TritonServer, authority: Authority) -> None:
    for url in (restricted.http_url, restricted.grpc_url):
        with Client(url, ca_file=authority.cert) as client, pytest.raises(AdminKeyWanted, match="admin_key="):
            client.health()
        with Client(url, ca_file=authority.cert, admin_key=KEY.value) as client:
            assert client.health().ready


def test_perf_says_which_option_it_wants(restricted: TritonServer) -> None:
    command = [str(Path(sys.executable).with_name("swiftdiffusion")), "perf", "--url", restricted.http_url]
    environment = os.environ | {"PERF_ANALYZER": "true"}
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert answer.returncode == 1
    assert "--admin-key-file" in answer.stderr


def test_the_key_lies_in_a_file_of_this_user_alone(restricted: TritonServer) -> None:
    path = restricted.admin_key_path
    assert path is not None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert AdminKey.read(path) == KEY
    assert KEY.value not in restricted.log_path.read_text()


def test_commands_of_the_same_user_find_the_key(restricted: TritonServer) -> None:
    assert all(entry["state"] == "READY" for entry in find_server(restricted.http_url).api.index())


@pytest.mark.kills
def test_a_model_that_dies_is_loaded_again_with_the_key(restricted: TritonServer) -> None:
    said: list[str] = []
    watcher = Watcher(restricted, said.append)
    dead = stub_of(restricted, "vae_decoder")
    watcher.look()
    os.kill(dead, signal.SIGKILL)

    def is_there_again() -> bool:
        watcher.look()
        return stubs_of(restricted).get("vae_decoder", dead) != dead and not watcher.status.down

    wait_for(is_there_again, seconds=60.0)
    assert said
    with Client(restricted.http_url, retries=3) as client:
        client.generate(REQUEST)


def test_mutual_tls_serves_only_whom_the_authority_knows(fine: Path, authority: Authority, tmp_path: Path) -> None:
    tls = GrpcTls(*authority.sign("mutual"), authority.cert)
    cert, key = authority.sign("client")
    other = Authority(tmp_path, "other").sign("stranger")
    with TritonServer(fine, grpc_tls=tls, options=ServerOptions(stop_timeout_seconds=1.0)) as server:
        address = server.grpc_url.split("://")[-1]
        trusted = {"ssl": True, "root_certificates": str(authority.cert)}
        for files in ({}, {"private_key": str(other[1]), "certificate_chain": str(other[0])}):
            with (
                grpc.InferenceServerClient(address, **trusted, **files) as client,
                pytest.raises(InferenceServerException),
            ):
                client.is_server_ready()
        with grpc.InferenceServerClient(
            address, **trusted, private_key=str(key), certificate_chain=str(cert)
        ) as client:
            assert client.is_server_ready()
