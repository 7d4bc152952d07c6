"""Requests that nobody should send, by a seed: raw HTTP/1.1 and raw gRPC, from nearly right to nonsense.

None uses model control, logging, tracing or shared memory: whoever may, can stop a server without tricks. What
ends Triton 2.51 is left out (docs/security.md): JSON tensors whose shape has many elements, bodies that unpack to
gigabytes, streams of several requests, and metadata that asks for gRPC errors.
"""

from __future__ import annotations

import gzip
import json
import random
import struct
from typing import Any

from tritonclient.grpc.service_pb2 import ModelInferRequest

from fuzz_cases import GrpcCase, HttpCase
from swiftdiffusion.export.repository.config_parts import CLIENT_INPUTS

TYPES = {name: "BYTES" if kind == "STRING" else kind for name, kind, *_ in CLIENT_INPUTS}
INNER = dict.fromkeys(
    ("REQUEST", "TICKETS", "ENCODING", "LATENT_KEYS", "CONTROL", "HANDOVER", "INFO", "PIPELINE"), "BYTES"
)
INNER["LATENTS"] = "FP32"
OTHER_TYPES = ("BYTES", "BOOL", "UINT8", "INT8", "INT32", "INT64", "UINT64", "FP16", "BF16", "FP32", "FP64", "", "X")
SIZES = {"BOOL": 1, "UINT8": 1, "INT32": 4, "INT64": 8, "FP32": 4}
NUMBERS = (0, 1, -1, 3, 8, 64, 127, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63), 2**64, 10**40, 0.5, -1e308, 1e-320)
DIMENSIONS = (0, 1, 1, 1, 2, 3, 64, -1, 2**31, 2**62, -(2**63))
SMALL = (0, 1, 1, 1, 2, 3, 64, -1)
TEXTS = (
    "", "a red circle", "a (b:1.2) [c] BREAK d", "((((", "\\", "a\0b", "\u202e\u0301\U0001f921", "é" * 900, "x" * 5000,
    "../../etc/passwd", "[{", '[{"name": "x"}]', '[{"name": "night", "scale": 1e999}]', '[{"name": "night"}]',
    "[" * 600, "null", "{}", "euler", '[{"name": "edges", "start": 2}]', "%s%n", "NaN", "low", '{"id": 1}',
    "png", "webp;base64", "jpeg", "linear", "vae", "*", '{"final": true}', '{"error": {}}',
    '[{"name": "edges", "picture": "inpaint"}]', '{"picture": "' + "0" * 64 + '", "masked": null, "ms": 1}',
    "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAAAAABX3VL4AAAADklEQVR42mP8z8DEwAAABQ0BA6UiEhkAAAAASUVORK5CYII=", "iVBORw0KGgo=",
)  # fmt: skip


