"""Write predictions as lines on stdout, and to a Parquet or CSV file."""

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

from ..dataset.labels import MULTI
from ..storage.store import map_disk_errors
from .config import PredictConfig

ROW_GROUP_ROWS = 10_000
"""Rows that are held in memory: some 300 bytes each with five classes."""


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image, named as the user wrote it, or a code and detail of why it could not be read.

    Args:
        name: of the image, as the user wrote it.
        best: classes with their probabilities in [0, 1], the best first.
        present: of a multi-label model, the classes with a probability of at least 0.5.
        error: code of the reason; empty for an image that was read.
        detail: of the reason.
        ood_score: distance from the training images, above 1 beyond the model's threshold; None without a detector.
    """

    name: str
    best: tuple[tuple[str, float], ...] = ()
    present: tuple[str, ...] = ()
    error: str = ""
    detail: str = ""
    ood_score: float | None = None


Write = Callable[[Prediction], None]


@contextmanager
def open_writer(config: PredictConfig, task: str, has_ood: bool = False) -> Iterator[Write]:
    """Open a function that writes a prediction to all outputs of the config. A file appears when it is complete.

    `has_ood`: whether the model gives images an `ood_score`, which is a column then.
    """
    with ExitStack() as stack:
        outputs: list[Write] = []
        if config.output:
            path = Path(config.output).expanduser().absolute()
            open_file = _open_parquet if path.suffix.lower() == ".parquet" else _open_csv
            outputs.append(stack.enter_context(_open_atomically(path, open_file, config.top, task, has_ood)))
        if config.json or not config.output:
            if isinstance(sys.stdout, io.TextIOWrapper):
                sys.stdout.reconfigure(errors="replace")  # the terminal may lack a character
            outputs.append((lambda prediction: print(to_json(prediction, task))) if config.json else _print_lines)

        def write(prediction: Prediction) -> None:
            for write_output in outputs:
                write_output(prediction)

        yield write


def _print_lines(prediction: Prediction) -> None:
    for name, probability in prediction.best:
        print(f"{_escape(prediction.name)}\t{_escape(name)}\t{probability:.4f}")


def _escape(text: str) -> str:
    """Replace tabs and line breaks, which would begin another column or line, by spaces."""
    return " ".join(text.replace("\t", " ").splitlines())


def to_json(prediction: Prediction, task: str) -> str:
    """Return an object with `image`, and `predictions` (and `labels` if multi-label) or `error` and `detail`."""
    entry: dict[str, Any] = {"image": _decode(prediction.name)}
    if prediction.error:
        entry |= {"error": prediction.error, "detail": prediction.detail}
    else:
        entry["predictions"] = [{"class": name, "probability": round(value, 6)} for name, value in prediction.best]
        entry |= {"labels": list(prediction.present)} if task == MULTI else {}
        entry |= {} if prediction.ood_score is None else {"ood_score": round(prediction.ood_score, 6)}
    return json.dumps(entry, ensure_ascii=False)


def _decode(name: str) -> str:
    """Return a file name of any bytes as valid Unicode."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


OpenFile = Callable[[Path, int, str, bool], Any]


@contextmanager
def _open_atomically(path: Path, open_file: OpenFile, top: int, task: str, has_ood: bool) -> Iterator[Write]:
    """Open a temporary file, and rename it to `path` at the end."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with map_disk_errors(str(path)):
            with open_file(temporary, top, task, has_ood) as write:
                yield write
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _open_csv(path: Path, top: int, task: str, has_ood: bool) -> Iterator[Write]:
    """Columns: `image`, `class_1`, `probability_1`, …, `labels` (multi-label, joined by `|`), `ood_score` (of a model
    that has a detector), `error`, `detail`."""
    names = [f"{column}_{rank}" for rank in range(1, top + 1) for column in ("class", "probability")]
    label_columns = ["labels"] if task == MULTI else []
    with path.open("w", newline="", encoding="utf-8", errors="replace") as file:
        writer = csv.writer(file)
        ood_columns = ["ood_score"] if has_ood else []
        writer.writerow(["image", *names, *label_columns, *ood_columns, "error", "detail"])

        def write(prediction: Prediction) -> None:
            cells = [cell for name, value in prediction.best for cell in (name, f"{value:.6f}")]
            cells += [""] * (len(names) - len(cells))
            labels = ["|".join(prediction.present)] if label_columns else []
            score = "" if prediction.ood_score is None else f"{prediction.ood_score:.6f}"
            writer.writerow([
                _decode(prediction.name), *cells, *labels, *([score] if has_ood else []), prediction.error,
                prediction.detail,
            ])  # fmt: skip

        yield write


@contextmanager
def _open_parquet(path: Path, top: int, task: str, has_ood: bool) -> Iterator[Write]:
    """Columns: `image`, `class` and `probability` of the best class, `classes` and `probabilities` of the `top` best,
    `labels` (multi-label only), `ood_score` (of a model that has a detector), `error` and `detail`; null without a
    value."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, texts = pa.string(), pa.list_(pa.string())
    columns = [("image", text), ("class", text), ("probability", pa.float32()), ("classes", texts)]
    columns += [("probabilities", pa.list_(pa.float32())), *([("labels", texts)] if task == MULTI else [])]
    columns += [("ood_score", pa.float32())] if has_ood else []
    schema = pa.schema([*columns, ("error", text), ("detail", text)])
    rows: list[dict[str, Any]] = []
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            rows.clear()

        def write(prediction: Prediction) -> None:
            rows.append(_make_row(prediction))
            if len(rows) == ROW_GROUP_ROWS:
                flush()

        yield write
        if rows:
            flush()


def _make_row(prediction: Prediction) -> dict[str, Any]:
    if prediction.error:
        return {"image": _decode(prediction.name), "error": prediction.error, "detail": prediction.detail}
    classes, probabilities = zip(*prediction.best, strict=True)
    row = {"image": _decode(prediction.name), "labels": list(prediction.present), "ood_score": prediction.ood_score}
    best = {"class": classes[0], "probability": probabilities[0], "classes": classes, "probabilities": probabilities}
    return row | best
