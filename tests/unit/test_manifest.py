"""Dataset contract: required fields of a manifest, races of commits, and intact datasets."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagemill.components.clean.config import CleanConfig
from imagemill.components.dataset.kinds import ImageSpec, ModelExtra
from imagemill.components.dataset.manifest import (
    MANIFEST,
    Dataset,
    File,
    Manifest,
    Parent,
    Totals,
    commit,
    digest,
    find_dataset,
    find_intact_dataset,
    fingerprint,
    parse_manifest,
    read_dataset,
)
from imagemill.components.dataset.shards import Layout, ShardWriter, publish_bytes
from imagemill.components.promote.config import PromoteConfig
from imagemill.components.resize.config import ResizeConfig
from imagemill.components.storage.errors import DatasetError, TransientError, UserError
from imagemill.components.storage.store import LocalStore
from imagemill.components.train.config import TrainConfig

MODEL = Manifest(
    kind="model",
    fingerprint="0123456789abcdef",
    parents=(Parent("../../tensors/fedcba9876543210", "fedcba9876543210", "ab" * 32),),
    config={"epochs": 3, "learning_rate": 0.001, "flip": True},
    classes=("Katze", "Ōkami", "狼"),
    files=(
        File("model-1.safetensors", "data", "", 0, 10, "cd" * 32),
        File("../other/x", "data", "test", 5, 1, "ef" * 32),
    ),
    totals=Totals(rows=5, bytes=11, rejected=1, by_split={"test": 5}, by_class={"狼": 5}, by_reason={"corrupt": 1}),
    image=ImageSpec((8, 8, 3), mean=(0.5,)),
    extra=ModelExtra(metrics={"top1": 0.5}),
    code_version="1.2.3",
    created="2026-01-01T00:00:00+00:00",
)


def test_manifest_round_trips() -> None:
    assert parse_manifest(MODEL.to_json(), "here") == MODEL


def test_nan_is_not_written() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        Manifest("model", "00", extra=ModelExtra(seconds=float("nan"))).to_json()


def change_json(path: str, value: Any) -> bytes:
    """Return MODEL's JSON with one value changed; `...` removes it."""
    body = json.loads(MODEL.to_json())
    *parents, last = (int(p) if p.isdigit() else p for p in path.split("."))
    parent = body
    for part in parents:
        parent = parent[part]
    if value is ...:
        del parent[last]
    else:
        parent[last] = value
    return json.dumps(body).encode()


BAD = [("format", "zip"), ("version", 1), ("version", ...), ("kind", "pictures"), ("kind", ["raw"])]
BAD += [(name, ...) for name in ("fingerprint", "parents", "config", "task", "classes", "files", "totals", "created")]
BAD += [
    ("fingerprint", 5),
    ("task", None),
    ("config", []),
    ("classes", "abc"),
    ("classes", [1]),
    ("files", {}),
    ("parents", "x"),
]
BAD += [("totals", 3), ("image", []), ("extra", "x"), ("code_version", 1), ("created", {})]
BAD += [("totals.rows", "5"), ("totals.rows", True), ("totals.by_split", []), ("totals.by_class", {"a": "1"})]
BAD += [(f"files.0.{name}", ...) for name in ("uri", "role", "split", "rows", "bytes", "sha256")]
BAD += [("files.0", "x"), ("files.1.rows", 1.5), ("files.1.bytes", -1), ("files.1.uri", None), ("parents.0", [])]
BAD += [("parents.0.uri", 1), ("parents.0.manifest_sha256", ...)]


@pytest.mark.parametrize(("path", "value"), BAD)
def test_a_malformed_field_is_named(path: str, value: Any) -> None:
    with pytest.raises(UserError) as caught:
        parse_manifest(change_json(path, value), "w/clean/01/_manifest.json")
    message = str(caught.value)
    assert message.startswith("w/clean/01/_manifest.json (")
    named = message.partition("(")[2].partition(")")[0].replace("[", ".").replace("]", "")
    assert named == path


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"{", b"[]", b"null", b"7", b'"imagemill"', b"[" * 100_000])
def test_bytes_that_are_no_manifest_are_a_user_error(data: bytes) -> None:
    with pytest.raises(UserError, match=r"^here"):
        parse_manifest(data, "here")


