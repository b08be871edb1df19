"""Download from S3: buckets, prefixes, archives, and tables that name objects."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from downloading import dataset_of, images, photograph, rows_of, run, tar, write


@pytest.fixture(scope="module")
def bucket() -> Iterator[tuple[str, Any]]:
    """A bucket at moto's server, for quick tests: it checks no credentials."""
    import boto3
    from moto.server import ThreadedMotoServer

    from imagemill.components.storage import s3

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        for name in ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION"):
            patch.setenv(name, "when_required")
        s3.shared_s3.cache_clear()
        s3._pyarrow_s3.cache_clear()
        client = boto3.client("s3")
        client.create_bucket(Bucket="pictures")
        client.create_bucket(Bucket="mill")
        for name, data in images().items():
            client.put_object(Bucket="pictures", Key=name, Body=data)
        yield "s3://mill/ws", client
    s3.shared_s3.cache_clear()
    s3._pyarrow_s3.cache_clear()
    server.stop()


def test_bucket_prefix_and_archive_equal_the_folder(tmp_path: Path, bucket: tuple[str, Any]) -> None:
    workspace, client = bucket
    folder = write(tmp_path / "in", images())
    local = run(tmp_path / "ws", folder, tmp_path)
    for name, data in images().items():
        client.put_object(Bucket="mill", Key=f"in/{name}", Body=data)
    client.put_object(Bucket="mill", Key="in/", Body=b"")
    client.upload_file(str(tar(tmp_path / "x.tar.gz", folder, {n: n for n in images()})), "mill", "x.tar.gz")
    for source in ("s3://pictures", "s3://mill/in/", "s3://mill/x.tar.gz"):
        assert dataset_of(run(workspace, source, tmp_path)).fingerprint == local["fingerprint"], source
    assert run(workspace, "s3://mill/in", tmp_path)["state"] == "cached"


def test_changed_object_is_read_again(tmp_path: Path, bucket: tuple[str, Any]) -> None:
    workspace, client = bucket
    for name, data in images().items():
        client.put_object(Bucket="mill", Key=f"changes/{name}", Body=data)
    first = run(workspace, "s3://mill/changes", tmp_path)
    client.put_object(Bucket="mill", Key="changes/cat/001.jpg", Body=photograph(321))
    second = run(workspace, "s3://mill/changes", tmp_path)
    assert second["state"] == "ran" and second["fingerprint"] != first["fingerprint"]


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


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("s3://nobody/x", "existing bucket"),
        ("s3://mill/nothing", "with nothing in it"),
        ("s3://", "s3://bucket/prefix"),
    ],
)
def test_missing_bucket_or_prefix_is_refused(
    tmp_path: Path, bucket: tuple[str, Any], source: str, message: str
) -> None:
    record = run(bucket[0], source, tmp_path)
    assert record["exit_code"] == 2 and message in record["error"]


def test_damaged_archive_is_a_user_error(tmp_path: Path, bucket: tuple[str, Any]) -> None:
    workspace, client = bucket
    client.put_object(Bucket="mill", Key="broken.tar", Body=b"\x1f\x8b\x08" + bytes(1000))
    assert run(workspace, "s3://mill/broken.tar", tmp_path)["exit_code"] == 2
