"""The program that checks an image and the object store: in a pod of `imagemill doctor --probe`, and on this machine.

It runs as text (`python -c`) with the arguments MODULE WORKSPACE, in images of any version. Exit codes are a step's.
"""

from __future__ import annotations

import importlib.util
import sys
import uuid

from imagemill.components.dataset.manifest import code_version
from imagemill.components.storage.errors import MillError
from imagemill.components.storage.store import get_store


def check_store(workspace: str) -> None:
    """Check that of two writers of an object the second is refused, on which every commit relies."""
    uri = f"{workspace.rstrip('/')}/_doctor-{uuid.uuid4().hex}"  # pods of several images check at once
    store = get_store(uri)
    next(iter(store.list(uri)), None)  # raises where there is no bucket, which SeaweedFS would create on writing
    store.put_if_absent(uri, b"imagemill doctor")
    if store.put_if_absent(uri, b"imagemill doctor, again"):
        sys.exit("the store replaces an object that exists: it knows no conditional writes (If-None-Match)")
    store.discard(uri)


def main(module: str, workspace: str) -> None:
    """Look for a module that the image has to have, use the store, and print imagemill's version."""
    if importlib.util.find_spec(module) is None:
        sys.exit(f"the image has no module {module}: it is none of imagemill's for this target")
    try:
        check_store(workspace)
    except MillError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    print(f"imagemill {code_version()}")


if __name__ == "__main__":
    main(*sys.argv[1:])
