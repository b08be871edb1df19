"""Building one image: what goes into it, whether it is there already, and BuildKit at work.

The Docker SDK for Python has no BuildKit, which the Dockerfile needs (mounts, secrets, stages left out), so builds go
through the `docker` command line, called without a shell. All else, such as pushing, is the SDK's.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ..components.store.errors import MillError, UserError, wrong
from ..components.store.progress import duration, say

TARGETS = ("cpu", "ray", "gpu")
ALL = "all"
"""A target that builds the three in one go."""
INPUTS = "io.imagemill.inputs"
"""The label that says what an image was made from: the hash of all of it."""
CODE = "io.imagemill.code"
"""The label that says which code an image runs."""
DOCKERFILE = "docker/Dockerfile"
_ALWAYS = (DOCKERFILE, f"{DOCKERFILE}.dockerignore", "docker/fetch", "docker/install", "docker/locks.py",
           "docker/sbom.py", "docker/build.lock", "docker/cpu.lock", "pyproject.toml", "README.md",
           "LICENSE")  # fmt: skip
_TORCH = ("docker/ray.lock", "docker/gpu.lock")
_FOLDERS = ("components", "pipelines")
_STEP = re.compile(r"#(\d+) (.*)")
_PIP = {"PIP_INDEX_URL": "index-url", "PIP_EXTRA_INDEX_URL": "extra-index-url", "PIP_TRUSTED_HOST": "trusted-host"}
_BUILD_ENVIRONMENT = {
    "DOCKER_BUILDKIT": "1",
    "BUILDX_NO_DEFAULT_ATTESTATIONS": "1",  # `kind load` takes no image with them
    "DOCKER_CONTEXT": "default",
    "BUILDX_BUILDER": "default",
}
"""The last two: in the engine where the SDK looks for the image then, that of DOCKER_HOST or this machine's."""
_QUIET_SECONDS = 5.0
_LAST_LINES = 15


@dataclass(frozen=True)
class Recipe:
    """How the images are to be built: the folder of the repository and what may differ from place to place.

    `rebuild`: take nothing that an earlier build has left. `pull`: ask the registry for the base's newest.
    `forget`: images with these inputs are there, and shall be replaced.
    """

    root: Path
    base_image: str = ""
    torch_index: str = ""
    network: str = ""
    pip_config: str = ""
    rebuild: bool = False
    pull: bool = False
    forget: bool = False

    def arguments(self, target: str) -> dict[str, str]:
        """The build arguments that change an image. `gpu` always takes torch from where all else comes from."""
        given = {"BASE_IMAGE": self.base_image, "TORCH_INDEX": self.torch_index if target in ("ray", ALL) else ""}
        return {name: value for name, value in given.items() if value}


def find_root(given: str) -> Path:
    """The checkout with the Dockerfile: the given one, that which this package is installed from, or where the command
    is called."""
    places = [Path(given).absolute()] if given else [Path(__file__).resolve().parents[1], Path.cwd()]
    for root in places:
        if all((root / part).exists() for part in (DOCKERFILE, "pyproject.toml", *_FOLDERS)):
            return root
    raise wrong("--source", f"a checkout of imagemill, with {DOCKERFILE}", ", ".join(map(str, places)))


def inputs(recipe: Recipe, target: str) -> str:
    """The hash of all that an image is made from, in 16 hex digits: files by their names and bytes, and arguments.

    A base image counts by its name: what moves behind that is taken with `--rebuild`.
    """
    digest = _hashed(recipe.root, input_files(recipe, target))
    for name, value in sorted(recipe.arguments(target).items()):
        digest.update(f"{name}={value}\0".encode())
    return digest.hexdigest()[:16]


def code(root: Path) -> str:
    """The hash of the program's own modules, in 16 hex digits: `root` is a checkout, or the package where it is
    installed."""
    modules = (path.relative_to(root).as_posix() for folder in _FOLDERS for path in (root / folder).rglob("*.py"))
    return _hashed(root, sorted(modules)).hexdigest()[:16]


def _hashed(root: Path, names: Iterable[str]) -> hashlib._Hash:
    """Of files by their paths below `root` and their bytes; one that is not there counts as empty."""
    digest = hashlib.sha256()
    for name in names:
        path = root / name
        content = path.read_bytes() if path.is_file() else b""
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest


def input_files(recipe: Recipe, target: str) -> Iterator[str]:
    """The files that the image is made from, by their paths in the checkout, in one order everywhere: as
    docker/Dockerfile.dockerignore lets them through."""
    yield from (*_ALWAYS, *(_TORCH if target != "cpu" else ()))
    for folder in _FOLDERS:
        for path in sorted((recipe.root / folder).rglob("*"), key=lambda one: one.as_posix()):
            parts = path.relative_to(recipe.root).parts
            if path.is_file() and not any(map(_kept_out, parts)):
                yield "/".join(parts)


def _kept_out(name: str) -> bool:
    return name in ("__pycache__", "README.md") or name.endswith(".egg-info") or name.startswith(".")


