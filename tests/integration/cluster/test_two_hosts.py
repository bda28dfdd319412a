"""`local.yaml`'s commands on two hosts with addresses of their own: Ray with TLS and a token."""

import os
import re
import secrets
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.cluster_files import CLUSTER, ROOT, documents
from tests.support.cluster_training import STEPS, assert_as_in_one_process, steps_done
from tests.support.hosts import ADDRESSES, two_hosts, unavailable

SECONDS = 150.0

pytestmark = [
    pytest.mark.timeout(3 * SECONDS),
    pytest.mark.skipif(bool(unavailable()), reason=unavailable()),
]


def make_home(home):
    """A home that both hosts share, with a checkout, certificates and a token in it."""
    (home / "qailab-cluster").mkdir(parents=True)
    (home / "qailab-cluster" / "source").symlink_to(ROOT)
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text(secrets.token_hex(32))
    tls = home / ".qailab" / "tls"
    make = [sys.executable, str(CLUSTER / "certificates.py"), str(tls), *ADDRESSES]
    subprocess.run(make, check=True, timeout=SECONDS)
    return tls


def test_a_job_over_tls_that_loses_a_host_ends_with_the_weights_of_one_process(tmp_path):
    home, private = tmp_path / "home", Path(f"/tmp/qailab-test-{secrets.token_hex(3)}")
    tls = make_home(home)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTEST"))}
    environment = clean | {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "RAY_TMPDIR": str(private),
        "RAY_AUTH_MODE": "token",
        "RAY_HEAD_IP": ADDRESSES[0],
    }
    (local,) = documents("local.yaml")
    with two_hosts(tmp_path / "hosts", private) as (head, worker):
        for host in (head, worker):
            kind = "head" if host is head else "worker"
            stop, *commands = local[f"{kind}_start_ray_commands"]
            assert stop == "ray stop"  # of which there is none yet
            for command in commands:
                # An autoscaler would log in to the other host: that takes an ssh server. Both hosts
                # have one actor, the head too: the other one will be lost.
                command = re.sub(r" --autoscaling-config=\S+| --num-cpus=0", "", command)
                command = command.replace(" ray start ", " ray start --num-cpus=1 ")
                host.run("bash", "-c", command, environment=environment)

        # The server proves who it is, and asks who is there. (Its status goes by who hangs up.)
        ask = f"openssl s_client -connect {head.address}:6379 -CAfile {tls}/ca.crt"
        mine = f"-cert {tls}/node.crt -key {tls}/node.key < /dev/null || true"
        seen = worker.run("bash", "-c", f"{ask} {mine}", environment=environment).stdout
        assert "Verify return code: 0" in seen
        assert "Acceptable client certificate CA names" in seen

        submit = [sys.executable, str(ROOT / "scripts/submit.py"), "--working-dir", str(ROOT)]
        submit += ["--address", "http://127.0.0.1:8265", "--"]
        program = "tests/support/cluster_training.py"
        job = subprocess.Popen(
            head.command(*submit, program, str(tmp_path)), env=environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        deadline = time.monotonic() + SECONDS
        try:
            while not (actors_on(worker, environment) and steps_done(tmp_path) > 10):
                late = time.monotonic() > deadline or job.poll() is not None
                assert not late, job.communicate(timeout=1)
                time.sleep(0.1)
            worker.kill_all()
            assert steps_done(tmp_path) < STEPS - 1  # else it came too late
            output, _ = job.communicate(timeout=SECONDS)
        finally:
            job.kill()
            job.wait()
        assert job.returncode == 0, output
    assert_as_in_one_process(tmp_path)


def actors_on(host, environment):
    """Whether an actor of a pool runs on a host, which sees its own processes only."""
    find = "grep -lsa ray::LauncherActor /proc/[0-9]*/cmdline | grep -v self || true"
    return host.run("bash", "-c", find, environment=environment).stdout.strip()
