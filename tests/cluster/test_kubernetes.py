"""kubernetes/ against Kubernetes' schemas, Ray's own reading of a RayCluster, and itself.

The fields of RayCluster and RayJob themselves are KubeRay's, whose definitions no package has: what
is used of them is listed here.
"""

import inspect

import kubernetes_validate
import pytest
import yaml

from tests.support.cluster_files import CLUSTER, PINS, TAG, documents, options_of_ray_start

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


def of_kind(kind):
    return [one for one in ALL if one["kind"] == kind]


(CLUSTER_SPEC,) = [one["spec"] for one in of_kind("RayCluster")]
(JOB_SPEC,) = [one["spec"] for one in of_kind("RayJob")]


def pods():
    """Every pod by name, with the labels that KubeRay adds."""
    templates = {"head": CLUSTER_SPEC["headGroupSpec"]["template"]}
    templates |= {each["groupName"]: each["template"] for each in CLUSTER_SPEC["workerGroupSpecs"]}
    found = {}
    for name, template in templates.items():
        labels = template["metadata"]["labels"] | {
            "ray.io/cluster": "qailab",
            "ray.io/is-ray-node": "yes",
            "ray.io/node-type": "worker",
            "ray.io/group": name,
        }
        found[name] = {"metadata": {"labels": labels}, "spec": template["spec"]}
    found["submitter"] = {
        "metadata": {"labels": {"ray.io/originated-from-crd": "RayJob"}},
        "spec": JOB_SPEC["submitterPodTemplate"]["spec"],
    }
    return found


PODS = pods()


def selected(selector):
    """The pods that a selector selects."""
    for rule in selector.get("matchExpressions", []):
        assert rule["operator"] == "In"
    return [
        name
        for name, labels in ((name, pod["metadata"]["labels"]) for name, pod in PODS.items())
        if all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
        and all(
            labels.get(rule["key"]) in rule["values"]
            for rule in selector.get("matchExpressions", [])
        )
    ]


def test_kubernetes_takes_all_objects():
    for found in ALL:
        assert found["metadata"].get("namespace", "qailab") == "qailab"
        if found["kind"] not in FIELDS:
            kubernetes_validate.validate(found, VERSION, strict=True)


@pytest.mark.parametrize("name", PODS)
def test_pods_are_valid_restricted_and_bounded(name):
    from ray.dashboard.modules.reporter import healthz_agent

    pod = {"apiVersion": "v1", "kind": "Pod", **PODS[name]}
    pod["metadata"] = {"name": name, **pod["metadata"]}
    kubernetes_validate.validate(pod, VERSION, strict=True)
    spec = PODS[name]["spec"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["runAsUser"] == 1000
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = spec["containers"]
    assert container["image"].endswith(f"/qailab:{TAG}")
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["resources"]["requests"].keys() == container["resources"]["limits"].keys()
    if name != "head":  # whose autoscaler asks for pods
        assert spec["automountServiceAccountToken"] is False
    if name != "submitter":
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            asked = container[probe]["httpGet"]
            assert f'"{asked["path"]}"' in inspect.getsource(healthz_agent)
            assert asked["port"] == 52365


def test_fields_are_those_of_kuberay():
    for kind, fields in FIELDS.items():
        (found,) = of_kind(kind)
        assert found["apiVersion"] == "ray.io/v1"
        assert set(found["spec"]) == fields
    assert all(set(group) == GROUP for group in CLUSTER_SPEC["workerGroupSpecs"])
    assert set(CLUSTER_SPEC["headGroupSpec"]) == {"rayStartParams", "template"}
    assert CLUSTER_SPEC["rayVersion"] == PINS["ray"]
    assert CLUSTER_SPEC["authOptions"] == {"mode": "token"}
    assert CLUSTER_SPEC["tlsOptions"] == {"enabled": True}
    (operator,) = documents("kubernetes/operator.yaml")
    assert operator == {"featureGates": [{"name": "RayClusterMTLS", "enabled": True}]}


def test_rays_autoscaler_reads_the_cluster():
    from ray.autoscaler._private.kuberay import autoscaling_config

    (found,) = of_kind("RayCluster")
    derived = autoscaling_config._derive_autoscaling_config_from_ray_cr(found)
    types = derived["available_node_types"]
    assert types["headgroup"]["resources"]["CPU"] == 0
    assert types["simulators"]["resources"]["CPU"] == 8
    assert (types["simulators"]["min_workers"], types["simulators"]["max_workers"]) == (0, 16)
    assert types["hardware"]["resources"]["qpu_session"] == 4
    assert types["hardware"]["resources"]["CPU"] == 0
    assert ["qpu_session" in each["resources"] for each in types.values()].count(True) == 1
    for group in (CLUSTER_SPEC["headGroupSpec"], *CLUSTER_SPEC["workerGroupSpecs"]):
        options = [
            f"--{key}={value.strip(chr(34)).replace(chr(92), '')}"
            for key, value in group["rayStartParams"].items()
        ]
        assert options_of_ray_start(options)["metrics_export_port"] == 8080


def test_only_hardware_has_the_account():
    (secret,) = of_kind("Secret")
    assert set(secret["stringData"]) == {"qiskit-ibm.json"}
    account = yaml.safe_load(secret["stringData"]["qiskit-ibm.json"])
    assert account["default-ibm-quantum-platform"]["token"] == "<API key>"
    for name, pod in PODS.items():
        mounted = [each["secret"] for each in pod["spec"].get("volumes", []) if "secret" in each]
        names = [each["secretName"] for each in mounted]
        assert names == ([secret["metadata"]["name"]] if name == "hardware" else [])
        assert "env" not in pod["spec"]["containers"][0]


def test_runs_are_shared_by_head_and_hardware_which_are_kept():
    for name in ("head", "hardware"):
        (container,) = PODS[name]["spec"]["containers"]
        assert {"name": "runs", "mountPath": "/storage"} in container["volumeMounts"]
    affinity = PODS["hardware"]["spec"]["affinity"]["podAffinity"]
    (rule,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]
    assert "head" in selected(rule["labelSelector"])
    kept = []
    for budget in of_kind("PodDisruptionBudget"):
        # KubeRay's pods have no scale to take a share of.
        assert budget["spec"]["minAvailable"] == 1
        kept += selected(budget["spec"]["selector"])
    assert kept == ["head", "hardware"]


def test_policies_close_everything_but_what_is_listed():
    policies = [one["spec"] for one in of_kind("NetworkPolicy")]
    ways = {"Ingress": set(), "Egress": set()}
    for policy in policies:
        names = selected(policy["podSelector"])
        for way in policy["policyTypes"]:
            ways[way] |= set(names)
        if any("ipBlock" in each for rule in policy.get("egress", []) for each in rule["to"]):
            assert "simulators" not in names, "simulators reach nothing outside"
    assert ways == {way: {"head", "simulators", "hardware"} for way in ways}
    (ingress,) = [policy["ingress"] for policy in policies if "ingress" in policy]
    senders = [each.get("podSelector") for rule in ingress for each in rule["from"]]
    assert any("submitter" in selected(sender) for sender in senders if sender)
    ports = [sorted(port["port"] for port in rule.get("ports", [])) for rule in ingress]
    assert ports == [[], [8265], [8080]]


def test_the_job_runs_on_the_cluster():
    (cluster,) = of_kind("RayCluster")
    assert JOB_SPEC["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    assert "/storage/" in JOB_SPEC["entrypoint"]
    script = JOB_SPEC["entrypoint"].split()[1].removeprefix("/opt/qailab/source/")
    assert (CLUSTER.parent / script).exists()
