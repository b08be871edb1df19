"""The cluster file, a YAML with images, storage, the pods of each step, Ray, limits and schedule.

`imagemill cluster` prints the file with its defaults and an explanation of every field. It is the only configuration of
the KFP package, the Argo templates and the RayJob. It holds no secret, only the names of secrets.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal, cast

from ...components.dataset.manifest import code_version
from ...components.dataset.workspace import STEPS
from ...components.step.config import read_yaml
from ...components.storage import uri as uris
from ...components.storage.errors import UserError, wrong
from ..settings import dump_documented, override, setting, to_plain
from ..steps import PIPELINE
from . import validation
from .validation import Place, Size
from .validation import Pod as Pod  # the file's, and so imported from here

_IMAGE_WITH_DIGEST = re.compile(r"[^@\s]+@sha256:[0-9a-f]{64}")
UID = 10001
"""The user and group that containers run as."""
SCRATCH = "/scratch"
"""The only folder that a container may write to, with TMPDIR and HOME."""
LABELS = {"app.kubernetes.io/name": "imagemill", "app.kubernetes.io/part-of": "imagemill"}
TOKEN_KEY = "auth_token"
"""The key of a Ray cluster's token in its secret, as in the secrets that KubeRay creates."""
COMPONENT_LABEL = "app.kubernetes.io/component"
"""The label of a pod with its step, also of Ray's pods."""
RUN_LABEL = "imagemill.io/run"
"""The label of every pod and RayJob of a run, by which those that it has left behind are found."""


@dataclass(frozen=True)
class Images:
    """The three images, as `imagemill images build` writes them."""

    cpu: str = setting("", "download, clean, promote and the launcher: name@sha256:…")
    ray: str = setting("", "Ray's head and workers, which clean and resize, and resizing in the step's own pod")
    gpu: str = setting("", "train and evaluate")
    tags_allowed: bool = setting(False, "take images by tag: what runs may then change behind the pipeline's back")
    pull_policy: str = setting("IfNotPresent", "when nodes pull", choices=("IfNotPresent", "Always", "Never"))
    pull_secrets: tuple[str, ...] = setting(tuple, "names of the secrets that the registry's login is in")

    def check(self, place: Place) -> None:
        for target in ("cpu", "ray", "gpu"):
            image = getattr(self, target)
            if image and not self.tags_allowed and not _IMAGE_WITH_DIGEST.fullmatch(image):
                raise wrong(place(target), "an image by its digest, name@sha256:… (see tags_allowed)", image)
            if image:
                validation.check_image(place(target), image)
        for name in self.pull_secrets:
            validation.check_name(place("pull_secrets"), name)


@dataclass(frozen=True)
class Storage:
    """The object store, and where its credentials come from."""

    endpoint: str = setting("http://seaweedfs.kubeflow:9000", "address of the S3 server; empty: AWS's own")
    region: str = setting("us-east-1", "its region")
    secret: str = setting(
        "mlpipeline-minio-artifact", "the secret that holds the credentials; empty: workload identity, no secret"
    )
    access_key: str = setting("accesskey", "the secret's key for the access key")
    secret_key: str = setting("secretkey", "the secret's key for the secret access key")
    workspace: str = setting("s3://mlpipeline/imagemill", "the workspace where none is given: s3://bucket/prefix")

    def check(self, place: Place) -> None:
        """Refuse a login in an address, which whoever may read the pods could read, without repeating it."""
        if self.endpoint:
            validation.check_endpoint(place("endpoint"), self.endpoint)
        if uris.redact(self.workspace) != self.workspace:
            raise wrong(place("workspace"), "s3://bucket/prefix without a login", uris.redact(self.workspace))
        uris.normalize(require_s3_workspace(self.workspace, place("workspace")), place("workspace"))
        if self.secret:
            validation.check_name(place("secret"), self.secret)
        for name in ("access_key", "secret_key"):
            validation.check_data_key(place(name), getattr(self, name))


