"""The object store: its service in the cluster, and bucket and credentials where it can be reached from here."""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

from ...components.store.errors import first_line
from ...components.store.uri import split_s3
from ..cluster import Cluster
from ..kube import Json
from .access import secret_value
from .findings import ERROR, OK, Finding, unseen
from .view import Refused, View

CHECK = "store"
_SERVICE = re.compile(r"([a-z0-9-]+)\.([a-z0-9-]+)(\.svc(\.[a-z0-9.-]+)?)?")
_PROBE = "--probe asks from a pod"
_ABSENT = ("NoSuchBucket", "404", "NotFound")


def look(view: View | None, cluster: Cluster) -> list[Finding]:
    """Whether the store answers, has the bucket, and takes the credentials. Nothing is written."""
    service = look_at_service(view, cluster) if view else None
    if service is not None and service.state == ERROR:
        return [service]
    try:
        keys = _keys(view, cluster)
    except Refused as error:
        return [unseen(CHECK, f"its credentials ({error})", _PROBE)]
    if keys is None:
        return [unseen(CHECK, "whether pods may use it: their credentials are not known here", _PROBE)]
    finding = _ask(cluster, *keys)
    if finding is not None:
        return [finding]
    known = f"{service.seen}; " if service else ""
    return [unseen(CHECK, f"{known}{_address(cluster) or 'the store'} is not reached from here", _PROBE)]


def look_at_service(view: View, cluster: Cluster) -> Finding | None:
    """The Service that storage.endpoint names, and whether a pod is ready behind it; None where it names none, or one
    may not look."""
    url = urlsplit(cluster.storage.endpoint)
    match = _SERVICE.fullmatch(url.hostname or "")
    if not match:
        return None
    name, namespace, is_in_cluster = match[1], match[2], bool(match[3])
    try:
        document = view.get("services", name, namespace)
        if document is None:
            # A host of two parts is a service's only where its second part is a namespace.
            if not is_in_cluster and view.read(f"/api/v1/namespaces/{namespace}") is None:
                return None
            seen = f"storage.endpoint: there is no service {name} in namespace {namespace}"
            return Finding(CHECK, ERROR, seen, "correct it in the cluster's file, or install the store")
        ports = [port["port"] for port in document["spec"].get("ports") or ()]
        port = url.port or (443 if url.scheme == "https" else 80)
        if ports and port not in ports:
            known = ", ".join(map(str, ports))
            seen = f"storage.endpoint: service {name} in {namespace} has no port {port}; it has {known}"
            return Finding(CHECK, ERROR, seen, "correct it in the cluster's file")
        path = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
        slices = view.items(path, labelSelector=f"kubernetes.io/service-name={name}")
    except Refused:
        return None
    endpoints = [endpoint for part in slices for endpoint in part.get("endpoints") or ()]
    if document["spec"].get("selector") and not any(_is_ready(endpoint) for endpoint in endpoints):
        seen = f"no pod is ready behind service {name} in {namespace}"
        return Finding(CHECK, ERROR, seen, f"kubectl get pods -n {namespace}")
    return Finding(CHECK, OK, f"service {name} in {namespace} is ready")


def _is_ready(endpoint: Json) -> bool:
    return (endpoint.get("conditions") or {}).get("ready") is not False


def _keys(view: View | None, cluster: Cluster) -> tuple[str, str] | None:
    """The credentials of the pods, from their secret; where that can't be read, from this environment."""
    storage = cluster.storage
    if view and storage.secret:
        try:
            document = view.get("secrets", storage.secret)
            keys = secret_value(document, storage.access_key), secret_value(document, storage.secret_key)
            if all(keys):
                return keys
        except Refused as error:
            if error.status != 403:
                raise
    keys = os.environ.get("AWS_ACCESS_KEY_ID", ""), os.environ.get("AWS_SECRET_ACCESS_KEY", "")
    return keys if all(keys) else None


def _address(cluster: Cluster) -> str:
    """The store's address from here: where the environment names one, as through a port-forward, that one."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or cluster.storage.endpoint


def _ask(cluster: Cluster, access_key: str, secret_key: str) -> Finding | None:
    """What listing the workspace says; None where the store does not answer here."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    storage = cluster.storage
    bucket, prefix = split_s3(storage.workspace)
    address = _address(cluster)
    config = Config(
        retries={"total_max_attempts": 1}, connect_timeout=3, read_timeout=10,
        s3={"addressing_style": "path"} if address else {},
    )  # fmt: skip
    session = boto3.session.Session(access_key, secret_key, region_name=storage.region)
    try:
        client = session.client("s3", endpoint_url=address or None, config=config)
        client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)
    except ClientError as error:
        if str(error.response["Error"].get("Code")) in _ABSENT:
            seen = f"there is no bucket {bucket} at {address or 'AWS'} (storage.workspace)"
            return Finding(CHECK, ERROR, seen, "make it, or correct storage.workspace in the cluster's file")
        seen = f"{address or 'AWS'} refuses the credentials for {bucket}: {first_line(error)}"
        mend = f"correct {storage.access_key} and {storage.secret_key} of secret {storage.secret}, or what they may do"
        return Finding(CHECK, ERROR, seen, mend)
    except (BotoCoreError, ValueError):
        return None
    return Finding(CHECK, OK, f"{address or 'AWS'} answers, with bucket {bucket} and the credentials")
