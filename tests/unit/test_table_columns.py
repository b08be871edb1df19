"""Columns of a table: boxes, groups and masks, several lines of one path, and errors in cells."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from imagemill.components.download.columns import SIDES, read_table
from imagemill.components.storage.errors import UserError

BOX = "path,label,xmin,ymin,xmax,ymax\n"


def read_rows(text: str) -> list[dict[str, Any]]:
    return list(read_table(text.encode(), "t.csv").to_pylist())


def make_box(*sides: float, name: str = "") -> dict[str, Any]:
    return {"name": name} | {side: float(np.float32(value)) for side, value in zip(SIDES, sides, strict=True)}


def read_error(text: str) -> str:
    with pytest.raises(UserError) as caught:
        read_table(text.encode(), "t.csv")
    return str(caught.value)


def test_box_is_four_float32_numbers() -> None:
    rows = read_rows(BOX + "a,x,0.1,1,9.7,8.9\nb,y, 1e1 ,+2,.5e2,3.\nc,z,-3,0,7,65500\n")
    boxes = [make_box(0.1, 1, 9.7, 8.9), make_box(10, 2, 50, 3), make_box(-3, 0, 7, 65500)]
    assert [row["boxes"] for row in rows] == [[box] for box in boxes]
    assert rows[0]["boxes"][0]["xmin"] != 0.1, "float32"


def test_four_empty_cells_give_no_box() -> None:
    rows = read_rows(BOX + "a,x,,,,\nb,y,1,2,3,4\nc,z, ,, ,\n")
    assert [row["boxes"] for row in rows] == [[], [make_box(1, 2, 3, 4)], []]
    assert [row["boxes"] for row in read_rows(BOX + "a,x,,,,\n")] == [[]]


def test_names_of_boxes_are_trimmed_and_optional() -> None:
    rows = read_rows("box_name,ymax,path,xmax,label,ymin,xmin\n head ,4,a,3,x,2,1\n,4,b,3,y,2,1\ntail,,c,,z,,\n")
    assert [row["boxes"] for row in rows] == [[make_box(1, 2, 3, 4, name="head")], [make_box(1, 2, 3, 4)], []]


def test_schema_equals_that_of_raw() -> None:
    from imagemill.components.download.rows import BOX as RAW_BOX

    table = read_table(b"path,label,split,group,mask,box_name,xmin,ymin,xmax,ymax\na,x,,p,m,n,1,2,3,4\n", "t.csv")
    assert table.column_names == ["path", "label", "split", "group", "mask", "boxes"]
    assert table.schema.field("boxes").type == pa.list_(RAW_BOX)
    assert {table.schema.field(name).type for name in table.column_names[:-1]} == {pa.string()}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label,xmin,ymax\na,b,1,2\n", "t.csv (its first line): expected all of xmin, ymin, xmax, ymax or none of "
                                            "them, found 'xmin, ymax'"),
        (BOX + "a,b,1,2,3,4\nc,d,1,2,,4\n", "t.csv, line 3 (xmax): expected a number, as in the others of xmin, ymin, "
                                            "xmax, ymax, or none in all, found ''"),
        (BOX + "a,b,,2,3,4\n", "t.csv, line 2 (xmin): expected a number, as in the others of xmin, ymin, xmax, ymax, "
                               "or none in all, found ''"),
        (BOX + "a,b,,,,\nc,d,1,two,3,4\n", "t.csv, line 3 (ymin): expected a finite number of pixels, found 'two'"),
        (BOX + "a,b,1,2,nan,4\n", "t.csv, line 2 (xmax): expected a finite number of pixels, found 'nan'"),
        (BOX + "a,b,1,2,3,inf\n", "t.csv, line 2 (ymax): expected a finite number of pixels, found 'inf'"),
        (BOX + "a,b,1,2,3,4\nc,d,1,2,3,1e39\n", "t.csv, line 3 (ymax): expected a finite number of pixels, "
                                                "found '1e39'"),
        (BOX + 'a,b,"1,5",2,3,4\n', "t.csv, line 2 (xmin): expected a finite number of pixels, found '1,5'"),
        (BOX + "a,b,0x1,2,3,4\n", "t.csv, line 2 (xmin): expected a finite number of pixels, found '0x1'"),
        (BOX + "a,b,1,2,3,4\nc,d,3,2,1,4\n", "t.csv, line 3 (xmax): expected more than xmin, which is 3, found '1'"),
        (BOX + "a,b,1,2,3,2.0\n", "t.csv, line 2 (ymax): expected more than ymin, which is 2, found '2.0'"),
        ("path,label,split\na,b,train\nc,d,\n\ne,f,Tset\n", "t.csv, line 5 (split): expected one of train, training, "
                                                            "val, valid, validation, dev, test, testing, trainval or "
                                                            "nothing, found 'Tset'"),
        ("path,label,mask\na,b,\nc,d,m\0\n", "t.csv, line 3 (mask): expected a path or URI, found 'm\\x00'"),
        ("path,label,mask\na,b,ftp://h/m\n", "t.csv (mask): expected paths, s3://, http:// or https:// URIs, "
                                             "found 'ftp://…'"),
    ],
)  # fmt: skip
def test_error_names_file_line_and_column(text: str, message: str) -> None:
    assert read_error(text) == message


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_error_counts_lines_of_the_file(newline: str) -> None:
    """Cells may hold newlines, and empty lines are no rows: a row's number is not its line."""
    lines = [
        "path,label,xmin,ymin,xmax,ymax", 'a,"two', 'lines",1,2,3,4', "", "b,x,1,2,3,4", "", "", '"c', '",x,5,2,3,4',
    ]  # fmt: skip
    assert read_error(newline.join(lines)).startswith("t.csv, line 8 (xmax): ")


