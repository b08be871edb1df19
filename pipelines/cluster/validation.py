"""Validation of names, labels, tolerations, addresses and pod sizes, so that a mistake is found before a run begins.

The rules are Kubernetes' own (apimachinery's util/validation, core's ValidateTolerations). `field` is the name of the
checked field in the message of the UserError.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from ...components.storage import uri as uris
from ...components.storage.errors import wrong
from ..settings import parse_quantity, setting

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
_CRON_FIELDS = (
    ("minute", 0, 59), ("hour", 0, 23), ("day of the month", 1, 31), ("month", 1, 12), ("day of the week", 0, 6),
)  # fmt: skip
_CRON_ALIASES = ("@hourly", "@daily", "@midnight", "@weekly", "@monthly", "@yearly", "@annually")
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
TOLERATION = "{key, operator, value, effect, tolerationSeconds}"


def check_labels(field: str, labels: Mapping[str, str]) -> None:
    """Check labels, or a node selector; `field` ends in a bracket."""
    for name, value in labels.items():
        if not _KEY.fullmatch(name):
            raise wrong(field, "a label's name, such as example.com/team", name)
        if not _VALUE.fullmatch(value):
            raise wrong(f"{field[:-1]}.{name})", _VALUE_FORM, value)


def check_name(field: str, name: str) -> None:
    """Check the name of a secret, a service account or the like."""
    if not _NAME.fullmatch(name) or len(name) > 253:
        raise wrong(field, "a name of lower-case letters, digits, '-' and '.'", name)


def check_namespace(field: str, name: str) -> None:
    if not _NAMESPACE.fullmatch(name):
        raise wrong(field, "a name of lower-case letters, digits and '-'", name)


def check_cron(field: str, text: str) -> None:
    """Check the form of a cron expression and the range of its numbers; the rest of it is the server's to judge."""
    words = text.split()
    if text in _CRON_ALIASES:
        return
    if len(words) != len(_CRON_FIELDS) or not re.fullmatch(r"[0-9A-Za-z*/,? -]+", text):
        raise wrong(field, "five fields: minute, hour, day of the month, month, day of the week, such as "
                    "\"0 3 * * 1\" for Mondays at 3 o'clock", text)  # fmt: skip
    for word, (name, low, high) in zip(words, _CRON_FIELDS, strict=True):
        if not all(low <= int(number) <= high for number in re.findall(r"(?<![/\d])\d+", word)):
            raise wrong(f"{field} ({name})", f"numbers from {low} to {high}", word)


def check_timezone(field: str, name: str) -> None:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # not found; not a name; a folder of the zones' database
        raise wrong(field, "a time zone such as Europe/Berlin or UTC", name) from None


def check_data_key(field: str, key: str) -> None:
    """Check a key of a secret."""
    if not _DATA_KEY.fullmatch(key):
        raise wrong(field, "a key of letters, digits, '-', '_' and '.'", key)


def check_image(field: str, image: str) -> None:
    """Check the name of an image."""
    if not _IMAGE.fullmatch(image):
        raise wrong(field, "an image's name: registry/name:tag or registry/name@sha256:…, in lower case", image)


def check_endpoint(field: str, address: str) -> None:
    """Check the address of an object store. The message does not repeat what may be a login."""
    try:
        parts = urlsplit(address)
        _ = parts.port  # ValueError: it is no number
        is_valid = parts.scheme in ("http", "https") and bool(parts.hostname) and uris.redact(address) == address
    except ValueError:
        is_valid = False
    if not is_valid:
        address_without_login = uris.redact(address).rpartition("@")[2]
        raise wrong(field, "http://host:port or https://…, without login, query and fragment", address_without_login)


def check_ray_address(field: str, address: str) -> None:
    """Check the address of a Ray cluster, as a pod outside of it reaches it."""
    if uris.redact(address) != address or "@" in address:
        address_without_login = uris.redact(address).rpartition("@")[2]
        raise wrong(field, "an address without a login or query (see token_secret)", address_without_login)
    if not _RAY_ADDRESS.fullmatch(address):
        raise wrong(field, "http://head:8265 or ray://head:10001", address)


def check_resource(field: str, name: str) -> None:
    """Check the name of a GPU's resource."""
    if not _RESOURCE.fullmatch(name):
        raise wrong(field, "the resource's whole name, such as nvidia.com/gpu", name)


