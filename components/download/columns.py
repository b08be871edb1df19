"""Parsing of tables: their columns are checked, and the lines of an image merged into one row.

Columns are `path` and `label`; and, where the table has them, `split`, `group`, `mask`, and a box as `xmin`, `ymin`,
`xmax`, `ymax` (pixels of the upright image) with perhaps a `box_name`. Lines of one path are boxes of one image.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as arrow_csv

from ..step.progress import say
from ..storage.errors import UserError, wrong

SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "trainval": "trainval",
}  # fmt: skip
"""Split of each name that sources use; `trainval` is divided by clean."""
SIDES = ("xmin", "ymin", "xmax", "ymax")
_TEXT_COLUMNS = ("path", "label", "split", "group", "mask")
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"


@dataclass(frozen=True)
class _TableFile:
    """The table's bytes and column names, and their locations for messages."""

    data: bytes
    where: str
    delimiter: str
    names: list[str]

    def locate(self, column: str, *rows: int) -> str:
        """Return `labels.csv, line 7 (xmin)`, or `labels.csv, lines 7 and 9 (label)`."""
        lines = " and ".join(f"{self._find_line(row):,}" for row in rows)
        return f"{self.where}, line{'s' if len(rows) > 1 else ''} {lines} ({column})"

    def _find_line(self, row: int) -> int:
        """Return the line at which a row begins: cells may hold newlines, and empty lines are no rows."""
        text = io.TextIOWrapper(io.BytesIO(self.data), "utf-8-sig", "replace", newline="")
        reader = csv.reader(text, delimiter=self.delimiter)
        line, number = 1, -1  # of the header
        try:
            for cells in reader:
                if cells and number == row:
                    return line
                line, number = reader.line_num + 1, number + bool(cells)
        except csv.Error:  # a cell that is too long for this reader
            pass
        return row + 2


@dataclass(frozen=True)
class _Boxes:
    """The n boxes of a table: `rows` int64 [n], ascending, `sides` float32 [n, 4], `names` string [n]."""

    rows: npt.NDArray[np.int64]
    sides: npt.NDArray[np.float32]
    names: Any

    def group_by_image(self, images: npt.NDArray[np.int32], number: int) -> pa.Array:
        """Return list<struct<name, xmin, ymin, xmax, ymax>> [number]; `images` is the image of each row."""
        image_of_box = images[self.rows]
        order = np.argsort(image_of_box, kind="stable")
        offsets = np.concatenate(([0], np.cumsum(np.bincount(image_of_box, minlength=number))))
        values = [self.names.take(pa.array(order))] + [pa.array(self.sides[order, n]) for n in range(4)]
        return pa.ListArray.from_arrays(
            pa.array(offsets, pa.int32()), pa.StructArray.from_arrays(values, ["name", *SIDES])
        )


def read_table(data: bytes, where: str) -> pa.Table:
    """Read the images of a table (comma, semicolon or tab), in the order of their first lines.

    Columns: path, label and, where the table has them, split, group, mask: strings ('' where the cell is empty), boxes
    as list<struct<name: string, xmin, ymin, xmax, ymax: float32>>.
    UserError names the missing column, the line that can't be parsed, or the line and column of a wrong value.
    """
    file = _parse_header(data, where)
    table = _parse(file)
    for name in ("path", "mask"):
        if name in file.names:
            _check_uris(table.column(name), name, file)
    if "split" in file.names:
        for value in table.column("split").unique().to_pylist():
            if value.strip() and value.strip().lower() not in SPLIT_NAMES:
                row = table.column("split").index(value).as_py()
                raise wrong(file.locate("split", row), f"one of {', '.join(SPLIT_NAMES)} or nothing", value)
    boxes = _read_boxes(table, file) if "xmin" in file.names else None
    return _merge_lines(table.select([n for n in _TEXT_COLUMNS if n in file.names]), boxes, file)


def _parse_header(data: bytes, where: str) -> _TableFile:
    """Find the delimiter and the column names, and check them."""
    header = data.removeprefix(b"\xef\xbb\xbf").partition(b"\n")[0].decode("utf-8", "replace").strip()
    delimiter = max(",;\t", key=header.count)
    names = [name.strip().strip('"').lower() for name in header.split(delimiter)]
    first_line = f"{where} (its first line)"
    for required in ("path", "label"):
        if required not in names:
            raise wrong(first_line, f"a column named {required}", header[:200])
    if duplicates := sorted({name for name in names if names.count(name) > 1}):
        raise wrong(first_line, f"one column named {duplicates[0]!r}", header[:200])
    if 0 < len(sides := [n for n in SIDES if n in names]) < 4:
        raise wrong(first_line, f"all of {', '.join(SIDES)} or none of them", ", ".join(sides))
    return _TableFile(data, where, delimiter, names)


