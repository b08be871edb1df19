"""What a table says: its columns parsed and checked, its lines brought to one row an image.

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

from ..store.errors import UserError, wrong
from ..store.progress import say

SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "trainval": "trainval",
}  # fmt: skip
"""How sources name their splits, and what they mean; `trainval` is divided by clean."""
SIDES = ("xmin", "ymin", "xmax", "ymax")
_TEXTS = ("path", "label", "split", "group", "mask")
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"


@dataclass(frozen=True)
class _File:
    """The table's bytes, and how to name a place in them."""

    data: bytes
    where: str
    delimiter: str
    names: list[str]

    def place(self, column: str, *rows: int) -> str:
        """`labels.csv, line 7 (xmin)`, or `labels.csv, lines 7 and 9 (label)`."""
        lines = " and ".join(f"{self._line(row):,}" for row in rows)
        return f"{self.where}, line{'s' if len(rows) > 1 else ''} {lines} ({column})"

    def _line(self, row: int) -> int:
        """Where a row begins: cells may hold newlines, and empty lines are no rows. Only a message needs it."""
        text = io.TextIOWrapper(io.BytesIO(self.data), "utf-8-sig", "replace", newline="")
        reader = csv.reader(text, delimiter=self.delimiter)
        begins, number = 1, -1  # the header
        try:
            for cells in reader:
                if cells and number == row:
                    return begins
                begins, number = reader.line_num + 1, number + bool(cells)
        except csv.Error:  # a cell that is too long for this reader
            pass
        return row + 2


@dataclass(frozen=True)
class _Boxes:
    """The boxes of a table: their rows int64 [n] ascending, `sides` float32 [n, 4], names of n."""

    rows: npt.NDArray[np.int64]
    sides: npt.NDArray[np.float32]
    names: Any

    def by_image(self, images: npt.NDArray[np.int32], number: int) -> pa.Array:
        """list<struct<name, xmin, ymin, xmax, ymax>> [number]; `images` says for each row whose it is."""
        owners = images[self.rows]
        order = np.argsort(owners, kind="stable")
        offsets = np.concatenate(([0], np.cumsum(np.bincount(owners, minlength=number))))
        values = [self.names.take(pa.array(order))] + [pa.array(self.sides[order, n]) for n in range(4)]
        return pa.ListArray.from_arrays(
            pa.array(offsets, pa.int32()), pa.StructArray.from_arrays(values, ["name", *SIDES])
        )


def read_table(data: bytes, where: str) -> pa.Table:
    """The table's images in the order of their first lines (comma, semicolon or tab between cells).

    Columns: path, label and, where they are there, split, group, mask as strings ('' where the cell is empty), boxes
    as list<struct<name: string, xmin, ymin, xmax, ymax: float32>>.
    UserError names the missing column, the line that can't be parsed, or the line and column of a wrong value.
    """
    file = _open(data, where)
    table = _parse(file)
    for name in ("path", "mask"):
        if name in file.names:
            _check_places(table.column(name), name, file)
    if "split" in file.names:
        for value in table.column("split").unique().to_pylist():
            if value.strip() and value.strip().lower() not in SPLIT_NAMES:
                row = table.column("split").index(value).as_py()
                raise wrong(file.place("split", row), f"one of {', '.join(SPLIT_NAMES)} or nothing", value)
    boxes = _read_boxes(table, file) if "xmin" in file.names else None
    return _one_row_an_image(table.select([n for n in _TEXTS if n in file.names]), boxes, file)


def _open(data: bytes, where: str) -> _File:
    """The header's names, checked."""
    header = data.removeprefix(b"\xef\xbb\xbf").partition(b"\n")[0].decode("utf-8", "replace").strip()
    delimiter = max(",;\t", key=header.count)
    names = [name.strip().strip('"').lower() for name in header.split(delimiter)]
    first_line = f"{where} (its first line)"
    for needed in ("path", "label"):
        if needed not in names:
            raise wrong(first_line, f"a column named {needed}", header[:200])
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise wrong(first_line, f"one column named {twice[0]!r}", header[:200])
    if 0 < len(sides := [n for n in SIDES if n in names]) < 4:
        raise wrong(first_line, f"all of {', '.join(SIDES)} or none of them", ", ".join(sides))
    return _File(data, where, delimiter, names)


def _parse(file: _File) -> pa.Table:
    """The columns that are used, as strings; at least one row."""
    names = file.names
    used = {*_TEXTS} | ({*SIDES, "box_name"} if "xmin" in names else set())
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


def _check_places(column: pa.ChunkedArray, name: str, file: _File) -> None:
    """Paths and URIs that can be looked up; a mask may be left out."""
    unusable = pc.match_substring(column, "\0")
    if name == "path":
        unusable = pc.or_(unusable, pc.equal(pc.utf8_trim_whitespace(column), ""))
    if (row := pc.index(unusable, True).as_py()) >= 0:
        raise wrong(file.place(name, row), "a path or URI", column[row].as_py())
    schemes = pc.struct_field(pc.extract_regex(column, r"^(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+)://"), "scheme")
    for scheme in pc.unique(schemes).to_pylist():
        if scheme and scheme.lower() not in ("file", "s3", "http", "https"):
            raise wrong(f"{file.where} ({name})", "paths, s3://, http:// or https:// URIs", f"{scheme}://…")


