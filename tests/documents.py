"""Read the repository's Markdown documents: their shell commands, inline code and links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("components", "pipelines", "docker", "k8s", "tests")
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_PLACEHOLDER = re.compile(r"<([\w-]+)>")
_ASSIGNMENT = re.compile(r"\w+=")
_BETWEEN_COMMANDS = frozenset(("&&", "||", "|", "&", ";", "(", ")", "()", "{", "}"))


@dataclass(frozen=True)
class Command:
    """A simple command of a shell block. `words[0]` is the program; variables set before it are left out."""

    path: Path
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}: {shlex.join(self.words)}"


def documents() -> list[Path]:
    """Every Markdown document of the repository: those at its top, and those of its folders."""
    return [*sorted(ROOT.glob("*.md")), *sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))]


def commands(path: Path) -> list[Command]:
    """Every simple command of the document's `sh` blocks."""
    text = path.read_text()
    lines = (line for kind, block in _BLOCK.findall(text) if kind == "sh" for line in joined(block).splitlines())
    return [Command(path, words) for line in lines for words in split(line)]


def joined(block: str) -> str:
    """Return the block with continued lines in one."""
    return block.replace("\\\n", " ")


def split(line: str) -> Iterator[tuple[str, ...]]:
    """Yield the simple commands of a line. `<fingerprint>` is a word; redirections, and comments, are left out."""
    lexer = shlex.shlex(_PLACEHOLDER.sub(r"\1", line), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    tokens = iter([*lexer, ";"])
    for token in tokens:
        if token in ("<", ">", ">>"):
            next(tokens)
        elif token in _BETWEEN_COMMANDS:
            if words and words[0] != "export" and token != "()":  # the name of a function is no command
                yield tuple(words)
            words = []
        elif words or not _ASSIGNMENT.match(token):
            words.append(token)


def inline_code(path: Path) -> list[str]:
    """Every span of code in the document's running text, on one line each."""
    text = _BLOCK.sub("", path.read_text())
    return [" ".join(code.split()) for code in _INLINE.findall(text)]


def links(path: Path) -> list[str]:
    """The targets of the document's links and pictures within the repository."""
    text = _BLOCK.sub("", path.read_text())
    return [target for target in _LINK.findall(text) if "://" not in target]


def anchors(path: Path) -> set[str]:
    """The anchors of the document's headings, as GitHub makes them."""
    headings = _HEADING.findall(_BLOCK.sub("", path.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
