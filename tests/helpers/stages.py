"""The models of an ensemble, called one by one: what is between them can be looked at, and changed."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import tritonclient.grpc as grpc

from wire import inputs


class Stages:
    """From a request's inputs to its final latents."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def encode(self, home: str | None = None, **fields: Any) -> dict[str, bytes]:
        """What a denoiser is handed; with a home, the request is to run there."""
        with self._client() as client:
            completed = client.infer(self._server.inner("preprocess"), inputs(grpc, fields))
            texts = {name: completed.as_numpy(name)[0, 0] for name in ("REQUEST", "TICKETS")}
            if home is not None:
                request = json.loads(texts["REQUEST"])
                request["claim"]["shard"] = home
                texts["REQUEST"] = json.dumps(request).encode()
        return self.encode_texts(texts)

    def encode_texts(self, texts: dict[str, bytes]) -> dict[str, bytes]:
        """What a denoiser is handed, of what `preprocess` gave."""
        with self._client() as client:
            encoded = client.infer(
                self._server.inner("text_encoder"), [_text(name, texts[name]) for name in ("REQUEST", "TICKETS")]
            )
            keys = client.infer(self._server.inner("vae_encoder"), [_text("REQUEST", texts["REQUEST"])])
        return texts | {
            "ENCODING": encoded.as_numpy("ENCODING")[0, 0],
            "LATENT_KEYS": keys.as_numpy("LATENT_KEYS")[0, 0],
        }

    def denoise(self, texts: dict[str, bytes]) -> tuple[np.ndarray, dict[str, Any]]:
        """Latents and INFO."""
        result = self.hand_over(texts)
        return result.as_numpy("LATENTS"), json.loads(result.as_numpy("INFO")[0, 0])

    def hand_over(self, texts: dict[str, bytes]) -> grpc.InferResult:
        """What the decoder is handed."""
        tensors = [_text(name, value) for name, value in texts.items()]
        with self._client() as client:
            return client.infer(self._server.inner("denoiser"), tensors, client_timeout=120)

    def decode(self, handed_over: grpc.InferResult) -> np.ndarray:
        """The picture [H, W, 3]."""
        latents = handed_over.as_numpy("LATENTS")
        tensors = [grpc.InferInput("LATENTS", latents.shape, "FP32")]
        tensors[0].set_data_from_numpy(latents)
        tensors += [_text(name, handed_over.as_numpy(name)[0, 0]) for name in ("HANDOVER", "INFO")]
        with self._client() as client:
            return client.infer(self._server.inner("vae_decoder"), tensors, client_timeout=120).as_numpy("IMAGE")[0]

    def _client(self) -> grpc.InferenceServerClient:
        return grpc.InferenceServerClient(self._server.grpc_url.split("://")[-1])


def _text(name: str, value: bytes) -> grpc.InferInput:
    tensor = grpc.InferInput(name, [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[value]], dtype=object))
    return tensor