def _read_boxes(table: pa.Table, file: _File) -> _Boxes:
    """The boxes of the rows that have one; four empty cells are none. UserError for anything else that is no box."""
    texts = [pc.utf8_trim_whitespace(table.column(side)) for side in SIDES]
    given = np.stack([np.asarray(pc.not_equal(text, "")) for text in texts], axis=1)
    in_part = given.any(axis=1) & ~given.all(axis=1)
    if in_part.any():
        row = int(in_part.argmax())
        side = SIDES[int(given[row].argmin())]
        raise wrong(file.place(side, row), f"a number, as in the others of {', '.join(SIDES)}, or none in all", "")
    rows = np.flatnonzero(given[:, 0])
    keep = pa.array(given[:, 0])
    sides = np.stack([_pixels(text.filter(keep), rows, side, file) for side, text in zip(SIDES, texts, strict=True)], 1)
    for low, high in ((0, 2), (1, 3)):
        if (flat := sides[:, high] <= sides[:, low]).any():
            row = int(rows[flat.argmax()])
            found = {side: table.column(side)[row].as_py() for side in SIDES}
            expected = f"more than {SIDES[low]}, which is {found[SIDES[low]]}"
            raise wrong(file.place(SIDES[high], row), expected, found[SIDES[high]])
    if "box_name" in file.names:
        names = pc.utf8_trim_whitespace(table.column("box_name").filter(keep)).combine_chunks()
    else:
        names = pa.repeat("", len(rows))
    return _Boxes(rows, sides, names)


def _pixels(texts: Any, rows: npt.NDArray[np.int64], side: str, file: _File) -> npt.NDArray[np.float32]:
    """Finite numbers as they will be stored, so that what is read back is what was counted."""
    row = pc.index(pc.match_substring_regex(texts, _NUMBER), False).as_py()
    if row < 0:
        with np.errstate(over="ignore"):
            numbers = np.asarray(pc.cast(pc.utf8_ltrim(texts, "+"), pa.float64())).astype(np.float32)
        if np.isfinite(numbers).all():
            return numbers
        row = int(np.isfinite(numbers).argmin())
    raise wrong(file.place(side, int(rows[row])), "a finite number of pixels", texts[row].as_py())


def _one_row_an_image(table: pa.Table, boxes: _Boxes | None, file: _File) -> pa.Table:
    """Lines of one path made one row with all their boxes, where its first line is.

    Needs, for as long as it runs, some 110 bytes a line and the characters of its path.
    """
    encoded = table.column("path").dictionary_encode().chunks
    images = np.concatenate([np.asarray(chunk.indices) for chunk in encoded])
    number = len(encoded[-1].dictionary)  # one for all chunks, in the order of first occurrence
    if number < table.num_rows:
        first = np.unique(images, return_index=True)[1]
        _refuse_conflicts(table, first[images], boxes, file)
        table = table.take(pa.array(first))
    return table if boxes is None else table.append_column("boxes", boxes.by_image(images, number))


def _refuse_conflicts(table: pa.Table, first: npt.NDArray[np.int64], boxes: _Boxes | None, file: _File) -> None:
    """UserError for a path that its lines say different things of, or that has several without a box in each.

    `first` int64 [rows]: the first row of the same path.
    """
    again = np.flatnonzero(first != np.arange(len(first)))
    before = first[again]
    for name in table.column_names[1:]:
        column = table.column(name)
        differs = np.asarray(pc.not_equal(column.take(pa.array(before)), column.take(pa.array(again))))
        for n in np.flatnonzero(differs):
            rows = int(before[n]), int(again[n])
            one, other = (column[row].as_py() for row in rows)
            if _meant(name, one) != _meant(name, other):
                path = table.column("path")[rows[0]].as_py()
                hint = " (several go into one cell, with a separator)" if name == "label" else ""
                found = f"found {one!r} and {other!r}"
                raise UserError(f"{file.place(name, *rows)}: expected one {name} of {path!r}{hint}, {found}")
    boxed = np.zeros(len(first), bool)
    if boxes is not None:
        boxed[boxes.rows] = True
    if (bare := ~(boxed[again] & boxed[before])).any():
        rows = int(before[bare.argmax()]), int(again[bare.argmax()])
        expected = "every path once" + ("" if boxes is None else ", or a box in every line of it")
        raise UserError(
            f"{file.place('path', *rows)}: expected {expected}, found {table.column('path')[rows[0]]} twice"
        )


def _meant(name: str, cell: str) -> str:
    return SPLIT_NAMES.get(cell.strip().lower(), "") if name == "split" else cell.strip()