class Fuzzer:
    """Makes cases for one server."""

    def __init__(self, models: tuple[str, ...], seed: int) -> None:
        """Knows the names of the models: the first is the entry model."""
        self._models, self._random = models, random.Random(seed)

    def case(self) -> HttpCase | GrpcCase:
        """The next one."""
        return self._pick(
            self._http_json, self._http_json, self._http_binary, self._http_binary, self._http_generate,
            self._http_mutated, self._http_headers, self._http_path, self._http_garbage, self._http_half_open,
            self._grpc_infer, self._grpc_infer, self._grpc_infer, self._grpc_stream, self._grpc_stream,
            self._grpc_bytes, self._grpc_method,
        )()  # fmt: skip

    def _pick(self, *choices: Any) -> Any:
        return self._random.choice(choices)

    def _chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def _bytes(self, most: int) -> bytes:
        return self._random.randbytes(self._random.randrange(most + 1))

    def _text(self) -> str:
        if self._chance(0.7):
            return self._random.choice(TEXTS)
        return "".join(chr(self._random.choice((*range(32, 127), 0xE9, 0x4E2D, 0x1F600))) for _ in range(9))

    def _value(self, kind: str) -> Any:
        if self._chance(0.05):
            return self._pick(None, True, [], {}, [[1]], self._text(), *NUMBERS)
        if kind == "BYTES":
            return self._text()
        if kind == "BOOL":
            return self._chance(0.5)
        return self._random.choice(NUMBERS) if self._chance(0.3) else self._random.randrange(9)

    def _shape(self, dimensions: tuple[int, ...] = DIMENSIONS) -> list[int]:
        if self._chance(0.85):
            return [1, 1]
        return [self._random.choice(dimensions) for _ in range(self._random.randrange(5))]

    def _model(self) -> str:
        if self._chance(0.6):
            return self._models[0]
        return self._pick(*self._models, "nobody", self._text())

    def _names(self) -> list[str]:
        """Of inputs, at times twice, at times without the prompt."""
        names = ["PROMPT"] if self._chance(0.9) else []
        names += self._random.sample([*TYPES, *INNER] if self._chance(0.3) else [*TYPES], self._random.randrange(5))
        if self._chance(0.7):
            names.append("STEPS")
        return names + (["NOBODY", ""] if self._chance(0.05) else [])

    def _type(self, name: str) -> str:
        if self._chance(0.05):
            return self._random.choice(OTHER_TYPES)
        return (TYPES | INNER).get(name, "BYTES")

    def _parameters(self) -> dict[str, Any]:
        keys = (
            "sequence_id",
            "sequence_start",
            "sequence_end",
            "priority",
            "timeout",
            "binary_data_output",
            "seed",
            "",
        )
        chosen = self._random.sample(keys, self._random.randrange(3)) if self._chance(0.3) else []
        return {key: self._pick(True, False, self._text(), *NUMBERS) for key in chosen}

    def _raw(self, kind: str) -> bytes:
        """One element of a tensor as binary data; of text, at times with a length that lies."""
        if kind != "BYTES":
            return self._random.randbytes(SIZES.get(kind, 4))
        text = self._text().encode() if self._chance(0.9) else self._bytes(20)
        length = len(text) if self._chance(0.8) else self._random.choice((0, 1, len(text) + 1, 2**31, 2**32 - 1))
        return struct.pack("<I", length) + text

    def _http(self, body: bytes, path: str | None = None, headers: dict[str, Any] | None = None) -> bytes:
        path = path or f"/v2/models/{_quoted(self._model())}/infer"
        lines = {"Host": "x", "Content-Length": len(body), **(headers or {})}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body

    def _inference(self) -> dict[str, Any]:
        inputs = []
        for name in self._names():
            kind = self._type(name)
            data: Any = [self._value(kind)] if self._chance(0.9) else self._pick([], [[1, 2], ["x"]], "x", None, {})
            inputs.append({"name": name, "shape": self._shape(SMALL), "datatype": kind, "data": data})
        request = {"inputs": inputs, "id": self._pick("1", "2", "", self._text()), "parameters": self._parameters()}
        if self._chance(0.1):
            request[self._pick("inputs", "outputs", "id", "parameters")] = self._pick(None, 1, [1], [{}], {"a": 1}, "x")
        return request

    def _http_json(self) -> HttpCase:
        return HttpCase("JSON tensors", self._http(json.dumps(self._inference()).encode()))

    def _http_mutated(self) -> HttpCase:
        body = bytearray(json.dumps(self._inference()).encode())
        for _ in range(self._random.randrange(1, 6)):
            at = self._random.randrange(len(body))
            body[at : at + self._random.randrange(4)] = self._bytes(3)
        deep = self._pick(b"[", b'{"a":') * self._random.choice((100, 50_000))
        return HttpCase("malformed JSON", self._http(deep if self._chance(0.1) else bytes(body)))

    def _http_binary(self) -> HttpCase:
        inputs, binary = [], b""
        for name in self._names():
            kind = self._type(name)
            raw = self._raw(kind)
            size = len(raw) if self._chance(0.8) else self._random.choice((0, 1, len(raw) + 9, 2**31, 2**63 - 1, -1))
            tensor = {"name": name, "shape": self._shape(), "datatype": kind, "parameters": {"binary_data_size": size}}
            inputs.append(tensor)
            binary += raw
        if self._chance(0.2):
            binary = binary[: self._random.randrange(len(binary) + 1)] + self._bytes(8) * self._chance(0.3)
        head = json.dumps({"inputs": inputs, "parameters": self._parameters()}).encode()
        length: Any = len(head)
        if self._chance(0.2):
            length = self._pick(
                0, 1, -1, length - 1, length + 1, length + len(binary) + 1, 2**31, 2**64, "x", "", "1e3"
            )
        return HttpCase(
            "binary tensors", self._http(head + binary, headers={"Inference-Header-Content-Length": length})
        )

    def _http_generate(self) -> HttpCase:
        body = {name: self._value(self._type(name)) for name in self._names()}
        body |= self._parameters() | ({self._text(): self._text()} if self._chance(0.2) else {})
        ending = self._pick("generate", "generate", "generate_stream")
        return HttpCase(
            "generate", self._http(json.dumps(body).encode(), f"/v2/models/{_quoted(self._model())}/{ending}")
        )

    def _http_headers(self) -> HttpCase:
        body = json.dumps(self._inference()).encode()
        name, value, is_http = self._pick(
            ("Content-Encoding", "gzip", True),
            ("Content-Encoding", "deflate", True),
            ("Accept-Encoding", self._text().encode("ascii", "replace").decode(), False),
            ("Content-Type", "x" * 3000, True),
            ("X-Long", "y" * 70_000, False),
            ("Expect", "100-continue", True),
            ("Expect", "x", False),
            ("Upgrade", "h2c", True),
            ("Transfer-Encoding", "chunked", False),
            ("Content-Length", "-1", False),
            ("Content-Length", "x", False),
            ("Content-Length", 2**64, False),
            ("bad header\x01", "z", False),
            ("traceparent", "00-" + "f" * 60, True),
        )
        if value == "gzip" and self._chance(0.5):
            body = gzip.compress(body)[: self._random.choice((None, 20, -4))]
        return HttpCase(f"header {name.strip()[:16]}", self._http(body, headers={name: value}), is_http)

    def _http_path(self) -> HttpCase:
        method = self._pick("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE")
        version = self._pick(0, 2, -1, 10**30, "x")
        path = self._pick(
            "/", "//", "/v2", "/v2/", "/v3", "/v2/models", "/v2/models/", "/v2/models//infer", "/v2/health/ready",
            f"/v2/models/{_quoted(self._text())}", f"/v2/models/{self._models[0]}/versions/{version}/infer",
            f"/v2/models/{self._models[0]}/config", "/%00", "/..%2f..%2fetc/passwd", "/" + "a" * 9000, "*",
        )  # fmt: skip
        payload = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode("utf-8", "replace")
        return HttpCase("method and path", payload, is_http=method in ("GET", "POST") and path.startswith("/v2"))

    def _http_garbage(self) -> HttpCase:
        return HttpCase("no HTTP", self._bytes(200) + b"\r\n\r\n", is_http=False)

    def _http_half_open(self) -> HttpCase:
        whole = self._http(json.dumps(self._inference()).encode())
        return HttpCase("half-open", whole[: self._random.randrange(len(whole))], is_http=False, is_half_open=True)

    def _message(self) -> bytes:
        request = ModelInferRequest(model_name=self._model(), id=self._pick("", "1", self._text()))
        request.model_version = self._pick("", "", "", "", "1", "2", "x")
        for name in self._names():
            kind = self._type(name)
            tensor = request.inputs.add(name=name, datatype=kind, shape=self._int64_shape())
            if self._chance(0.85):
                request.raw_input_contents.append(self._raw(kind) if self._chance(0.9) else self._bytes(40))
            else:
                tensor.contents.bytes_contents.append(self._text().encode())
        if self._chance(0.05):
            request.raw_input_contents.append(b"x")
        if self._chance(0.2):
            request.outputs.add(name=self._pick("IMAGE", "INFO", "", "NOBODY"))
        for key, value in self._parameters().items():
            if isinstance(value, bool):
                request.parameters[key].bool_param = value
            elif isinstance(value, int) and -(2**63) <= value < 2**63:
                request.parameters[key].int64_param = value
            else:
                request.parameters[key].string_param = str(value)
        return request.SerializeToString()

    def _int64_shape(self) -> list[int]:
        return [size for size in self._shape() if -(2**63) <= size < 2**63]

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return self._pick((), (), (("x-a", "b" * 3000),), (("triton-grpc-protocol-admin-key", "x"),), (("te", "x"),))

    def _leaves(self) -> float | None:
        return self._random.random() * 0.1 if self._chance(0.1) else None

    def _grpc_infer(self) -> GrpcCase:
        return GrpcCase("tensors", "ModelInfer", self._message(), self._metadata(), self._leaves())

    def _grpc_stream(self) -> GrpcCase:
        return GrpcCase("stream", "ModelStreamInfer", self._message(), self._metadata(), self._leaves())

    def _grpc_bytes(self) -> GrpcCase:
        message = bytearray(self._message())
        for _ in range(self._random.randrange(1, 6)):
            at = self._random.randrange(len(message))
            message[at : at + self._random.randrange(4)] = self._bytes(3)
        return GrpcCase("mutated message", self._pick("ModelInfer", "ModelMetadata"), bytes(message))

    def _grpc_method(self) -> GrpcCase:
        method = self._pick("ModelReady", "ModelMetadata", "ModelConfig", "ServerMetadata", "ModelInfer", "Nothing")
        return GrpcCase("method", method, self._bytes(60), self._metadata())


def _quoted(name: str) -> str:
    """As much of a name as a path takes."""
    return "".join(letter if letter.isalnum() and letter.isascii() else f"%{ord(letter) % 256:02x}" for letter in name)
