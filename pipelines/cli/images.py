"""`imagemill images build`: build the three images, push them, and write their digests into the cluster file."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ...components.dataset.manifest import code_version
from ...components.step.progress import format_size, say
from ...components.storage.errors import MillError, TransientError, UserError, wrong
from ..docker import image_pins
from ..docker.client import connect_engine, engine_errors
from ..docker.image_build import (
    ALL,
    CODE_LABEL,
    INPUTS_LABEL,
    TARGETS,
    BuildOptions,
    find_cli,
    find_root,
    hash_code,
    hash_inputs,
    make_command,
    pip_secrets,
    run_build,
)

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.images import Image as DockerImage

HELP = "build the images that a cluster runs, push them, and name them by their digests"
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
ENGINE_TIMEOUT_S = 600
"""Of one request to the engine, which reads whole images."""
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_REGISTRY = re.compile(r"[a-z0-9.-]+(:\d+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*")
_REFUSAL_TEXTS = (
    "denied", "unauthorized", "no basic auth", "authentication required", "forbidden", "insufficient_scope",
    "name unknown", "name invalid", "repository does not exist",
)  # fmt: skip
"""Parts of the messages of registries that refuse a name or a user."""


def add_command(commands: Any) -> None:
    """Add the command and its flags."""
    parser: argparse.ArgumentParser = commands.add_parser("images", help=HELP, description=HELP)
    verbs = parser.add_subparsers(dest="verb", metavar="build", required=True, parser_class=type(parser))
    builder: Any = verbs.add_parser("build", help=HELP, description=HELP)
    builder.add_argument("--registry", default="", metavar="HOST/PATH", help="where to push, such as ghcr.io/you")
    builder.add_argument("--tag", default=code_version(), help=f"beside the digest (default: {code_version()})")
    builder.add_argument("--only", default="", metavar="TARGET,…", help=f"some of {', '.join(TARGETS)} (default: all)")
    builder.add_argument("--no-push", action="store_true", help="build only, for this machine or for `kind load`")
    builder.add_argument("--cluster", default="", metavar="FILE.yaml", help="write the images into this cluster file")
    builder.add_argument("--torch-index", default="", metavar="URL",
                         help=f"an index of CPU wheels of torch for the image ray, such as {CPU_WHEELS}")  # fmt: skip
    builder.add_argument("--base-image", default="", metavar="IMAGE", help="instead of the Dockerfile's BASE_IMAGE")
    builder.add_argument("--rebuild", action="store_true", help="from the newest base, even where nothing has changed")
    builder.add_argument("--network", default="", help="the network that the build uses, such as host")
    builder.add_argument("--pip-config", default="", metavar="FILE", help="settings for pip during the build; a secret")
    builder.add_argument("--source", default="", metavar="FOLDER", help="the checkout (default: that of this program)")
    builder.add_argument("--json", action="store_true", help="print the result as one line of JSON")


@dataclass(frozen=True)
class BuiltImage:
    """A built image of one target: its name, size and, if it was pushed, digest; `state` is `built` or `cached`."""

    target: str
    name: str
    bytes: int
    digest: str = ""
    state: str = "built"

    @property
    def reference(self) -> str:
        """Return the image's name for a cluster file: by digest if it was pushed, else by tag."""
        return f"{self.name.rpartition(':')[0]}@{self.digest}" if self.digest else self.name


def run(flags: dict[str, Any]) -> int:
    """Build and push the images and print their names; return the exit code."""
    push = not flags["no_push"]
    targets = parse_targets(flags["only"])
    name_image = make_namer(flags["registry"], flags["tag"], push)
    options = BuildOptions(
        find_root(flags["source"]), flags["base_image"], flags["torch_index"], flags["network"],
        flags["pip_config"], flags["rebuild"],
    )  # fmt: skip
    if options.rebuild and len(targets) < len(TARGETS):
        raise wrong("--rebuild", "all images, for they share layers, and so no --only", flags["only"])
    if flags["cluster"]:
        image_pins.check_file(flags["cluster"])
    with closing(connect_engine("images", ENGINE_TIMEOUT_S)) as client, engine_errors("images"):
        if options.rebuild:
            options = rebuild_all(options, not is_local(client, options.base_image))
        images = [build_image(client, options, target, name_image(target)) for target in targets]
        _warn_of_size(images, options)
        if push:
            images = [push_image(client, image) for image in images]
    values: dict[str, object] = {image.target: image.reference for image in images}
    values |= {} if push else {"tags_allowed": True}
    if flags["cluster"]:
        image_pins.update_file(flags["cluster"], values)
        say("images", f"wrote the images into {flags['cluster']}")
    if flags["json"]:
        facts = {image.target: {"image": image.reference, "bytes": image.bytes, "state": image.state}
                 for image in images}  # fmt: skip
        print(json.dumps({"images": facts}))
    elif not flags["cluster"]:
        print(image_pins.format_part(values), end="")
    return 0


def parse_targets(only: str) -> tuple[str, ...]:
    """Return the targets to build, in their order; UserError for an unknown one."""
    names = [name.strip() for name in only.split(",") if name.strip()]
    if unknown := [name for name in names if name not in TARGETS]:
        raise wrong("--only", f"some of {', '.join(TARGETS)}", unknown[0])
    return tuple(target for target in TARGETS if not names or target in names)