def find_cli() -> str:
    """The first `docker` on PATH that has BuildKit: Docker 20.10 to 22 by itself, later ones by the plugin buildx."""
    found = ""
    for folder in os.get_exec_path():
        path = shutil.which("docker", path=folder)
        if not path:
            continue
        found = found or path
        if _asked(path, "buildx", "version") or re.match(
            r"20\.|22\.", _asked(path, "version", "-f", "{{.Client.Version}}")
        ):
            return path
    if not found:
        raise UserError("images: expected the command docker, found none on PATH; install Docker (docker.com)")
    raise UserError(f"images: expected BuildKit, found that {found} lacks it; install its plugin buildx "
                    "(package docker-buildx-plugin or docker-buildx)")  # fmt: skip


def _asked(path: str, *words: str) -> str:
    """What docker answers; empty where it can't. Without a daemon `version` still says the client's."""
    answer = subprocess.run([path, *words], capture_output=True, text=True, check=False)
    return answer.stdout.strip() if answer.returncode == 0 or words[0] == "version" else ""


def command(
    cli: str, recipe: Recipe, target: str, tag: str, labels: Mapping[str, str], secrets: Mapping[str, Path]
) -> list[str]:
    """The words of one build. Settings for pip go as secrets: arguments stay in the history of builds."""
    words = [cli, "build", "--progress", "plain", "--file", str(recipe.root / DOCKERFILE), "--target", target]
    words += ["--tag", tag] if tag else []
    words += [word for name, value in labels.items() for word in ("--label", f"{name}={value}")]
    words += [word for name, value in recipe.arguments(target).items() for word in ("--build-arg", f"{name}={value}")]
    words += [word for name, path in secrets.items() for word in ("--secret", f"id={name},src={path}")]
    for name in ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        words += ["--build-arg", name] if os.environ.get(name) else []  # docker takes the value from the environment
    words += ["--network", recipe.network] if recipe.network else []
    words += ["--no-cache"] if recipe.rebuild else []
    words += ["--pull"] if recipe.pull else []
    return [*words, str(recipe.root)]


@contextlib.contextmanager
def pip_secrets(recipe: Recipe) -> Iterator[dict[str, Path]]:
    """The files that the build sees as secrets: pip's settings, as given or from PIP_INDEX_URL and its like, and the
    certificates of PIP_CERT (else SSL_CERT_FILE), which a proxy with its own asks for."""
    secrets: dict[str, Path] = {}
    certificates = os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE") or ""
    if certificates and Path(certificates).is_file():
        secrets["ca.pem"] = Path(certificates)
    if recipe.pip_config and not Path(recipe.pip_config).is_file():
        raise wrong("--pip-config", "a file of settings of pip's", recipe.pip_config)
    with tempfile.TemporaryDirectory(prefix="imagemill-") as folder:
        lines = [f"{key} = {os.environ[name]}" for name, key in _PIP.items() if os.environ.get(name)]
        if recipe.pip_config:
            secrets["pip.conf"] = Path(recipe.pip_config).absolute()
        elif lines:
            secrets["pip.conf"] = Path(folder) / "pip.conf"
            secrets["pip.conf"].write_text("\n".join(["[global]", *lines]) + "\n")
        yield secrets


def build(words: Sequence[str], target: str) -> None:
    """Run a build, saying how it goes; MillError with its last lines, and where its whole log is, when it fails."""
    environment = os.environ | _BUILD_ENVIRONMENT
    descriptor, name = tempfile.mkstemp(prefix=f"imagemill-images-{target}-", suffix=".log")  # nobody else's to read
    log = Path(name)
    with os.fdopen(descriptor, "w", encoding="utf-8") as written:
        process = subprocess.Popen(
            words, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace",
        )  # fmt: skip
        assert process.stdout is not None
        try:
            last = follow(process.stdout, written, target)
            code = process.wait()
        except BaseException:  # Ctrl-C: the build ends with its client
            process.terminate()
            process.wait()
            log.unlink()
            raise
    if code:
        tail = "\n".join(f"    {line}" for line in last)
        raise MillError(f"images: building {target} failed (exit code {code}); the whole log is {log}\n{tail}")
    log.unlink()


def follow(lines: IO[str], log: IO[str], target: str) -> list[str]:
    """Copy a build's output to its log, and say which steps run and how long they took; returns its last lines.

    BuildKit's plain progress: `#7 [stage 2/3] RUN …`, then `#7 12.3 a line of output`, then `#7 DONE 14.2s`, or CACHED.
    """
    last: collections.deque[str] = collections.deque(maxlen=_LAST_LINES)
    names: dict[str, str] = {}
    said = time.monotonic()
    for line in lines:
        log.write(line)
        text = line.rstrip()
        if text:
            last.append(text)
        step = _STEP.match(text)
        if not step:
            continue
        number, rest = step.groups()
        name = names.setdefault(number, _short(rest))
        done = re.fullmatch(r"DONE (\d+\.\d)s", rest)
        output = re.match(r"(\d+)\.\d+ (\S.*)", rest)
        if done and float(done.group(1)) >= 1:
            say("images", f"{target}: {name}: done ({duration(float(done.group(1)))})")
            said = time.monotonic()
        elif output and time.monotonic() - said >= _QUIET_SECONDS:
            say("images", f"{target}: {name}: {output.group(1)} s: {output.group(2)[:80]}")
            said = time.monotonic()
    return list(last)


def _short(text: str) -> str:
    """`[wheels-cpu 3/3] RUN --mount=… ./fetch cpu.lock` as `wheels-cpu 3/3`."""
    stage = re.match(r"\[([^\]]+)\]", text)
    return stage.group(1) if stage else text[:60]
