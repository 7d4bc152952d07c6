"""How a run begins that changes a picture, and what holds the rest of the picture in place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from diffusers.utils.torch_utils import randn_tensor

from ..common.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..networks.latent_encoding import LatentScale


@dataclass(frozen=True)
class Start:
    """A picture that a run begins with, as latents are made of it.

    Attributes:
        scale: Of the checkpoint's latents.
        skipped: Steps that are not taken, at the beginning.
        picture: Moments of the picture (`encode_picture`); None where nothing of it is wanted.
        mask: [1, 1, h, w]: 1 where it is painted anew, else 0; None for everywhere.
        masked: Moments of the picture without that, for UNets that take them.
        from_noise: Whether the first latents are noise alone.
    """

    scale: LatentScale
    skipped: int
    picture: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    masked: torch.Tensor | None = None
    from_noise: bool = False


class Drawn:
    """The latents of one run's start, drawn in diffusers' order.

    Attributes:
        noise: [1, C, h, w], deviation 1.
        original: The picture's latents, like it; None without a picture.
        beside: What a UNet that inpaints takes beside the latents, unscaled: mask and the masked picture's latents
            [1, 1 + C, h, w]; None for every other UNet.
    """

    def __init__(self, start: Start | None, shape: tuple[int, ...], generator: torch.Generator) -> None:
        """Draws.

        Args:
            start: Of the run; None for noise alone.
            shape: [1, C, h, w].
            generator: Of the request, on the CPU.
        """
        self.original = self.beside = None
        if start is not None and start.picture is not None:
            # Strides as diffusers' have: with others, the UNet's last bits would be others.
            strides = torch.channels_last if start.mask is None else torch.contiguous_format
            drawn = start.scale.draw(start.picture, shape[1], generator)
            self.original = drawn.contiguous(memory_format=strides)
        self.noise = randn_tensor(shape, generator=generator, dtype=torch.float32)
        if start is None or start.mask is None:
            return
        if start.masked is not None:
            self.beside = torch.cat([start.mask, start.scale.draw(start.masked, shape[1], generator)], 1)
        elif start.picture is not None and start.picture.shape[1] != shape[1]:
            # diffusers encodes the masked picture for every UNet. What has no use for it lacks one draw all the same.
            randn_tensor(shape, generator=generator, dtype=torch.float32)


class Pins:
    """What lies outside a mask, at every step: the picture with as much noise as the latents have then."""

    def __init__(
        self,
        original: torch.Tensor,
        noise: torch.Tensor,
        mask: torch.Tensor,
        levels: Sequence[tuple[float, float]],
        device: torch.device | None,
    ) -> None:
        """Takes what stays the same.

        Args:
            original: The picture's latents, [1, C, h, w].
            noise: Like it.
            mask: [1, 1, h, w].
            levels: After each step: factors of picture and noise.
            device: Where the latents are.
        """
        self._original, self._noise, self._mask = (each.to(device) for each in (original, noise, mask))
        self._around, self._levels = 1 - self._mask, levels

    def __call__(self, step: int, latents: torch.Tensor) -> torch.Tensor:
        """The latents [1, C, h, w] after a step, with those of the picture outside the mask."""
        known = self._original
        if step < len(self._levels):
            of_picture, of_noise = self._levels[step]
            known = of_picture * self._original + of_noise * self._noise
        return self._around * known + self._mask * latents


_UNITS = torch.eye(2)


def noise_levels(scheduler: Any, begin: int) -> list[tuple[float, float]]:
    """What a scheduler's `add_noise` multiplies picture and noise with, at every timestep of a run from `begin` on.

    Asked with numbers on the CPU, so that no step waits for a device: the latents are the same bit for bit, since that
    is how every scheduler adds noise.

    Args:
        scheduler: After `set_timesteps`; its begin is `begin` afterwards.
        begin: Index into its timesteps.

    Raises:
        InvalidRequestError: If it has no `add_noise`.
    """
    if not hasattr(scheduler, "add_noise"):
        raise InvalidRequestError(f"INIT_IMAGE cannot be used with the scheduler {type(scheduler).__name__}")
    counts = hasattr(scheduler, "set_begin_index")
    levels = []
    for index in range(begin, len(scheduler.timesteps)):
        if counts:
            scheduler.set_begin_index(index)
        picture, noise = scheduler.add_noise(_UNITS[0], _UNITS[1], scheduler.timesteps[index : index + 1]).tolist()
        levels.append((picture, noise))
    if counts:
        scheduler.set_begin_index(begin)
    return levels