def make_namer(registry: str, tag: str, push: bool) -> Callable[[str], str]:
    """Return a function from target to image name; UserError for an invalid registry or tag."""
    if push and not registry:
        raise wrong("--registry", "where to push, such as ghcr.io/you, or --no-push", registry)
    if registry and not _REGISTRY.fullmatch(registry):
        raise wrong("--registry", "host[:port][/path] in lower case, without https://", registry)
    if not _TAG.fullmatch(tag) or tag == "latest":
        raise wrong("--tag", "letters, digits, '.', '_' and '-', and not latest, which says nothing", tag)
    prefix = f"{registry}/" if registry else ""
    return lambda target: f"{prefix}imagemill-{target}:{tag}"


def is_local(client: DockerClient, image: str) -> bool:
    """Return whether an image was built or imported on this machine, and comes from no registry."""
    from docker.errors import ImageNotFound

    with suppress(ImageNotFound):
        return bool(image) and not client.images.get(image).attrs.get("RepoDigests")
    return False


def rebuild_all(options: BuildOptions, pull: bool) -> BuildOptions:
    """Build all targets once without the cache; return the options for builds that take their layers from there."""
    say("images", "building everything anew")
    with pip_secrets(options) as secrets:
        run_build(make_command(find_cli(), replace(options, pull=pull), ALL, "", {}, secrets), ALL)
    return replace(options, rebuild=False, replace_existing=True)


def build_image(client: DockerClient, options: BuildOptions, target: str, name: str) -> BuiltImage:
    """Return the image of this name: an existing one that has the same inputs, else a new one."""
    inputs_hash = hash_inputs(options, target)
    if not options.replace_existing and (existing := _find_image(client, inputs_hash, target)):
        repository, _, tag = name.rpartition(":")
        existing.tag(repository, tag)
        say("images", f"{target}: there already ({format_size(existing.attrs['Size'])}): {name}")
        return BuiltImage(target, name, int(existing.attrs["Size"]), state="cached")
    say("images", f"{target}: building {name}")
    labels = make_labels(options.root) | {INPUTS_LABEL: inputs_hash, CODE_LABEL: hash_code(options.root)}
    with pip_secrets(options) as secrets:
        run_build(make_command(find_cli(), options, target, name, labels, secrets), target)
    image = client.images.get(name)
    say("images", f"{target}: built ({format_size(image.attrs['Size'])}): {name}")
    return BuiltImage(target, name, int(image.attrs["Size"]))


def _find_image(client: DockerClient, inputs_hash: str, target: str) -> DockerImage | None:
    title = f"org.opencontainers.image.title=imagemill-{target}"
    images = client.images.list(filters={"label": [f"{INPUTS_LABEL}={inputs_hash}", title]})
    return images[0] if images else None


def make_labels(root: Path) -> dict[str, str]:
    """Return the labels of the Open Containers Initiative that differ from build to build."""
    dirty = "-modified" if _git(root, "status", "--porcelain", "--", "components", "pipelines", "docker") else ""
    revision = _git(root, "rev-parse", "HEAD")
    labels = {
        "version": code_version(),
        "revision": revision + dirty if revision else "",
        "source": remove_login(_git(root, "remote", "get-url", "origin")),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return {f"org.opencontainers.image.{name}": value for name, value in labels.items() if value}


def remove_login(address: str) -> str:
    """Return a remote's address without a login; empty for a folder."""
    if "://" not in address:
        return address if "@" in address else ""
    parts = urlsplit(address)
    return "" if parts.scheme == "file" else parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _git(root: Path, *words: str) -> str:
    """Return git's output; empty without git or a repository."""
    with suppress(OSError):
        result = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
        return result.stdout.strip() if result.returncode == 0 else ""
    return ""


def _warn_of_size(images: Iterable[BuiltImage], options: BuildOptions) -> None:
    for image in images:
        if image.target == "ray" and not options.torch_index:
            say("images", f"warning: ray is {format_size(image.bytes)}, most of it CUDA, which resizing does not use; "
                f"unless its nodes run gpu as well, which shares it: --torch-index {CPU_WHEELS}")  # fmt: skip


def push_image(client: DockerClient, image: BuiltImage) -> BuiltImage:
    """Push an image and return it with the digest that the registry gave it."""
    from docker.errors import DockerException
    from urllib3.exceptions import HTTPError

    repository, _, tag = image.name.rpartition(":")
    say("images", f"{image.target}: pushing {image.name}")
    try:
        digest = read_digest(client.api.push(repository, tag=tag, stream=True, decode=True), image.name)
    except (DockerException, HTTPError, OSError) as error:
        raise make_push_error(str(error), image.name) from None
    say("images", f"{image.target}: pushed: {digest}")
    return replace(image, digest=digest)


def read_digest(events: Iterable[Mapping[str, Any]], name: str) -> str:
    """Return the digest from the events of a push; raises the error that one of them reports."""
    digest = ""
    for event in events:
        if "error" in event:
            raise make_push_error(str(event["error"]), name)
        digest = (event.get("aux") or {}).get("Digest", "") or digest
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise MillError(f"images: the registry named no digest for {name}, but {digest!r}")
    return digest


def make_push_error(text: str, name: str) -> MillError:
    """Return the error of a push: a UserError where the registry refuses the name or the login, else transient."""
    line = " ".join(text.split())[:300]
    host = name.partition("/")[0]
    if any(word in line.lower() for word in _REFUSAL_TEXTS):
        return UserError(
            f"--registry: expected one that you may push to (docker login {host}), found for {name}: {line}"
        )
    return TransientError(f"images: the registry did not take {name}: {line}")
