"""tritonclient's asyncio clients of gRPC and HTTP behind one interface, their errors as ours.

Both mirror each other: what differs is how they are made, the class of an input, and that only gRPC streams.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlsplit

import numpy as np
import numpy.typing as npt
from tritonclient.utils import InferenceServerException

from .access import GRPC_ADMIN_HEADER, HTTP_ADMIN_HEADER, Access, admin_headers
from .errors import StreamingUnsupported, SwiftDiffusionError, error_from_status, unreachable
from .request import Tensor

T = TypeVar("T")
Answer = dict[str, npt.NDArray[Any] | None]
OUTPUTS = ("IMAGE", "ENCODED_IMAGE", "INFO")

# A server drops connections that ping more often than every 5 minutes without data, which a long request looks like;
# load balancers forget connections that are idle for 350 s. Between the two:
_KEEPALIVE_MS = 310_000

_RECONNECT_MS = 1_000
"""gRPC waits longer after each connection that failed, up to two minutes, in which calls fail at once: a server that
was started again would stay unreachable for so long."""


class Transport(ABC):
    """Calls to one server; methods raise `SwiftDiffusionError`."""

    admin_header: str

    def __init__(
        self,
        url: str,
        access: Access,
        client: Any,
        input_class: Any,
        connection_errors: tuple[type[Exception], ...] = (),
    ) -> None:
        self.url = url
        self._access = access
        self._client = client
        self._input_class = input_class
        self._connection_errors = connection_errors

    async def infer(self, model: str, tensors: Sequence[Tensor], outputs: Sequence[str] = OUTPUTS) -> Answer:
        """Answer of a unary call; outputs that the response lacks are None."""
        result = await self._translated(self._client.infer(model, self._inputs(tensors)))
        return {name: result.as_numpy(name) for name in outputs}

    @abstractmethod
    def stream(self, model: str, tensors: Sequence[Tensor]) -> AsyncGenerator[Answer, None]:
        """Answers of a decoupled model, one by one."""

    async def server_ready(self) -> bool:
        """Whether the server and all its models are ready."""
        return bool(await self._translated(self._client.is_server_ready()))

    async def model_ready(self, model: str) -> bool:
        """Whether a model is there and ready."""
        return bool(await self._translated(self._client.is_model_ready(model)))

    async def version(self) -> str:
        """The server's version."""
        metadata = await self._translated(self._client.get_server_metadata(**self._as_json()))
        return str(metadata["version"])

    async def models(self) -> list[dict[str, Any]]:
        """The server's index of its repository: name, version, state, reason."""
        headers = admin_headers(self.admin_header, self._access.admin_key)
        index = await self._translated(self._client.get_model_repository_index(headers=headers, **self._as_json()))
        return index if isinstance(index, list) else index.get("models", [])

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    def _as_json(self) -> dict[str, Any]:
        return {}

    def _inputs(self, tensors: Sequence[Tensor]) -> list[Any]:
        inputs = []
        for tensor in tensors:
            wire = self._input_class(tensor.name, list(tensor.data.shape), tensor.datatype)
            wire.set_data_from_numpy(np.ascontiguousarray(tensor.data))
            inputs.append(wire)
        return inputs

    async def _translated(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except InferenceServerException as error:
            raise self._translate(error) from error
        except self._connection_errors as error:
            raise unreachable(self.url, getattr(error, "strerror", None) or error) from error

    def _translate(self, error: InferenceServerException) -> SwiftDiffusionError:
        return error_from_status(error.status(), error.message() or "", self.url)


class GrpcTransport(Transport):
    """gRPC: `grpc://host:8001`, or `grpcs://` with TLS."""

    admin_header = GRPC_ADMIN_HEADER

    def __init__(self, url: str, address: SplitResult, access: Access) -> None:
        from tritonclient.grpc import InferInput
        from tritonclient.grpc.aio import InferenceServerClient

        options: list[tuple[str, int]] = [
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
            ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.max_reconnect_backoff_ms", _RECONNECT_MS),
        ]
        if address.hostname in ("localhost", "127.0.0.1", "::1"):
            options.append(("grpc.enable_http_proxy", 0))
        client = InferenceServerClient(
            address.netloc,
            ssl=address.scheme == "grpcs",
            root_certificates=None if access.ca_file is None else str(access.ca_file),
            channel_args=options,
        )
        super().__init__(url, access, client, InferInput)

    async def stream(self, model: str, tensors: Sequence[Tensor]) -> AsyncGenerator[Answer, None]:
        """Answers of a decoupled model, one by one; closing the iterator cancels the call."""
        from grpc import RpcError

        async def request() -> AsyncIterator[dict[str, Any]]:
            yield {"model_name": model, "inputs": self._inputs(tensors)}

        # Without the header triton_grpc_error, which would give failures a status: with it, a stream that fails and
        # whose connection is closed then can end tritonserver 2.51 with signal 11. The sentence tells the cause.
        responses = self._client.stream_infer(request())
        failure: InferenceServerException | None = None
        ended = False
        try:
            async for result, error in responses:
                failure = failure or error
                if failure is None:
                    yield {name: result.as_numpy(name) for name in OUTPUTS}
            ended = True  # after a failure too: the server closes the stream itself
        except RpcError as error:
            ended = True
            raise error_from_status(str(error.code()), error.details() or "", self.url) from error
        finally:
            if not ended:
                responses.cancel()
        if failure is not None:
            raise self._translate(failure)

    def _as_json(self) -> dict[str, Any]:
        return {"as_json": True}


class HttpTransport(Transport):
    """HTTP: `http://host:8000`, or `https://`."""

    admin_header = HTTP_ADMIN_HEADER

    def __init__(self, url: str, address: SplitResult, access: Access) -> None:
        import ssl

        from aiohttp import ClientError
        from tritonclient.http import InferInput
        from tritonclient.http.aio import InferenceServerClient

        secure = address.scheme == "https"
        client = InferenceServerClient(
            address.netloc + address.path.rstrip("/"),
            conn_timeout=None,  # its limit is on the whole request; calls have their own
            ssl=secure,
            ssl_context=ssl.create_default_context(cafile=access.ca_file) if secure else False,
        )
        super().__init__(url, access, client, InferInput, (ClientError, OSError))

    def stream(self, model: str, tensors: Sequence[Tensor]) -> AsyncGenerator[Answer, None]:
        """Not over HTTP."""
        raise StreamingUnsupported(f"progress needs gRPC, such as grpc://host:8001; the URL is {self.url}")


def open_transport(url: str, access: Access) -> Transport:
    """Transport by the URL's scheme; call it where the event loop runs.

    Raises:
        ValueError: the URL is not one of the supported schemes with a host and port.
        OSError: the file of `access` cannot be read.
    """
    address = urlsplit(url)
    kinds: dict[str, type[GrpcTransport] | type[HttpTransport]] = {
        "grpc": GrpcTransport,
        "grpcs": GrpcTransport,
        "http": HttpTransport,
        "https": HttpTransport,
    }
    if address.scheme not in kinds or not address.netloc:
        raise ValueError(f"the server's URL is {url!r}; wanted: grpc://HOST:PORT, http://HOST:PORT, grpcs or https")
    return kinds[address.scheme](url, address, access)
