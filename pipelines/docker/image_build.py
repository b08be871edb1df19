"""The images of the steps: build them with BuildKit, push them, and write their digests into a cluster's YAML file.

The Docker SDK for Python has no BuildKit, which the Dockerfile needs (mounts, secrets, stages left out), so builds go
through the `docker` command line, called without a shell; its output is shown as it is. All else uses the SDK.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ...components.dataset.manifest import code_version
from ...components.storage.errors import MillError, TransientError, UserError, wrong
from ..cluster.cluster_file import parse_cluster

if TYPE_CHECKING:
    from docker import DockerClient

TARGETS = ("cpu", "ray", "gpu")
ALL = "all"
"""A target that builds the three together."""
CODE_LABEL = "io.imagemill.code"
"""The label with the hash of an image's code."""
DOCKERFILE = "docker/Dockerfile"
_FOLDERS = ("components", "pipelines")
_PIP_SETTINGS = {
    "PIP_INDEX_URL": "index-url",
    "PIP_EXTRA_INDEX_URL": "extra-index-url",
    "PIP_TRUSTED_HOST": "trusted-host",
}
_BUILD_ENVIRONMENT = {
    "DOCKER_BUILDKIT": "1",
    "BUILDX_NO_DEFAULT_ATTESTATIONS": "1",  # `kind load` takes no image with them
    "DOCKER_CONTEXT": "default",
    "BUILDX_BUILDER": "default",
}
"""The last two build in the engine that the SDK uses: that of DOCKER_HOST, or this machine's."""
_REFUSAL_TEXTS = (
    "denied", "unauthorized", "no basic auth", "authentication required", "forbidden", "insufficient_scope",
    "name unknown", "name invalid", "repository does not exist",
)  # fmt: skip
"""Parts of the messages of registries that refuse a name or a user."""


@dataclass(frozen=True)
class Checkout:
    """The folder of the repository, and the settings of a build that differ from site to site."""

    root: Path
    base_image: str = ""
    torch_index: str = ""
    network: str = ""
    pip_config: str = ""

    def build_arguments(self, target: str) -> dict[str, str]:
        """Return the Dockerfile's arguments. `gpu` takes torch from the index of all other packages."""
        arguments = {"BASE_IMAGE": self.base_image, "TORCH_INDEX": self.torch_index if target in ("ray", ALL) else ""}
        return {name: value for name, value in arguments.items() if value}


def find_root(source: str) -> Path:
    """Return the checkout with the Dockerfile: `source`, else that of this package, else the working directory."""
    places = [Path(source).absolute()] if source else [Path(__file__).resolve().parents[2], Path.cwd()]
    for root in places:
        if all((root / part).exists() for part in (DOCKERFILE, "pyproject.toml", *_FOLDERS)):
            return root
    raise wrong("--source", f"a checkout of imagemill, with {DOCKERFILE}", ", ".join(map(str, places)))


def hash_code(root: Path) -> str:
    """Return the hash of the program's own modules, as 16 hex digits; `root`: a checkout, or the installed package."""
    digest = hashlib.sha256()
    modules = (path.relative_to(root).as_posix() for folder in _FOLDERS for path in (root / folder).rglob("*.py"))
    for name in sorted(modules):
        content = (root / name).read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def build(checkout: Checkout, target: str, name: str, *, anew: bool = False) -> None:
    """Build a target as the image `name`; `anew`: without the cache, on the newest base. MillError if docker fails."""
    if not (docker := shutil.which("docker")):
        raise UserError("images: expected the command docker, found none on PATH; install Docker (docker.com)")
    with _pip_secrets(checkout.pip_config) as mounted:
        command = make_command(docker, checkout, target, name, mounted, anew)
        code = subprocess.run(
            command, env=os.environ | _BUILD_ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=2, check=False
        ).returncode
    if code:
        raise MillError(f"images: building {target} failed (exit code {code}); docker says above why")


def make_command(
    docker: str, checkout: Checkout, target: str, name: str, mounted: Mapping[str, Path], anew: bool
) -> list[str]:
    """Return the command line of one build. pip's settings are secrets, for build arguments stay in the history."""
    words = [docker, "build", "--file", str(checkout.root / DOCKERFILE), "--target", target]
    words += ["--tag", name] if name else []
    for key, value in _list_labels(checkout.root).items():
        words += ["--label", f"{key}={value}"]
    for key, value in checkout.build_arguments(target).items():
        words += ["--build-arg", f"{key}={value}"]
    for key, path in mounted.items():
        words += ["--secret", f"id={key},src={path}"]
    for key in ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        words += ["--build-arg", key] if os.environ.get(key) else []  # docker takes the value from the environment
    words += ["--network", checkout.network] if checkout.network else []
    words += ["--no-cache"] if anew else []
    words += ["--pull"] if anew and not checkout.base_image else []
    return [*words, str(checkout.root)]


@contextlib.contextmanager
def _pip_secrets(pip_config: str) -> Iterator[dict[str, Path]]:
    """Yield the files that the build mounts as secrets: pip's settings, from `--pip-config` or PIP_INDEX_URL and the
    like, and the certificates of PIP_CERT (else SSL_CERT_FILE), for a proxy with a certificate of its own."""
    mounted: dict[str, Path] = {}
    certificates = os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE") or ""
    if certificates and Path(certificates).is_file():
        mounted["ca.pem"] = Path(certificates)
    if pip_config and not Path(pip_config).is_file():
        raise wrong("--pip-config", "a file of settings of pip's", pip_config)
    with tempfile.TemporaryDirectory(prefix="imagemill-") as folder:
        lines = [f"{key} = {os.environ[name]}" for name, key in _PIP_SETTINGS.items() if os.environ.get(name)]
        if pip_config:
            mounted["pip.conf"] = Path(pip_config).absolute()
        elif lines:
            mounted["pip.conf"] = Path(folder) / "pip.conf"
            mounted["pip.conf"].write_text("\n".join(["[global]", *lines]) + "\n")
        yield mounted


