"""Download from S3: buckets, prefixes, archives, and tables that name objects."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from downloading import dataset_of, images, photograph, rows_of, run

if TYPE_CHECKING:
    from rgw import CephRGW


@pytest.fixture
def bucket(rgw: CephRGW, s3_workspace: str) -> tuple[str, Any]:
    """(a workspace, a client); the buckets `mill` and `pictures`, in which photographs are."""
    import boto3

    client = boto3.client("s3")
    for name in ("pictures", "mill"):
        rgw.make_bucket(name)
    for name, data in images().items():
        client.put_object(Bucket="pictures", Key=name, Body=data)
    return s3_workspace, client


@pytest.mark.parametrize("local", [True, False], ids=["local table", "table in S3"])
def test_table_refers_to_objects(tmp_path: Path, bucket: tuple[str, Any], local: bool) -> None:
    workspace, client = bucket
    text = "path,label\ns3://pictures/cat/001.jpg,cat\ns3://pictures/dog/000.jpg,dog\ns3://pictures/none.jpg,dog\n"
    if not local:
        text += "cat/003.jpg,cat\n"
        client.put_object(Bucket="pictures", Key="t.csv", Body=text.encode())
    (tmp_path / "t.csv").write_text(text)
    source = str(tmp_path / "t.csv") if local else "s3://pictures/t.csv"
    rows = rows_of(dataset_of(run(workspace, source, tmp_path, dataset="csv")))
    assert rows["s3://pictures/cat/001.jpg"]["image"] == photograph(1)
    assert rows["s3://pictures/none.jpg"]["image"] is None
    assert local or rows["cat/003.jpg"]["image"] == photograph(3)
    assert run(workspace, source, tmp_path, dataset="csv")["state"] == "cached"


@pytest.mark.parametrize("local", [True, False], ids=["local table", "table in S3"])
def test_table_refers_to_masks(tmp_path: Path, bucket: tuple[str, Any], local: bool) -> None:
    workspace, client = bucket
    client.put_object(Bucket="mill", Key="masks/1.png", Body=b"the mask")
    lines = ["path,label,mask", "s3://pictures/cat/001.jpg,cat,s3://mill/masks/1.png"]
    lines += ["s3://pictures/dog/000.jpg,dog,s3://mill/masks/none.png"]
    if not local:
        client.put_object(Bucket="pictures", Key="beside.png", Body=b"beside")
        lines.append("cat/003.jpg,cat,beside.png")
        client.put_object(Bucket="pictures", Key="m.csv", Body="\n".join(lines).encode())
    (tmp_path / "m.csv").write_text("\n".join(lines))
    source = str(tmp_path / "m.csv") if local else "s3://pictures/m.csv"
    dataset = dataset_of(run(workspace, source, tmp_path, dataset="csv"))
    masks = {name: row["mask"] for name, row in rows_of(dataset).items()}
    assert masks.pop("s3://pictures/cat/001.jpg") == b"the mask" and masks.pop("s3://pictures/dog/000.jpg") is None
    assert masks == ({} if local else {"cat/003.jpg": b"beside"})
    (missing,) = dataset.manifest.extra.missing_masks.files
    assert missing["mask"] == "s3://mill/masks/none.png"
    client.put_object(Bucket="mill", Key="masks/1.png", Body=b"the mask, mended")
    assert run(workspace, source, tmp_path, dataset="csv")["state"] == "ran"
