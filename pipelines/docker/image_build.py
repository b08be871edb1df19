"""Build one image with BuildKit, and hash its inputs, by which an image that exists is recognized.

The Docker SDK for Python has no BuildKit, which the Dockerfile needs (mounts, secrets, stages left out), so builds go
through the `docker` command line, called without a shell. All else, such as pushing, uses the SDK.
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

from ...components.step.progress import format_duration, say
from ...components.storage.errors import MillError, UserError, wrong

TARGETS = ("cpu", "ray", "gpu")
ALL = "all"
"""A target that builds the three together."""
INPUTS_LABEL = "io.imagemill.inputs"
"""The label with the hash of an image's inputs."""
CODE_LABEL = "io.imagemill.code"
"""The label with the hash of an image's code."""
DOCKERFILE = "docker/Dockerfile"
_COMMON_FILES = (DOCKERFILE, f"{DOCKERFILE}.dockerignore", "docker/fetch", "docker/install", "docker/locks.py",
                 "docker/build.lock", "docker/cpu.lock", "pyproject.toml", "README.md",
                 "LICENSE")  # fmt: skip
_TORCH_LOCKS = ("docker/ray.lock", "docker/gpu.lock")
_FOLDERS = ("components", "pipelines")
_PROGRESS = re.compile(r"#(\d+) (.*)")
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
_PROGRESS_INTERVAL_S = 5.0
_TAIL_LINES = 15


@dataclass(frozen=True)
class BuildOptions:
    """Options of a build: the folder of the repository, and settings that differ from site to site.

    `rebuild`: use no cache of earlier builds. `pull`: ask the registry for the newest base image. `replace_existing`:
    build also where an image with these inputs exists.
    """

    root: Path
    base_image: str = ""
    torch_index: str = ""
    network: str = ""
    pip_config: str = ""
    rebuild: bool = False
    pull: bool = False
    replace_existing: bool = False

    def build_args(self, target: str) -> dict[str, str]:
        """Return the build arguments that change an image. `gpu` takes torch from the index of all other packages."""
        build_args = {"BASE_IMAGE": self.base_image, "TORCH_INDEX": self.torch_index if target in ("ray", ALL) else ""}
        return {name: value for name, value in build_args.items() if value}


def find_root(source: str) -> Path:
    """Return the checkout with the Dockerfile: `source`, else that of this package, else the working directory."""
    places = [Path(source).absolute()] if source else [Path(__file__).resolve().parents[2], Path.cwd()]
    for root in places:
        if all((root / part).exists() for part in (DOCKERFILE, "pyproject.toml", *_FOLDERS)):
            return root
    raise wrong("--source", f"a checkout of imagemill, with {DOCKERFILE}", ", ".join(map(str, places)))


def hash_inputs(options: BuildOptions, target: str) -> str:
    """Return the hash of an image's inputs, as 16 hex digits: files by their names and bytes, and build arguments.

    A base image counts by its name: `--rebuild` takes one that has changed under its name.
    """
    digest = _hash_files(options.root, list_input_files(options.root, target))
    for name, value in sorted(options.build_args(target).items()):
        digest.update(f"{name}={value}\0".encode())
    return digest.hexdigest()[:16]


def hash_code(root: Path) -> str:
    """Return the hash of the program's own modules, as 16 hex digits; `root`: a checkout, or the installed package."""
    modules = (path.relative_to(root).as_posix() for folder in _FOLDERS for path in (root / folder).rglob("*.py"))
    return _hash_files(root, sorted(modules)).hexdigest()[:16]


def _hash_files(root: Path, names: Iterable[str]) -> hashlib._Hash:
    """Hash files by their paths below `root` and their bytes; a missing one counts as empty."""
    digest = hashlib.sha256()
    for name in names:
        path = root / name
        content = path.read_bytes() if path.is_file() else b""
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest


def list_input_files(root: Path, target: str) -> Iterator[str]:
    """Yield the files that an image is built from, as paths below the checkout `root`, in the same order everywhere:
    those that docker/Dockerfile.dockerignore admits."""
    yield from (*_COMMON_FILES, *(_TORCH_LOCKS if target != "cpu" else ()))
    for folder in _FOLDERS:
        for path in sorted((root / folder).rglob("*"), key=lambda path: path.as_posix()):
            parts = path.relative_to(root).parts
            if path.is_file() and not any(map(_is_ignored, parts)):
                yield "/".join(parts)


def _is_ignored(name: str) -> bool:
    return name in ("__pycache__", "README.md") or name.endswith(".egg-info") or name.startswith(".")


def find_cli() -> str:
    """Return the first `docker` on PATH that has BuildKit: built into Docker 20.10 to 22, later the plugin buildx."""
    first = ""
    for folder in os.get_exec_path():
        path = shutil.which("docker", path=folder)
        if not path:
            continue
        first = first or path
        version = ("version", "-f", "{{.Client.Version}}")
        if _query_cli(path, "buildx", "version") or re.match(r"20\.|22\.", _query_cli(path, *version)):
            return path
    if not first:
        raise UserError("images: expected the command docker, found none on PATH; install Docker (docker.com)")
    raise UserError(f"images: expected BuildKit, found that {first} lacks it; install its plugin buildx "
                    "(package docker-buildx-plugin or docker-buildx)")  # fmt: skip


