"""`imagemill images build`: the three images, pushed, and named by their digests in the cluster's file."""

from __future__ import annotations

import argparse
import io
import json
import re
import subprocess
import tarfile
from collections.abc import Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..components.store.errors import MillError, TransientError, UserError, wrong
from ..components.store.manifest import code_version
from ..components.store.progress import say, size
from . import image_pins
from .docker_client import answering, connected
from .image_build import (
    ALL,
    CODE,
    INPUTS,
    TARGETS,
    Recipe,
    build,
    code,
    command,
    find_cli,
    find_root,
    inputs,
    pip_secrets,
)

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.images import Image

HELP = "build the images that a cluster runs, push them, and name them by their digests"
SBOM = "/usr/share/imagemill/sbom.json"
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
ENGINE_S = 600
"""So long the engine may take for one answer: it reads whole images."""
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_REGISTRY = re.compile(r"[a-z0-9.-]+(:\d+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*")
_REFUSED = (
    "denied", "unauthorized", "no basic auth", "authentication required", "forbidden", "insufficient_scope",
    "name unknown", "name invalid", "repository does not exist",
)  # fmt: skip
"""What registries say that do not take a name, or not from this user."""


def add_command(commands: Any) -> None:
    """The command's flags."""
    parser: argparse.ArgumentParser = commands.add_parser("images", help=HELP, description=HELP)
    verbs = parser.add_subparsers(dest="verb", metavar="build", required=True, parser_class=type(parser))
    builder: Any = verbs.add_parser("build", help=HELP, description=HELP)
    builder.add_argument("--registry", default="", metavar="HOST/PATH", help="where to push, such as ghcr.io/you")
    builder.add_argument("--tag", default=code_version(), help=f"beside the digest (default: {code_version()})")
    builder.add_argument("--only", default="", metavar="TARGET,…", help=f"some of {', '.join(TARGETS)} (default: all)")
    builder.add_argument("--no-push", action="store_true", help="build only, for this machine or for `kind load`")
    builder.add_argument("--cluster", default="", metavar="FILE.yaml", help="write the images into this cluster's file")
    builder.add_argument("--torch-index", default="", metavar="URL",
                         help=f"an index of CPU wheels of torch for the image ray, such as {CPU_WHEELS}")  # fmt: skip
    builder.add_argument("--base-image", default="", metavar="IMAGE", help="instead of the Dockerfile's BASE_IMAGE")
    builder.add_argument("--sbom", default="", metavar="FOLDER", help="copy what each image consists of there, as JSON")
    builder.add_argument("--rebuild", action="store_true", help="from the newest base, even where nothing has changed")
    builder.add_argument("--network", default="", help="the network that the build uses, such as host")
    builder.add_argument("--pip-config", default="", metavar="FILE", help="settings for pip during the build; a secret")
    builder.add_argument("--source", default="", metavar="FOLDER", help="the checkout (default: that of this program)")
    builder.add_argument("--json", action="store_true", help="print the result as one line of JSON")


@dataclass(frozen=True)
class Built:
    """An image as it came out."""

    target: str
    name: str
    bytes: int
    digest: str = ""
    state: str = "built"

    @property
    def reference(self) -> str:
        """What a cluster's file says: by digest where it was pushed, else by tag."""
        return f"{self.name.rpartition(':')[0]}@{self.digest}" if self.digest else self.name


def run(found: dict[str, Any]) -> int:
    """Build, push and say what came of it; errors carry their exit codes."""
    push = not found["no_push"]
    targets = chosen(found["only"])
    name = namer(found["registry"], found["tag"], push)
    recipe = Recipe(
        find_root(found["source"]), found["base_image"], found["torch_index"], found["network"],
        found["pip_config"], found["rebuild"],
    )  # fmt: skip
    if recipe.rebuild and len(targets) < len(TARGETS):
        raise wrong("--rebuild", "all images, for they share layers, and so no --only", found["only"])
    if found["cluster"]:
        image_pins.check_file(found["cluster"])
    with closing(connected("images", ENGINE_S)) as client, answering("images"):
        if recipe.rebuild:
            recipe = anew(recipe, not made_here(client, recipe.base_image))
        built = [make(client, recipe, target, name(target)) for target in targets]
        _warn_of_size(built, recipe)
        if found["sbom"]:
            for one in built:
                write_sbom(client, one, Path(found["sbom"]))
        if push:
            built = [pushed(client, one) for one in built]
    values: dict[str, object] = {one.target: one.reference for one in built}
    values |= {} if push else {"tags_allowed": True}
    if found["cluster"]:
        image_pins.write(found["cluster"], values)
        say("images", f"wrote the images into {found['cluster']}")
    if found["json"]:
        images = {one.target: {"image": one.reference, "bytes": one.bytes, "state": one.state} for one in built}
        print(json.dumps({"images": images}))
    elif not found["cluster"]:
        print(image_pins.part(values), end="")
    return 0


def chosen(only: str) -> tuple[str, ...]:
    """The targets to build, in their order."""
    names = [name.strip() for name in only.split(",") if name.strip()]
    if unknown := [name for name in names if name not in TARGETS]:
        raise wrong("--only", f"some of {', '.join(TARGETS)}", unknown[0])
    return tuple(target for target in TARGETS if not names or target in names)


def namer(registry: str, tag: str, push: bool) -> Any:
    """Target → image name; UserError for a registry or a tag that can't be one."""
    if push and not registry:
        raise wrong("--registry", "where to push, such as ghcr.io/you, or --no-push", registry)
    if registry and not _REGISTRY.fullmatch(registry):
        raise wrong("--registry", "host[:port][/path] in lower case, without https://", registry)
    if not _TAG.fullmatch(tag) or tag == "latest":
        raise wrong("--tag", "letters, digits, '.', '_' and '-', and not latest, which says nothing", tag)
    prefix = f"{registry}/" if registry else ""
    return lambda target: f"{prefix}imagemill-{target}:{tag}"


