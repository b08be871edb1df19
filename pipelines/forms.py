"""Forms of names, labels, tolerations and addresses: what would be refused once a run has begun is named here.

Written down from Kubernetes' own checks (apimachinery's util/validation, core's ValidateTolerations).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from ..components.store import uri as uris
from ..components.store.errors import wrong

_PART = r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_DOMAIN = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?)*"
_VALUE = re.compile(f"(?:{_PART})?")
_KEY = re.compile(f"(?:{_DOMAIN}/)?{_PART}")
_RESOURCE = re.compile(f"{_DOMAIN}/{_PART}")
_NAME = re.compile(_DOMAIN)
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_HOST = r"([^/:\s]+|\[[0-9a-fA-F:]+\])"
_RAY_ADDRESS = re.compile(rf"https?://{_HOST}(:\d{{1,5}})?(/\S*)?|ray://{_HOST}:\d{{1,5}}")
_DATA_KEY = re.compile(r"[-._A-Za-z0-9]{1,253}")
_IMAGE = re.compile(
    r"([a-z0-9.-]+(:\d+)?/)?[a-z0-9]+([._/-]+[a-z0-9]+)*(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[0-9a-f]{64})?"
)
_VALUE_FORM = "up to 63 letters, digits, '-', '_' and '.', of which the first and the last are letters or digits"
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
TOLERATION = "{key, operator, value, effect, tolerationSeconds}"


def check_labels(place: str, labels: Mapping[str, str]) -> None:
    """Labels, or those that a node must have; `place` is the file's field, which ends in a bracket."""
    for name, value in labels.items():
        if not _KEY.fullmatch(name):
            raise wrong(place, "a label's name, such as example.com/team", name)
        if not _VALUE.fullmatch(value):
            raise wrong(f"{place[:-1]}.{name})", _VALUE_FORM, value)


def check_name(place: str, name: str) -> None:
    """The name of a secret, a service account or the like."""
    if not _NAME.fullmatch(name) or len(name) > 253:
        raise wrong(place, "a name of lower-case letters, digits, '-' and '.'", name)


def check_namespace(place: str, name: str) -> None:
    if not _NAMESPACE.fullmatch(name):
        raise wrong(place, "a name of lower-case letters, digits and '-'", name)


def check_data_key(place: str, key: str) -> None:
    """A key of a secret."""
    if not _DATA_KEY.fullmatch(key):
        raise wrong(place, "a key of letters, digits, '-', '_' and '.'", key)


def check_image(place: str, image: str) -> None:
    """The name of an image, which nodes pull."""
    if not _IMAGE.fullmatch(image):
        raise wrong(place, "an image's name: registry/name:tag or registry/name@sha256:…, in lower case", image)


def check_endpoint(place: str, address: str) -> None:
    """The address of an object store; what may be a login is not repeated."""
    try:
        parts = urlsplit(address)
        _ = parts.port  # ValueError: it is no number
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and uris.redact(address) == address
    except ValueError:
        good = False
    if not good:
        found = uris.redact(address).rpartition("@")[2]
        raise wrong(place, "http://host:port or https://…, without login, query and fragment", found)


def check_ray_address(place: str, address: str) -> None:
    """The address of a cluster of Ray, as a pod that is none of its nodes reaches it."""
    if uris.redact(address) != address or "@" in address:
        found = uris.redact(address).rpartition("@")[2]
        raise wrong(place, "an address without a login or query (see token_secret)", found)
    if not _RAY_ADDRESS.fullmatch(address):
        raise wrong(place, "http://head:8265 or ray://head:10001", address)


def check_resource(place: str, name: str) -> None:
    """The name of a GPU's resource."""
    if not _RESOURCE.fullmatch(name):
        raise wrong(place, "the resource's whole name, such as nvidia.com/gpu", name)


def check_toleration(place: str, said: Mapping[str, Any]) -> None:
    """One toleration, as parsed from YAML."""
    for name, value in said.items():
        if name not in ("key", "operator", "value", "effect", "tolerationSeconds"):
            raise wrong(place, f"a list of {TOLERATION}", name)
        kind = int if name == "tolerationSeconds" else str
        if not isinstance(value, kind) or isinstance(value, bool):
            raise wrong(place, f"{name} as {'a whole number' if kind is int else 'a text'}", value)
    key, operator, value, effect = (said.get(name, "") for name in ("key", "operator", "value", "effect"))
    if operator not in ("", "Exists", "Equal"):
        raise wrong(place, "operator Exists or Equal", operator)
    if not _KEY.fullmatch(key) if key else operator != "Exists":
        raise wrong(place, "the name of a taint, such as nvidia.com/gpu (none: operator Exists)", key)
    if value and operator == "Exists":
        raise wrong(place, "no value with operator Exists", value)
    if not _VALUE.fullmatch(value):
        raise wrong(place, f"a value of {_VALUE_FORM}", value)
    if effect and effect not in _EFFECTS:
        raise wrong(place, f"effect {', '.join(_EFFECTS)}, or none for all", effect)
    if "tolerationSeconds" in said and effect != "NoExecute":
        raise wrong(place, "tolerationSeconds only with NoExecute", effect)
