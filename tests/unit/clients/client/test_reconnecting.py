"""A client that found nobody finds a server soon after it has come."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from swiftdiffusion.clients import Client
from swiftdiffusion.python_backends.launcher.ports import free_ports

AWAY_S = 6.0
"""gRPC's own pauses between connections are longer by then than what is waited for below."""

FOUND_WITHIN_S = 2.0


class Ready(service_pb2_grpc.GRPCInferenceServiceServicer):
    """All there is of a server."""

    def ServerReady(self, request: object, context: object) -> service_pb2.ServerReadyResponse:  # noqa: N802
        return service_pb2.ServerReadyResponse(ready=True)


def test_a_server_that_was_away_for_long_is_found_at_once() -> None:
    (port,) = free_ports(1)
    with Client(f"grpc://127.0.0.1:{port}") as client:
        until = time.monotonic() + AWAY_S
        while time.monotonic() < until:
            assert not client.is_ready()
            time.sleep(0.1)
        server = grpc.server(ThreadPoolExecutor(1))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Ready(), server)
        server.add_insecure_port(f"127.0.0.1:{port}")
        server.start()
        try:
            client.wait_until_ready(timeout=FOUND_WITHIN_S)
        finally:
            server.stop(None)