_STEP_PODS: dict[str, Pod] = {
    "download": Pod(cpu="1", memory="2Gi", ephemeral_storage="4Gi"),
    "clean": Pod(cpu="4", memory="8Gi", ephemeral_storage="4Gi"),
    "resize": Pod(cpu="4", memory="8Gi", ephemeral_storage="8Gi"),
    "train": Pod(cpu="4", memory="16Gi", ephemeral_storage="40Gi", gpu=1),
    "evaluate": Pod(cpu="4", memory="8Gi", ephemeral_storage="8Gi", gpu=1),
    "promote": Pod(cpu="500m", memory="1Gi", ephemeral_storage="1Gi"),
}


@dataclass(frozen=True)
class Workers:
    """Ray's workers."""

    minimum: int = setting(1, "workers from the beginning")
    maximum: int = setting(4, "workers at most; if above minimum, Ray's autoscaler starts them as there is work")
    pod: Pod = setting(
        lambda: Pod(cpu="4", memory="8Gi", ephemeral_storage="8Gi"),
        "each worker; Ray gives it as many tasks at a time as it has whole cores promised, at least one",
    )

    def check(self, place: Place) -> None:
        if not self.maximum or self.minimum > self.maximum:
            raise wrong(place("maximum"), f"at least 1, and at least minimum, {self.minimum}", self.maximum)


Mode = Literal["auto", "pod", "rayjob", "address"]


@dataclass(frozen=True)
class Ray:
    """Where clean and resize run."""

    mode: str = setting(
        "auto", "where resize runs; auto: in the step's own pod up to auto_seconds, as a RayJob above; pod: always in "
        "the step's own pod; rayjob: always a Ray cluster of its own for each run, by KubeRay; address: on the cluster "
        "at address", choices=("auto", "pod", "rayjob", "address"),
    )  # fmt: skip
    clean: str = setting(
        "auto",
        "where clean runs: the same words; auto is pod where mode is pod or address",
        choices=("auto", "pod", "rayjob"),
    )
    auto_seconds: int = setting(
        60, "for auto: seconds of work, as estimated for steps.clean.cpu or steps.resize.cpu, up to which no RayJob is "
        "made, whose pods take 35 to 60 s to start; in 60 s 4 cores resize about 190,000 images of 500 x 375 pixels "
        "(34 kB) and clean 140,000, or 52,000 and 22,000 of 1600 x 1200 (231 kB)",
    )  # fmt: skip
    address: str = setting("", "for mode address: http://head:8265 or ray://head:10001")
    token_secret: str = setting("", "for mode address: the secret whose key auth_token is that cluster's token")
    version: str = setting("", "Ray's version in the image (empty: that of this installation)")
    head: Pod = setting(
        lambda: Pod(cpu="1", memory="4Gi", ephemeral_storage="4Gi"),
        "the head, which runs no task; of clean it decides on all images",
    )
    workers: Workers = setting(Workers, "the workers")
    autoscaler: Size = setting(
        lambda: Size(cpu="100m", memory="256Mi", ephemeral_storage="1Gi"),
        "the autoscaler beside the head, where workers.maximum is above workers.minimum",
    )
    submitter: Size = setting(
        lambda: Size(cpu="50m", memory="256Mi", ephemeral_storage="1Gi"), "the pod that hands the job to the head"
    )
    idle_seconds: int = setting(60, "after how long an idle worker above the minimum ends")
    pending_seconds: int = setting(900, "how long the cluster may wait for nodes before the job is given up")
    deadline_seconds: int = setting(6 * 3600, "the longest that the job may take")
    ttl_seconds: int = setting(
        0, "how long Ray's pods stay after their job has ended, to be looked at: train waits for their cores meanwhile"
    )

    def get_mode(self, step: str) -> Mode:
        """Return where a step runs: `pod` for all but clean and resize."""
        if step == "resize":
            return cast(Mode, self.mode)
        if step != "clean" or (self.clean == "auto" and self.mode in ("pod", "address")):
            return "pod"
        return cast(Mode, self.clean)

    def may_make_rayjob(self, step: str) -> bool:
        """Return whether a step may run as a RayJob."""
        return self.get_mode(step) in ("auto", "rayjob")

    @property
    def makes_rayjobs(self) -> bool:
        """Return whether a run may create a RayJob, for which its pods need rights."""
        return self.may_make_rayjob("clean") or self.may_make_rayjob("resize")

    def check(self, place: Place) -> None:
        if self.version and not re.fullmatch(r"\d+\.\d+[\w.+-]*", self.version):
            raise wrong(place("version"), "a release, such as 2.60.0", self.version)
        for names, pod in ((("head",), self.head), (("workers", "pod"), self.workers.pod)):
            if pod.deadline_seconds:
                raise wrong(place(*names, "deadline_seconds"), "0: ray.deadline_seconds is that of the whole job",
                            pod.deadline_seconds)  # fmt: skip
        if self.address:
            validation.check_ray_address(place("address"), self.address)
        if (self.mode == "address") != bool(self.address):
            raise wrong(place("address"), "an address with mode address, and only then", self.address)
        if self.token_secret and self.mode != "address":
            raise wrong(place("token_secret"), "none but with mode address: a RayJob has a token of its own",
                        self.token_secret)  # fmt: skip
        if self.token_secret:
            validation.check_name(place("token_secret"), self.token_secret)


