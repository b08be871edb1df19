"""The RayJob field by field, and the table of its statuses against Argo's conditions."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
from typing import Any

import manifests
import pytest

from imagemill.components.resize.config import ResizeConfig
from imagemill.components.resize.ray_job import command
from imagemill.components.store.errors import EXIT_OURS, EXIT_TRANSIENT, EXIT_USER, UserError
from imagemill.pipelines import rayjob
from imagemill.pipelines.cluster import RUN_LABEL, Cluster, from_values
from imagemill.pipelines.ray_failures import failure, troubles, wrongly_named
from imagemill.pipelines.rayjob import FAILED, RUNNING, SUCCEEDED, WAITING, job_name, manifest, run_label, verdict

Json = dict[str, Any]
DEPLOYMENTS = ("", "Initializing", "Running", "Complete", "Failed", "ValidationFailed", "Suspending", "Suspended",
               "Retrying", "Waiting")  # fmt: skip
JOBS = ("", "PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED")
DIGEST = "registry.example/imagemill-ray@sha256:" + "0" * 64
FINGERPRINT = "0123456789abcdef"
BARE = {"images": {"ray": DIGEST}, "ray": {"version": "2.60.0"}}
FULL: Json = {
    "namespace": "team-vision",
    "images": {"ray": DIGEST, "pull_secrets": ["registry-login"], "pull_policy": "Always"},
    "storage": {"endpoint": "https://s3.example", "secret": "s3-keys", "access_key": "id", "secret_key": "key"},
    "labels": {"team": "vision"},
    "ray": {
        "version": "2.60.0",
        "head": {"cpu": "2", "memory": "6Gi", "node_selector": {"pool": "cpu"}},
        "workers": {
            "minimum": 0, "maximum": 8,
            "pod": {
                "cpu": "6", "cpu_limit": "8", "memory": "24Gi", "memory_limit": "32Gi", "gpu": 1, "shm": "4Gi",
                "gpu_type": "nvidia.com/gpu", "node_selector": {"pool": "gpu"},
                "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
            },
        },
    },
}  # fmt: skip
OWNER = {"apiVersion": "v1", "kind": "Pod", "name": "resize-pod", "uid": "1-2-3"}


def made(values: Json, owner: Json | None = None, run: str = "run-1") -> Json:
    words = command(ResizeConfig(workspace="s3://bucket/work", clean="s3://bucket/work/clean/x", run=run, device="cpu"))
    return manifest(from_values(values), job_name(run, FINGERPRINT), words, run, owner)


def pods(job: Json) -> dict[str, Json]:
    """The pods' templates: head, workers, submitter."""
    ray = job["spec"]["rayClusterSpec"]
    [workers] = ray["workerGroupSpecs"]
    return {
        "head": ray["headGroupSpec"]["template"],
        "workers": workers["template"],
        "submitter": job["spec"]["submitterPodTemplate"],
    }


@pytest.mark.parametrize(("name", "values", "owner"), [("rayjob", BARE, None), ("rayjob_gpu", FULL, OWNER)])
def test_the_whole_manifest(name: str, values: Json, owner: Json | None) -> None:
    job = made(values, owner)
    manifests.check_golden(f"{name}.yaml", manifests.dumped(job, sort_keys=False))


@pytest.mark.parametrize("values", [BARE, FULL])
def test_the_schema_and_pod_security_let_it_in(values: Json) -> None:
    job = made(values, OWNER)
    for where, spec in manifests.pod_specs(job):
        manifests.check_restricted(where, spec)
    manifests.check_custom(job)


