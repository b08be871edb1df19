"""The images' part of a cluster's YAML file, written without touching anything else in it, comments included."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..components.store.errors import UserError, wrong
from . import cluster

if TYPE_CHECKING:
    from yaml import MappingNode

PART = "images"


def part(values: Mapping[str, object]) -> str:
    """The part as YAML, to be printed or appended."""
    return f"{PART}:\n" + "".join(f"  {name}: {_scalar(value)}\n" for name, value in values.items())


def pin(text: str, values: Mapping[str, object], where: str) -> str:
    """`text`, a cluster's YAML, with these values under `images`. UserError where that can't be told from `where`.

    Every other byte stays: values are replaced where the parser says that they begin and end, and what is new comes
    before the first name of the part, or at the file's end.
    """
    import yaml

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise UserError(
            f"--cluster: expected YAML in {where}, found something else: {' '.join(str(error).split())}"
        ) from None
    if root is None:
        edited = _with_break(text) + part(values)
    elif not isinstance(root, yaml.MappingNode):
        raise wrong(f"--cluster {where}", "names and values", yaml.safe_load(text))
    else:
        edited = _edit(text, root, values)
    made, before = yaml.safe_load(edited), yaml.safe_load(text) or {}
    expected = before | {PART: (before.get(PART) or {}) | dict(values)}
    if made != expected:
        raise UserError(f"--cluster: expected a part {PART} in {where} that can be edited, found one that can't; "
                        f"write there:\n{part(values)}")  # fmt: skip
    cluster.from_values(made, where)
    return edited


def _edit(text: str, root: MappingNode, values: Mapping[str, object]) -> str:
    import yaml

    found = {key.value: node for key, node in root.value}
    node = found.get(PART)
    if node is None:
        end = _with_break(text[: root.end_mark.index])
        return end + part(values) + text[root.end_mark.index :] if not root.flow_style else text
    if not isinstance(node, yaml.MappingNode):
        if node.value:
            raise wrong(f"--cluster ({PART})", "names and values", node.value if node.id == "scalar" else "a list")
        inner = "".join(f"\n  {name}: {_scalar(value)}" for name, value in values.items())
        return text[: node.start_mark.index] + inner + text[node.end_mark.index :]
    known = {key.value: value for key, value in node.value}
    changes = [
        (known[name].start_mark.index, known[name].end_mark.index, _scalar(value))
        for name, value in values.items()
        if name in known
    ]
    new = [f"{name}: {_scalar(value)}" for name, value in values.items() if name not in known]
    if new and node.value:
        first = node.value[0][0].start_mark
        separator = ", " if node.flow_style else "\n" + " " * first.column
        changes.append((first.index, first.index, "".join(entry + separator for entry in new)))
    elif new:
        changes.append((node.start_mark.index, node.end_mark.index, "{" + ", ".join(new) + "}"))
    for start, end, value in sorted(changes, reverse=True):
        text = text[:start] + (" " + value if start == end and text[start - 1] == ":" else value) + text[end:]
    return text


def _scalar(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f'"{value}"'


def _with_break(text: str) -> str:
    return text if not text or text.endswith("\n") else text + "\n"


def check_file(path: str) -> str:
    """The text of a cluster's file; UserError now, rather than after half an hour of building, for one that is wrong
    elsewhere than in the images that are about to be written."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise wrong(
            "--cluster", "a YAML file that can be read (`imagemill cluster` prints one)", f"{path} ({error})"
        ) from None
    pin(text, dict.fromkeys(("cpu", "ray", "gpu"), f"none@sha256:{'0' * 64}"), path)
    return text


def write(path: str, values: Mapping[str, Any]) -> None:
    """Write the images into the file, whole or not at all; what others have written meanwhile is kept."""
    target = Path(path).resolve()
    text = pin(target.read_text(encoding="utf-8"), values, path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.chmod(target.stat().st_mode & 0o777)
        temporary.replace(target)
    except OSError as error:
        raise UserError(f"--cluster: expected a file that can be written, found {path} ({error.strerror})") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