def list_paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(leaf for key, child in children for leaf in list_paths(child, (*path, key)))]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(st.sampled_from(list_paths(json.loads(MODEL.to_json()))[1:]), JSON)
def test_any_value_is_parsed_or_a_user_error(path: tuple[Any, ...], value: Any) -> None:
    body = json.loads(MODEL.to_json())
    place = body
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    try:
        parsed = parse_manifest(json.dumps(body).encode(), "here")
    except UserError:
        return
    assert parse_manifest(parsed.to_json(), "here") == parsed


def publish_model(workspace: Path, name: str = "01", data: bytes = b"0123456789") -> tuple[str, Manifest]:
    """Publish the file of a model; return its URI and its manifest, not committed."""
    uri = str(workspace / "model" / name)
    return uri, Manifest("model", name, files=(publish_bytes(uri, data, "model-", ".bin"),))


def test_without_a_manifest_there_is_no_dataset(tmp_path: Path) -> None:
    uri, _ = publish_model(tmp_path)
    assert find_dataset(uri) is None and find_intact_dataset(uri) is None
    with pytest.raises(UserError, match=r"^model: expected the URI"):
        read_dataset(uri, "model")


def test_a_dataset_of_another_kind_is_refused(tmp_path: Path) -> None:
    commit(*publish_model(tmp_path))
    with pytest.raises(UserError, match=r"^clean: expected a dataset of kind clean, found .* of kind model"):
        read_dataset(str(tmp_path / "model" / "01"), "clean")


def test_sha256_is_that_of_the_stored_bytes(tmp_path: Path) -> None:
    dataset = commit(*publish_model(tmp_path))
    assert dataset.manifest_sha256 == hashlib.sha256((tmp_path / "model" / "01" / MANIFEST).read_bytes()).hexdigest()


def test_concurrent_commits_return_one_dataset(tmp_path: Path) -> None:
    barrier, datasets = threading.Barrier(12), []
    uri, manifest = publish_model(tmp_path)

    def race(number: int) -> None:
        own_manifest = Manifest(**{**manifest.__dict__, "extra": ModelExtra(parameters=number)})
        barrier.wait()
        datasets.append(commit(uri, own_manifest))

    threads = [threading.Thread(target=race, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(datasets) == 12 and len({d.manifest.extra.parameters for d in datasets}) == 1
    assert len({d.manifest_sha256 for d in datasets}) == 1


def test_dataset_with_damaged_files_is_not_intact(tmp_path: Path) -> None:
    dataset = commit(*publish_model(tmp_path))
    path = Path(dataset.locate(dataset.manifest.files[0]))
    assert find_intact_dataset(dataset.uri) == dataset
    path.write_bytes(b"012345678")
    assert find_intact_dataset(dataset.uri) is None
    path.unlink()
    assert find_intact_dataset(dataset.uri) is None
    assert find_dataset(dataset.uri) == dataset
    (message,) = dataset.missing()
    assert str(path) in message and "expected 10 bytes, found none" in message


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"01234")])
def test_damaged_dataset_is_repaired_by_another_commit(tmp_path: Path, damage: Any) -> None:
    dataset = commit(*publish_model(tmp_path))
    damage(Path(dataset.locate(dataset.manifest.files[0])))
    assert find_intact_dataset(dataset.uri) is None
    commit(*publish_model(tmp_path))
    assert find_intact_dataset(dataset.uri) == dataset


def test_moved_workspace_is_readable(tmp_path: Path) -> None:
    first, second = (commit(*publish_model(tmp_path / "w", name)) for name in ("01", "02"))
    reused = File(f"../01/{first.manifest.files[0].uri}", "data", "", 0, 10, first.manifest.files[0].sha256)
    parent = second.as_parent(str(tmp_path / "w" / "evaluation" / "03"))
    child = Manifest("model", "03", parents=(parent,), files=(reused,))
    commit(str(tmp_path / "w" / "model" / "03"), child)
    shutil.move(tmp_path / "w", tmp_path / "elsewhere")
    moved = find_intact_dataset(str(tmp_path / "elsewhere" / "model" / "03"))
    assert moved is not None
    assert Path(moved.locate(moved.manifest.files[0])).read_bytes() == b"0123456789"
    assert moved.parent_uri("model") == str(tmp_path / "elsewhere" / "model" / "02")
    assert read_dataset(moved.parent_uri("model")).manifest_sha256 == parent.manifest_sha256


