"""An HTML page of ours, parsed as a browser would."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from html.parser import HTMLParser

from PIL import Image


@dataclass
class Page(HTMLParser):
    """The tags and the text of a page; entities are resolved, so hostile text shows as text or as a tag."""

    html: str
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def values(self, *names: str) -> list[str]:
        return [value for _, attributes in self.tags for name, value in attributes.items() if name in names and value]

    def pictures(self) -> dict[str, list[Image.Image]]:
        """The pictures by image_id, decoded from their data URIs."""
        pictures_by_id: dict[str, list[Image.Image]] = {}
        for tag, attributes in self.tags:
            if tag == "img":
                data = base64.b64decode((attributes["src"] or "").partition("base64,")[2])
                pictures_by_id.setdefault(attributes["alt"] or "", []).append(Image.open(io.BytesIO(data)))
        return pictures_by_id
