"""The part of `make demo` with ControlNets: control pictures and what is made of them, alone, together, with a LoRA."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image
from rich.progress import track
from rich.table import Table

from swiftdiffusion.clients import Client, ControlNet, GenerationRequest, GenerationResult, Lora
from swiftdiffusion.export.demo.controlnet.adherence import adherence
from swiftdiffusion.export.demo.controlnet.controls import KINDS, Kind
from swiftdiffusion.export.demo.controlnet.evaluate import Controls, sample_controls
from swiftdiffusion.export.demo.lora.recipes import RECIPES
from swiftdiffusion.export.demo.prompts import Prompt

LORA = "night"
"""Used together with ControlNets: it changes the colours and leaves outlines where they are."""

Pictures = list[GenerationResult]


@dataclass(frozen=True)
class Way:
    """One way to draw the same prompts: with which ControlNets and LoRAs."""

    kinds: tuple[Kind, ...] = ()
    loras: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """For people."""
        return " + ".join((*self.kinds, *self.loras)) or "no ControlNet"

    def request(self, prompt: Prompt, controls: Controls, row: int) -> GenerationRequest:
        """The prompt with its control pictures."""
        text = prompt.text
        for name in self.loras:
            text = RECIPES[name].prompt(text)
        return GenerationRequest(
            text,
            seed=prompt.seed,
            loras=[Lora(name) for name in self.loras],
            lora_bound=0,
            controlnets=[ControlNet(kind) for kind in self.kinds],
            control_images=[controls[kind][row] for kind in self.kinds],
        )


WAYS = (Way(), *(Way((kind,)) for kind in KINDS), Way(KINDS), Way(("edges",), (LORA,)), Way(KINDS, (LORA,)))


class ControlledPictures:
    """Prompts drawn in every way of WAYS."""

    def __init__(self, url: str, prompts: list[Prompt], latencies: dict[str, list[float]]) -> None:
        """Draws them.

        Args:
            url: Of the server.
            prompts: What to draw.
            latencies: Gets the seconds of every request, by what it had.
        """
        self._prompts, self._controls = prompts, sample_controls(prompts)
        self._drawn: dict[Way, Pictures] = {}
        with Client(url) as client:
            for way in track(WAYS, f"{len(WAYS) * len(prompts)} pictures with and without ControlNets"):
                requests = [way.request(prompt, self._controls, row) for row, prompt in enumerate(prompts)]
                pictures = self._drawn[way] = [client.generate(request) for request in requests]
                latencies.setdefault(_kind(way), []).extend(picture.seconds for picture in pictures)

    def cells(self, side: int) -> list[tuple[Image.Image, str]]:
        """Pictures and captions of a contact sheet, a row per prompt: control pictures, then what was drawn."""
        cells = []
        for row, prompt in enumerate(self._prompts):
            cells += [(_resized(self._controls[kind][row], side), f"{kind}: the control picture") for kind in KINDS]
            cells += [
                (_resized(pictures[row].pixels, side), f"{way.name}: {prompt.text}")
                for way, pictures in self._drawn.items()
            ]
        return cells

    def table(self) -> Table:
        """How closely the pictures follow each control."""
        count = len(self._prompts)
        table = Table("ControlNets", *(f"follows {kind}" for kind in KINDS), title=f"adherence of {count}, 0 to 1")
        for way, pictures in self._drawn.items():
            scores = [
                [adherence(kind, one.pixels, control) for one, control in zip(pictures, images, strict=True)]
                for kind, images in self._controls.items()
            ]
            table.add_row(way.name, *(f"{np.mean(each):.2f}" for each in scores))
        return table


COLUMNS = len(KINDS) + len(WAYS)
"""Of the contact sheet."""


def _kind(way: Way) -> str:
    controlnets = ("no ControlNet", "one ControlNet", "two ControlNets")[len(way.kinds)]
    return controlnets + (", one LoRA" if way.loras else "")


def _resized(pixels: np.ndarray, side: int) -> Image.Image:
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS)