@dataclass(frozen=True)
class Limits:
    """Retries and deadlines of a run."""

    lost_pod_retries: int = setting(
        2, "how often a step is tried again: when its pod was lost, with Argo also after exit code 75; with Argo also "
        "how often KubeRay runs a RayJob again that failed, whatever the exit code",
    )  # fmt: skip
    run_deadline_seconds: int = setting(24 * 3600, "the longest that a run may take (0: no limit)")
    keep_succeeded_seconds: int = setting(
        24 * 3600,
        "how long the objects of a run that succeeded stay (0: for ever, as always with KFP before 2.17)",
    )
    keep_failed_seconds: int = setting(7 * 24 * 3600, "how long those of one that failed stay (the same)")


@dataclass(frozen=True)
class Kfp:
    """Kubeflow Pipelines."""

    version: str = setting(
        "2.17", "release of the server (one before 2.17 loses the pods' settings over a whole run's deadline; with "
        "its release here each step has that deadline instead)",
    )  # fmt: skip

    def check(self, place: Place) -> None:
        if not re.fullmatch(r"\d+\.\d+(\.\d+)?", self.version):
            raise wrong(place("version"), "a release, such as 2.17", self.version)


@dataclass(frozen=True)
class Argo:
    """Argo Workflows without Kubeflow."""

    service_account: str = setting(
        "imagemill", "the service account that the steps' pods run as; it needs no rights in the cluster"
    )
    executor_service_account: str = setting(
        "imagemill-executor",
        "that of Argo's own container beside each step: create and patch workflowtaskresults; its token is in the "
        "secret NAME.service-account-token (empty: the steps' own, whose token the steps then see)",
    )
    launcher_service_account: str = setting(
        "imagemill-launcher", "that of the pods that create, watch and delete RayJobs; workflowtaskresults as well"
    )
    initless: bool = setting(False, "Argo's controller has initlessPod on (4.1 and later; beta)")
    artifacts: bool = setting(True, "keep report and metrics as artifacts; needs an artifact repository")
    mutex: str = setting("imagemill-training", "runs with the same one wait for each other")

    def check(self, place: Place) -> None:
        for name in ("service_account", "executor_service_account", "launcher_service_account"):
            if getattr(self, name) or name != "executor_service_account":
                validation.check_name(place(name), getattr(self, name))


@dataclass(frozen=True)
class Schedule:
    """When the classifier is trained again (Argo's CronWorkflow; with KFP: `imagemill schedule`)."""

    cron: str = setting("0 3 * * 1", "minute, hour, day of the month, month, day of the week (Sunday is 0)")
    timezone: str = setting("UTC", "the time zone that Argo reads it in, such as Europe/Berlin")
    starting_deadline_seconds: int = setting(3600, "a start missed by less than this is made up for")
    suspended: bool = setting(False, "do not start any")
    keep_succeeded: int = setting(3, "how many runs that succeeded are kept")
    keep_failed: int = setting(3, "how many that failed are kept")


