"""The store's keys and bucket, made once: run by the Job seaweedfs-setup, in the image imagemill-cpu.

The keys are random and in no file: they go straight into the secret SECRET of this namespace, unless it is there
already. SeaweedFS starts when the secret is there; then the bucket is made. Prints what it did, never a key.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ACCOUNT = Path(os.environ.get("ACCOUNT", "/var/run/secrets/kubernetes.io/serviceaccount"))
PATIENCE_S = float(os.environ.get("PATIENCE_S", "600"))
"""How long the store may take to start; the Job then tries again."""
FIELDS = ("accesskey", "secretkey")


def main() -> int:
    namespace, name, bucket = (os.environ[key] for key in ("NAMESPACE", "SECRET", "BUCKET"))
    access_key, secret_key = keys(namespace, name)
    return make_bucket(bucket, access_key, secret_key)


def keys(namespace: str, name: str) -> tuple[str, str]:
    """The keys in the secret; random ones are put there first where there is none."""
    path = f"/api/v1/namespaces/{namespace}/secrets"
    status, found = ask("GET", f"{path}/{name}")
    if status == 404:
        values = dict(zip(FIELDS, (secrets.token_hex(10), secrets.token_urlsafe(30)), strict=True))
        labels = {"app.kubernetes.io/part-of": "imagemill"}
        body = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "labels": labels},
            "stringData": values,
        }
        status, found = ask("POST", path, body)
        if status == 201:
            print(f"made the secret {name} with random keys")
        elif status != 409:  # 409: another one was first, and his keys count
            raise SystemExit(f"the secret {name} can't be made: {status} {found.get('message')}")
        status, found = ask("GET", f"{path}/{name}")
    if status != 200:
        raise SystemExit(f"the secret {name} can't be read: {status} {found.get('message')}")
    data = found.get("data") or {}
    if missing := [field for field in FIELDS if not data.get(field)]:
        raise SystemExit(f"the secret {name} has no {' and no '.join(missing)}")
    access_key, secret_key = (base64.b64decode(data[field]).decode() for field in FIELDS)
    return access_key, secret_key


def ask(method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
    """Status and document that the API server answers. Without an answer the process ends, and the Job tries again."""
    host = os.environ["KUBERNETES_SERVICE_HOST"]
    host = f"[{host}]" if ":" in host else host
    request = urllib.request.Request(
        f"https://{host}:{os.environ['KUBERNETES_SERVICE_PORT']}{path}",
        data=json.dumps(body).encode() if body else None,
        method=method,
        headers={
            "Authorization": f"Bearer {(ACCOUNT / 'token').read_text().strip()}",
            "Content-Type": "application/json",
        },
    )
    trusted = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    try:
        with urllib.request.urlopen(request, timeout=30, context=trusted) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        text = error.read()
        try:
            return error.code, json.loads(text)
        except ValueError:
            return error.code, {"message": text[:200].decode(errors="replace")}


def make_bucket(bucket: str, access_key: str, secret_key: str) -> int:
    """Make the bucket, as soon as the store is there; 0, or 1 when it did not come in time."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    once = Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=30)
    s3 = boto3.client(
        "s3",
        region_name=os.environ["AWS_REGION"],  # boto3 itself reads another variable
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        config=once,
    )
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            s3.create_bucket(Bucket=bucket)
            print(f"the bucket {bucket} is there")
            return 0
        except ClientError as error:
            if error.response["Error"]["Code"] in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                print(f"the bucket {bucket} is there")
                return 0
            why: Exception = error
        except BotoCoreError as error:
            why = error
        if time.monotonic() > until:
            print(f"the bucket {bucket} can't be made: {why}", file=sys.stderr)
            return 1
        time.sleep(min(3.0, PATIENCE_S))


if __name__ == "__main__":
    sys.exit(main())
