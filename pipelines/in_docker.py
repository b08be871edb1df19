"""The pipeline in the images, on this machine: KFP's own DockerRunner with containers as strict as a cluster's pods.

A container runs as an ordinary user without capabilities, on a read-only root file system; it may write the workspace
and one scratch folder, and reads what the parameters name. KFP starts the containers one after another; how a step
ended is taken from the container's exit code and from the step's record, never from KFP.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..components.store.config import STEPS
from ..components.store.errors import EXIT_TRANSIENT, UserError
from ..components.store.progress import say
from ..components.store.workspace import Workspace
from .cluster import LABELS, RUN_LABEL, SCRATCH, Cluster
from .docker_client import answering, connected
from .docker_ending import STEP_LABEL, end_containers, remove_never_started
from .docker_environment import (
    Credentials,
    certificate_files,
    credentials_of_s3,
    endpoints,
    network,
    variables,
)
from .docker_mounts import Seen, seen_by
from .docker_user import User, make_run_folder, make_writable, options, user_of
from .image_build import CODE, code
from .parameters import RunParameters

FLAG = "--runner docker"
ON_GPU = ("train", "evaluate")
_KFP_STARTS, _WE_START = "_KFP_RUNTIME=true python3 -m", "export _KFP_RUNTIME=true; exec python3 -m"


@dataclass(frozen=True)
class Engine:
    """A Docker engine of this machine, and the image of each step."""

    client: Any
    info: Mapping[str, Any]
    images: Mapping[str, str]
    without_init: frozenset[str] = frozenset()
    """Images that start no process of their own that buries the orphans of a step."""

    @property
    def user(self) -> User:
        return user_of(self.info, (os.getuid(), os.getgid()))

    def make_writable(self, workspace: str) -> None:
        make_writable(workspace, self.user)


def connect(cluster: Cluster) -> Engine:
    """The engine, with the images of `cluster` (by default those of this version); UserError when either is missing,
    TransientError when the engine does not answer."""
    client = connected(FLAG)
    images = {step: cluster.image_of(step) for step in STEPS}
    with answering(FLAG):
        info = client.info()
        found = {image: _image(client, image) for image in dict.fromkeys(images.values())}
    if missing := [image for image, about in found.items() if about is None]:
        raise _no_image(missing)
    _warn_of_other_code(found)
    without = (image for image, about in found.items() if about and not (about["Config"] or {}).get("Entrypoint"))
    return Engine(client, info, images, frozenset(without))


def _image(client: Any, image: str) -> dict[str, Any] | None:
    import docker

    try:
        found: dict[str, Any] = client.images.get(image).attrs
    except docker.errors.ImageNotFound:
        return None
    return found


def _warn_of_other_code(images: Mapping[str, Any]) -> None:
    """Images are named by version: after a change of the code the older ones are still there under their names."""
    here = code(Path(__file__).resolve().parents[1])
    labels = {image: (about["Config"] or {}).get("Labels") or {} for image, about in images.items()}
    if other := [image for image, of in labels.items() if of.get(CODE, here) != here]:
        say("docker", f"{', '.join(other)}: made from other code than this command's; the steps run the images' "
            "(anew: imagemill images build --no-push)")  # fmt: skip


def _no_image(images: Sequence[str]) -> UserError:
    pulled = [image for image in images if "@" in image]
    how = "; ".join(f"docker pull {image}" for image in pulled) or "imagemill images build --no-push"
    return UserError(f"{FLAG}: expected the images {', '.join(images)}, found none of that name; get: {how}")


def arguments_of_run(info: Mapping[str, Any], user: User, seen: Seen, environment: Mapping[str, str],
                     scratch: str, network_mode: str) -> dict[str, Any]:  # fmt: skip
    """What all containers of a run are started with, as docker's `containers.create` takes it."""
    from docker.types import Mount

    mounts = [Mount(place, place, type="bind", read_only=True) for place in seen.read]
    mounts += [Mount(place, place, type="bind") for place in seen.written]
    security = ["no-new-privileges:true"]
    if "name=selinux" in options(info):
        security.append("label=disable")  # else the mounted folders would have to be labelled anew
    return {
        "user": f"{user[0]}:{user[1]}",
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": security,
        "mounts": [*mounts, Mount(SCRATCH, scratch, type="bind")],
        "environment": dict(environment),
        "network_mode": network_mode,
        "shm_size": int(info.get("MemTotal") or 0) // 2 or "1g",  # a limit, as Linux has it for its own /dev/shm
        "working_dir": SCRATCH,
        "labels": dict(LABELS),
        **({"userns_mode": "host"} if "name=userns" in options(info) else {}),  # else the uid would be another one
    }


