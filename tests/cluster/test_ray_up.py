"""`ray up` files against Ray's schema and preparation, and EC2's model; nothing is started."""

import json
import re

import botocore.loaders
import botocore.model
import botocore.validate
import pytest

from tests.support.cluster_files import (
    CLOUDS,
    RAY_UP,
    TAG,
    documents,
    options_of_ray_start,
    ray_starts,
)

# Ray's schema takes anything in `provider`; these are what its code reads.
PROVIDER = {
    "local.yaml": {"type", "head_ip", "worker_ips"},
    "aws.yaml": {"type", "region", "cache_stopped_nodes", "use_internal_ips"},
    "gcp.yaml": {"type", "region", "cache_stopped_nodes", "use_internal_ips"}
    | {"project_id", "availability_zone"},
}


def config(name):
    (found,) = documents(name)
    return found


@pytest.mark.parametrize("name", RAY_UP)
def test_ray_takes_it(name):
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(config(name)))
    assert set(config(name)["provider"]) == PROVIDER[name]
    head, worker = map(options_of_ray_start, ray_starts(config(name)))
    assert head["head"]
    assert head["num_cpus"] == 0, "actors would take the CPUs of the drivers"
    assert head["dashboard_host"] == "127.0.0.1"
    assert worker["address"] == f"$RAY_HEAD_IP:{head['port']}"
    for option in head:
        if option.endswith("_port") and option not in ("port", "dashboard_port"):
            assert head[option] == worker[option], f"{option} differs: firewalls go by number"


@pytest.mark.parametrize("name", CLOUDS)
def test_simulators_come_and_go_and_hardware_stays(name):
    from ray.autoscaler._private.util import prepare_config

    prepared = prepare_config(config(name))
    types = prepared["available_node_types"]
    assert types["head"]["max_workers"] == 0
    assert types["simulators"]["min_workers"] == 0
    assert types["simulators"]["max_workers"] > 0
    assert types["gpus"]["max_workers"] == 0, "GPUs cost: only who asks for them"
    assert types["gpus"]["resources"]["GPU"] == 1
    assert types["hardware"]["min_workers"] == 1
    assert [key for key in types if "qpu_session" in types[key]["resources"]] == ["hardware"]
    assert prepared["max_workers"] == sum(types[key]["max_workers"] for key in types)


@pytest.mark.parametrize("name", CLOUDS)
def test_every_node_has_token_and_tls_and_hardware_alone_the_account(name):
    found = config(name)
    given = dict(re.findall(r"--env (\w+)=(\S+)", " ".join(found["docker"]["run_options"])))
    assert (given["RAY_AUTH_MODE"], given["RAY_USE_TLS"]) == ("token", "1")
    image = found["docker"]["image"]
    assert image.endswith(f"/qailab:{TAG}")
    types = found.pop("available_node_types")
    assert types["gpus"]["docker"]["worker_image"] == f"{image}-gpu"
    files = {value for value in given.values() if value.startswith("/")}
    shared, own = found["initialization_commands"], types["hardware"]["initialization_commands"]
    for commands in (shared, own):
        names = re.search(r"for name in ([\w. ]+);", " ".join(commands))[1].split()
        assert {f"/run/qailab/{one}" for one in names} == files
    assert set(shared) - set(own) <= {"sudo install -d -m 0711 /run/qailab"}
    hardware = json.dumps(types.pop("hardware"))
    assert "/home/qailab/.qiskit/qiskit-ibm.json:ro" in hardware
    assert "spot" not in hardware.lower(), "its journal counts"
    assert "ibm" not in json.dumps([found, types]).lower()


def test_ec2_has_these_fields():
    model = botocore.loaders.Loader().load_service_model("ec2", "service-2")
    shape = botocore.model.ServiceModel(model).operation_model("RunInstances").input_shape
    for key, node in config("aws.yaml")["available_node_types"].items():
        machine = node["node_config"] | {"MinCount": 1, "MaxCount": 1}
        assert machine.pop("SubnetIds"), "Ray takes one of them"
        report = botocore.validate.ParamValidator().validate(machine, shape)
        assert not report.has_errors(), f"{key}: {report.generate_report()}"
        assert machine["InstanceType"] in shape.members["InstanceType"].enum
        assert machine["BlockDeviceMappings"][0]["Ebs"]["Encrypted"]
