"""kubernetes/ against Kubernetes' schemas, Ray's own reading of a RayCluster, and itself.

The fields of RayCluster and RayJob themselves are KubeRay's, whose definitions no package has: what
is used of them is listed here.
"""

import copy
import inspect

import kubernetes_validate
import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)
from ray.dashboard.modules.reporter import healthz_agent
from ray.scripts.scripts import start

from tests.cluster.files import CLUSTER, PINS, TAG, documents, of_kind

VERSION = kubernetes_validate.latest_version()
FIELDS = {
    "RayCluster": {"rayVersion", "authOptions", "tlsOptions", "enableInTreeAutoscaling"}
    | {"autoscalerOptions", "headGroupSpec", "workerGroupSpecs"},
    "RayJob": {"clusterSelector", "entrypoint", "submissionMode", "backoffLimit"}
    | {"activeDeadlineSeconds", "submitterPodTemplate"},
}
GROUP = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
ALL = [*documents("kubernetes/cluster.yaml"), *documents("kubernetes/job.yaml")]
ALL += documents("kubernetes/ibm-account.yaml.template")
(CLUSTER_SPEC,) = [one["spec"] for one in ALL if one["kind"] == "RayCluster"]
(JOB_SPEC,) = [one["spec"] for one in ALL if one["kind"] == "RayJob"]


def labels_by_kuberay(group, node_type):
    return {
        "ray.io/cluster": "qailab",
        "ray.io/is-ray-node": "yes",
        "ray.io/node-type": node_type,
        "ray.io/group": group,
    }


def pods():
    """Every pod by name, with the labels that KubeRay adds."""
    templates = {"head": CLUSTER_SPEC["headGroupSpec"]["template"]}
    templates |= {each["groupName"]: each["template"] for each in CLUSTER_SPEC["workerGroupSpecs"]}
    found = {}
    for name, template in templates.items():
        labels = template["metadata"]["labels"] | labels_by_kuberay(name, "worker")
        found[name] = {"metadata": {"labels": labels}, "spec": template["spec"]}
    found["submitter"] = {
        "metadata": {"labels": {"ray.io/originated-from-crd": "RayJob"}},
        "spec": JOB_SPEC["submitterPodTemplate"]["spec"],
    }
    return found


PODS = pods()


def selects(selector, labels):
    operators = {"In": lambda value, values: value in values}
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) \
        and all(
            operators[rule["operator"]](labels.get(rule["key"]), rule["values"])
            for rule in selector.get("matchExpressions", [])
        )  # fmt: skip


@pytest.mark.parametrize(
    "found",
    [one for one in ALL if one["kind"] not in FIELDS],
    ids=lambda one: f"{one['kind']}-{one['metadata']['name']}",
)
def test_kubernetes_takes_it(found):
    kubernetes_validate.validate(found, VERSION, strict=True)


@pytest.mark.parametrize("name", PODS)
def test_kubernetes_takes_the_pod(name):
    pod = {"apiVersion": "v1", "kind": "Pod", **PODS[name]}
    pod["metadata"] = {"name": name, **pod["metadata"]}
    kubernetes_validate.validate(pod, VERSION, strict=True)
    wrong = copy.deepcopy(pod)
    wrong["spec"]["containers"][0]["imag"] = "x"
    with pytest.raises(kubernetes_validate.ValidationError, match="imag"):
        kubernetes_validate.validate(wrong, VERSION, strict=True)


@pytest.mark.parametrize("kind", FIELDS)
def test_fields_are_those_of_kuberay(kind):
    (found,) = [one for one in ALL if one["kind"] == kind]
    assert found["apiVersion"] == "ray.io/v1"
    assert set(found["spec"]) == FIELDS[kind]
    for group in CLUSTER_SPEC["workerGroupSpecs"]:
        assert set(group) == GROUP
    assert set(CLUSTER_SPEC["headGroupSpec"]) == {"rayStartParams", "template"}
    assert CLUSTER_SPEC["authOptions"] == {"mode": "token"}
    assert CLUSTER_SPEC["tlsOptions"] == {"enabled": True}
    (operator,) = documents("kubernetes/operator.yaml")
    assert operator == {"featureGates": [{"name": "RayClusterMTLS", "enabled": True}]}


def test_rays_autoscaler_reads_the_cluster():
    (found,) = of_kind("kubernetes/cluster.yaml", "RayCluster")
    types = _derive_autoscaling_config_from_ray_cr(found)["available_node_types"]
    assert types["headgroup"]["resources"]["CPU"] == 0
    assert types["simulators"]["resources"]["CPU"] == 8
    assert (types["simulators"]["min_workers"], types["simulators"]["max_workers"]) == (0, 16)
    assert types["hardware"]["resources"]["qpu_session"] == 4
    assert types["hardware"]["resources"]["CPU"] == 0
    assert ["qpu_session" in each["resources"] for each in types.values()].count(True) == 1