def _list_labels(root: Path) -> dict[str, str]:
    """Return the labels of an image. They change with the code and its commit alone, and so does an image's digest."""
    changed = "-modified" if _git(root, "status", "--porcelain", "--", *_FOLDERS, "docker") else ""
    revision = _git(root, "rev-parse", "HEAD")
    labels = {
        "version": code_version(),
        "revision": revision + changed if revision else "",
        "source": remove_login(_git(root, "remote", "get-url", "origin")),
        "created": _git(root, "log", "-1", "--format=%cI"),
    }
    named = {f"org.opencontainers.image.{name}": value for name, value in labels.items() if value}
    return named | {CODE_LABEL: hash_code(root)}


def remove_login(address: str) -> str:
    """Return a remote's address without a login; empty for a folder."""
    if "://" not in address:
        return address if "@" in address else ""
    parts = urlsplit(address)
    return "" if parts.scheme == "file" else parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _git(root: Path, *words: str) -> str:
    """Return git's output; empty without git or a repository."""
    with contextlib.suppress(OSError):
        result = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
        return result.stdout.strip() if result.returncode == 0 else ""
    return ""


def push(client: DockerClient, name: str) -> str:
    """Push an image and return the digest that the registry gave it."""
    from docker.errors import DockerException
    from urllib3.exceptions import HTTPError

    repository, _, tag = name.rpartition(":")
    try:
        return read_digest(client.api.push(repository, tag=tag, stream=True, decode=True), name)
    except (DockerException, HTTPError, OSError) as error:
        raise _make_push_error(str(error), name) from None


def read_digest(events: Iterable[Mapping[str, Any]], name: str) -> str:
    """Return the digest from the events of a push; raises the error that one of them reports."""
    digest = ""
    for event in events:
        if "error" in event:
            raise _make_push_error(str(event["error"]), name)
        digest = (event.get("aux") or {}).get("Digest", "") or digest
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise MillError(f"images: the registry named no digest for {name}, but {digest!r}")
    return digest


def _make_push_error(text: str, name: str) -> MillError:
    """Return the error of a push: a UserError where the registry refuses the name or the login, else transient."""
    line = " ".join(text.split())[:300]
    host = name.partition("/")[0]
    if any(word in line.lower() for word in _REFUSAL_TEXTS):
        return UserError(
            f"--registry: expected one that you may push to (docker login {host}), found for {name}: {line}"
        )
    return TransientError(f"images: the registry did not take {name}: {line}")


def format_part(values: Mapping[str, object]) -> str:
    """Return the part `images` of a cluster file."""
    return "images:\n" + "".join(f"  {name}: {_format_scalar(value)}\n" for name, value in values.items())


def set_images(text: str, values: Mapping[str, object], where: str) -> str:
    """Return `text`, a cluster's YAML, with these values under `images`, a line each; comments and all else stay.

    UserError, which names the file `where` and says what to write there, where the part has another form.
    """
    import yaml

    lines = text.splitlines()
    start = next((n for n, line in enumerate(lines) if re.fullmatch(r"images:\s*(#.*)?", line)), len(lines))
    if start == len(lines):
        lines.append("images:")
    end = next((n for n in range(start + 1, len(lines)) if re.match(r"[^\s#]", lines[n])), len(lines))
    for name, value in values.items():
        pattern = re.compile(rf"(\s+{name}:)[^#]*?(\s*#.*)?")
        for number in range(start + 1, end):
            if entry := pattern.fullmatch(lines[number]):
                lines[number] = f"{entry[1]} {_format_scalar(value)}{entry[2] or ''}"
                break
        else:
            lines.insert(start + 1, f"  {name}: {_format_scalar(value)}")
            end += 1
    edited = "\n".join(lines) + "\n"
    try:
        before, parsed = yaml.safe_load(text) or {}, yaml.safe_load(edited)
        if (start == len(text.splitlines()) and "images" in before) or parsed != before | {
            "images": (before.get("images") or {}) | dict(values)
        }:
            raise ValueError("a part images of another form")
    except (yaml.YAMLError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"--cluster {where}: expected a part images with a line for each image, found "
            f"{' '.join(str(error).split())}; write there:\n{format_part(values)}"
        ) from None
    parse_cluster(parsed, where)
    return edited


def _format_scalar(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f'"{value}"'


def check_file(path: str) -> None:
    """Raise UserError for mistakes of a cluster file: now, rather than after half an hour of building."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise wrong(
            "--cluster", "a YAML file that can be read (`imagemill cluster` prints one)", f"{path} ({error})"
        ) from None
    set_images(text, dict.fromkeys(TARGETS, f"none@sha256:{'0' * 64}"), path)


def update_file(path: str, values: Mapping[str, object]) -> None:
    """Write the images into the file, atomically; edits that were made meanwhile are kept."""
    target = Path(path).resolve()
    text = set_images(target.read_text(encoding="utf-8"), values, path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.chmod(target.stat().st_mode & 0o777)
        temporary.replace(target)
    except OSError as error:
        raise UserError(f"--cluster: expected a file that can be written, found {path} ({error.strerror})") from None
    finally:
        temporary.unlink(missing_ok=True)
