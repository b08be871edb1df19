"""Edit the part `images` of a cluster's YAML file, and keep every other byte of it, comments included."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...components.storage.errors import UserError, wrong
from ..cluster.cluster_file import parse_cluster

if TYPE_CHECKING:
    from yaml import MappingNode

PART = "images"


def format_part(values: Mapping[str, object]) -> str:
    """Return the part as YAML."""
    return f"{PART}:\n" + "".join(f"  {name}: {_format_scalar(value)}\n" for name, value in values.items())


def set_images(text: str, values: Mapping[str, object], where: str) -> str:
    """Return `text`, a cluster's YAML, with these values under `images`; UserError, which names the file `where`, if it
    can't be edited.

    Values are replaced between the positions that the parser reports; new ones come before the first name of the
    part, or at the file's end.
    """
    import yaml

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise UserError(
            f"--cluster: expected YAML in {where}, found something else: {' '.join(str(error).split())}"
        ) from None
    if root is None:
        edited = _end_line(text) + format_part(values)
    elif not isinstance(root, yaml.MappingNode):
        raise wrong(f"--cluster {where}", "names and values", yaml.safe_load(text))
    else:
        edited = _edit(text, root, values)
    parsed, before = yaml.safe_load(edited), yaml.safe_load(text) or {}
    expected = before | {PART: (before.get(PART) or {}) | dict(values)}
    if parsed != expected:
        raise UserError(f"--cluster: expected a part {PART} in {where} that can be edited, found one that can't; "
                        f"write there:\n{format_part(values)}")  # fmt: skip
    parse_cluster(parsed, where)
    return edited


def _edit(text: str, root: MappingNode, values: Mapping[str, object]) -> str:
    import yaml

    node = {key.value: value for key, value in root.value}.get(PART)
    if node is None:
        before = _end_line(text[: root.end_mark.index])
        return before + format_part(values) + text[root.end_mark.index :] if not root.flow_style else text
    if not isinstance(node, yaml.MappingNode):
        if node.value:
            raise wrong(f"--cluster ({PART})", "names and values", node.value if node.id == "scalar" else "a list")
        inner = "".join(f"\n  {name}: {_format_scalar(value)}" for name, value in values.items())
        return text[: node.start_mark.index] + inner + text[node.end_mark.index :]
    existing = {key.value: value for key, value in node.value}
    changes = [
        (existing[name].start_mark.index, existing[name].end_mark.index, _format_scalar(value))
        for name, value in values.items()
        if name in existing
    ]
    new = [f"{name}: {_format_scalar(value)}" for name, value in values.items() if name not in existing]
    if new and node.value:
        first = node.value[0][0].start_mark
        separator = ", " if node.flow_style else "\n" + " " * first.column
        changes.append((first.index, first.index, "".join(entry + separator for entry in new)))
    elif new:
        changes.append((node.start_mark.index, node.end_mark.index, "{" + ", ".join(new) + "}"))
    for start, end, value in sorted(changes, reverse=True):
        text = text[:start] + (" " + value if start == end and text[start - 1] == ":" else value) + text[end:]
    return text


def _format_scalar(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f'"{value}"'


def _end_line(text: str) -> str:
    return text if not text or text.endswith("\n") else text + "\n"


def check_file(path: str) -> str:
    """Return the text of a cluster file. Raises UserError for mistakes outside of the images that are about to be
    written: now, rather than after half an hour of building."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise wrong(
            "--cluster", "a YAML file that can be read (`imagemill cluster` prints one)", f"{path} ({error})"
        ) from None
    set_images(text, dict.fromkeys(("cpu", "ray", "gpu"), f"none@sha256:{'0' * 64}"), path)
    return text


def update_file(path: str, values: Mapping[str, Any]) -> None:
    """Write the images into the file, atomically; edits that were made meanwhile are kept."""
    target = Path(path).resolve()
    text = set_images(target.read_text(encoding="utf-8"), values, path)
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
