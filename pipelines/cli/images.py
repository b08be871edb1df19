"""`imagemill images build`: build the three images, push them, and write their digests into the cluster file."""

from __future__ import annotations

import argparse
import json
import re
from contextlib import closing
from typing import Any

from ...components.dataset.manifest import code_version
from ...components.step.progress import format_size, say
from ...components.storage.errors import wrong
from ..docker import image_build
from ..docker.client import connect_engine, engine_errors

HELP = "build the images that a cluster runs, push them, and name them by their digests"
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
ENGINE_TIMEOUT_S = 600
"""Of one request to the engine, which reads whole images."""
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_REGISTRY = re.compile(r"[a-z0-9.-]+(:\d+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*")


def add_command(commands: Any) -> None:
    """Add the command and its flags."""
    parser: argparse.ArgumentParser = commands.add_parser("images", help=HELP, description=HELP)
    verbs = parser.add_subparsers(dest="verb", metavar="build", required=True, parser_class=type(parser))
    builder: Any = verbs.add_parser("build", help=HELP, description=HELP)
    builder.add_argument("--registry", default="", metavar="HOST/PATH", help="where to push, such as ghcr.io/you")
    builder.add_argument("--tag", default=code_version(), help=f"beside the digest (default: {code_version()})")
    builder.add_argument("--only", default="", metavar="TARGET,…", help=f"some of {', '.join(image_build.TARGETS)}")
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


def run(flags: dict[str, Any]) -> int:
    """Build and push the images and print their names; return the exit code."""
    push, targets = not flags["no_push"], parse_targets(flags["only"])
    prefix = make_prefix(flags["registry"], flags["tag"], push)
    checkout = image_build.Checkout(
        image_build.find_root(flags["source"]), flags["base_image"], flags["torch_index"], flags["network"],
        flags["pip_config"],
    )  # fmt: skip
    if flags["cluster"]:
        image_build.check_file(flags["cluster"])
    facts: dict[str, dict[str, object]] = {}
    with closing(connect_engine("images", ENGINE_TIMEOUT_S)) as client, engine_errors("images"):
        if flags["rebuild"]:  # all at once, for they share layers
            image_build.build(checkout, image_build.ALL, "", anew=True)
        for target in targets:
            name = f"{prefix}imagemill-{target}:{flags['tag']}"
            say("images", f"{target}: building {name}")
            image_build.build(checkout, target, name)
            size = int(client.images.get(name).attrs["Size"])
            say("images", f"{target}: built ({format_size(size)})")
            facts[target] = {"image": name, "bytes": size}
        if "ray" in facts and not flags["torch_index"]:
            say("images", "warning: most of ray is CUDA, which resizing does not use; unless its nodes run gpu as "
                f"well, which shares it: --torch-index {CPU_WHEELS}")  # fmt: skip
        for target, fact in facts.items() if push else ():
            name = str(fact["image"])
            say("images", f"{target}: pushing {name}")
            fact["image"] = f"{name.rpartition(':')[0]}@{image_build.push(client, name)}"
    values = {target: fact["image"] for target, fact in facts.items()} | ({} if push else {"tags_allowed": True})
    if flags["cluster"]:
        image_build.update_file(flags["cluster"], values)
        say("images", f"wrote the images into {flags['cluster']}")
    if flags["json"]:
        print(json.dumps({"images": facts}))
    elif not flags["cluster"]:
        print(image_build.format_part(values), end="")
    return 0


def parse_targets(only: str) -> tuple[str, ...]:
    """Return the targets to build, in their order; UserError for an unknown one."""
    names = [name.strip() for name in only.split(",") if name.strip()]
    if unknown := [name for name in names if name not in image_build.TARGETS]:
        raise wrong("--only", f"some of {', '.join(image_build.TARGETS)}", unknown[0])
    return tuple(target for target in image_build.TARGETS if not names or target in names)


def make_prefix(registry: str, tag: str, push: bool) -> str:
    """Return what stands before an image's name; UserError for an invalid registry or tag."""
    if push and not registry:
        raise wrong("--registry", "where to push, such as ghcr.io/you, or --no-push", registry)
    if registry and not _REGISTRY.fullmatch(registry):
        raise wrong("--registry", "host[:port][/path] in lower case, without https://", registry)
    if not _TAG.fullmatch(tag) or tag == "latest":
        raise wrong("--tag", "letters, digits, '.', '_' and '-', and not latest, which says nothing", tag)
    return f"{registry}/" if registry else ""
