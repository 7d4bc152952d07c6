"""The part of `make demo` that edits: one item of a picture becomes another, and all around it stays as it is."""

from __future__ import annotations

from itertools import islice

import numpy as np
from PIL import Image
from rich.progress import track

from swiftdiffusion.clients import Client, GenerationRequest, GenerationResult
from swiftdiffusion.export.demo.checker import check
from swiftdiffusion.export.demo.edits import SceneEdit, scene_edits

COLUMNS = 6
"""Of the contact sheet: two edits in a row."""


class EditedPictures:
    """Some edits, drawn by a server."""

    def __init__(self, url: str, count: int, latencies: dict[str, list[float]]) -> None:
        """Draws them.

        Args:
            url: Of the server.
            count: How many.
            latencies: Gets the seconds of every request.
        """
        self._edits = list(islice(scene_edits(), count))
        with Client(url) as client:
            client.generate(_request(self._edits[0]))
            self._drawn: list[GenerationResult] = [
                client.generate(_request(edit))
                for edit in track(self._edits, f"{count} pictures with an item replaced")
            ]
        latencies["an item replaced, 19 steps"] = [picture.seconds for picture in self._drawn]

    def cells(self, side: int) -> list[tuple[Image.Image, str]]:
        """Pictures and captions of a contact sheet: of each edit the picture, what is masked, and what became of it."""
        cells = []
        for edit, drawn in zip(self._edits, self._drawn, strict=True):
            masked = np.where(edit.mask[..., None] > 0, 255 - (255 - edit.picture) // 4, edit.picture)
            shown = (edit.picture, "the picture"), (masked, "what may change"), (drawn.pixels, edit.after)
            cells += [
                (Image.fromarray(pixels.astype(np.uint8)).resize((side, side), Image.Resampling.LANCZOS), caption)
                for pixels, caption in shown
            ]
        return cells

    def sentence(self) -> str:
        """How many are right."""
        pairs = list(zip(self._edits, self._drawn, strict=True))
        verdicts = [check(drawn.pixels, edit.scene) for edit, drawn in pairs]
        right = sum(each.colours and each.shapes and each.positions for each in verdicts)
        kept = sum(np.array_equal(drawn.pixels[edit.mask == 0], edit.picture[edit.mask == 0]) for edit, drawn in pairs)
        return (
            f"{right} of {len(pairs)} edited pictures show the colours, shapes and positions of the new prompt; "
            f"in {kept} no pixel outside the mask is another"
        )


def _request(edit: SceneEdit) -> GenerationRequest:
    return GenerationRequest(edit.after, seed=edit.seed, init_image=edit.picture, mask_image=edit.mask, composite=True)