@pytest.mark.parametrize("values", [BARE, FULL])
def test_every_container_is_as_it_must_be(values: Json) -> None:
    job = made(values)
    for where, template in pods(job).items():
        spec, labels = template["spec"], template["metadata"]["labels"]
        assert (
            labels["sidecar.istio.io/inject"]
            == "false"
            == template["metadata"]["annotations"]["sidecar.istio.io/inject"]
        ), where
        assert labels[RUN_LABEL] == "run-1" and labels["app.kubernetes.io/part-of"] == "imagemill"
        assert labels.items() >= values.get("labels", {}).items()
        assert spec["securityContext"]["runAsUser"] == 10001 and spec["restartPolicy"] == "Never"
        # Said, and not left to the account: ours says false, and without a token no worker would ever come.
        assert spec["automountServiceAccountToken"] == (where == "head"), "the autoscaler alone needs one"
        [container] = spec["containers"]
        size = container["resources"]
        assert size["requests"] == size["limits"] and {"cpu", "memory", "ephemeral-storage"} <= set(size["limits"])
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        mounts = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
        assert {"/scratch", "/tmp/ray"} <= set(mounts)
        assert sorted(mounts.values()) == sorted(volume["name"] for volume in spec["volumes"])
        assert container["image"] == DIGEST and "RAY_TMPDIR" in str(container["env"])
    autoscaler = job["spec"]["rayClusterSpec"]["autoscalerOptions"]
    assert autoscaler["resources"]["requests"] == autoscaler["resources"]["limits"]
    assert {one["name"] for one in autoscaler["volumeMounts"]} <= {
        volume["name"] for volume in pods(job)["head"]["spec"]["volumes"]
    }