def _parse(file: _TableFile) -> pa.Table:
    """Parse the columns that are used, as strings; UserError for a table without rows."""
    names = file.names
    used = {*_TEXT_COLUMNS} | ({*SIDES, "box_name"} if "xmin" in names else set())
    if ignored := [n for n in names if n not in used]:
        say("download", f"columns of the table that are not used: {', '.join(ignored)}")
    try:
        table = arrow_csv.read_csv(
            io.BytesIO(file.data),
            read_options=arrow_csv.ReadOptions(column_names=names, skip_rows=1),
            parse_options=arrow_csv.ParseOptions(delimiter=file.delimiter, newlines_in_values=True),
            convert_options=arrow_csv.ConvertOptions(
                column_types={n: pa.string() for n in names},
                include_columns=[n for n in names if n in used],
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid as error:
        raise UserError(
            f"{file.where}: expected a table of {len(names)} columns, found a line that is none: {error}"
        ) from None
    if table.num_rows == 0:
        raise wrong(file.where, "at least one row below the header", "none")
    return table


def _check_uris(column: pa.ChunkedArray, name: str, file: _TableFile) -> None:
    """Raise UserError for a cell that is no path or URI; a mask may be empty."""
    unusable = pc.match_substring(column, "\0")
    if name == "path":
        unusable = pc.or_(unusable, pc.equal(pc.utf8_trim_whitespace(column), ""))
    if (row := pc.index(unusable, True).as_py()) >= 0:
        raise wrong(file.locate(name, row), "a path or URI", column[row].as_py())
    schemes = pc.struct_field(pc.extract_regex(column, r"^(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+)://"), "scheme")
    for scheme in pc.unique(schemes).to_pylist():
        if scheme and scheme.lower() not in ("file", "s3", "http", "https"):
            raise wrong(f"{file.where} ({name})", "paths, s3://, http:// or https:// URIs", f"{scheme}://…")


def _read_boxes(table: pa.Table, file: _TableFile) -> _Boxes:
    """Read the boxes of the rows that have one; UserError for cells that are neither a box nor all empty."""
    texts = [pc.utf8_trim_whitespace(table.column(side)) for side in SIDES]
    is_set = np.stack([np.asarray(pc.not_equal(text, "")) for text in texts], axis=1)
    is_partial = is_set.any(axis=1) & ~is_set.all(axis=1)
    if is_partial.any():
        row = int(is_partial.argmax())
        side = SIDES[int(is_set[row].argmin())]
        raise wrong(file.locate(side, row), f"a number, as in the others of {', '.join(SIDES)}, or none in all", "")
    rows = np.flatnonzero(is_set[:, 0])
    has_box = pa.array(is_set[:, 0])
    sides = np.stack(
        [_parse_pixels(text.filter(has_box), rows, side, file) for side, text in zip(SIDES, texts, strict=True)], 1
    )
    for low, high in ((0, 2), (1, 3)):
        if (is_empty := sides[:, high] <= sides[:, low]).any():
            row = int(rows[is_empty.argmax()])
            cells = {side: table.column(side)[row].as_py() for side in SIDES}
            expected = f"more than {SIDES[low]}, which is {cells[SIDES[low]]}"
            raise wrong(file.locate(SIDES[high], row), expected, cells[SIDES[high]])
    if "box_name" in file.names:
        names = pc.utf8_trim_whitespace(table.column("box_name").filter(has_box)).combine_chunks()
    else:
        names = pa.repeat("", len(rows))
    return _Boxes(rows, sides, names)


def _parse_pixels(texts: Any, rows: npt.NDArray[np.int64], side: str, file: _TableFile) -> npt.NDArray[np.float32]:
    """Parse finite numbers and round them to float32, as they are stored: the fingerprint is of the stored values."""
    row = pc.index(pc.match_substring_regex(texts, _NUMBER), False).as_py()
    if row < 0:
        with np.errstate(over="ignore"):
            numbers = np.asarray(pc.cast(pc.utf8_ltrim(texts, "+"), pa.float64())).astype(np.float32)
        if np.isfinite(numbers).all():
            return numbers
        row = int(np.isfinite(numbers).argmin())
    raise wrong(file.locate(side, int(rows[row])), "a finite number of pixels", texts[row].as_py())


def _merge_lines(table: pa.Table, boxes: _Boxes | None, file: _TableFile) -> pa.Table:
    """Merge the lines of each path into one row with all their boxes, at the position of the first line.

    Uses, while it runs, some 110 bytes a line and the characters of its path.
    """
    encoded = table.column("path").dictionary_encode().chunks
    images = np.concatenate([np.asarray(chunk.indices) for chunk in encoded])
    number = len(encoded[-1].dictionary)  # one for all chunks, in the order of first occurrence
    if number < table.num_rows:
        first = np.unique(images, return_index=True)[1]
        _refuse_conflicts(table, first[images], boxes, file)
        table = table.take(pa.array(first))
    return table if boxes is None else table.append_column("boxes", boxes.group_by_image(images, number))


def _refuse_conflicts(table: pa.Table, first: npt.NDArray[np.int64], boxes: _Boxes | None, file: _TableFile) -> None:
    """Raise UserError for a path whose lines contradict each other, or that has several without a box in each.

    `first`: int64 [rows], the first row of the same path.
    """
    repeated = np.flatnonzero(first != np.arange(len(first)))
    originals = first[repeated]
    for name in table.column_names[1:]:
        column = table.column(name)
        differs = np.asarray(pc.not_equal(column.take(pa.array(originals)), column.take(pa.array(repeated))))
        for n in np.flatnonzero(differs):
            rows = int(originals[n]), int(repeated[n])
            cell, other = (column[row].as_py() for row in rows)
            if _normalize(name, cell) != _normalize(name, other):
                path = table.column("path")[rows[0]].as_py()
                hint = " (several go into one cell, with a separator)" if name == "label" else ""
                cells = f"{cell!r} and {other!r}"
                raise UserError(f"{file.locate(name, *rows)}: expected one {name} of {path!r}{hint}, found {cells}")
    has_box = np.zeros(len(first), bool)
    if boxes is not None:
        has_box[boxes.rows] = True
    if (lacks_box := ~(has_box[repeated] & has_box[originals])).any():
        index = int(lacks_box.argmax())
        rows = int(originals[index]), int(repeated[index])
        expected = "every path once" + ("" if boxes is None else ", or a box in every line of it")
        raise UserError(
            f"{file.locate('path', *rows)}: expected {expected}, found {table.column('path')[rows[0]]} twice"
        )


def _normalize(name: str, cell: str) -> str:
    return SPLIT_NAMES.get(cell.strip().lower(), "") if name == "split" else cell.strip()
