"""Every kind of source gives the same images, and the ledger adds up: each image is kept or rejected, once."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import layout
import pictures
import pytest
from commands import EXIT_TRANSIENT, Workspace, refuse, run

LABELS = ("blue", "green", "red")
SPLITS = ("train", "val", "test")
BROKEN = "train/red/broken.jpg"


@dataclass(frozen=True)
class Tree:
    """A folder source with declared splits, a broken and an empty file, an exact copy and a text."""

    folder: Path

    @property
    def images(self) -> dict[str, bytes]:
        """The bytes of each image by its path."""
        files = (path for path in self.folder.rglob("*") if path.suffix in (".jpg", ".png"))
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    folder = tmp_path_factory.mktemp("tree") / "photos"
    for split in SPLITS:
        for label in LABELS:
            for number in range(4):
                data = pictures.encode(pictures.noisy_pixels(f"{split}-{label}-{number}", label), "JPEG")
                pictures.write(folder / split / label / f"{number}.jpg", data)
    first = (folder / "train" / "red" / "0.jpg").read_bytes()
    pictures.write(folder / BROKEN, first[: len(first) // 2])
    pictures.write(folder / "train" / "red" / "empty.jpg", b"")
    pictures.write(folder / "train" / "red" / "copy of 0.jpg", first)
    pictures.write(folder / "README.txt", b"not an image")
    return Tree(folder)


def write_csv(tree: Tree, prefix: str = "") -> Path:
    rows = []
    for path in sorted(tree.images):
        split, label, _ = path.split("/")
        rows.append({"path": f"{prefix}{path}", "label": label, "split": split})
    return pictures.write_table(tree.folder / "labels.csv", rows)


def write_tar(tree: Tree, path: Path, mode: str) -> Path:
    with tarfile.open(path, mode) as archive:
        archive.add(tree.folder, arcname=".")
    return path


def write_zip(tree: Tree, path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(tree.folder.rglob("*")):
            archive.write(file, str(file.relative_to(tree.folder)))
    return path


def write_zstd(tree: Tree, path: Path) -> Path:
    import zstandard

    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        archive.add(tree.folder, arcname="photos")
    path.write_bytes(zstandard.ZstdCompressor().compress(plain.getvalue()))
    return path


def make_source(kind: str, tree: Tree, folder: Path) -> tuple[str, Path]:
    """Return (dataset, source) of the tree as this kind of source."""
    match kind:
        case "folder":
            return "folder", tree.folder
        case "csv":
            return "csv", write_csv(tree)
        case "csv with absolute paths":
            return "csv", write_csv(tree, f"{tree.folder}/")
        case "tar":
            return "folder", write_tar(tree, folder / "photos.tar", "w")
        case "tar.gz":
            return "folder", write_tar(tree, folder / "photos.tar.gz", "w:gz")
        case "tar.xz":
            return "folder", write_tar(tree, folder / "photos.tar.xz", "w:xz")
        case "tar.zst":
            return "folder", write_zstd(tree, folder / "photos.tar.zst")
        case "gzip under the name of a tar":
            return "folder", write_tar(tree, folder / "misnamed.tar", "w:gz")
        case "zip":
            return "folder", write_zip(tree, folder / "photos.zip")
    raise ValueError(kind)


def check_raw(raw: str, tree: Tree) -> None:
    """Check that a raw dataset holds the tree's bytes, labels and splits."""
    images = layout.raw_images(raw)
    expected = Counter((hashlib.sha256(data).hexdigest(), *path.split("/")[:2]) for path, data in tree.images.items())
    stored = Counter(
        (hashlib.sha256(image["bytes"]).hexdigest(), image["split"], image["label"]) for image in images.values()
    )
    assert stored == expected


def check_ledger(raw: str, clean: str) -> None:
    """Check that each image of raw is in exactly one of kept and rejected, and that the totals say so."""
    kept, rejected = layout.kept_images(clean), layout.rejected_images(clean)
    assert Counter([*kept, *rejected]) == Counter(list(layout.raw_images(raw)))
    totals = layout.open_dataset(clean).totals
    assert (totals["rows"], totals["rejected"]) == (len(kept), len(rejected))
    assert totals["by_reason"] == Counter(rejected.values())
    assert {split: count for split, count in totals["by_split"].items() if count} == Counter(
        row["split"] for row in kept.values()
    )
    assert totals["by_class"] == Counter(row["label"] for row in kept.values())


