"""Write the tables of options in the READMEs of components/, from the declarations of the steps' options.

    python tests/option_tables.py

A table stands between the comments `<!-- options: STEP -->` and `<!-- end of options -->`. `unit/test_option_tables.py`
fails while one differs from the declarations.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imagemill.components.step.config import StepConfig, describe_default, field_types, requested_default
from imagemill.pipelines.steps import PIPELINE

COMPONENTS = Path(__file__).parent.parent / "components"
SHARED = "every step"
BLOCK = re.compile(r"(<!-- options: ([\w ]+) -->\n).*?(<!-- end of options -->)", re.DOTALL)


def format_table(section: str) -> str:
    """Return the table of a step's own options, or of those that every step has, as Markdown."""
    shared = {field.name for field in dataclasses.fields(StepConfig)}
    config = StepConfig if section == SHARED else PIPELINE[section].config
    rows = [
        f"| `--{field.name.replace('_', '-')}` | {_format_default(config, field)} | {_format_help(config, field)} |"
        for field in dataclasses.fields(config)
        if section == SHARED or field.name not in shared
    ]
    return "\n".join(["| option | default | meaning |", "|---|---|---|", *rows]) + "\n"


def _format_default(config: type[StepConfig], field: dataclasses.Field[Any]) -> str:
    if field.name in config.PARENTS:
        return "required"
    default, described = requested_default(field), describe_default(field.metadata["help"])
    if default in (None, ""):
        return _escape(described) if described else "none"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`".replace("|", "\\|")


def _format_help(config: type[StepConfig], field: dataclasses.Field[Any]) -> str:
    metadata = field.metadata
    default, text = requested_default(field), metadata["help"]
    text = text.partition(" (default: ")[0] if default in (None, "") else text
    choices = "true, false" if field_types(config)[field.name] is bool else ", ".join(metadata["choices"])
    low, high = (None if metadata[key] is None else f"{metadata[key]:.7g}" for key in ("low", "high"))
    limits = f"{low} to {high}" if low and high else f"from {low}" if low else f"up to {high}" if high else ""
    return _escape(text) + "".join(f" [{part}]" for part in (choices, limits) if part)


def _escape(text: str) -> str:
    return re.sub(r"([|<*_])", r"\\\1", text)


def write_tables(text: str) -> str:
    """Return a README's text with its tables as they are declared."""
    return BLOCK.sub(lambda match: f"{match[1]}{format_table(match[2])}{match[3]}", text)


def find_readmes() -> Iterator[Path]:
    """Yield the READMEs that hold a table."""
    return (path for path in sorted(COMPONENTS.rglob("README.md")) if BLOCK.search(path.read_text(encoding="utf-8")))


def main() -> None:
    for path in find_readmes():
        path.write_text(write_tables(path.read_text(encoding="utf-8")), encoding="utf-8")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
