"""Checks of the object store: its Service in the cluster, and bucket and credentials if it is reachable from here."""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

from ...components.storage.errors import first_line
from ...components.storage.uri import split_s3
from ..cluster.cluster_file import Cluster
from ..cluster.kube_client import Json
from .access import decode_secret
from .view import ERROR, OK, ApiError, ClusterView, Finding, make_unseen

CHECK = "store"
_SERVICE = re.compile(r"([a-z0-9-]+)\.([a-z0-9-]+)(\.svc(\.[a-z0-9.-]+)?)?")
_PROBE_HINT = "--probe asks from a pod"
_NO_BUCKET_CODES = ("NoSuchBucket", "404", "NotFound")


def check_store(view: ClusterView | None, cluster: Cluster) -> list[Finding]:
    """Check that the store answers, has the bucket and accepts the credentials. Nothing is written."""
    service = check_service(view, cluster) if view else None
    if service is not None and service.state == ERROR:
        return [service]
    try:
        keys = _find_credentials(view, cluster)
    except ApiError as error:
        return [make_unseen(CHECK, f"its credentials ({error})", _PROBE_HINT)]
    if keys is None:
        return [make_unseen(CHECK, "whether pods may use it: their credentials are not known here", _PROBE_HINT)]
    finding = _list_workspace(cluster, *keys)
    if finding is not None:
        return [finding]
    prefix = f"{service.seen}; " if service else ""
    return [
        make_unseen(CHECK, f"{prefix}{_get_endpoint(cluster) or 'the store'} is not reached from here", _PROBE_HINT)
    ]


def check_service(view: ClusterView, cluster: Cluster) -> Finding | None:
    """Check the Service that storage.endpoint names, and that one of its pods is ready; None where it names none, or
    without the right to read it."""
    url = urlsplit(cluster.storage.endpoint)
    match = _SERVICE.fullmatch(url.hostname or "")
    if not match:
        return None
    name, namespace, is_in_cluster = match[1], match[2], bool(match[3])
    try:
        document = view.get("services", name, namespace)
        if document is None:
            # A host of two parts is that of a Service only if its second part is a namespace.
            if not is_in_cluster and view.read(f"/api/v1/namespaces/{namespace}") is None:
                return None
            observation = f"storage.endpoint: there is no service {name} in namespace {namespace}"
            return Finding(CHECK, ERROR, observation, "correct it in the cluster file, or install the store")
        ports = [port["port"] for port in document["spec"].get("ports") or ()]
        port = url.port or (443 if url.scheme == "https" else 80)
        if ports and port not in ports:
            known_ports = ", ".join(map(str, ports))
            observation = f"storage.endpoint: service {name} in {namespace} has no port {port}; it has {known_ports}"
            return Finding(CHECK, ERROR, observation, "correct it in the cluster file")
        path = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
        slices = view.list_items(path, labelSelector=f"kubernetes.io/service-name={name}")
    except ApiError:
        return None
    endpoints = [endpoint for endpoint_slice in slices for endpoint in endpoint_slice.get("endpoints") or ()]
    if document["spec"].get("selector") and not any(_is_ready(endpoint) for endpoint in endpoints):
        observation = f"no pod is ready behind service {name} in {namespace}"
        return Finding(CHECK, ERROR, observation, f"kubectl get pods -n {namespace}")
    return Finding(CHECK, OK, f"service {name} in {namespace} is ready")


def _is_ready(endpoint: Json) -> bool:
    return (endpoint.get("conditions") or {}).get("ready") is not False


def _find_credentials(view: ClusterView | None, cluster: Cluster) -> tuple[str, str] | None:
    """Return the credentials of the pods, from their secret; where that can't be read, from this environment."""
    storage = cluster.storage
    if view and storage.secret:
        try:
            document = view.get("secrets", storage.secret)
            keys = decode_secret(document, storage.access_key), decode_secret(document, storage.secret_key)
            if all(keys):
                return keys
        except ApiError as error:
            if error.status != 403:
                raise
    keys = os.environ.get("AWS_ACCESS_KEY_ID", ""), os.environ.get("AWS_SECRET_ACCESS_KEY", "")
    return keys if all(keys) else None


def _get_endpoint(cluster: Cluster) -> str:
    """Return the store's address: that of the environment, as for a port-forward, else that of the cluster file."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or cluster.storage.endpoint


def _list_workspace(cluster: Cluster, access_key: str, secret_key: str) -> Finding | None:
    """Check the store by listing the workspace; None where it does not answer here."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    storage = cluster.storage
    bucket, prefix = split_s3(storage.workspace)
    address = _get_endpoint(cluster)
    config = Config(
        retries={"total_max_attempts": 1}, connect_timeout=3, read_timeout=10,
        s3={"addressing_style": "path"} if address else {},
    )  # fmt: skip
    session = boto3.session.Session(access_key, secret_key, region_name=storage.region)
    try:
        client = session.client("s3", endpoint_url=address or None, config=config)
        client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)
    except ClientError as error:
        if str(error.response["Error"].get("Code")) in _NO_BUCKET_CODES:
            observation = f"there is no bucket {bucket} at {address or 'AWS'} (storage.workspace)"
            return Finding(CHECK, ERROR, observation, "make it, or correct storage.workspace in the cluster file")
        observation = f"{address or 'AWS'} refuses the credentials for {bucket}: {first_line(error)}"
        remedy = (
            f"correct {storage.access_key} and {storage.secret_key} of secret {storage.secret}, or what they may do"
        )
        return Finding(CHECK, ERROR, observation, remedy)
    except (BotoCoreError, ValueError):
        return None
    return Finding(CHECK, OK, f"{address or 'AWS'} answers, with bucket {bucket} and the credentials")