@pytest.mark.parametrize(
    "kind",
    ["folder", "csv", "csv with absolute paths", "tar", "tar.gz", "tar.xz", "tar.zst", "gzip under the name of a tar",
     "zip"],
)  # fmt: skip
def test_source_gives_its_images_and_the_ledger_adds_up(kind: str, tree: Tree, tmp_path: Path) -> None:
    dataset, source = make_source(kind, tree, tmp_path)
    workspace = Workspace(str(tmp_path / "work"))
    raw = workspace.download(dataset, source)
    check_raw(raw, tree)
    clean = workspace.clean(raw)
    check_ledger(raw, clean)
    assert sorted(layout.rejected_images(clean).values()) == ["corrupt", "duplicate_bytes", "empty_file"]


def test_label_by_pattern_of_the_file_name(tree: Tree, tmp_path: Path) -> None:
    source = tmp_path / "flat"
    for path, data in tree.images.items():
        split, label, name = path.split("/")
        pictures.write(source / f"{label}_{split}{name.replace(' ', '')}", data)
    workspace = Workspace(str(tmp_path / "work"))
    raw = workspace.download("filename", source, "--label-pattern", r"^([a-z]+)_")
    stored = Counter(image["label"] for image in layout.raw_images(raw).values())
    assert stored == Counter(path.split("/")[1] for path in tree.images)


