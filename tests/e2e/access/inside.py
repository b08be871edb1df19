"""Questions that the tests ask from inside the cluster. Shipped as text to a pod: it imports nothing of e2e.

The object store is seldom reachable from where the tests run. The answer is one line of JSON after the mark."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

MARK = "imagemill-e2e:"
CLASSES = ("blue", "green", "red")
PER_CLASS = {"train": 16, "val": 4, "test": 8}
SIDE = 48
"""Pixels of an image of `plant`."""
FIRST_OF_WEEKS = 1000
"""The number of the first image that comes later."""
WITH_ROWS = ("raw", "clean", "tensors")


def reach(workspace: str) -> dict[str, Any]:
    """Write, write the same again, read, list and delete an object of the workspace."""
    from imagemill.components.storage.store import get_store

    store, place = get_store(workspace), f"{workspace}/_reach"
    uri = f"{place}/probe.txt"
    first, second = store.put_if_absent(uri, b"one"), store.put_if_absent(uri, b"two")
    read = store.read(uri).decode()
    listed = [entry.uri for entry in store.list(place)]
    store.discard(uri)
    return {
        "conditional": (first, second, read) == (True, False, "one"),
        "listed": listed == [uri],
        "deletes": store.stat(uri) is None,
        "server": _server(os.environ.get("AWS_ENDPOINT_URL", "")),
    }


def _server(endpoint: str) -> str:
    """Return the object store's Server header, empty without one."""
    import urllib.error
    import urllib.request

    if not endpoint:
        return ""
    try:
        with urllib.request.urlopen(endpoint, timeout=10) as answer:
            return str(answer.headers.get("Server") or "")
    except urllib.error.HTTPError as error:
        return str(error.headers.get("Server") or "")
    except OSError:
        return ""


def plant(source: str, times: int = 1, weeks: int = 0) -> dict[str, Any]:
    """Write a small dataset of three colors, with its splits as folders: the same bytes each time.

    `times`: as many images of each split. `weeks`: so many further train images of each class, one a week.
    """
    from imagemill.components.storage.store import get_store

    store = get_store(source)
    numbers = {split: list(range(per_class * times)) for split, per_class in PER_CLASS.items()}
    numbers["train"] += [FIRST_OF_WEEKS + week for week in range(weeks)]
    count = 0
    for split in PER_CLASS:
        for label, name in enumerate(CLASSES):
            for number in numbers[split]:
                uri = f"{source}/{split}/{name}/{number:02}.png"
                if store.stat(uri) is None:
                    store.put_if_absent(uri, _picture(split, label, number))
                count += 1
    return {"images": count}


def _picture(split: str, label: int, number: int) -> bytes:
    """A PNG of mostly one color."""
    import io

    import numpy as np
    from PIL import Image

    random = np.random.default_rng([sum(map(ord, split)), label, number])
    coarse = random.integers(0, 160, (6, 6, 3), dtype=np.uint8)
    coarse[..., 2 - label] = random.integers(160, 256, (6, 6))
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def rows(workspace: str) -> dict[str, Any]:
    """A hash of each dataset's images, which does not depend on their order and parts, and the bytes stored.

    {"hashes": {kind: {fingerprint: hash}}, "bytes": {kind: bytes of all its files and parts}}
    """
    import hashlib

    from imagemill.components.dataset.index import read_rows
    from imagemill.components.dataset.manifest import read_dataset
    from imagemill.components.storage.store import get_store

    hashes: dict[str, dict[str, str]] = {kind: {} for kind in WITH_ROWS}
    stored = dict.fromkeys(WITH_ROWS, 0)
    for kind in WITH_ROWS:
        stored[kind] += sum(entry.size for entry in get_store(workspace).list(f"{workspace}/parts/{kind}"))
        for entry in get_store(workspace).list(f"{workspace}/{kind}"):
            stored[kind] += entry.size
            if not entry.uri.endswith("/_manifest.json"):
                continue
            dataset = read_dataset(entry.uri.rpartition("/")[0])
            labels = "label_id" if kind == "tensors" else "label"
            digests = sorted(
                hashlib.sha256(repr(sorted(row.items())).encode()).hexdigest()
                for table in read_rows(dataset, ("image_id", labels, "split", "image"))
                for row in table.to_pylist()
            )
            digest = hashlib.sha256(repr(digests).encode()).hexdigest()
            hashes[kind][dataset.fingerprint] = f"{len(digests)} rows {digest}"
    return {"hashes": hashes, "bytes": stored}


