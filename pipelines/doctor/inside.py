"""The program of the pods of `imagemill doctor --probe`, sent as text to a pod of one of the images.

It imports only modules that every version of imagemill has. It prints one line of JSON after MARK.
"""

from __future__ import annotations

import json
import sys
from typing import Any

MARK = "imagemill-doctor:"


def describe_image(workspace: str) -> dict[str, Any]:
    """Return imagemill's version, the user that the image runs as, and the modules that it can import."""
    import importlib.util
    import os

    from imagemill.components.dataset.manifest import code_version

    names = ("kubernetes", "ray", "torch")
    has = [name for name in names if importlib.util.find_spec(name)]
    return {"version": code_version(), "uid": os.getuid(), "has": has}


def use_store(workspace: str) -> dict[str, Any]:
    """Write, read, list and delete an object of the workspace, after checking that its bucket exists."""
    import secrets

    from imagemill.components.storage.store import get_store

    store, folder = get_store(workspace), f"{workspace}/_doctor-{secrets.token_hex(4)}"
    next(iter(store.list(folder)), None)  # raises where there is no bucket, which SeaweedFS would create on writing
    uri = f"{folder}/probe.txt"
    store.put(uri, b"doctor")
    read, listed = store.read(uri), [entry.uri for entry in store.list(folder)]
    store.discard(uri)
    return {"read": read == b"doctor", "listed": listed == [uri], "deletes": store.stat(uri) is None}


QUESTIONS = {"version": describe_image, "reach": use_store}


def main(question: str, workspace: str) -> None:
    """Print the answer; an error of the store ends the process with its exit code and one line."""
    from imagemill.components.storage.errors import MillError

    try:
        answer = QUESTIONS[question](workspace)
    except MillError as error:
        print(error, file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    print(MARK + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
