"""What a file's path promises before anything of it is read."""

from __future__ import annotations

ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".webp",
    ".avif", ".heic", ".heif", ".jp2", ".ppm", ".pgm", ".pbm", ".ico",
)  # fmt: skip
"""Names that promise an image: what keeps no such promise is rejected by clean, not skipped."""


def is_hidden(path: str) -> bool:
    """Files of the system's own: `.DS_Store`, `._photo.jpg` (AppleDouble), anything in a hidden folder."""
    return any(p.startswith(".") and p not in (".", "..") for p in path.split("/")) or "__MACOSX/" in path


def promises_image(path: str) -> bool:
    """Whether the name ends as an image's does."""
    return path.lower().endswith(ENDINGS)
