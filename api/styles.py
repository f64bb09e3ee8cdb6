"""Style presets as prompt styles: what each adds to the prompt and to the negative prompt."""

from __future__ import annotations

from collections.abc import Mapping

STYLES: Mapping[str, tuple[str, str]] = {
    "enhance": ("finely detailed, balanced light, crisp focus", "dull, smeared, low quality"),
    "anime": ("anime drawing, clean outlines, cel shading", "photograph, realistic skin"),
    "photographic": ("photograph, natural light, sharp lens", "drawing, painting, render"),
    "digital-art": ("digital painting, polished, smooth gradients", "photograph, grain"),
    "comic-book": ("comic panel, bold ink, halftone dots", "photograph, soft focus"),
    "fantasy-art": ("fantasy illustration, mythical, dramatic sky", "modern, plain, photograph"),
    "line-art": ("line drawing, black ink on white, no shading", "colour, photograph, texture"),
    "analog-film": ("photograph on film, grain, faded colours", "digital, render, drawing"),
    "neon-punk": ("neon lights, night city, magenta and cyan glow", "daylight, pastel, plain"),
    "isometric": ("isometric view, small scene, tidy geometry", "perspective, photograph"),
    "low-poly": ("low polygon model, flat facets", "smooth, detailed, grain"),
    "origami": ("folded paper, creases, paper texture", "metal, fur, glossy"),
    "modeling-compound": ("clay figure, soft studio light, finger marks", "drawing, flat"),
    "cinematic": ("film still, wide frame, shallow depth of field", "drawing, flat light"),
    "3d-model": ("three-dimensional render, studio light, soft shadows", "drawing, flat, grain"),
    "pixel-art": ("pixel art, coarse pixels, few colours", "smooth, blurred, photograph"),
    "tile-texture": ("seamless texture, repeating tile, even light", "frame, horizon, seam"),
}


def styled(text: str, words: str) -> str:
    """A prompt with a style's words behind it."""
    return ", ".join(part for part in (text.strip(), words) if part)