def test_workers_get_what_the_file_says() -> None:
    job = made(FULL)
    ray = job["spec"]["rayClusterSpec"]
    [group] = ray["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (1, 1, 8), "a GPU has to be seen at once"
    spec = group["template"]["spec"]
    assert spec["containers"][0]["resources"]["limits"] == {
        "cpu": "8", "memory": "32Gi", "ephemeral-storage": "8Gi", "nvidia.com/gpu": "1"
    }  # fmt: skip
    assert spec["nodeSelector"] == {"pool": "gpu"} and spec["tolerations"][0]["key"] == "nvidia.com/gpu"
    [shm] = [one["emptyDir"] for one in spec["volumes"] if one["name"] == "shm"]
    assert shm == {"medium": "Memory", "sizeLimit": "4Gi"}
    assert group["rayStartParams"]["object-store-memory"] == str(2 * 2**30)
    assert ray["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert ray["enableInTreeAutoscaling"] is True and ray["autoscalerOptions"]["idleTimeoutSeconds"] == 60
    [cpu] = made(BARE)["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (cpu["minReplicas"], cpu["maxReplicas"]) == (0, 4)


def test_ends_that_are_always_there() -> None:
    spec = made({"ray": {"version": "2.60.0", "deadline_seconds": 7200, "pending_seconds": 300}})["spec"]
    assert (spec["activeDeadlineSeconds"], spec["preRunningDeadlineSeconds"]) == (7200, 300)
    assert spec["shutdownAfterJobFinishes"] is True and spec["ttlSecondsAfterFinished"] == 600
    assert spec["backoffLimit"] == 0 and spec["submitterConfig"] == {"backoffLimit": 0}
    spec = made({"ray": {"version": "2.60.0", "deadline_seconds": 0, "pending_seconds": 0}})["spec"]
    assert not {"activeDeadlineSeconds", "preRunningDeadlineSeconds"} & set(spec), "KubeRay takes no deadline of 0"


def test_credentials_come_from_the_secret_and_reach_ray_alone() -> None:
    found = pods(made(FULL))
    for where in ("head", "workers"):
        env = {one["name"]: one for one in found[where]["spec"]["containers"][0]["env"]}
        assert env["AWS_ACCESS_KEY_ID"]["valueFrom"]["secretKeyRef"] == {"name": "s3-keys", "key": "id"}
        assert env["AWS_SECRET_ACCESS_KEY"]["valueFrom"]["secretKeyRef"] == {"name": "s3-keys", "key": "key"}
        assert env["AWS_ENDPOINT_URL"]["value"] == "https://s3.example"
        regions = {env[name]["value"] for name in ("AWS_REGION", "AWS_DEFAULT_REGION")}  # boto3 reads the second alone
        assert regions == {from_values(FULL).storage.region}
    assert "AWS_" not in str(found["submitter"])
    assert "serviceAccountName" not in str(found)
    assert "secretKeyRef" not in str(made({"storage": {"secret": ""}})) and "AWS_REGION" in str(made(BARE))


@pytest.mark.parametrize(("version", "tokens"), [("2.60.0", True), ("2.52.0", True), ("2.9.3", False), ("2.51", False)])
def test_tokens_are_asked_of_a_ray_that_has_them(version: str, tokens: bool) -> None:
    ray = made({"ray": {"version": version}})["spec"]["rayClusterSpec"]
    assert ray.get("authOptions") == ({"mode": "token"} if tokens else None) and ray["rayVersion"] == version


def test_rays_version_is_the_installed_one_or_has_to_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import PackageNotFoundError, version

    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    assert rayjob.ray_version(Cluster()) == version("ray")
    monkeypatch.setattr(rayjob, "version", absent)
    with pytest.raises(UserError, match=r"cluster \(ray.version\): expected"):
        rayjob.ray_version(Cluster())


@pytest.mark.parametrize("run", ["", "x", "a" * 300, "run 1/ü'$(x)", "-.-", "demo-20261121-081500-3f9a", "É" * 60])
def test_any_run_gives_names_and_labels_that_are_allowed(run: str) -> None:
    """KubeRay: a DNS-1035 label of 47 characters at most; Kubernetes: label values of 63."""
    name = job_name(run, FINGERPRINT)
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) and len(name) <= 47  # as KubeRay asks
    assert name == job_name(run, FINGERPRINT) != job_name(run + "x", FINGERPRINT)
    label = run_label(run)
    assert re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", label)
    assert label != run_label(run + "y") and (label == run or label != run_label(label + "y"))


def test_the_words_survive_the_submitters_shell_and_the_heads() -> None:
    words = ["printf", "%s\\0", *("a b", "it's", '"', "$(x)", "`x`", ";x&", "\\", "é", "*", "", "--run=-x")]
    line = manifest(from_values(BARE), "x", words, "x")["spec"]["entrypoint"]
    submitted = subprocess.run(["/bin/bash", "-ec", f"printf '%s\\0' {line}"], capture_output=True, check=True)
    quoted_anew = shlex.join(submitted.stdout.decode().split("\0")[:-1])
    ran = subprocess.run(["/bin/sh", "-c", quoted_anew], capture_output=True, check=True)
    assert ran.stdout.decode().split("\0")[:-1] == words[2:]


# The table of statuses

NEVER_WRITTEN = {("Complete", job) for job in ("", "PENDING", "RUNNING", "FAILED")}
"""By KubeRay since 1.4. The table calls them failed; Argo's conditions can't say it, and wait for the deadline."""


@pytest.mark.parametrize(("deployment", "job"), list(itertools.product(DEPLOYMENTS, JOBS)))
def test_the_table_and_argos_conditions_agree(deployment: str, job: str) -> None:
    found = verdict({"jobDeploymentStatus": deployment, "jobStatus": job})
    argo = evaluated({"jobDeploymentStatus": deployment, "jobStatus": job})
    if (deployment, job) in NEVER_WRITTEN:
        assert (found, argo) == (FAILED, "waits")
    else:
        assert argo == {SUCCEEDED: "succeeded", FAILED: "failed"}.get(found, "waits")


def test_the_table_says_what_the_design_does() -> None:
    ends = {(d, j): verdict({"jobDeploymentStatus": d, "jobStatus": j}) for d in DEPLOYMENTS for j in JOBS}
    assert [key for key, found in ends.items() if found == SUCCEEDED] == [("Complete", "SUCCEEDED")]
    assert {key for key, found in ends.items() if found == FAILED} == {
        (d, j) for d, j in ends if j == "STOPPED" or d in ("Failed", "ValidationFailed")
        or (d == "Complete" and j != "SUCCEEDED")
    }  # fmt: skip
    assert {d for (d, j), found in ends.items() if found == RUNNING} == {"Running"}
    assert verdict({}) == verdict({"jobDeploymentStatus": "Pondering"}) == WAITING
    assert ends["Retrying", "FAILED"] == WAITING and ends["Running", "FAILED"] == RUNNING


def test_argos_conditions_on_a_job_without_status() -> None:
    assert evaluated({}) == "waits"


def evaluated(status: Json) -> str:
    """As Argo's executor does it (workflow/executor/resource.go): requirements of Kubernetes' label selectors on the
    document; one of failure is enough and comes first, those of success must all hold."""
    document = {f"status.{key}": value for key, value in status.items() if value}
    if any(_holds(one, document) for one in _requirements(rayjob.FAILURE_CONDITION)):
        return "failed"
    return "succeeded" if all(_holds(one, document) for one in _requirements(rayjob.SUCCESS_CONDITION)) else "waits"


def _requirements(selector: str) -> list[str]:
    """Split at the commas outside of parentheses."""
    return [one.strip() for one in re.split(r",(?![^(]*\))", selector)]


def _holds(requirement: str, document: dict[str, str]) -> bool:
    if found := re.fullmatch(r"([-\w./]+) in \(([^()]+)\)", requirement):
        return document.get(found[1]) in [value.strip() for value in found[2].split(",")]
    equal = re.fullmatch(r"([-\w./]+) == (\w+)", requirement)
    assert equal, f"not a requirement that this test knows: {requirement}"
    return document.get(equal[1]) == equal[2]


# Failures


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ({"jobDeploymentStatus": "ValidationFailed", "message": "x"}, EXIT_USER),
        ({"jobStatus": "STOPPED"}, EXIT_TRANSIENT),
        ({"reason": "DeadlineExceeded"}, EXIT_TRANSIENT),
        ({"reason": "PreRunningDeadlineExceeded"}, EXIT_TRANSIENT),
        ({"reason": "SubmissionFailed"}, EXIT_TRANSIENT),
        ({"reason": "JobStatusCheckTimeoutExceeded"}, EXIT_TRANSIENT),
        ({"reason": "JobDeploymentStatusTransitionGracePeriodExceeded"}, EXIT_TRANSIENT),
        (
            {"reason": "AppFailed", "message": "Submitter completed but Ray job not found in RayCluster."},
            EXIT_TRANSIENT,
        ),
        ({"reason": "AppFailed", "message": "Job entrypoint command failed with exit code 2, …"}, EXIT_USER),
        ({"reason": "AppFailed", "message": "Job entrypoint command failed with exit code 75, …"}, EXIT_TRANSIENT),
        ({"reason": "AppFailed", "message": "Job entrypoint command failed with exit code 137, …"}, EXIT_TRANSIENT),
        ({"reason": "AppFailed", "message": "Job entrypoint command failed with exit code 1, …"}, EXIT_OURS),
        ({"reason": "AppFailed", "message": "Job entrypoint command failed with exit code 127, …"}, EXIT_USER),
        ({}, EXIT_TRANSIENT),
    ],
)
def test_exit_codes_of_failures(status: Json, code: int) -> None:
    assert failure("job", status).exit_code == code


