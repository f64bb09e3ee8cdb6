"""The model `remove` beside plain fillings: on drawn textures, on photographs, and how long it takes.

python -m tests.benchmarks.remove [--pictures FOLDER]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import sparse
from scipy.sparse.linalg import spsolve

from tests.benchmarks.pictures import PHOTOGRAPH_DIR
from worker.removing.fill import fill

Picture = NDArray[np.uint8]
Hole = NDArray[np.bool_]
Filling = Callable[[Picture, Hole], Picture]

SEED = 7
TEXTURE_SIDE = 256
BIHARMONIC_SIDE = 256
"""Solving for more at once takes minutes."""
RIM_WIDTH = 24
SIDES, SHARES = (512, 1024), (0.15, 0.45)
AIMS_SECONDS = {(512, 0.15): 1.5, (1024, 0.15): 3.0, (512, 0.45): 5.0}
MASK_SUFFIX = "_mask.png"


def ours(picture: Picture, hole: Hole) -> Picture:
    return fill(picture, hole, seed=SEED)


def telea(picture: Picture, hole: Hole) -> Picture:
    return np.asarray(cv2.inpaint(picture, hole.astype(np.uint8), 5, cv2.INPAINT_TELEA), np.uint8)


def navier_stokes(picture: Picture, hole: Hole) -> Picture:
    return np.asarray(cv2.inpaint(picture, hole.astype(np.uint8), 5, cv2.INPAINT_NS), np.uint8)


def biharmonic(picture: Picture, hole: Hole) -> Picture:
    """Our own solver: the Laplacian of the Laplacian is 0 in the hole."""
    height, width = hole.shape
    number = np.arange(height * width).reshape(height, width)
    pairs = [(number[:, :-1], number[:, 1:]), (number[:-1], number[1:])]
    first = np.concatenate([each.ravel() for each, _ in pairs])
    second = np.concatenate([each.ravel() for _, each in pairs])
    links = sparse.coo_matrix((np.ones(len(first)), (first, second)), shape=(hole.size, hole.size))
    links = (links + links.T).tocsr()
    laplacian = sparse.diags(np.asarray(links.sum(axis=1)).ravel()) - links
    unknown, known = number[hole], number[~hole]
    rows = (laplacian @ laplacian).tocsr()[unknown]
    solved = spsolve(rows[:, unknown].tocsc(), -(rows[:, known] @ picture[~hole].astype(float)))
    result = picture.copy()
    result[hole] = np.clip(np.rint(solved), 0, 255)
    return result


FILLINGS: Mapping[str, Filling] = {
    "remove": ours,
    "Telea": telea,
    "Navier-Stokes": navier_stokes,
    "biharmonic (own solver)": biharmonic,
}


def textures(side: int) -> dict[str, Picture]:
    """Drawn ones: regular, random, and smooth."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:side, :side]
    grain = rng.normal(0, 4, (side, side, 1))
    joint = (y % 24 < 3) | ((x + 24 * (y // 24 % 2)) % 48 < 3)
    planks = np.sin(0.35 * x + 1.5 * np.sin(y / 23)) * 18 - 60.0 * (x % 40 < 2)
    grass = cv2.GaussianBlur(rng.normal(0, 1, (side, side)), (0, 0), sigmaX=0.8, sigmaY=3) * 60
    drawn = {
        "bricks": np.where(joint[..., None], (198, 192, 186), (150, 74, 52)) + grain,
        "stripes": np.where(((x + y) // 12 % 2)[..., None] > 0, (40, 90, 160), (230, 225, 210)) + grain,
        "planks": np.array((150, 105, 66)) + planks[..., None] + grain,
        "grass": np.array((88, 132, 60)) + grass[..., None],
        "gradient": np.stack([y * 0.5 + 60, x * 0.4 + 70, 255 - y * 0.4], axis=-1) + grain / 4,
    }
    return {name: np.clip(np.rint(pixels), 0, 255).astype(np.uint8) for name, pixels in drawn.items()}


def ellipse(side: int, share: float) -> Hole:
    """In the middle; `share` of the picture."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    squared = side**2 * share / np.pi
    hole: Hole = np.square(y) * 1.2 + np.square(x) / 1.2 < squared
    return hole


def decibels(result: Picture, truth: Picture, hole: Hole) -> float:
    error = np.square(result[hole].astype(float) - truth[hole]).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def kept_gradient(result: Picture, hole: Hole) -> float:
    """The mean gradient energy in the hole over that around it: 1 is as lively as the surroundings."""
    gray = cv2.cvtColor(result, cv2.COLOR_RGB2GRAY).astype(np.float32)
    energy = np.square(cv2.Sobel(gray, cv2.CV_32F, 1, 0)) + np.square(cv2.Sobel(gray, cv2.CV_32F, 0, 1))
    inner = cv2.erode(hole.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    around = cv2.dilate(hole.astype(np.uint8), np.ones((2 * RIM_WIDTH + 1,) * 2, np.uint8)) > 0
    outer = around & ~(cv2.dilate(hole.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0)
    return float(energy[inner].mean() / energy[outer].mean())


def photographs(folder: Path) -> dict[str, tuple[Picture, Hole]]:
    """Pictures beside their masks (NAME.png, NAME_mask.png)."""
    found = {}
    for mask in sorted(folder.glob(f"*{MASK_SUFFIX}")):
        photograph = mask.with_name(mask.name.removesuffix(MASK_SUFFIX) + ".png")
        if photograph.is_file():
            with Image.open(photograph) as image, Image.open(mask) as drawn:
                hole = np.asarray(drawn.convert("L").resize(image.size, Image.Resampling.NEAREST)) > 0
                found[photograph.stem] = (np.asarray(image.convert("RGB")), hole)
    return found


def _timed(filling: Filling, picture: Picture, hole: Hole) -> tuple[Picture, float]:
    """Seconds of processor time: other work on the machine is not counted."""
    start = time.process_time()
    result = filling(picture.copy(), hole)
    return result, time.process_time() - start


def _textures_table() -> None:
    drawn, hole = textures(TEXTURE_SIDE), ellipse(TEXTURE_SIDE, 0.15)
    print(f"\nPSNR in the hole (dB), {TEXTURE_SIDE} px, hole {hole.mean():.0%}\n")
    print("| filling |" + "".join(f" {name} |" for name in drawn) + "\n|---|" + "---|" * len(drawn))
    for name, filling in FILLINGS.items():
        figures = [decibels(filling(picture.copy(), hole), picture, hole) for picture in drawn.values()]
        print(f"| {name} |" + "".join(f" {figure:.1f} |" for figure in figures))


def _photographs_table(folder: Path, keep: Path | None) -> None:
    found = photographs(folder)
    if not found:
        print(f"\nNo photographs with masks in {folder}.")
        return
    print("\nGradient energy in the hole over that around it, and seconds\n")
    print(
        "| photograph | size, hole |"
        + "".join(f" {name} |" for name in FILLINGS)
        + "\n|---|---|"
        + "---|" * len(FILLINGS)
    )
    for name, (picture, hole) in found.items():
        cells = []
        for label, filling in FILLINGS.items():
            if filling is biharmonic and max(hole.shape) > BIHARMONIC_SIDE:
                size = tuple(BIHARMONIC_SIDE * length // max(hole.shape) for length in (hole.shape[1], hole.shape[0]))
                picture_for, hole_for = _shrunk(picture, hole, size)
            else:
                picture_for, hole_for = picture, hole
            result, seconds = _timed(filling, picture_for, hole_for)
            cells.append(f"{kept_gradient(result, hole_for):.2f}, {seconds:.1f} s")
            if keep is not None:
                Image.fromarray(result).save(keep / f"{name}-{label.split()[0]}.png")
        print(
            f"| {name} | {hole.shape[1]}×{hole.shape[0]}, {hole.mean():.0%} |" + "".join(f" {each} |" for each in cells)
        )
    print(f"\nBiharmonic at {BIHARMONIC_SIDE} px.")


def _shrunk(picture: Picture, hole: Hole, size: tuple[int, ...]) -> tuple[Picture, Hole]:
    small = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
    return small, cv2.resize(hole.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0


def _times_table(folder: Path) -> None:
    found = photographs(folder)
    base = next(iter(found.values()))[0] if found else textures(512)["bricks"]
    print("\nSeconds of one core\n\n| size | hole | remove | aim |\n|---|---|---|---|")
    for side in SIDES:
        picture = np.asarray(cv2.resize(base, (side, side), interpolation=cv2.INTER_CUBIC), np.uint8)
        for share in SHARES:
            _, seconds = _timed(ours, picture, ellipse(side, share))
            aim = AIMS_SECONDS.get((side, share))
            print(f"| {side} | {share:.0%} | {seconds:.2f} | {aim or ''} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=Path, default=PHOTOGRAPH_DIR, help="NAME.png beside NAME_mask.png")
    parser.add_argument("--keep", type=Path, help="a folder for the results, to be looked at")
    asked = parser.parse_args()
    cv2.setNumThreads(1)
    _textures_table()
    _photographs_table(asked.pictures, asked.keep)
    _times_table(asked.pictures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