def made_here(client: DockerClient, image: str) -> bool:
    """Whether an image is one that no registry has: it was built or imported on this machine."""
    from docker.errors import ImageNotFound

    with suppress(ImageNotFound):
        return bool(image) and not client.images.get(image).attrs.get("RepoDigests")
    return False


def anew(recipe: Recipe, pull: bool) -> Recipe:
    """Build everything without what earlier builds have left, once for all targets: they take it from there."""
    say("images", "building everything anew")
    with pip_secrets(recipe) as secrets:
        build(command(find_cli(), replace(recipe, pull=pull), ALL, "", {}, secrets), ALL)
    return replace(recipe, rebuild=False, forget=True)


def make(client: DockerClient, recipe: Recipe, target: str, name: str) -> Built:
    """The image under this name: the one that is there if its inputs are these, else a new one."""
    wanted = inputs(recipe, target)
    if not recipe.forget and (image := _there(client, wanted, target)):
        repository, _, tag = name.rpartition(":")
        image.tag(repository, tag)
        say("images", f"{target}: there already ({size(image.attrs['Size'])}): {name}")
        return Built(target, name, int(image.attrs["Size"]), state="cached")
    say("images", f"{target}: building {name}")
    given = labels(recipe.root) | {INPUTS: wanted, CODE: code(recipe.root)}
    with pip_secrets(recipe) as secrets:
        build(command(find_cli(), recipe, target, name, given, secrets), target)
    image = client.images.get(name)
    say("images", f"{target}: built ({size(image.attrs['Size'])}): {name}")
    return Built(target, name, int(image.attrs["Size"]))


def _there(client: DockerClient, wanted: str, target: str) -> Image | None:
    title = f"org.opencontainers.image.title=imagemill-{target}"
    images = client.images.list(filters={"label": [f"{INPUTS}={wanted}", title]})
    return images[0] if images else None


def labels(root: Path) -> dict[str, str]:
    """What differs from build to build in the labels of the Open Containers Initiative."""
    dirty = "-modified" if _git(root, "status", "--porcelain", "--", "components", "pipelines", "docker") else ""
    revision = _git(root, "rev-parse", "HEAD")
    given = {
        "version": code_version(),
        "revision": revision + dirty if revision else "",
        "source": public(_git(root, "remote", "get-url", "origin")),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return {f"org.opencontainers.image.{name}": value for name, value in given.items() if value}


def public(address: str) -> str:
    """A remote's address without the password that may be in it; none for a folder."""
    if "://" not in address:
        return address if "@" in address else ""
    parts = urlsplit(address)
    return "" if parts.scheme == "file" else parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _git(root: Path, *words: str) -> str:
    """What git answers; empty where there is no git, or no repository."""
    with suppress(OSError):
        answer = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
        return answer.stdout.strip() if answer.returncode == 0 else ""
    return ""


def _warn_of_size(built: Iterable[Built], recipe: Recipe) -> None:
    for one in built:
        if one.target == "ray" and not recipe.torch_index:
            say("images", f"warning: ray is {size(one.bytes)}, most of it CUDA, which resizing does not use; unless "
                f"its nodes run gpu as well, which shares it: --torch-index {CPU_WHEELS}")  # fmt: skip


def pushed(client: DockerClient, one: Built) -> Built:
    """The image with the digest that the registry gave it."""
    from docker.errors import DockerException
    from urllib3.exceptions import HTTPError

    repository, _, tag = one.name.rpartition(":")
    say("images", f"{one.target}: pushing {one.name}")
    try:
        digest = digest_of(client.api.push(repository, tag=tag, stream=True, decode=True), one.name)
    except (DockerException, HTTPError, OSError) as error:
        raise refusal(str(error), one.name) from None
    say("images", f"{one.target}: pushed: {digest}")
    return Built(one.target, one.name, one.bytes, digest, one.state)


def digest_of(events: Iterable[Mapping[str, Any]], name: str) -> str:
    """The digest from a push's events; the error that one of them tells is raised."""
    digest = ""
    for event in events:
        if "error" in event:
            raise refusal(str(event["error"]), name)
        digest = (event.get("aux") or {}).get("Digest", "") or digest
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise MillError(f"images: the registry named no digest for {name}, but {digest!r}")
    return digest


def refusal(text: str, name: str) -> MillError:
    """A push's error: the user's where the registry refuses the name or the login, else transient."""
    line = " ".join(text.split())[:300]
    host = name.partition("/")[0]
    if any(word in line.lower() for word in _REFUSED):
        return UserError(
            f"--registry: expected one that you may push to (docker login {host}), found for {name}: {line}"
        )
    return TransientError(f"images: the registry did not take {name}: {line}")


def write_sbom(client: DockerClient, one: Built, folder: Path) -> None:
    """Copy the image's bill of materials to `imagemill-<target>.sbom.json` in the folder, which is made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise wrong("--sbom", "a folder that can be written", f"{folder} ({error.strerror})") from None
    container = client.containers.create(one.name)
    try:
        chunks, _ = container.get_archive(SBOM)
        with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
            member = archive.extractfile(Path(SBOM).name)
            assert member is not None
            (folder / f"imagemill-{one.target}.sbom.json").write_bytes(member.read())
    finally:
        container.remove(v=True)  # with it the volume that every container of these images has
