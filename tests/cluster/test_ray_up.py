"""`ray up` files against Ray's schema and preparation, and EC2's model; nothing is started."""

import copy
import json
import re
import subprocess

import botocore.loaders
import botocore.model
import botocore.validate
import jsonschema
import pytest
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start

from tests.cluster.files import CLOUDS, RAY_UP, TAG, documents, ray_starts
from tests.cluster.programs import program

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
    prepared = prepare_config(config(name))
    validate_config(prepared)
    assert set(config(name)["provider"]) == PROVIDER[name]


@pytest.mark.parametrize("wrong", ["max_wrokers", "setup_command"])
def test_ray_refuses_an_unknown_key(wrong):
    changed = config("aws.yaml") | {wrong: 1}
    with pytest.raises(jsonschema.ValidationError, match=wrong):
        validate_config(prepare_config(changed))


def test_ray_refuses_an_unknown_key_of_a_node_type():
    changed = copy.deepcopy(config("aws.yaml"))
    changed["available_node_types"]["hardware"]["resource"] = {}
    with pytest.raises(jsonschema.ValidationError, match="resource"):
        validate_config(prepare_config(changed))


@pytest.mark.parametrize("name", RAY_UP)
def test_ray_start_has_these_options(name):
    head, worker = [
        start.make_context("ray start", arguments).params for arguments in ray_starts(config(name))
    ]
    assert head["head"]
    assert head["num_cpus"] == 0, "actors would take the CPUs of the drivers"
    assert head["dashboard_host"] == "127.0.0.1"
    assert worker["address"] == f"$RAY_HEAD_IP:{head['port']}"
    for option in head:
        if option.endswith("_port") and option not in ("port", "dashboard_port"):
            assert head[option] == worker[option], f"{option} differs: firewalls go by number"


@pytest.mark.parametrize("name", CLOUDS)
def test_simulators_come_and_go_and_hardware_stays(name):
    prepared = prepare_config(config(name))
    types = prepared["available_node_types"]
    assert types["head"]["max_workers"] == 0
    assert types["simulators"]["min_workers"] == 0
    assert types["simulators"]["max_workers"] > 0
    assert types["gpus"]["max_workers"] == 0, "GPUs cost: only who asks for them"
    assert types["gpus"]["resources"]["GPU"] == 1
    assert types["hardware"]["min_workers"] == 1
    with_sessions = [key for key in types if "qpu_session" in types[key]["resources"]]
    assert with_sessions == ["hardware"]
    most = sum(types[key]["max_workers"] for key in types)
    assert prepared["max_workers"] == most


@pytest.mark.parametrize("name", CLOUDS)
def test_only_hardware_nodes_have_the_account(name):
    found = config(name)
    types = found.pop("available_node_types")
    hardware = json.dumps(types.pop("hardware"))
    assert "/home/qailab/.qiskit/qiskit-ibm.json:ro" in hardware
    assert "spot" not in hardware.lower(), "its journal counts"
    assert "ibm" not in json.dumps([found, types]).lower()


@pytest.mark.parametrize("name", CLOUDS)
def test_every_node_has_token_and_tls(name):
    found = config(name)
    options = " ".join(found["docker"]["run_options"])
    given = dict(re.findall(r"--env (\w+)=(\S+)", options))
    assert given["RAY_AUTH_MODE"] == "token"
    assert given["RAY_USE_TLS"] == "1"
    files = {value for value in given.values() if value.startswith("/")}
    shared = found["initialization_commands"]
    own = found["available_node_types"]["hardware"]["initialization_commands"]
    for commands in (shared, own):
        text = " ".join(commands)
        names = re.search(r"for name in ([\w. ]+);", text)[1].split()
        assert {f"/run/qailab/{one}" for one in names} == files
        assert set(shared) - set(own) <= {"sudo install -d -m 0711 /run/qailab"}


@pytest.mark.parametrize("name", CLOUDS)
def test_images_bear_the_versions(name):
    found = config(name)
    assert found["docker"]["image"].endswith(f"/qailab:{TAG}")
    gpus = found["available_node_types"]["gpus"]["docker"]["worker_image"]
    assert gpus == found["docker"]["image"] + "-gpu"


@pytest.mark.parametrize("name", RAY_UP)
def test_commands_are_sound_shell(name, tmp_path):
    found = config(name)
    lists = [found] + list(found.get("available_node_types", {}).values())
    keys = [key for key in found if key.endswith("_commands")]
    commands = [one for each in lists for key in keys for one in each.get(key, [])]
    script = tmp_path / "commands.sh"
    # The name is Ray's; it sets it before it runs them.
    script.write_text("\n".join(["#!/usr/bin/env bash", "RAY_HEAD_IP=192.0.2.10", *commands, ""]))
    done = subprocess.run(
        [program("shellcheck"), "--severity=warning", "--exclude=SC1090,SC1091,SC2154", script],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def ec2_machine():
    model = botocore.loaders.Loader().load_service_model("ec2", "service-2")
    return botocore.model.ServiceModel(model).operation_model("RunInstances").input_shape


def machines():
    return config("aws.yaml")["available_node_types"]


@pytest.mark.parametrize("key", machines())
def test_ec2_has_these_fields(key, ec2_machine):
    machine = dict(machines()[key]["node_config"])
    assert machine.pop("SubnetIds"), "Ray takes one of them"
    report = botocore.validate.ParamValidator().validate(
        machine | {"MinCount": 1, "MaxCount": 1}, ec2_machine
    )
    assert not report.has_errors(), report.generate_report()
    assert machine["InstanceType"] in ec2_machine.members["InstanceType"].enum
    assert machine["BlockDeviceMappings"][0]["Ebs"]["Encrypted"]


def test_ec2_refuses_a_misspelt_field(ec2_machine):
    report = botocore.validate.ParamValidator().validate(
        {"InstanceTyp": "t3.large", "MinCount": 1, "MaxCount": 1}, ec2_machine
    )
    assert report.has_errors()
