"""A ControlNet behind the tensors of its service's contract."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from cachetools import LRUCache

from ..common.errors import InvalidRequestError, RequestError
from ..networks.controlnet_modules import ARGUMENTS, PositionalControlNet, factors
from ..networks.runtimes import Runtime
from ..networks.unet import Shapes, arguments, example, shapes
from ..networks.unet_halves import pack
from ..networks.warm_up import WARM_UP_ROWS, capture_ahead, trace, warm_up
from .weights import load_controlnet

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import numpy as np

    from ..networks.checkpoint import Checkpoint
    from ..networks.runtimes import Call
    from ..request.completed import ControlNetUse

UNKNOWN = -1.0
"""What an inpainting ControlNet takes for a pixel that is to be painted anew."""

EMBEDDING_BYTES = 2**28
"""Embedded pictures that are kept, in bytes."""


class ControlNet:
    """diffusers' ControlNet; what depends on the picture alone is computed once per picture.

    On the CPU the calls that a single request makes at the default size run as traced graphs, as in `unet.UNet`.
    """

    def __init__(
        self,
        path: Path,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: torch.dtype,
        get_image: Callable[[str], np.ndarray],
        runtime: Runtime | None = None,
        engine: str = "",
        most_rows: int = WARM_UP_ROWS[-1],
    ) -> None:
        """Loads the weights and warms up.

        Args:
            path: Of the ControlNet's directory or file.
            checkpoint: Whose latents and embeddings it takes.
            device: Where it computes.
            dtype: Of weights and activations.
            get_image: Picture [H, W, 3 or 4] uint8 of a key (see `Pictures`), of the latents' size in pixels; may raise
                a RequestError.
            runtime: What evaluates it.
            engine: Its name among the runtime's TensorRT engines.
            most_rows: Of a call, as for `unet.UNet`.

        Raises:
            ControlNetFileError: If there is none.
        """
        network = load_controlnet(path, checkpoint, dtype).requires_grad_(False).eval()
        channels, runtime = network.conv_in.out_channels, runtime or Runtime()
        runtime.prepare(network, device)
        module = PositionalControlNet(network)
        self._embed, self._pools, self._modes = module.embed.to(device), module.pools, module.control_modes
        self._call = runtime.controlnet(module, engine, device)
        self._get_image = get_image
        self._device, self._dtype = device, dtype
        self._embedded: LRUCache[str, torch.Tensor] = LRUCache(EMBEDDING_BYTES, getsizeof=lambda tensor: tensor.nbytes)
        self._traced: dict[Shapes, Call] = {}

        def embedded(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
            rows, _, height, width = tensors["LATENTS"].shape
            return torch.zeros(rows, channels, height, width, device=device, dtype=dtype)

        def evaluate(tensors: Mapping[str, torch.Tensor]) -> None:
            self._residuals(tensors, [embedded(tensors)], (0,) if self._modes else (), None)

        def trace_all(examples: Sequence[Mapping[str, torch.Tensor]]) -> None:
            given = [(*arguments(tensors, device, dtype)[:ARGUMENTS], embedded(tensors)) for tensors in examples]
            graphs = trace(network, [(module, taken) for taken in given])
            self._traced = dict(zip(map(shapes, examples), graphs, strict=True))

        def of(rows: int) -> dict[str, torch.Tensor]:
            return example(checkpoint, rows, checkpoint.latent_channels)

        eager = runtime.traces(device)
        if runtime.captures(device):
            tunes = runtime.savings.tuned_convolutions
            capture_ahead(most_rows, lambda rows: evaluate(of(rows)), device, tunes=tunes)
        else:
            warm_up(map(of, WARM_UP_ROWS), evaluate, trace_all if eager and not self._modes else None, eager)

    def __call__(
        self, tensors: Mapping[str, torch.Tensor], controls: Sequence[ControlNetUse]
    ) -> tuple[torch.Tensor, dict[int, RequestError]]:
        """Residuals of the skips and the mid block, scaled.

        Args:
            tensors: LATENTS [B, C, h, w], TIMESTEPS [B, 1], ENCODER_HIDDEN_STATES [B, tokens, width]; for SDXL
                TEXT_EMBEDS [B, pooled width] and TIME_IDS [B, 6]. Float32.
            controls: What each row asks for.

        Returns:
            [B, sum of C·h·w], packed as by `unet_halves.pack`, of the network's type, on its device; and why a row
            has none, where its picture has gone. Such a row is zero.
        """
        pictures: dict[int, list[torch.Tensor]] = {}
        failures: dict[int, RequestError] = {}
        kinds: dict[tuple[tuple[int, ...], float | None], list[int]] = {}
        for row, control in enumerate(controls):
            try:
                self._check(control)
                pictures[row] = [self._embedding(key) for key in control.images]
            except RequestError as error:
                failures[row] = error
                continue
            scale = control.scale if control.scales_pictures else None
            kinds.setdefault((control.control_modes, scale), []).append(row)
        answers: list[tuple[list[int], torch.Tensor]] = []
        for (modes, scale), rows in kinds.items():
            taken = tensors if len(rows) == len(controls) else {name: each[rows] for name, each in tensors.items()}
            embedded = [torch.cat(pictures_of) for pictures_of in zip(*(pictures[row] for row in rows), strict=True)]
            residuals = self._residuals(taken, embedded, modes, scale)
            answers.append((rows, self._scaled(residuals, [controls[row] for row in rows])))
        return _in_order(answers, len(controls)), failures

    def _check(self, control: ControlNetUse) -> None:
        """A mode that there is not would index beyond a weight, which on a GPU ends the process's context."""
        modes, count = control.control_modes, self._modes
        if any(mode >= count for mode in modes) or len(control.images) != (len(modes) if count else 1):
            raise InvalidRequestError(
                f"CONTROL has {len(control.images)} pictures of modes {list(modes)}; this ControlNet has {count} modes"
            )

    def _residuals(
        self,
        tensors: Mapping[str, torch.Tensor],
        embedded: Sequence[torch.Tensor],
        modes: tuple[int, ...],
        scale: float | None,
    ) -> list[torch.Tensor]:
        inputs = (*arguments(tensors, self._device, self._dtype)[:ARGUMENTS], *embedded)
        options = {"modes": modes, "scale": scale} if modes else {}
        call = self._traced.get(shapes(tensors), self._call)
        with torch.inference_mode():
            return list(call(*inputs, **options))

    def _scaled(self, residuals: list[torch.Tensor], controls: Sequence[ControlNetUse]) -> torch.Tensor:
        """[B, sum of C·h·w]."""
        scales = torch.stack(
            [
                factors(None if use.scales_pictures else use.scale, use.guess_mode, self._pools, len(residuals))
                for use in controls
            ]
        )
        with torch.inference_mode():
            if not self._pools:
                return pack(residuals, scales)
            columns = scales.to(residuals[0].device)[:, :, None, None, None].unbind(1)
            return pack(
                [
                    (residual.float() * scale).mean(dim=(2, 3), keepdim=True).expand_as(residual).to(residual.dtype)
                    for residual, scale in zip(residuals, columns, strict=True)
                ]
            )

    def _embedding(self, key: str) -> torch.Tensor:
        """[1, channels, h, w]: the picture as the first layer takes it."""
        known = self._embedded.get(key)
        if known is None:
            picture = torch.from_numpy(self._get_image(key)).permute(2, 0, 1)[None]
            pixels = picture[:, :3].float() / 255
            if picture.shape[1] == 4:  # where the fourth is 0, nothing is known: diffusers' `make_inpaint_condition`
                pixels = pixels.where(picture[:, 3:] != 0, UNKNOWN)
            with torch.inference_mode():
                known = self._embed(pixels.to(self._device, self._dtype))
            if known.nbytes <= EMBEDDING_BYTES:
                self._embedded[key] = known
        return known


def _in_order(answers: Sequence[tuple[list[int], torch.Tensor]], rows: int) -> torch.Tensor:
    """The answers of some rows each as one tensor; rows that none has are zero."""
    if not answers:
        return torch.zeros(rows, 1)
    first = answers[0][1]
    if len(first) == rows:
        return first
    joined = first.new_zeros(rows, first.shape[1])
    for own, part in answers:
        joined[own] = part
    return joined