def test_error_counts_lines_after_a_very_long_cell() -> None:
    assert re.match(r"t\.csv, line 3 \(xmax\)", read_error(BOX + f"a,{'x' * 200_000},1,2,3,4\nb,x,5,2,3,4\n"))


def test_lines_of_one_path_are_boxes_of_one_image() -> None:
    rows = read_rows(
        "path,label,split,group,mask,xmin,ymin,xmax,ymax,box_name\n"
        "b,dog,val,p1,mb,1,2,3,4,one\n"
        "a,cat,train,p2,,5,6,7,8,\n"
        "b, dog ,Valid,p1 , mb,9,9,10,11,two\n"
        "c,cat,,p2,,,,,,\n"
        "b,dog,val,p1,mb,0,0,1,1,one\n"
    )
    assert [row.pop("boxes") for row in rows] == [
        [make_box(1, 2, 3, 4, name="one"), make_box(9, 9, 10, 11, name="two"), make_box(0, 0, 1, 1, name="one")],
        [make_box(5, 6, 7, 8)],
        [],
    ]
    assert [list(row.values()) for row in rows] == [
        ["b", "dog", "val", "p1", "mb"], ["a", "cat", "train", "p2", ""], ["c", "cat", "", "p2", ""],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("column", "first", "second"), [("split", "train", "val"), ("group", "p1", ""), ("mask", "m1", "m2"),
                                 ("group", "p1", "P1"), ("split", "", "test")],
)  # fmt: skip
def test_contradicting_lines_of_one_path_are_refused(column: str, first: str, second: str) -> None:
    text = f"path,label,{column},xmin,ymin,xmax,ymax\na,x,{first},1,2,3,4\nb,y,,1,2,3,4\na,x,{second},5,6,7,8\n"
    expected = f"t.csv, lines 2 and 4 ({column}): expected one {column} of 'a', found {first!r} and {second!r}"
    assert read_error(text) == expected


def test_several_labels_of_one_path_in_several_lines_are_refused() -> None:
    assert read_error(BOX + "a,x,1,2,3,4\nb,y,1,2,3,4\n\na,y,1,2,3,4\n") == (
        "t.csv, lines 2 and 5 (label): expected one label of 'a' (several go into one cell, with a separator), "
        "found 'x' and 'y'"
    )
    assert read_error("path,label\na,x\na,y\n").startswith("t.csv, lines 2 and 3 (label): expected one label of 'a'")


def test_repeated_path_without_a_box_is_refused() -> None:
    error = read_error("path,label\na,x\nb,y\na,x\n")
    assert error == "t.csv, lines 2 and 4 (path): expected every path once, found a twice"
    for lines in ("a,x,1,2,3,4\na,x,,,,\n", "a,x,,,,\na,x,1,2,3,4\n", "a,x,,,,\na,x,,,,\n"):
        assert read_error(BOX + lines) == (
            "t.csv, lines 2 and 3 (path): expected every path once, or a box in every line of it, found a twice"
        )


@pytest.mark.parametrize(
    ("header", "unused"),
    [
        ("path,label,split,group,mask,xmin,ymin,xmax,ymax,box_name", ""),
        ("path,label,box_name", "box_name"),
        ("path,Notes,label,group,width", "notes, width"),
        ("path,label,boxes", "boxes"),
    ],
)
def test_unused_columns_are_logged(header: str, unused: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = ",".join({"split": "train"}.get(n, str(k)) for k, n in enumerate(header.split(",")))
    columns = read_table(f"{header}\n{line}\n".encode(), "t.csv").column_names
    stderr = capsys.readouterr().err
    assert (f"columns of the table that are not used: {unused}\n" in stderr) if unused else ("not used" not in stderr)
    assert set(columns) <= {"path", "label", "split", "group", "mask", "boxes"}
    assert ("boxes" in columns) == ("xmin" in header)
