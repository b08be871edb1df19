"""What the tests ask from inside the cluster. Shipped as text to a pod with the image `cpu`: it imports nothing of e2e.

The object store is seldom reachable from where the tests run. The answer is one line of JSON after the mark.
"""

from __future__ import annotations

import json
import sys
from typing import Any

MARK = "imagemill-e2e:"


def reach(workspace: str) -> dict[str, Any]:
    """Write, write the same again, read, list and delete an object of the workspace."""
    from imagemill.components.store.filesystem import store_for

    store, place = store_for(workspace), f"{workspace}/_reach"
    uri = f"{place}/probe.txt"
    first, second = store.put_if_absent(uri, b"one"), store.put_if_absent(uri, b"two")
    read = store.read(uri).decode()
    listed = [entry.uri for entry in store.list(place)]
    store.discard(uri)
    return {
        "conditional": (first, second, read) == (True, False, "one"),
        "listed": listed == [uri],
        "deletes": store.stat(uri) is None,
    }


def look(workspace: str) -> dict[str, Any]:
    """Every dataset's files, kind by kind, and every run's records, step by step."""
    from imagemill.components.store.filesystem import store_for

    store = store_for(workspace)
    datasets: dict[str, dict[str, Any]] = {}
    runs: dict[str, dict[str, Any]] = {}
    for entry in store.list(workspace):
        parts = entry.uri[len(workspace) + 1 :].split("/")
        if len(parts) == 3 and parts[2] == "_manifest.json":
            files = json.loads(store.read(entry.uri))["files"]
            content = [[one["role"], one["split"], one["rows"], one["sha256"]] for one in files]
            datasets.setdefault(parts[0], {})[parts[1]] = content
        elif len(parts) == 3 and parts[0] == "runs" and parts[2].endswith(".json"):
            runs.setdefault(parts[1], {})[parts[2].removesuffix(".json")] = json.loads(store.read(entry.uri))
    return {"datasets": datasets, "runs": runs}


def forget(workspace: str) -> dict[str, Any]:
    """Delete all objects of the session's workspaces; says how many could not be."""
    from imagemill.components.store.filesystem import store_for

    if "/e2e-" not in workspace:
        raise SystemExit(f"{workspace} is none of the tests'")
    store = store_for(workspace)
    found = [entry.uri for entry in store.list(workspace)]
    for uri in found:
        store.discard(uri)
    return {"found": len(found), "left": sum(1 for _ in store.list(workspace))}


def version(workspace: str) -> dict[str, Any]:
    """What is in the image: imagemill's version, the user that it runs as, and what it can import."""
    import importlib.util
    import os

    from imagemill.components.store.manifest import code_version

    names = ("ray", "torch", "kubernetes", "kfp")
    return {
        "version": code_version(),
        "uid": os.getuid(),
        "has": [name for name in names if importlib.util.find_spec(name)],
    }


QUESTIONS = {"reach": reach, "look": look, "forget": forget, "version": version}


def main(question: str, workspace: str) -> None:
    print(MARK + json.dumps(QUESTIONS[question](workspace)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