def _query_cli(path: str, *words: str) -> str:
    """Return docker's output; empty where it fails. Without a daemon `version` still prints the client's version."""
    result = subprocess.run([path, *words], capture_output=True, text=True, check=False)
    return result.stdout.strip() if result.returncode == 0 or words[0] == "version" else ""


def make_command(
    cli: str, options: BuildOptions, target: str, tag: str, labels: Mapping[str, str], secrets: Mapping[str, Path]
) -> list[str]:
    """Return the command line of one build. pip's settings are secrets, for build arguments stay in the history."""
    words = [cli, "build", "--progress", "plain", "--file", str(options.root / DOCKERFILE), "--target", target]
    words += ["--tag", tag] if tag else []
    words += [word for name, value in labels.items() for word in ("--label", f"{name}={value}")]
    words += [word for name, value in options.build_args(target).items() for word in ("--build-arg", f"{name}={value}")]
    words += [word for name, path in secrets.items() for word in ("--secret", f"id={name},src={path}")]
    for name in ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        words += ["--build-arg", name] if os.environ.get(name) else []  # docker takes the value from the environment
    words += ["--network", options.network] if options.network else []
    words += ["--no-cache"] if options.rebuild else []
    words += ["--pull"] if options.pull else []
    return [*words, str(options.root)]


@contextlib.contextmanager
def pip_secrets(options: BuildOptions) -> Iterator[dict[str, Path]]:
    """Yield the files that the build mounts as secrets: pip's settings, from `--pip-config` or PIP_INDEX_URL and the
    like, and the certificates of PIP_CERT (else SSL_CERT_FILE), for a proxy with a certificate of its own."""
    secrets: dict[str, Path] = {}
    certificates = os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE") or ""
    if certificates and Path(certificates).is_file():
        secrets["ca.pem"] = Path(certificates)
    if options.pip_config and not Path(options.pip_config).is_file():
        raise wrong("--pip-config", "a file of settings of pip's", options.pip_config)
    with tempfile.TemporaryDirectory(prefix="imagemill-") as folder:
        lines = [f"{key} = {os.environ[name]}" for name, key in _PIP_SETTINGS.items() if os.environ.get(name)]
        if options.pip_config:
            secrets["pip.conf"] = Path(options.pip_config).absolute()
        elif lines:
            secrets["pip.conf"] = Path(folder) / "pip.conf"
            secrets["pip.conf"].write_text("\n".join(["[global]", *lines]) + "\n")
        yield secrets


def run_build(command: Sequence[str], target: str) -> None:
    """Run a build and print its progress; MillError with its last lines and the path of its log when it fails."""
    environment = os.environ | _BUILD_ENVIRONMENT
    descriptor, name = tempfile.mkstemp(prefix=f"imagemill-images-{target}-", suffix=".log")
    log = Path(name)  # readable by this user alone
    with os.fdopen(descriptor, "w", encoding="utf-8") as log_file:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace",
        )  # fmt: skip
        assert process.stdout is not None
        try:
            last_lines = follow_build(process.stdout, log_file, target)
            code = process.wait()
        except BaseException:  # Ctrl-C: the build ends with its client
            process.terminate()
            process.wait()
            log.unlink()
            raise
    if code:
        tail = "\n".join(f"    {line}" for line in last_lines)
        raise MillError(f"images: building {target} failed (exit code {code}); the whole log is {log}\n{tail}")
    log.unlink()


def follow_build(lines: IO[str], log: IO[str], target: str) -> list[str]:
    """Copy a build's output to its log, print which steps run and how long they took, and return its last lines.

    BuildKit's plain progress: `#7 [stage 2/3] RUN …`, then `#7 12.3 a line of output`, then `#7 DONE 14.2s`, or CACHED.
    """
    last_lines: collections.deque[str] = collections.deque(maxlen=_TAIL_LINES)
    names: dict[str, str] = {}
    printed_at = time.monotonic()
    for line in lines:
        log.write(line)
        text = line.rstrip()
        if text:
            last_lines.append(text)
        step = _PROGRESS.match(text)
        if not step:
            continue
        number, rest = step.groups()
        name = names.setdefault(number, _shorten_name(rest))
        done = re.fullmatch(r"DONE (\d+\.\d)s", rest)
        output = re.match(r"(\d+)\.\d+ (\S.*)", rest)
        if done and float(done.group(1)) >= 1:
            say("images", f"{target}: {name}: done ({format_duration(float(done.group(1)))})")
            printed_at = time.monotonic()
        elif output and time.monotonic() - printed_at >= _PROGRESS_INTERVAL_S:
            say("images", f"{target}: {name}: {output.group(1)} s: {output.group(2)[:80]}")
            printed_at = time.monotonic()
    return list(last_lines)


def _shorten_name(text: str) -> str:
    """Return `[wheels-cpu 3/3] RUN --mount=… ./fetch cpu.lock` as `wheels-cpu 3/3`."""
    stage = re.match(r"\[([^\]]+)\]", text)
    return stage.group(1) if stage else text[:60]