def look(workspace: str) -> dict[str, Any]:
    """Every dataset's files by kind, every run's records by step and its files."""
    from imagemill.components.storage.store import get_store

    store = get_store(workspace)
    datasets: dict[str, dict[str, Any]] = {}
    runs: dict[str, dict[str, Any]] = {}
    files: dict[str, list[str]] = {}
    for entry in store.list(workspace):
        parts = entry.uri[len(workspace) + 1 :].split("/")
        if len(parts) == 3 and parts[2] == "_manifest.json":
            manifest = json.loads(store.read(entry.uri))
            listed = manifest["files"] + [{"role": "part"} | part for part in manifest["parts"]]
            content = [[file["role"], file["split"], file["rows"], file["sha256"]] for file in listed]
            datasets.setdefault(parts[0], {})[parts[1]] = content
        if len(parts) == 3 and parts[0] == "runs":
            files.setdefault(parts[1], []).append(parts[2])
        if len(parts) == 3 and parts[0] == "runs" and parts[2].endswith(".json"):
            runs.setdefault(parts[1], {})[parts[2].removesuffix(".json")] = json.loads(store.read(entry.uri))
    return {"datasets": datasets, "runs": runs, "files": files}


def count(places: Sequence[str]) -> dict[str, Any]:
    """Return the number of objects below each place."""
    from imagemill.components.storage.store import get_store

    return {place: sum(1 for _ in get_store(place).list(place)) for place in places}


def forget(places: Sequence[str], marks: Sequence[str]) -> dict[str, Any]:
    """Delete all objects below the places, each of which must name one of the marks: the session, or a run of it."""
    from imagemill.components.storage.store import get_store

    num_deleted, left = 0, 0
    for place in places:
        if not any(mark and mark in place for mark in marks):
            raise SystemExit(f"{place} is none of the tests'")
        store = get_store(place)
        uris = [entry.uri for entry in store.list(place)]
        for uri in uris:
            store.discard(uri)
        num_deleted += len(uris)
        left += sum(1 for _ in store.list(place))
    return {"found": num_deleted, "left": left}


def connect(targets: Sequence[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Open a TCP connection to each target's `host` and `port`, all at once: "answers", or why not.

    Policies take hold some time after a pod has started, so what does not come out as `answers` (a boolean) expects
    is tried again for so many seconds.
    """
    from concurrent.futures import ThreadPoolExecutor

    def try_target(target: dict[str, Any]) -> str:
        until = time.monotonic() + seconds
        while True:
            outcome = _connected(str(target["host"]), int(target["port"]))
            if (outcome == "answers") == target["answers"] or time.monotonic() > until:
                return outcome
            time.sleep(1)

    with ThreadPoolExecutor(max(1, len(targets))) as pool:
        return dict(zip([target["name"] for target in targets], pool.map(try_target, targets), strict=True))


def _connected(host: str, port: int) -> str:
    import socket

    try:
        with socket.create_connection((host, port), timeout=4):
            return "answers"
    except socket.gaierror:
        return "name not found"
    except TimeoutError:
        return "no answer"
    except OSError as error:
        return str(error.strerror or error)


def listen(port: int, seconds: float) -> dict[str, Any]:
    """Take connections for so long."""
    import socket

    with socket.create_server(("", port)) as server:
        server.settimeout(1)
        until, taken = time.monotonic() + seconds, 0
        while time.monotonic() < until:
            try:
                connection, _ = server.accept()
            except TimeoutError:
                continue
            connection.close()
            taken += 1
    return {"taken": taken}


def version() -> dict[str, Any]:
    """Return imagemill's version, the user of the process, and the modules that can be imported."""
    import importlib.util

    from imagemill.components.dataset.manifest import code_version

    names = ("ray", "torch", "kubernetes", "kfp")
    return {
        "version": code_version(),
        "uid": os.getuid(),
        "has": [name for name in names if importlib.util.find_spec(name)],
    }


QUESTIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "reach": reach, "plant": plant, "look": look, "rows": rows, "count": count, "forget": forget, "connect": connect,
    "listen": listen, "version": version,
}  # fmt: skip


def main(question: str, arguments: str) -> None:
    print(MARK + json.dumps(QUESTIONS[question](**json.loads(arguments))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
