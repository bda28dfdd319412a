"""What ``scripts/submit.py`` does with the jobs of a cluster, without one."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))  # as Python does for a script

import submit  # noqa: E402
from submission import commands, jobs  # noqa: E402
from submission.cluster import Cluster  # noqa: E402
from submission.errors import ClusterError, LostError  # noqa: E402
from submission.options import Place  # noqa: E402

from qailab.errors import InputError  # noqa: E402

HERE = Place("http://head:8265", None)


class Status(str):
    """As Ray's."""

    @property
    def value(self) -> str:
        return str(self)

    def is_terminal(self) -> bool:
        return self not in ("PENDING", "RUNNING")


class Client:
    """Ray's client of a cluster with these jobs."""

    def __init__(self, *found: tuple[str, str, str], variables: dict[str, str] | None = None):
        self.sent: list[str] = []
        self.looks: list[str | BaseException] = []
        self.jobs = [
            SimpleNamespace(
                submission_id=name,
                job_id=None,
                status=Status(status),
                entrypoint=entrypoint,
                start_time=1000,
                end_time=2000,
                driver_exit_code=None,
                runtime_env={"env_vars": variables},
            )
            for name, status, entrypoint in found
        ]

    def list_jobs(self) -> list[Any]:
        return self.jobs

    def get_job_info(self, _: str) -> Any:
        if self.looks:
            look = self.looks.pop(0)
            if isinstance(look, BaseException):
                raise look
            self.jobs[0].status = Status(look)
        return self.jobs[0]

    def stop_job(self, name: str) -> None:
        self.sent.append(f"stop {name}")

    def submit_job(self, **_: Any) -> None:
        raise ClusterError("answers with status 500: Job with submission_id one already exists.")


RUN = "python scripts/train.py --epochs 3 --storage /shared/runs --name first"


@pytest.mark.parametrize(
    ("words", "same"),
    [
        ("scripts/train.py --name first --storage /shared/runs", True),
        ("scripts/train.py --name=first --storage=/shared/runs/", True),
        ("scripts/train.py --resume first --runs-dir /shared/runs", True),
        ("scripts/train.py --resume /shared/runs/first", True),
        ("scripts/train.py --name second --storage /shared/runs", False),
        ("scripts/train.py --name first --storage /shared/others", False),
        ("scripts/train.py --name first", False),  # in the directory of the job
        ("scripts/train.py --storage /shared/runs --name", False),
        ("other.py", False),
    ],
)
@pytest.mark.parametrize("status", ["PENDING", "RUNNING", "STOPPED"])
def test_a_run_is_not_submitted_while_a_job_works_at_it(
    words: str, same: bool, status: str
) -> None:
    client = Client(("odd", "RUNNING", "echo 'open"), ("one", status, RUN))
    if not same or status == "STOPPED":
        jobs.check_run_is_free(client, words.split(), HERE)
        return
    with pytest.raises(InputError, match=f"job one is {status}") as raised:
        jobs.check_run_is_free(client, words.split(), HERE)
    assert "submit logs --follow one --address http://head:8265" in str(raised.value)
    assert "submit stop one" in str(raised.value)


def test_submit_looks_at_the_jobs_before_it_sends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.py").touch()
    client = Client(("one", "RUNNING", RUN))
    cluster = Cluster("http://head:8265", client, "2", "3")
    monkeypatch.setattr(Cluster, "reach", lambda *_, **__: cluster)
    given = ["--address", "head", "--any-version", "--no-pip", "--working-dir", str(tmp_path), "--"]
    assert submit.main([*given, *RUN.split()]) == 2
    assert "with the same run, first in /shared/runs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "said"),
    [("RUNNING", "which is RUNNING.*submit stop one"), ("FAILED", r"which has ended \(FAILED\)")],
)
def test_a_name_that_is_used(status: str, said: str) -> None:
    cluster = Cluster("", Client(("one", status, "x")), "2", "3")
    with pytest.raises(InputError, match=f"(?s){said}"):
        commands._send(cluster, "one", ["x"], {}, HERE)


def test_stop_tells_at_once_what_comes(capsys: pytest.CaptureFixture[str]) -> None:
    client = Client(("one", "RUNNING", "x"), variables={jobs.STOP_VARIABLE: "7"})
    client.looks = ["STOPPED"]
    assert jobs.stop(client, client.jobs[0]) == 0
    assert client.sent == ["stop one"]
    first, last = capsys.readouterr().err.splitlines()
    assert first == "submit: job one is asked to stop; it has 7 s to save"
    assert last == "submit: job one: STOPPED"


def test_a_stop_that_is_interrupted_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    client = Client(("one", "RUNNING", "x"))
    client.looks = [KeyboardInterrupt()]
    assert jobs.stop(client, client.jobs[0]) == 130
    said = capsys.readouterr().err
    assert "it has 3 s to save" in said  # Ray's own: it was not submitted by this program
    assert "will still be stopped" in said


def test_a_job_has_one_line() -> None:
    client = Client(("one", "RUNNING", "python -c 'import os\n\nprint(1)'"))
    assert jobs.line(client.jobs[0]).endswith("python -c 'import os print(1)'")


def test_no_jobs(capsys: pytest.CaptureFixture[str]) -> None:
    for name in (None, "one"):
        with pytest.raises(InputError, match="no job was submitted to this cluster yet"):
            jobs.find(Client(), name)


def test_a_lost_connection_has_an_exit_status_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lost(*_: Any) -> int:
        raise LostError("gone")

    cluster = Cluster("", Client(("one", "RUNNING", "x")), "2", "3")
    monkeypatch.setattr(Cluster, "reach", lambda *_, **__: cluster)
    monkeypatch.setattr(commands, "follow", lost)
    assert submit.main(["logs", "--follow", "one", "--address", "head"]) == submit.LOST == 75
    assert "submit logs --follow one --address head" in capsys.readouterr().err
