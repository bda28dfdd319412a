"""The doctor: what it shows of findings, its deadlines, and that it keeps secrets."""

import threading

import pytest
import qiskit.circuit.library  # noqa: F401 (it crashes where the thread that imported it ends)

from qailab import doctor
from qailab.doctor import Finding, findings_of, node_finding, pool_finding

TOKEN = "planted-Zq7xW2vK9mPf4RtY8bNc3Lh6Jd1Gs5Ae0Uo"


def test_a_finding_says_what_is_wrong_and_what_to_do_in_100_columns():
    good = Finding("engine", "four cylinders", to_do="mend it")
    bad = Finding("engine", "words " * 60, "it leaks " * 20 + "x" * 150, "mend it")
    assert good.text([]) == "OK       engine              four cylinders"
    assert bad.text([]).startswith("WRONG    engine ")
    assert bad.text([]).endswith("-> mend it")
    assert max(map(len, bad.text([]).splitlines())) == 100
    assert Finding("a", "b", "c", "d", warning=True).text([]).startswith("warning ")


@pytest.mark.parametrize("text", [TOKEN, f"'{TOKEN[:12]}'", f"key {TOKEN[-9:]}", TOKEN[8:20]])
def test_a_secret_and_its_parts_are_hidden(text):
    shown = Finding(text, text, text, text).text([TOKEN, ""])
    assert shown.count("not shown") == 3
    assert text not in shown
    assert "planted" in Finding("", "planted").text([TOKEN])


def test_secrets_of_files_and_variables_are_hidden(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    tokens = [f"{number}{TOKEN}" for number in range(4)]
    files = {
        ".qiskit/qiskit-ibm.json": f'{{"a": {{"token": "{tokens[0]}"}}}}',
        ".ray/auth_token": f"{tokens[1]}\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    monkeypatch.setenv("QISKIT_IBM_TOKEN", f" {tokens[2]}")
    monkeypatch.setenv("RAY_AUTH_TOKEN", tokens[3])
    monkeypatch.setattr(doctor, "_versions", lambda: [Finding("a", one) for one in tokens])
    monkeypatch.setattr(doctor, "_ray", lambda _: [Finding("Ray", "is here", "is late", "wait")])
    assert doctor.main([]) == 1
    shown = capsys.readouterr().out
    assert shown.startswith("looking at versions, Aer, Ray\n")
    assert shown.count("not shown") == 4
    assert TOKEN[:8] not in shown
    assert "density_matrix" in shown
    assert shown.endswith("\n1 wrong, no warnings\n")


@pytest.mark.parametrize("error", [ValueError("no\nfuel"), SystemExit(3)])
def test_a_check_that_raises_is_a_finding_and_the_others_go_on(error):
    def fails():
        yield Finding("engine", "four cylinders")
        raise error

    looks = {"engine": fails, "wheels": lambda: [Finding("wheels", "two")]}
    first, failed, last = findings_of(looks)
    assert (first.found, last.found) == ("four cylinders", "two")
    assert (failed.check, failed.problem) == ("engine", doctor.message_of(error))


def test_a_check_that_is_late_is_a_finding_and_the_others_go_on():
    released = threading.Event()
    looks = {"engine": lambda: released.wait(300) and [], "wheels": lambda: [Finding("b", "two")]}
    late, last = findings_of(looks, seconds=0.3)
    released.set()
    assert (late.check, late.found, last.found) == ("engine", "no answer within 0.3 s", "two")
    assert late.problem


def test_versions_are_compared_with_what_is_needed(monkeypatch):
    monkeypatch.setattr(
        doctor, "installed", lambda: {"Python": "3.11", "qailab": "0", "ray": "2.9"}
    )
    needs = ["ray[default]<3,>=2.50", "qiskit>=2.1", "pytest>=8; extra == 'dev'"]
    monkeypatch.setattr(doctor.metadata, "requires", lambda _: needs)
    found = {one.check: one for one in findings_of({"versions": doctor._versions})}
    assert set(found) == {"Python", "qailab", "ray", "qiskit"}
    assert found["qailab"].warning
    assert found["ray"].problem == "qailab needs <3,>=2.50"
    assert found["ray"].to_do == "pip install 'ray[default]<3,>=2.50'"
    assert found["qiskit"].found == "not installed"


def test_nodes_that_differ():
    here = {"Python": "3.11.7", "qailab": "0.1.0", "qiskit": "2.6.2"}
    assert not node_finding("n", here, here).problem
    rounding = node_finding("n", here, {**here, "qiskit": "2.6.3"})
    assert (rounding.found, rounding.problem) == ("n: qiskit 2.6.3", "here: qiskit 2.6.2")
    assert rounding.warning
    assert not node_finding("n", here, {**here, "Python": "3.12.1"}).warning


def test_a_pool_pays_from_where_its_gain_outweighs_the_way_there():
    good = pool_finding(here=[0.005, 0.1], pool=[0.007, 0.052])
    assert not good.problem
    assert "2.0 times" in good.found
    assert "2.0 ms away: a pool pays for passes that take 4 ms or more" in good.found
    assert pool_finding(here=[0.005, 0.1], pool=[0.007, 0.1]).warning
