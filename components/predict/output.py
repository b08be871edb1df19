"""Predictions as lines on stdout, and as a Parquet or CSV file."""

from __future__ import annotations

import csv
import io
import json
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..store.filesystem import map_disk_errors
from ..store.labels import MULTI
from .config import PredictConfig

GROUP = 10_000
"""Rows of a Parquet row group, which are in memory: some 300 bytes each with five classes."""


@dataclass(frozen=True)
class Row:
    """What is known of one image: the best classes with their probabilities in [0, 1], the best first; of a multi-label
    model also the classes that are `present` (probability of at least 0.5); or why it could not be read."""

    name: str
    best: tuple[tuple[str, float], ...] = ()
    present: tuple[str, ...] = ()
    error: str = ""
    detail: str = ""


Write = Callable[[Row], None]


@contextmanager
def writers(config: PredictConfig, task: str) -> Iterator[Write]:
    """What writes a row wherever the config wants it. A file appears under its name when it is whole."""
    with ExitStack() as stack:
        writes: list[Write] = []
        if config.output:
            path = Path(config.output).expanduser().absolute()
            kind = _parquet if path.suffix.lower() == ".parquet" else _csv
            writes.append(stack.enter_context(_file(path, kind, config.top, task)))
        if config.json or not config.output:
            if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that lacks a character shows another
                sys.stdout.reconfigure(errors="replace")
            writes.append((lambda row: print(as_json(row, task))) if config.json else _print_lines)

        def write(row: Row) -> None:
            for one in writes:
                one(row)

        yield write


def _print_lines(row: Row) -> None:
    for name, probability in row.best:
        print(f"{_one_line(row.name)}\t{_one_line(name)}\t{probability:.4f}")


def _one_line(text: str) -> str:
    """A name may hold what would begin another column or line."""
    return " ".join(text.replace("\t", " ").splitlines())


def as_json(row: Row, task: str) -> str:
    """One object: `image`, and `predictions` (of a multi-label model also `labels`) or `error` and `detail`."""
    found: dict[str, Any] = {"image": _text(row.name)}
    if row.error:
        found |= {"error": row.error, "detail": row.detail}
    else:
        found["predictions"] = [{"class": name, "probability": round(value, 6)} for name, value in row.best]
        found |= {"labels": list(row.present)} if task == MULTI else {}
    return json.dumps(found, ensure_ascii=False)


def _text(name: str) -> str:
    """A file name of any bytes as text."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


Kind = Callable[[Path, int, str], Any]


@contextmanager
def _file(path: Path, kind: Kind, top: int, task: str) -> Iterator[Write]:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with map_disk_errors(str(path)):
            with kind(temporary, top, task) as write:
                yield write
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _csv(path: Path, top: int, task: str) -> Iterator[Write]:
    """`image`, class and probability from the first on, `labels` (multi-label only, by `|`), `error`, `detail`."""
    names = [f"{what}_{rank}" for rank in range(1, top + 1) for what in ("class", "probability")]
    more = ["labels"] if task == MULTI else []
    with path.open("w", newline="", encoding="utf-8", errors="replace") as file:
        out = csv.writer(file)
        out.writerow(["image", *names, *more, "error", "detail"])

        def write(row: Row) -> None:
            cells = [cell for name, value in row.best for cell in (name, f"{value:.6f}")]
            cells += [""] * (len(names) - len(cells))
            labels = ["|".join(row.present)] if more else []
            out.writerow([_text(row.name), *cells, *labels, row.error, row.detail])

        yield write


@contextmanager
def _parquet(path: Path, top: int, task: str) -> Iterator[Write]:
    """`image`, `class` and `probability` of the best one, `classes` and `probabilities` of the first `top`, `labels`
    (multi-label only), `error` and `detail`; null where there is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, texts = pa.string(), pa.list_(pa.string())
    columns = [("image", text), ("class", text), ("probability", pa.float32()), ("classes", texts)]
    columns += [("probabilities", pa.list_(pa.float32())), *([("labels", texts)] if task == MULTI else [])]
    schema = pa.schema([*columns, ("error", text), ("detail", text)])
    held: list[dict[str, Any]] = []
    with pq.ParquetWriter(path, schema, compression="zstd") as out:

        def flush() -> None:
            out.write_table(pa.Table.from_pylist(held, schema=schema))
            held.clear()

        def write(row: Row) -> None:
            held.append(_columns(row))
            if len(held) == GROUP:
                flush()

        yield write
        if held:
            flush()


def _columns(row: Row) -> dict[str, Any]:
    if row.error:
        return {"image": _text(row.name), "error": row.error, "detail": row.detail}
    name, value = row.best[0]
    best = {"class": name, "probability": value, "classes": [n for n, _ in row.best]}
    return {"image": _text(row.name), **best, "probabilities": [v for _, v in row.best], "labels": list(row.present)}
