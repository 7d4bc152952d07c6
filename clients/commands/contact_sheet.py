"""Several pictures on one, each with a caption."""

import math
import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_MARGIN = 8  # pixels, also between a picture and its caption
_LINES = 3  # of a caption; longer ones are cut


def contact_sheet(pictures: Sequence[tuple[Image.Image, str]], columns: int | None = None) -> Image.Image:
    """A white sheet of pictures in rows, captions below them.

    Args:
        pictures: each with its caption.
        columns: pictures per row; None makes the sheet about square.

    Raises:
        ValueError: there is no picture.
    """
    if not pictures:
        raise ValueError("a contact sheet needs at least one picture")
    columns = min(columns or math.ceil(math.sqrt(len(pictures))), len(pictures))
    cell_width = max(max(picture.width for picture, _ in pictures), 128)
    cell_height = max(picture.height for picture, _ in pictures)
    font = ImageFont.load_default(max(10, cell_width // 24))
    line_height = math.ceil(font.getbbox("Ag")[3] * 1.25)
    characters = max(8, int(cell_width / font.getlength("n")))
    captions = [textwrap.wrap(caption, characters, max_lines=_LINES, placeholder=" …") for _, caption in pictures]
    row_height = cell_height + _MARGIN + max(map(len, captions)) * line_height
    rows = math.ceil(len(pictures) / columns)
    size = (_MARGIN + columns * (cell_width + _MARGIN), _MARGIN + rows * (row_height + _MARGIN))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for index, ((picture, _), lines) in enumerate(zip(pictures, captions, strict=True)):
        row, column = divmod(index, columns)
        left = _MARGIN + column * (cell_width + _MARGIN)
        top = _MARGIN + row * (row_height + _MARGIN)
        sheet.paste(picture, (left + (cell_width - picture.width) // 2, top + cell_height - picture.height))
        for number, line in enumerate(lines):
            position = (left, top + cell_height + _MARGIN // 2 + number * line_height)
            draw.text(position, line, fill="black", font=font)
    return sheet
