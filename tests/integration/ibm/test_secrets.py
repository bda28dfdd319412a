"""The API key is nowhere but where IBM's client finds it."""

import logging
import os
import pickle
from dataclasses import replace

import pytest

from qailab.backends import AerBackend
from qailab.distributed import LauncherPool
from qailab.errors import QailabError
from tests.support.contracts import answers
from tests.support.ibm import device, gradient_rows
from tests.support.processes import DEADLINE
from tests.support.servers import on

KEY = "s3cret-0123456789-abcdefghijklmnopqrstuvwxyz"


def test_nothing_that_is_written_sent_or_shown_has_the_key(rehearse, tmp_path, caplog, capfd):
    server = rehearse(
        token=KEY,
        faults=[on("http", "GET /jobs/ID", status=500), on("job-failed"), on("drop"),
                on("http", status=401, after=4, times=0)],
    )  # fmt: skip
    caplog.set_level(logging.DEBUG)
    canonical, rows = gradient_rows()
    journal = tmp_path / "journal.sqlite"
    backend = device(journal=journal, instance=server.environment["QISKIT_IBM_INSTANCE"])
    logging.getLogger("qiskit_ibm_runtime").setLevel(logging.DEBUG)
    answers(backend, canonical, rows)

    def until_the_key_is_refused():
        for step in range(5):
            noise = type(rows.noise)(rows.noise.seed, step + 1, "backward")
            answers(backend, canonical, replace(rows, noise=noise))

    with pytest.raises(QailabError) as caught:
        until_the_key_is_refused()
    backend.close()
    out, err = capfd.readouterr()
    tags = "".join(tag for job in server.jobs for tag in job.tags)
    seen = [str(caught.value), repr(backend), caplog.text, out, err, tags]
    seen += [repr(one) for one in (caught.value.__cause__, caught.value.__context__)]
    assert caplog.text
    assert not [text for text in seen if KEY in text]
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert journal in written
    for content in [pickle.dumps(backend), *(path.read_bytes() for path in written)]:
        assert KEY.encode() not in content


class Watchful(AerBackend):
    def probabilities(self, circuit, batch, stop):
        assert "QISKIT_IBM_TOKEN" not in os.environ
        return super().probabilities(circuit, batch, stop)


def test_simulators_of_a_pool_do_not_have_the_key(ray_cluster):
    """Workers inherit the environment of whoever started their Ray."""
    where = {"runtime_env": {"env_vars": {"QISKIT_IBM_TOKEN": KEY}}}
    with LauncherPool([Watchful()], actor_options=where, start_timeout=DEADLINE) as pool:
        assert len(pool.run(*gradient_rows()))