@pytest.mark.parametrize("escape", ["../../../etc/passwd", "/etc/passwd", "a/../../b", "s3://bucket/key"])
def test_a_file_outside_the_workspace_is_never_opened(escape: str) -> None:
    file = File(escape, "data", "", 0, 1, "")
    dataset = Dataset("/w/model/01", Manifest("model", "01", files=(file,)), "")
    with pytest.raises(DatasetError):
        dataset.locate(file)
    with pytest.raises(DatasetError):
        dataset.missing()


def test_fingerprints_are_stable() -> None:
    """Golden: another value here renames every dataset of every user."""
    assert digest({"b": [1, 2.5, "ü"], "a": True}) == "9f66585533420cd2"
    assert fingerprint("clean", 1, ["0123456789abcdef"], {}) == "8d10a4a28f7a6a10"
    assert fingerprint("clean", 1, ["0123456789abcdef"], {"color": "gray", "val_fraction": 0.2}) == "fdb2a763bf619a56"


def test_fingerprint_depends_on_every_argument_and_not_on_key_order() -> None:
    first = fingerprint("clean", 1, ["aa", "bb"], {"x": 1, "y": 2})
    others = [
        fingerprint("raw", 1, ["aa", "bb"], {"x": 1, "y": 2}),
        fingerprint("clean", 2, ["aa", "bb"], {"x": 1, "y": 2}),
        fingerprint("clean", 1, ["bb", "aa"], {"x": 1, "y": 2}),
        fingerprint("clean", 1, ["aa", "bb"], {"x": 1, "y": 3}),
        fingerprint("clean", 1, ["aa", "bb"], {"x": 1}),
    ]
    assert len({first, *others}) == 6
    assert first == fingerprint("clean", 1, ["aa", "bb"], {"y": 2, "x": 1})


def test_fingerprint_counts_only_fields_that_differ_from_the_default() -> None:
    not_counted = CleanConfig(
        raw="x", workspace="y", name="n", run="r", clean_workers=3, class_list="f", map_labels="m"
    )
    for config in (CleanConfig(), TrainConfig(), ResizeConfig(), not_counted):
        assert config.fingerprint_values() == {}
    assert CleanConfig(color="gray", val_fraction=0.1, test_fraction=0.3).fingerprint_values() == {
        "color": "gray",
        "test_fraction": 0.3,
    }
    assert TrainConfig(flip="false", device="cpu", seed=4).fingerprint_values() == {"flip": "false", "seed": 4}
    assert PromoteConfig(evaluation="x", champion_evaluation="y").fingerprint_values() == {}


class FullDisk(io.BytesIO):
    """Takes the first bytes, a Parquet file's magic number, and no more."""

    def write(self, data: Any) -> int:
        if self.tell():
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


def test_disk_that_fills_up_is_transient_and_leaves_no_file(tmp_path: Path) -> None:
    schema = pa.schema([("a", pa.int64())])
    with pytest.raises(TransientError, match="No space left"), ShardWriter(str(tmp_path), Layout(schema)) as writer:
        writer._writer.close()
        writer._writer = pq.ParquetWriter(pa.PythonFile(FullDisk(), "w"), schema)
        writer.add({"a": 1}, 0)
        writer.publish("data")
    assert not list(tmp_path.iterdir())


def test_full_disk_is_transient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "shard.parquet").symlink_to("/dev/full")
    monkeypatch.setattr(LocalStore, "scratch", lambda store, uri: scratch)
    with pytest.raises(TransientError, match="No space left"):
        ShardWriter(str(tmp_path), Layout(pa.schema([("a", pa.int64())])))
    assert not scratch.exists()
