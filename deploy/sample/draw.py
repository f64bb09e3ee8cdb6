"""Draws the sample picture and its mask, beside this file: `python deploy/sample/draw.py`."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

FOLDER = Path(__file__).parent
SIZE = 128
OVERSAMPLED = 4 * SIZE
SKY_TOP, SKY_BOTTOM = (96, 160, 224), (206, 228, 244)
GRASS, SUN, WALL, ROOF, DOOR = (84, 152, 70), (250, 214, 70), (240, 232, 214), (186, 62, 48), (112, 74, 46)


def picture() -> Image.Image:
    """RGB, SIZE x SIZE: a sky, a sun, a meadow and a house, with an empty place on the right."""
    sky = Image.linear_gradient("L").resize((OVERSAMPLED, OVERSAMPLED))
    image = Image.composite(Image.new("RGB", sky.size, SKY_BOTTOM), Image.new("RGB", sky.size, SKY_TOP), sky)
    draw = ImageDraw.Draw(image)
    draw.ellipse((30, 26, 118, 114), fill=SUN)
    draw.rectangle((0, 380, OVERSAMPLED, OVERSAMPLED), fill=GRASS)
    draw.rectangle((40, 270, 190, 420), fill=WALL)
    draw.polygon([(20, 274), (115, 178), (210, 274)], fill=ROOF)
    draw.rectangle((96, 340, 138, 420), fill=DOOR)
    return image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def mask() -> Image.Image:
    """Gray, SIZE x SIZE: white where the picture is to be repainted, with a soft rim."""
    image = Image.new("L", (SIZE, SIZE), 0)
    ImageDraw.Draw(image).ellipse((58, 26, 122, 90), fill=255)
    return image.filter(ImageFilter.GaussianBlur(1))


if __name__ == "__main__":
    picture().save(FOLDER / "picture.png", optimize=True)
    mask().save(FOLDER / "mask.png", optimize=True)