@dataclass(frozen=True)
class Cluster:
    """The cluster file."""

    namespace: str = setting("imagemill", "the namespace that everything runs in")
    images: Images = setting(Images, "images; `imagemill images build` writes this part")
    storage: Storage = setting(Storage, "the object store")
    steps: dict[str, Pod] = setting(
        lambda: dict(_STEP_PODS),
        "the pods of the steps; what is left out keeps its default; clean and resize are for auto and pod of ray.clean "
        "and ray.mode (with KFP they have this size also while they wait for a RayJob): else Ray's head and workers do "
        "the work, and the step's pod, which waits for them, is `small`",
    )
    small: Pod = setting(
        lambda: Pod(cpu="200m", memory="1Gi", ephemeral_storage="1Gi"),
        "the pods that only start, watch and report: the RayJob's launcher, the exit step (its deadline with Argo: "
        "15 minutes if it is 0 here)",
    )
    ray: Ray = setting(Ray, "Ray, for clean and resize")
    limits: Limits = setting(Limits, "retries and deadlines")
    labels: dict[str, str] = setting(dict, "further labels of all pods")
    kfp: Kfp = setting(Kfp, "for the target kfp")
    argo: Argo = setting(Argo, "for the target argo")
    schedule: Schedule = setting(Schedule, "for the target argo: the CronWorkflow")

    def check(self, place: Place) -> None:
        validation.check_namespace(place("namespace"), self.namespace)
        if self.small.shm:
            raise wrong(place("small", "shm"), "none: these pods share no memory", self.small.shm)
        validation.check_labels(place("labels"), self.labels)
        for name in self.steps:
            if name not in STEPS:
                raise wrong(place("steps", name), f"a step: {', '.join(STEPS)}", name)
        if self.ray.mode == "auto" and self.steps["resize"].gpu:
            raise wrong(place("steps", "resize", "gpu"), "0 with ray.mode auto, where ray.workers.pod.gpu is the GPUs "
                        "of resizing (mode pod uses those of steps.resize)", self.steps["resize"].gpu)  # fmt: skip

    def image(self, target: str) -> str:
        """Return the image of a Dockerfile target; where the file has none, this version's tag."""
        return str(getattr(self.images, target)) or f"imagemill-{target}:{code_version()}"

    def image_of(self, step: str) -> str:
        return self.image(PIPELINE[step].image)

    def require_images(self, where: str) -> None:
        """Raise UserError for an image without a digest, unless tags are allowed."""
        for target in ("cpu", "ray", "gpu"):
            if not getattr(self.images, target) and not self.images.tags_allowed:
                raise UserError(f"{where} (images.{target}): expected an image by its digest, found none; `imagemill "
                                "images build` makes and names it, images.tags_allowed takes tags")  # fmt: skip

    def to_json(self) -> str:
        """Return the file as JSON in one line, for a pod."""
        return json.dumps(to_plain(self), sort_keys=True, separators=(",", ":"))

    def documented(self) -> str:
        head = "# How imagemill uses a cluster: imagemill compile --cluster THIS. What is left out keeps its default.\n"
        return head + dump_documented(self)


def parse_cluster(values: Any, where: str = "cluster") -> Cluster:
    """Return the cluster of parsed YAML or JSON; UserError names the wrong field, and the file `where`."""
    return override(Cluster(), values, where)


def load_cluster(path: str) -> Cluster:
    """Load a cluster file; UserError for one that can't be read, or has an unknown or wrong field."""
    cluster = parse_cluster(read_yaml("--cluster", path), path)
    # Not in `Schedule.check`, which pods call, too: their images may have no time zone database.
    validation.check_cron(f"{path} (schedule.cron)", cluster.schedule.cron)
    validation.check_timezone(f"{path} (schedule.timezone)", cluster.schedule.timezone)
    return cluster


def parse_cluster_json(text: str) -> Cluster:
    """Parse the output of `to_json` in a pod; UserError where another version of imagemill wrote it."""
    try:
        return parse_cluster(json.loads(text))
    except ValueError:
        raise wrong("cluster", "the cluster file as JSON", text[:100]) from None
    except UserError as error:
        raise UserError(
            f"{error} (was this compiled by another imagemill than the image's {code_version()}?)"
        ) from None


def require_s3_workspace(workspace: str, field: str = "workspace") -> str:
    """Return the workspace; UserError for one that is not on S3, which the pods of a cluster can't reach."""
    if not uris.is_s3(workspace):
        raise wrong(field, "s3://bucket/prefix, which every pod of a cluster can reach", uris.redact(workspace))
    return workspace
