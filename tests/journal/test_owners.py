import os
import subprocess
import sys

import pytest

from qailab.journal import owner_alive, owners, this_owner


def renamed(owner, **parts):
    names = ("host", "machine", "boot", "namespace", "pid", "start")
    return "/".join(parts.get(n, v) for n, v in zip(names, owner.split("/"), strict=True))


def child():
    program = (
        "import sys; from qailab.journal import this_owner; "
        "print(this_owner(), flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    return process, process.stdout.readline().strip()


def test_this_process_is_alive_and_always_has_the_same_name():
    assert this_owner() == this_owner()
    assert this_owner().split("/")[4] == str(os.getpid())
    assert owner_alive(this_owner()) is True


def test_a_killed_process_is_dead_even_before_its_parent_knows():
    process, owner = child()
    try:
        assert owner_alive(owner) is True
    finally:
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie from here on
    assert owner_alive(owner) is False
    process.communicate()
    assert owner_alive(owner) is False


def test_a_process_id_that_was_used_again_is_somebody_else():
    assert owner_alive(renamed(this_owner(), start="1")) is False


def test_after_a_restart_of_the_machine_nobody_is_alive():
    if "-" in this_owner().split("/")[1:3]:
        pytest.skip("this system has no machine id or boot id")
    assert owner_alive(renamed(this_owner(), boot="00000000")) is False


@pytest.mark.parametrize(
    "other",
    [
        {"host": "elsewhere"},
        {"machine": "00000000"},
        {"namespace": "1"},
        {"machine": "-", "boot": "00000000"},
        "somebody",
        "",
        "a/b/c/d/e/f",
    ],
)
def test_of_others_nothing_can_be_told(other):
    # Not parametrised by the name itself: that is another one in each process that runs tests.
    name = other if isinstance(other, str) else renamed(this_owner(), **other)
    assert owner_alive(name) is None


def test_without_proc_process_ids_must_do(monkeypatch):
    monkeypatch.setattr(owners, "_hashed", lambda path: "-")
    monkeypatch.setattr(owners, "_namespace", lambda: "-")
    monkeypatch.setattr(owners, "_started", lambda pid: None)
    assert owner_alive(this_owner()) is True
    assert this_owner().endswith(f"/-/-/-/{os.getpid()}/-")
    assert owner_alive(renamed(this_owner(), pid="1")) is True  # somebody else's, perhaps
    process, _ = child()
    gone = renamed(this_owner(), pid=str(process.pid))
    process.kill()
    process.communicate()
    assert owner_alive(gone) is False