def arguments_of_step(info: Mapping[str, Any], run: str, step: str) -> dict[str, Any]:
    """What one step's container has of its own: a name, labels, and the GPUs where the engine has any to give."""
    from docker.types import DeviceRequest

    own: dict[str, Any] = {
        "name": re.sub(r"[^\w.-]", "-", f"imagemill-{run}-{step}", flags=re.ASCII),
        "labels": {**LABELS, RUN_LABEL: run, STEP_LABEL: step},
    }
    if step in ON_GPU and "nvidia" in (info.get("Runtimes") or {}):
        own["device_requests"] = [DeviceRequest(count=-1, capabilities=[["gpu"]])]
    return own


@dataclass
class Containers:
    """The containers of one run: each made, followed to its end and removed."""

    engine: Engine
    run: str
    workspace: Workspace
    common: dict[str, Any]
    scratch: Path
    credentials: Credentials
    _nested: Iterable[str] = field(default=())
    """Mounted places that lie in the scratch folder, which then needs a mount point for each."""
    codes: dict[str, int] = field(default_factory=dict)
    """How the containers ended, by step."""

    def runner(self) -> Any:
        """KFP's runner, with what all containers have in common."""
        from kfp import local

        return local.DockerRunner(**self.common)

    def execute(self, step: str, command: list[str], volumes: dict[str, Any], given: Mapping[str, Any]) -> int:
        """Run one step's container to its end; its output goes to stdout as it comes. Returns its exit code."""
        self._fresh_scratch()
        arguments = {**given, **arguments_of_step(self.engine.info, self.run, step)}
        arguments["environment"] = {**given["environment"], **self.credentials()}
        image = self.engine.images[step]
        arguments["init"] = image in self.engine.without_init
        with answering(step, UserError):
            container = self._created(image, command, volumes=volumes, auto_remove=True, **arguments)
            ended = _Ending(container)
            output = container.attach(stream=True, logs=True)
            container.start()
            for line in _lines(output):
                print(line)
            code = ended.code()
        self.codes[step] = self._recorded(step) if code is None else code
        return self.codes[step]

    def _created(self, image: str, command: list[str], **arguments: Any) -> Any:
        import docker

        try:
            return self.engine.client.containers.create(image, command, **arguments)
        except docker.errors.ImageNotFound:
            raise _no_image([image]) from None

    def _recorded(self, step: str) -> int:
        """The exit code by the step's record, where the engine has forgotten the container before it was asked."""
        record = self.workspace.step_record(self.run, step)
        return int(record["exit_code"]) if record else EXIT_TRANSIENT

    def _fresh_scratch(self) -> None:
        """What the step before left there is gone: a killed one's files, Ray's logs."""
        for left in self.scratch.iterdir():
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        for place in self._nested:
            inside = self.scratch / Path(place).relative_to(SCRATCH)
            if Path(place).is_dir():
                inside.mkdir(parents=True, exist_ok=True)
            else:
                inside.parent.mkdir(parents=True, exist_ok=True)
                inside.touch()