def test_csv_names_group_and_missing_files(tree: Tree, tmp_path: Path) -> None:
    """A file that the table names and that isn't there is one rejected row, not the end of the run."""
    paths = sorted(tree.images)
    rows = [
        {"path": str(tree.folder / path), "label": path.split("/")[1], "split": path.split("/")[0]} for path in paths
    ]
    rows = [row | {"group": str(number // 3)} for number, row in enumerate(rows)]
    missing = {"path": "nowhere.jpg", "label": "red", "split": "train", "group": "z"}
    table = pictures.write_table(tmp_path / "t.csv", [*rows, missing])
    workspace = Workspace(str(tmp_path / "work"))
    raw = workspace.download("csv", table)
    groups = Counter(image["group"] for image in layout.raw_images(raw).values())
    assert groups == Counter([*(row["group"] for row in rows), "z"])
    clean = workspace.clean(raw)
    check_ledger(raw, clean)
    assert [
        i.rpartition("/")[2] for i, reason in layout.rejected_images(clean).items() if reason == "missing_file"
    ] == ["nowhere.jpg"]


def test_touched_files_are_no_change(tree: Tree, tmp_path: Path) -> None:
    source = tmp_path / "photos"
    shutil.copytree(tree.folder, source)
    workspace = Workspace(str(tmp_path / "work"))
    raw = workspace.download("folder", source)
    for path in source.rglob("*.jpg"):
        path.touch()
    record = workspace.record("download", "--dataset", "folder", "--source", str(source))
    assert (record["uri"], record["state"]) == (raw, "cached")


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def http_server(tree: Tree) -> Iterator[str]:
    """Serve the tree's parent folder on loopback."""
    folder = str(tree.folder.parent)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *arguments: Handler(*arguments, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_archive_by_http(tree: Tree, http_server: str, tmp_path: Path) -> None:
    write_tar(tree, tree.folder.parent / "served.tar.gz", "w:gz")
    check_raw(Workspace(str(tmp_path / "work")).download("folder", f"{http_server}/served.tar.gz"), tree)


def test_csv_of_urls(tree: Tree, http_server: str, tmp_path: Path) -> None:
    write_csv(tree, f"{http_server}/photos/")
    check_raw(Workspace(str(tmp_path / "work")).download("csv", tree.folder / "labels.csv"), tree)


def test_missing_page_is_the_users_error(http_server: str, tmp_path: Path) -> None:
    refuse("download", "--dataset", "folder", "--source", f"{http_server}/none.tar", "--workspace", str(tmp_path),
           words=("none.tar",))  # fmt: skip


# S3: a server of its own, on loopback. moto checks no credentials and proves nothing about locking.


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Start an S3 server with the bucket `mill`; yield the variables by which every client finds it."""
    port = free_port()
    log = (tmp_path_factory.mktemp("s3") / "log").open("w")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)],
        stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
    )  # fmt: skip
    variables = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key",
        "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    try:
        give_up = time.monotonic() + 120
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None and time.monotonic() < give_up, "the S3 server did not start"
            time.sleep(0.1)
        client(variables).create_bucket(Bucket="mill")
        yield variables
    finally:
        process.kill()
        process.wait()
        log.close()


def client(variables: dict[str, str]) -> Any:
    return make_client(
        variables["AWS_ENDPOINT_URL"], variables["AWS_ACCESS_KEY_ID"], variables["AWS_SECRET_ACCESS_KEY"]
    )


@functools.cache
def make_client(endpoint: str, key: str, secret: str) -> Any:
    import boto3

    return boto3.Session(key, secret, region_name="us-east-1").client("s3", endpoint_url=endpoint)


def upload(variables: dict[str, str], tree: Tree, prefix: str) -> None:
    for path in tree.folder.rglob("*"):
        if path.is_file() and path.suffix != ".csv":
            key = f"{prefix}/{path.relative_to(tree.folder)}"
            client(variables).put_object(Bucket="mill", Key=key, Body=path.read_bytes())


def fetch_workspace(variables: dict[str, str], prefix: str, folder: Path) -> Path:
    """Copy a workspace from the bucket to disk; workspaces can be moved."""
    for page in client(variables).get_paginator("list_objects_v2").paginate(Bucket="mill", Prefix=f"{prefix}/"):
        for entry in page.get("Contents", ()):
            body = client(variables).get_object(Bucket="mill", Key=entry["Key"])["Body"].read()
            pictures.write(folder / entry["Key"].removeprefix(f"{prefix}/"), body)
    return folder


def test_s3_source_and_workspace_give_the_same_datasets_as_disk(s3: dict[str, str], tree: Tree, tmp_path: Path) -> None:
    upload(s3, tree, "photos")
    on_disk, in_bucket = Workspace(str(tmp_path / "work")), Workspace("s3://mill/work", env=s3)
    raw, expected_raw = in_bucket.download("folder", "s3://mill/photos"), on_disk.download("folder", tree.folder)
    clean, expected_clean = in_bucket.clean(raw), on_disk.clean(expected_raw)
    tensors = in_bucket.resize(clean, "--image-size", "32")
    expected_tensors = on_disk.resize(expected_clean, "--image-size", "32")
    assert all(uri.startswith("s3://mill/work/") for uri in (raw, clean, tensors))
    copy = fetch_workspace(s3, "work", tmp_path / "fetched")
    layout.check_complete(copy)

    def local(uri: str) -> str:
        return str(copy / uri.removeprefix("s3://mill/work/"))

    check_raw(local(raw), tree)
    check_ledger(local(raw), local(clean))
    assert layout.rows_by_content(local(clean)) == layout.rows_by_content(expected_clean)
    assert layout.pixels_by_content(local(tensors)) == layout.pixels_by_content(expected_tensors)


def test_s3_archive_and_second_download_is_cached(s3: dict[str, str], tree: Tree, tmp_path: Path) -> None:
    archive = write_tar(tree, tmp_path / "photos.tar", "w")
    client(s3).put_object(Bucket="mill", Key="photos.tar", Body=archive.read_bytes())
    workspace = Workspace(str(tmp_path / "work"), env=s3)
    raw = workspace.download("folder", "s3://mill/photos.tar")
    check_raw(raw, tree)
    again = workspace.record("download", "--dataset", "folder", "--source", "s3://mill/photos.tar")
    assert (again["uri"], again["state"]) == (raw, "cached")


def test_missing_bucket_is_the_users_error(s3: dict[str, str], tmp_path: Path) -> None:
    refuse("download", "--dataset", "folder", "--source", "s3://nosuchbucket/x", "--workspace", str(tmp_path), env=s3,
           words=("nosuchbucket",))  # fmt: skip


def test_store_that_does_not_answer_is_transient(tmp_path: Path) -> None:
    """Nothing listens there: exit code 75, after some attempts, and no image is taken for a broken one."""
    nowhere = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}", "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "key", "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    finished = run(
        "download", "--dataset", "folder", "--source", "s3://mill/photos", "--workspace", str(tmp_path / "work"),
        env=nowhere,
    )  # fmt: skip
    assert finished.code == EXIT_TRANSIENT and "Traceback" not in finished.stderr, finished.stderr
    assert not layout.list_datasets(tmp_path / "work", "raw")
