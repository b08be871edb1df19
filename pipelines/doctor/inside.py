"""What `imagemill doctor --probe` asks from inside the cluster, shipped as text to a pod of one of the images.

It imports nothing but what every imagemill has. The answer is one line of JSON after the mark.
"""

from __future__ import annotations

import json
import sys
from typing import Any

MARK = "imagemill-doctor:"


def version(workspace: str) -> dict[str, Any]:
    """What is in the image: imagemill's version, the user that it runs as, and what it can import."""
    import importlib.util
    import os

    from imagemill.components.store.manifest import code_version

    names = ("kubernetes", "ray", "torch")
    has = [name for name in names if importlib.util.find_spec(name)]
    return {"version": code_version(), "uid": os.getuid(), "has": has}


def reach(workspace: str) -> dict[str, Any]:
    """Write, read, list and delete an object of the workspace, if its bucket is there: some stores would make it."""
    import secrets

    from imagemill.components.store.filesystem import get_store

    store, folder = get_store(workspace), f"{workspace}/_doctor-{secrets.token_hex(4)}"
    next(iter(store.list(folder)), None)  # an error where there is no bucket: SeaweedFS would make one to write to
    uri = f"{folder}/probe.txt"
    store.put(uri, b"doctor")
    read, listed = store.read(uri), [entry.uri for entry in store.list(folder)]
    store.discard(uri)
    return {"read": read == b"doctor", "listed": listed == [uri], "deletes": store.stat(uri) is None}


QUESTIONS = {"version": version, "reach": reach}


def main(question: str, workspace: str) -> None:
    """Answer; an error of the store ends the process with its exit code and one line."""
    from imagemill.components.store.errors import MillError

    try:
        answer = QUESTIONS[question](workspace)
    except MillError as error:
        print(error, file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    print(MARK + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