class _Ending:
    """Waits for a container that is still to be started: asked later, the engine might have forgotten it."""

    def __init__(self, container: Any) -> None:
        self._container = container
        self._code: int | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._wait, daemon=True, name="container-wait")
        self._thread.start()

    def _wait(self) -> None:
        import docker

        try:
            self._code = self._container.wait(condition="removed", timeout=None)["StatusCode"]
        except docker.errors.NotFound:
            pass
        except Exception as error:
            self._error = error

    def code(self) -> int | None:
        """The exit code, once the container is gone; None if the engine can't say it any more."""
        self._thread.join()
        if self._error:
            raise self._error
        return self._code


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Whole lines of a stream whose pieces may end within a line, and within a letter."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = ""
    for chunk in chunks:
        *lines, text = (text + decoder.decode(chunk)).split("\n")
        yield from lines
    if text:
        yield text


@contextlib.contextmanager
def containers_of(
    engine: Engine, parameters: RunParameters, workspace: Workspace, run: str, folder: str
) -> Iterator[Containers]:
    """The containers of one run, while KFP starts them; `folder` is the run's own and goes with it.

    Its `kfp` is KFP's pipeline root, its `scratch` the containers' scratch folder.
    """
    user = engine.user
    scratch, root = Path(folder, "scratch"), Path(folder, "kfp")
    for own in (scratch, root):
        own.mkdir()
        if os.getuid() == 0 and user[0] != 0:
            os.chown(own, *user)
    seen = seen_by(parameters, workspace.uri)
    credentials: Credentials = credentials_of_s3() if seen.uses_s3() else dict
    reached = endpoints(seen.addresses, os.environ, credentials().get("AWS_ENDPOINT_URL", ""))
    seen = Seen((*seen.read, *certificate_files(os.environ)), seen.written, seen.addresses)
    environment = variables(run, str(root / "runner"), os.environ, seen.uses_s3())
    with answering(FLAG):
        remove_never_started(engine.client, engine.info)
    common = arguments_of_run(engine.info, user, seen, environment, str(scratch), network(reached))
    nested = [place for place in (*seen.read, *seen.written) if place.startswith(f"{SCRATCH}/")]
    made = Containers(engine, run, workspace, common, scratch, credentials, nested)
    make_run_folder(workspace.uri, run, user)  # not before: a run that is refused leaves none
    with _held_open(root / "runner"), _handled_by(made):
        try:
            yield made
        finally:
            end_containers(engine.client, run)


@contextlib.contextmanager
def _held_open(pipe: Path) -> Iterator[None]:
    """A named pipe whose end tells the containers that this process is gone, also when it was killed."""
    os.mkfifo(pipe)
    pipe.chmod(0o644)
    held = os.open(pipe, os.O_RDWR)
    try:
        yield
    finally:
        os.close(held)


def without_shell(command: Sequence[str]) -> list[str]:
    """KFP's command line with the step in its shell's place: SIGTERM would end the shell, and the container with it,
    before training has written down what the next run goes on from."""
    script = command.index("-ec") + 1 if "-ec" in command else 0
    return [part.replace(_KFP_STARTS, _WE_START) if i == script else part for i, part in enumerate(command)]


@contextlib.contextmanager
def _handled_by(containers: Containers) -> Iterator[None]:
    """KFP's handler of a Docker task with its last part done here: KFP's own takes a container that is removed before
    it was asked for its exit code for a success (kubeflow/pipelines 13332), gives no container a name, and knows no
    difference between steps."""
    from kfp.local import docker_task_handler as kfp
    from kfp.local.status import Status

    before = kfp.DockerTaskHandler

    class Handler(before):  # type: ignore[misc,valid-type]
        def run(self) -> Status:
            step = self.full_command[self.full_command.index("--function_to_execute") + 1]
            volumes = self.get_volumes_to_mount(containers.engine.client)
            given = {**self.runner.container_run_args, "environment": self.env_vars}
            code = containers.execute(step, without_shell(self.full_command), volumes, given)
            return Status.FAILURE if code else Status.SUCCESS

    kfp.DockerTaskHandler = Handler
    try:
        yield
    finally:
        kfp.DockerTaskHandler = before