def check_toleration(field: str, toleration: Mapping[str, Any]) -> None:
    """Check a toleration, as parsed from YAML."""
    for name, value in toleration.items():
        if name not in ("key", "operator", "value", "effect", "tolerationSeconds"):
            raise wrong(field, f"a list of {TOLERATION}", name)
        kind = int if name == "tolerationSeconds" else str
        if not isinstance(value, kind) or isinstance(value, bool):
            raise wrong(field, f"{name} as {'a whole number' if kind is int else 'a text'}", value)
    key, operator, value, effect = (toleration.get(name, "") for name in ("key", "operator", "value", "effect"))
    if operator not in ("", "Exists", "Equal"):
        raise wrong(field, "operator Exists or Equal", operator)
    if not _KEY.fullmatch(key) if key else operator != "Exists":
        raise wrong(field, "the name of a taint, such as nvidia.com/gpu (none: operator Exists)", key)
    if value and operator == "Exists":
        raise wrong(field, "no value with operator Exists", value)
    if not _VALUE.fullmatch(value):
        raise wrong(field, f"a value of {_VALUE_FORM}", value)
    if effect and effect not in _EFFECTS:
        raise wrong(field, f"effect {', '.join(_EFFECTS)}, or none for all", effect)
    if "tolerationSeconds" in toleration and effect != "NoExecute":
        raise wrong(field, "tolerationSeconds only with NoExecute", effect)


Place = Callable[..., str]
"""Returns the name of a field of the file for a message."""
_MEBIBYTE = 2**20


@dataclass(frozen=True)
class Size:
    """The resources of a container: requests, and limits, which for CPU are optional."""

    cpu: str = setting("1", "cores that it is promised", quantity=True)
    cpu_limit: str = setting("", "cores that it may take (empty: as many as are free)", quantity=True)
    memory: str = setting("2Gi", "memory that it is promised, and that it may take", quantity=True)
    memory_limit: str = setting("", "memory that it may take, if more than promised", quantity=True)
    ephemeral_storage: str = setting("4Gi", "disk of the node that it is promised, and may take for scratch "
                                     "(KFP: only the latter)", quantity=True)  # fmt: skip

    def check(self, place: Place) -> None:
        for name, limit in (("cpu", self.cpu_limit), ("memory", self.memory_limit)):
            request = getattr(self, name)
            if not request or not parse_quantity(request):
                raise wrong(place(name), "a quantity above 0", request)
            if limit and parse_quantity(limit) < parse_quantity(request):
                raise wrong(place(f"{name}_limit"), f"at least {name}, {request}", limit)
        for name in ("memory", "ephemeral_storage"):
            _check_bytes(place(name), getattr(self, name))

    def resources(self) -> dict[str, dict[str, str]]:
        """Return requests and limits as the `resources` of a container."""
        disk = {"ephemeral-storage": self.ephemeral_storage} if self.ephemeral_storage else {}
        cpu_limit = {"cpu": self.cpu_limit} if self.cpu_limit else {}
        return {
            "requests": {"cpu": self.cpu, "memory": self.memory, **disk},
            "limits": {**cpu_limit, "memory": self.memory_limit or self.memory, **disk},
        }


@dataclass(frozen=True)
class Pod(Size):
    """The resources of a pod of one container, and the nodes that it may run on."""

    gpu: int = setting(0, "GPUs")
    gpu_type: str = setting("nvidia.com/gpu", "which: the resource's name")
    shm: str = setting("", "size of /dev/shm, as a part of the memory (empty: by the batch for train, else none)",
                       quantity=True)  # fmt: skip
    node_selector: dict[str, str] = setting(dict, "labels that the node must have")
    tolerations: tuple[dict[str, Any], ...] = setting(
        tuple, "taints that it tolerates, as Kubernetes writes them: {key, operator, value, effect}"
    )
    deadline_seconds: int = setting(0, "the longest that one attempt may take (0: as long as the run)")

    def check(self, place: Place) -> None:
        super().check(place)
        _check_bytes(place("shm"), self.shm)
        if self.shm and parse_quantity(self.shm) >= parse_quantity(self.memory_limit or self.memory):
            raise wrong(place("shm"), f"less than memory, {self.memory}, which it is a part of", self.shm)
        check_resource(place("gpu_type"), self.gpu_type)
        check_labels(place("node_selector"), self.node_selector)
        for toleration in self.tolerations:
            check_toleration(place("tolerations"), toleration)

    def resources(self) -> dict[str, dict[str, str]]:
        gpu = {self.gpu_type: str(self.gpu)} if self.gpu else {}
        return {kind: {**sizes, **gpu} for kind, sizes in super().resources().items()}


def _check_bytes(place: str, size: str) -> None:
    if size and parse_quantity(size) < _MEBIBYTE:  # the usual mistake: 512m, which is half a byte
        raise wrong(place, "at least 1Mi (Mi: 2²⁰ bytes; m: a thousandth of one)", size)
