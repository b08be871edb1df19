"""k8s/: what each overlay renders to, that Kubernetes takes it, who may do what, and that it fits cluster.yaml."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import kustomize
import manifests
import pytest
import yaml
from controllers import pods

from imagemill.pipelines.argo.workflow import compile_argo
from imagemill.pipelines.cluster import kube_client as kube
from imagemill.pipelines.cluster.cluster_file import Cluster, load_cluster
from imagemill.pipelines.doctor import checks
from imagemill.pipelines.parameters import resolve_parameters

Json = dict[str, Any]
ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
CASES = {
    "kind": ("kind", ()),
    "kubeflow": ("kubeflow", ()),
    "kubeflow-profile": ("kubeflow-profile", ()),
    "kind and all components": ("kind", ("gpu", "identity-eks", "istio-off", "s3-outside")),
}
CUSTOM = ("argoproj.io/", "ray.io/")


def write_case(folder: Path, overlay: str, components: tuple[str, ...] = ()) -> Path:
    """A kustomization of an overlay and components, as a user would write it."""
    kustomization: Json = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        **({"namespace": "imagemill"} if components else {}),
        "resources": [os.path.relpath(K8S / "overlays" / overlay, folder.resolve())],
        "components": [os.path.relpath(K8S / "components" / component, folder.resolve()) for component in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return folder


@pytest.fixture(scope="module", params=list(CASES))
def case(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def rendered(case: str, tmp_path_factory: pytest.TempPathFactory) -> list[Json]:
    return kustomize.render(write_case(tmp_path_factory.mktemp("case"), *CASES[case]))


def overlay(name: str) -> list[Json]:
    return kustomize.render(K8S / "overlays" / name)


def of_kind(documents: list[Json], kind: str) -> dict[str, Json]:
    return {document["metadata"]["name"]: document for document in documents if document["kind"] == kind}


@pytest.fixture(scope="module")
def kind() -> list[Json]:
    return overlay("kind")


@pytest.fixture(scope="module")
def base() -> Cluster:
    return load_cluster(str(K8S / "base" / "cluster.yaml"))


def test_core_documents_match_kubernetes_schemas(rendered: list[Json]) -> None:
    core = [document for document in rendered if not document["apiVersion"].startswith(CUSTOM)]
    assert core
    for document in core:
        manifests.check_core(document)


def test_custom_resources_match_their_crds(rendered: list[Json], case: str) -> None:
    custom = [document for document in rendered if document["apiVersion"].startswith(CUSTOM)]
    assert {document["kind"] for document in custom} == (
        {"WorkflowTemplate", "CronWorkflow"} if "kind" in case else set()
    )
    for document in custom:
        manifests.check_custom(document)


def test_every_pod_is_restricted(rendered: list[Json], case: str) -> None:
    restricted_pods = [pod for document in rendered for pod in pods(document)]
    for pod in restricted_pods:
        manifests.check_restricted(pod.owner, pod.spec, pod.annotations)
    assert len(restricted_pods) == (9 if "kind" in case else 0)


def test_every_namespaced_document_is_in_its_namespace(rendered: list[Json], case: str) -> None:
    namespace = {"kubeflow": "kubeflow", "kubeflow-profile": "kubeflow-user-example-com"}.get(case, "imagemill")
    assert {document["metadata"].get("namespace") for document in rendered if document["kind"] != "Namespace"} == {
        namespace
    }


def test_the_namespace_enforces_restricted(kind: list[Json]) -> None:
    labels = of_kind(kind, "Namespace")["imagemill"]["metadata"]["labels"]
    assert {labels[f"pod-security.kubernetes.io/{mode}"] for mode in ("enforce", "warn", "audit")} == {"restricted"}


def test_stored_pipeline_equals_the_compiled_one(base: Cluster, tmp_path: Path) -> None:
    compile_argo(resolve_parameters({}), tmp_path / "pipeline.yaml", base)
    manifests.check_golden(str(K8S / "base" / "pipeline.yaml"), (tmp_path / "pipeline.yaml").read_text())


def test_schedule_is_suspended_by_default(kind: list[Json]) -> None:
    (cron,) = of_kind(kind, "CronWorkflow").values()
    (template,) = of_kind(kind, "WorkflowTemplate").values()
    assert cron["spec"]["suspend"] is True
    assert cron["spec"]["workflowSpec"]["workflowTemplateRef"]["name"] == template["metadata"]["name"]


# --- who may do what --------------------------------------------------------------------------------------------------


def rights_by_account(documents: list[Json]) -> dict[str, dict[tuple[str, str, str], set[str]]]:
    """Return by account, through bindings: (API group, resource, its name) → verbs."""
    roles = of_kind(documents, "Role")
    rights_by_account: dict[str, dict[tuple[str, str, str], set[str]]] = {}
    for binding in of_kind(documents, "RoleBinding").values():
        assert binding["roleRef"]["kind"] == "Role"
        for subject in binding["subjects"]:
            assert subject["kind"] == "ServiceAccount" and subject["namespace"] == binding["metadata"]["namespace"]
            account_rights = rights_by_account.setdefault(subject["name"], {})
            for rule in roles[binding["roleRef"]["name"]]["rules"]:
                for group in rule["apiGroups"]:
                    for resource in rule["resources"]:
                        for name in rule.get("resourceNames", [""]):
                            account_rights.setdefault((group, resource, name), set()).update(rule["verbs"])
    return rights_by_account


def test_doctor_checks_the_rights_of_the_roles(kind: list[Json]) -> None:
    roles = of_kind(kind, "Role")
    for name, rights in (("executor", checks.EXECUTOR_RIGHTS), ("launcher", kube.RIGHTS)):
        granted = {
            (rule["apiGroups"][0], resource): set(rule["verbs"])
            for rule in roles[f"imagemill-{name}"]["rules"]
            for resource in rule["resources"]
        }
        assert granted == {key: set(verbs) for key, verbs in rights.items()}


RESULTS = ("argoproj.io", "workflowtaskresults", "")


def test_rights_of_the_kind_overlay(kind: list[Json]) -> None:
    assert rights_by_account(kind) == {
        "imagemill-executor": {RESULTS: {"create", "patch"}},
        "imagemill-launcher": {
            RESULTS: {"create", "patch"},
            **{(group, resource, ""): set(verbs) for (group, resource), verbs in kube.RIGHTS.items()},
        },
        "seaweedfs-setup": {("", "secrets", ""): {"create"}, ("", "secrets", "imagemill-store"): {"get"}},
    }


@pytest.mark.parametrize(("name", "account"), [("kubeflow", "pipeline-runner"), ("kubeflow-profile", "default-editor")])
def test_kubeflows_steps_have_the_rights_of_the_launcher(name: str, account: str) -> None:
    expected = {(group, resource, ""): set(verbs) for (group, resource), verbs in kube.RIGHTS.items()}
    assert rights_by_account(overlay(name)) == {account: expected}


def test_only_namespaced_roles_are_granted(rendered: list[Json]) -> None:
    assert not {"ClusterRole", "ClusterRoleBinding"} & {document["kind"] for document in rendered}
    for role in of_kind(rendered, "Role").values():
        assert "*" not in str(role["rules"]), role["metadata"]["name"]
    bound = {binding["roleRef"]["name"] for binding in of_kind(rendered, "RoleBinding").values()}
    assert bound == of_kind(rendered, "Role").keys()


def test_pods_run_as_accounts_that_exist_and_steps_see_no_token(kind: list[Json], base: Cluster) -> None:
    accounts = of_kind(kind, "ServiceAccount")
    assert all(service_account["automountServiceAccountToken"] is False for service_account in accounts.values())
    tokens = {}
    for document in kind:
        for pod in pods(document):
            if document["kind"] != "StatefulSet":  # which has no account and no token
                assert pod.spec["serviceAccountName"] in accounts, pod.owner
            tokens[pod.owner.rpartition(" ")[2]] = pod.spec.get("automountServiceAccountToken")
    with_token = {name for name, token in tokens.items() if token is not False}
    assert with_token == {"clean", "resize", "finish", "seaweedfs-setup"}
    argo = base.argo
    assert {argo.service_account, argo.executor_service_account, argo.launcher_service_account} <= accounts.keys()
    (token,) = of_kind(kind, "Secret").values()
    assert token["metadata"]["name"] == f"{argo.executor_service_account}.service-account-token"
    assert token["metadata"]["annotations"]["kubernetes.io/service-account.name"] == argo.executor_service_account
    assert "data" not in token and "stringData" not in token


# --- what cluster.yaml says, and the store ----------------------------------------------------------------------------


def container(documents: list[Json], kind: str) -> Json:
    (document,) = of_kind(documents, kind).values()
    (pod,) = pods(document)
    (container,) = pod.spec["containers"]
    return dict(container)


def test_store_matches_the_cluster_file(kind: list[Json], base: Cluster) -> None:
    storage = base.storage
    (service,) = of_kind(kind, "Service").values()
    address = f"{service['metadata']['name']}.{service['metadata']['namespace']}:{service['spec']['ports'][0]['port']}"
    assert storage.endpoint == f"http://{address}"
    keys = {
        variable["name"]: variable["valueFrom"]["secretKeyRef"] for variable in container(kind, "StatefulSet")["env"]
    }
    assert keys == {
        "AWS_ACCESS_KEY_ID": {"name": storage.secret, "key": storage.access_key},
        "AWS_SECRET_ACCESS_KEY": {"name": storage.secret, "key": storage.secret_key},
    }
    job = {variable["name"]: variable.get("value") for variable in container(kind, "Job")["env"]}
    bucket = storage.workspace.removeprefix("s3://").partition("/")[0]
    assert (job["SECRET"], job["BUCKET"], job["AWS_REGION"]) == (storage.secret, bucket, storage.region)
    assert job["AWS_ENDPOINT_URL"] == f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    repositories = of_kind(kind, "ConfigMap")["artifact-repositories"]
    default_repository = repositories["metadata"]["annotations"]["workflows.argoproj.io/default-artifact-repository"]
    s3 = yaml.safe_load(repositories["data"][default_repository])["s3"]
    assert (s3["endpoint"], s3["insecure"], s3["bucket"], s3["region"]) == (address, True, bucket, storage.region)
    assert s3["accessKeySecret"] == keys["AWS_ACCESS_KEY_ID"] and s3["secretKeySecret"] == keys["AWS_SECRET_ACCESS_KEY"]


def test_service_selects_the_store_pod(kind: list[Json]) -> None:
    (service,) = of_kind(kind, "Service").values()
    (store,) = pods(of_kind(kind, "StatefulSet")["seaweedfs"])
    assert service["spec"]["selector"].items() <= store.labels.items()
    ports = {port["name"]: port["containerPort"] for port in store.spec["containers"][0]["ports"]}
    assert ports == {service["spec"]["ports"][0]["targetPort"]: 8333}


def test_images_namespace_and_ray_agree(kind: list[Json], base: Cluster) -> None:
    assert container(kind, "Job")["image"] == base.image("cpu")
    assert list(of_kind(kind, "Namespace")) == [base.namespace]
    locked = re.search(r"^ray==(\S+)", (ROOT / "docker" / "ray.lock").read_text(), re.M)
    assert locked and base.ray.version == locked[1]


def test_images_have_fixed_tags(rendered: list[Json]) -> None:
    for document in rendered:
        for pod in pods(document):
            for container in [*pod.spec["containers"], *pod.spec.get("initContainers", ())]:
                if "image" in container:
                    assert re.fullmatch(r"\S+:[^:/]+", container["image"]) and not container["image"].endswith(
                        ":latest"
                    ), pod.owner


@pytest.mark.parametrize("name", ["kubeflow", "kubeflow-profile"])
def test_the_cluster_file_names_the_overlays_namespace(name: str) -> None:
    cluster = load_cluster(str(K8S / "overlays" / name / "cluster.yaml"))
    assert {cluster.namespace} == {document["metadata"]["namespace"] for document in overlay(name)}
    assert cluster.ray.mode == "auto" and cluster.steps["train"].gpu == 1


# --- components -------------------------------------------------------------------------------------------------------


def changes(tmp_path: Path, *components: str) -> tuple[list[Json], list[Json]]:
    """The documents that components add to or change in the kind overlay: before, after."""
    after = kustomize.render(write_case(tmp_path, "kind", components))
    before = {kustomize.key(document): document for document in overlay("kind")}
    changed = [document for document in after if before.get(kustomize.key(document)) != document]
    return [before[kustomize.key(document)] for document in changed if kustomize.key(document) in before], changed


def test_gpus_are_added_to_train_and_evaluate(tmp_path: Path) -> None:
    _, (workflow_template,) = changes(tmp_path, "gpu")
    gpus_by_template = {}
    for template in workflow_template["spec"]["templates"]:
        sizes = template.get("container", {}).get("resources", {})
        if gpus := {kind: sizes[kind]["nvidia.com/gpu"] for kind in sizes if "nvidia.com/gpu" in sizes[kind]}:
            gpus_by_template[template["name"]] = gpus
            assert template["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    one_gpu = {"requests": "1", "limits": "1"}
    assert gpus_by_template == {"train": one_gpu, "evaluate": one_gpu}


def test_istio_is_not_injected_into_any_pod(tmp_path: Path) -> None:
    _, changed = changes(tmp_path, "istio-off")
    assert {document["kind"] for document in changed} == {"Namespace", "StatefulSet", "Job"}
    assert of_kind(changed, "Namespace")["imagemill"]["metadata"]["labels"]["istio-injection"] == "disabled"
    for document in kustomize.render(tmp_path):
        for pod in pods(document):
            assert pod.labels["sidecar.istio.io/inject"] == "false", pod.owner