def test_ray_start_has_these_options():
    for group in (CLUSTER_SPEC["headGroupSpec"], *CLUSTER_SPEC["workerGroupSpecs"]):
        options = [
            f"--{key}={value.strip(chr(34)).replace(chr(92), '')}"
            for key, value in group["rayStartParams"].items()
        ]
        assert start.make_context("ray start", options).params["metrics_export_port"] == 8080


@pytest.mark.parametrize("name", PODS)
def test_pods_are_restricted_and_bounded(name):
    spec = PODS[name]["spec"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["runAsUser"] == 1000
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = spec["containers"]
    assert container["image"].endswith(f"/qailab:{TAG}")
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["resources"]["requests"].keys() == container["resources"]["limits"].keys()
    assert CLUSTER_SPEC["rayVersion"] == PINS["ray"]
    if name != "head":  # whose autoscaler asks for pods
        assert spec["automountServiceAccountToken"] is False


@pytest.mark.parametrize("name", [name for name in PODS if name != "submitter"])
def test_probes_ask_what_ray_answers(name):
    routes = inspect.getsource(healthz_agent)
    (container,) = PODS[name]["spec"]["containers"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container[probe]["httpGet"]
        assert f'"{asked["path"]}"' in routes
        assert asked["port"] == 52365


def test_only_hardware_has_the_account():
    (secret,) = [one for one in ALL if one["kind"] == "Secret"]
    assert set(secret["stringData"]) == {"qiskit-ibm.json"}
    account = yaml.safe_load(secret["stringData"]["qiskit-ibm.json"])
    assert account["default-ibm-quantum-platform"]["token"] == "<API key>"
    for name, pod in PODS.items():
        mounted = [each["secret"] for each in pod["spec"].get("volumes", []) if "secret" in each]
        names = [each["secretName"] for each in mounted]
        assert names == ([secret["metadata"]["name"]] if name == "hardware" else [])
        assert "env" not in pod["spec"]["containers"][0]


def test_runs_are_shared_by_head_and_hardware():
    for name in ("head", "hardware"):
        (container,) = PODS[name]["spec"]["containers"]
        assert {"name": "runs", "mountPath": "/storage"} in container["volumeMounts"]
    (rule,) = PODS["hardware"]["spec"]["affinity"]["podAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]
    assert selects(rule["labelSelector"], PODS["head"]["metadata"]["labels"])
    assert "/storage/" in JOB_SPEC["entrypoint"]


def test_budgets_keep_head_and_hardware():
    kept = []
    for budget in of_kind("kubernetes/cluster.yaml", "PodDisruptionBudget"):
        assert budget["spec"]["minAvailable"] == 1, (
            "KubeRay's pods have no scale to take a share of"
        )
        selector = budget["spec"]["selector"]
        kept += [name for name in PODS if selects(selector, PODS[name]["metadata"]["labels"])]
    assert kept == ["head", "hardware"]


def test_policies_close_everything_but_what_is_listed():
    found = of_kind("kubernetes/cluster.yaml", "NetworkPolicy")
    ways = {"Ingress": set(), "Egress": set()}
    for policy in found:
        for name, pod in PODS.items():
            if selects(policy["spec"]["podSelector"], pod["metadata"]["labels"]):
                for way in policy["spec"]["policyTypes"]:
                    ways[way].add(name)
                outside = any("ipBlock" in each for rule in policy["spec"].get("egress", [])
                              for each in rule["to"])  # fmt: skip
                assert not (outside and name == "simulators"), "simulators reach nothing outside"
    assert ways == {way: {"head", "simulators", "hardware"} for way in ways}
    (ingress,) = [one["spec"]["ingress"] for one in found if "ingress" in one["spec"]]
    senders = [each for rule in ingress for each in rule["from"]]
    submitter = PODS["submitter"]["metadata"]["labels"]
    assert any(selects(each["podSelector"], submitter) for each in senders if "podSelector" in each)
    ports = [sorted(port["port"] for port in rule.get("ports", [])) for rule in ingress]
    assert ports == [[], [8265], [8080]]


def test_the_job_runs_on_the_cluster():
    (cluster,) = of_kind("kubernetes/cluster.yaml", "RayCluster")
    assert JOB_SPEC["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    names = {one["metadata"].get("namespace", "qailab") for one in ALL}
    assert names == {"qailab"}
    script = JOB_SPEC["entrypoint"].split()[1].removeprefix("/opt/qailab/source/")
    assert (CLUSTER.parent / script).exists()