def test_what_pods_tell_of_a_failure() -> None:
    def pod(kind: str, **status: Any) -> Json:
        return {"metadata": {"name": "x", "labels": {"ray.io/node-type": kind}}, "status": status}

    unscheduled = pod("worker", conditions=[{"type": "PodScheduled", "status": "False",
                                             "message": "0/3 nodes: Insufficient nvidia.com/gpu"}])  # fmt: skip
    killed = pod("head", containerStatuses=[
        {"name": "ray-head", "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}])  # fmt: skip
    waits = {"reason": "ErrImagePull", "message": "no such image"}
    unpulled = pod("head", containerStatuses=[{"name": "ray-head", "state": {"waiting": waits}}])
    well = pod("head", phase="Running", containerStatuses=[{"name": "ray-head", "state": {"running": {}}}])
    assert troubles([well]) == [] and not wrongly_named([well, unscheduled, killed])
    late = failure("job", {"reason": "PreRunningDeadlineExceeded"}, [unscheduled, unscheduled])
    assert late.exit_code == EXIT_TRANSIENT and str(late).count("Insufficient nvidia.com/gpu") == 1
    assert "head: ray-head: OOMKilled (exit code 137)" in str(failure("job", {"reason": "AppFailed"}, [killed]))
    named = failure("job", {"reason": "PreRunningDeadlineExceeded"}, [unpulled])
    assert named.exit_code == EXIT_USER and "no such image" in str(named)
