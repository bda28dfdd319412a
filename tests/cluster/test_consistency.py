"""Versions, ports and secrets: alike, or absent, in all files of cluster/."""

import inspect
import re

import pytest
from ray._private import ray_constants
from ray.autoscaler._private.constants import AUTOSCALER_METRIC_PORT
from ray.dashboard.consts import DASHBOARD_METRIC_PORT
from ray.dashboard.modules.reporter import reporter_head
from ray.scripts.scripts import start

from tests.cluster.files import CLUSTER, PINS, RAY_UP, README, TAG, TEXTS, documents, ray_starts

SECRETS = {
    "AWS access key": r"\bA(?:KIA|SIA)[0-9A-Z]{16}\b",
    "private key": r"-----BEGIN [A-Z ]*PRIVATE KEY",
    "token of GitHub": r"\bgh[pousr]_\w{20,}",
    "key of Google": r"\bAIza[\w-]{30,}",
    # IBM's keys have 44 characters, Ray's tokens 64.
    "long random text": r"(?<![\w/.-])(?=[\w-]*\d)(?=[\w-]*[A-Za-z])[\w-]{32,}(?![\w/.-])",
    "secret beside its name": r"(?i)(?:token|secret|password|api_?key)[\"']?\s*[:=]\s*[\"']?"
    r"(?!(?:REPLACE|qailab|token|<|\$|\{|/|~|Never|none|true|false)\b|[<$/~{])[\w+/-]{12,}",
}


def names(path):
    return str(path.relative_to(CLUSTER))


@pytest.mark.parametrize("what", SECRETS)
@pytest.mark.parametrize("path", TEXTS, ids=names)
def test_nothing_looks_like_a_secret(path, what):
    assert not re.search(SECRETS[what], path.read_text())


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("AWS access key", "AKIA" + "ABCDEFGH12345678"),
        ("long random text", "x: " + "Ab3" * 15),
        ("long random text", "0123456789abcdef" * 4),
        ("secret beside its name", 'token: "' + "abcdefgh" * 2 + '"'),
    ],
)
def test_what_looks_like_a_secret_is_found(what, text):
    assert re.search(SECRETS[what], text)


@pytest.mark.parametrize("path", TEXTS, ids=names)
def test_images_and_versions_are_ours(path):
    text = path.read_text()
    for tag in re.findall(r"registry\.example\.com/qailab:(\S+)", text):
        assert tag.removesuffix("-gpu") == TAG
    for version in re.findall(r"(?i)\bray(?:Version)?:? ?(\d+\.\d+\.\d+)", text):
        assert version == PINS["ray"]


def test_cloud_sdks_are_one_version():
    found = set()
    for path in TEXTS:
        found |= set(re.findall(r"(boto3|google-api-python-client)==([\d.]+)", path.read_text()))
    assert len(found) == 2


@pytest.mark.parametrize("path", TEXTS, ids=names)
def test_addresses_are_nobodys(path):
    """Documentation's, private or local ones: a file that was not filled in reaches nothing."""
    allowed = ("192.0.2.", "198.51.100.", "203.0.113.", "10.", "127.", "0.0.0.0", "169.254.169.254")
    for address in re.findall(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])", path.read_text()):
        assert address.startswith(allowed), address


def listed_ports():
    """The ports of the README's table; of a range, both ends."""
    rows = re.findall(r"^\| ([\d, -]+) \|", README.split("## Ports")[1], re.MULTILINE)
    return {int(port) for row in rows for port in re.findall(r"\d+", row)}


def test_ports_of_the_files_are_in_the_readme():
    used = {2049, 22, 443}
    for name in RAY_UP:
        (config,) = documents(name)
        for arguments in ray_starts(config):
            found = start.make_context("ray start", arguments).params
            used |= {
                value
                for key, value in found.items()
                if key.endswith("port") and isinstance(value, int)
            }
    for kind in documents("kubernetes/cluster.yaml"):
        text = str(kind)
        used |= {int(port) for port in re.findall(r"'(?:containerPort|port)': (\d+)", text)}
    used -= {53, 6443}  # the cluster's own names and its API server
    used |= {AUTOSCALER_METRIC_PORT, DASHBOARD_METRIC_PORT}
    assert used | {10001} == listed_ports()


def test_ports_are_rays():
    (config,) = documents("local.yaml")
    head, _ = [start.make_context("x", each).params for each in ray_starts(config)]
    assert head["port"] == ray_constants.DEFAULT_PORT
    assert head["dashboard_port"] == ray_constants.DEFAULT_DASHBOARD_PORT
    assert head["dashboard_agent_listen_port"] == ray_constants.DEFAULT_DASHBOARD_AGENT_LISTEN_PORT
    fixed = [value for key, value in head.items() if key.endswith("_port") and value]
    workers = range(head["min_worker_port"], head["max_worker_port"] + 1)
    assert not [port for port in fixed if port in workers[1:-1]]


def test_prometheus_asks_what_ray_answers():
    (config,) = documents("prometheus.yml")
    (job,) = config["scrape_configs"]
    (found,) = job["http_sd_configs"]
    assert found["url"].startswith(f"http://127.0.0.1:{ray_constants.DEFAULT_DASHBOARD_PORT}/")
    route = found["url"].split(f":{ray_constants.DEFAULT_DASHBOARD_PORT}")[1]
    assert f'"{route}"' in inspect.getsource(reporter_head)
    assert set(found["authorization"]) == {"credentials_file"}
    text = (CLUSTER / "prometheus.yml").read_text()
    assert f"/tmp/ray/{ray_constants.PROMETHEUS_SERVICE_DISCOVERY_FILE}" in text


def test_prometheus_in_kubernetes_finds_the_pods():
    (config,) = documents("kubernetes/prometheus.yml")
    (job,) = config["scrape_configs"]
    (found,) = job["kubernetes_sd_configs"]
    assert found == {"role": "pod", "namespaces": {"names": ["qailab"]}}
    kept = {rule["source_labels"][0]: rule["regex"] for rule in job["relabel_configs"]
            if rule.get("action") == "keep"}  # fmt: skip
    assert kept == {
        "__meta_kubernetes_pod_label_ray_io_is_ray_node": "yes",
        "__meta_kubernetes_pod_container_port_name": "metrics",
    }
