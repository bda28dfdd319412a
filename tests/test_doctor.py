"""The doctor: its table, its exit codes, its deadlines, and that it keeps secrets."""

import base64
import contextlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from qailab import doctor
from qailab.backends import checkup as backends
from qailab.checks import HIDDEN, Check, Finding, findings_of, message_of
from qailab.distributed import checkup as distributed
from qailab.errors import InputError

ROWS = re.compile(r"^(?P<check>\S[^|]*?) +\| ", re.MULTILINE)
CLOSED = "127.0.0.1:9"  # nothing listens on the discard port
TOKEN = "planted-Zq7xW2vK9mPf4RtY8bNc3Lh6Jd1Gs5Ae0Uo"
CRN = "crn:v1:bluemix:public:quantum-computing:us-east:a/0123:4567::"


def finding(problem="", **options):
    return Finding("engine", "four cylinders", problem, "mend it", **options)


def check(run, seconds=20.0):
    return Check("engine", run, seconds, "mend it")


def doctor_process(*arguments, home, timeout=110, **environment):
    """The program, from a shell without settings of Ray or IBM, and without a way to a network."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("RAY_", "QISKIT_", "IAM_", "GLOBAL_", "http", "HTTP", "no_proxy"))
    }
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), f"http://{CLOSED}")
    return subprocess.run(
        [sys.executable, "-m", "qailab.doctor", *arguments],
        capture_output=True, text=True, timeout=timeout,
        env={**kept, **proxies, "NO_PROXY": "127.0.0.1", "HOME": str(home), **environment},
    )  # fmt: skip


def ibm_at(url, token=TOKEN):
    """What IBM's client reads, pointed at a server of this machine."""
    return {
        "QISKIT_IBM_TOKEN": token,
        "QISKIT_IBM_INSTANCE": CRN,
        "QISKIT_IBM_URL": f"{url}/experimental",  # the word makes the client take it as it is
        "IAM_URL": url,
        "GLOBAL_SEARCH_URL": url,
        "GLOBAL_CATALOG_URL": f"{url}/catalog",
    }


def rows_of(text):
    """The table's rows: check -> the words of its cells."""
    rows, name = {}, ""
    for line in text.splitlines()[2:-1]:
        cells = [cell.strip() for cell in f"{line} ".split("| ")]
        name = cells[0] if ROWS.match(line) else name
        for at, cell in enumerate(cells[1:]):
            seen = rows.setdefault(name, ["", "", ""])
            seen[at] = f"{seen[at]} {cell}".strip()
    return rows


# The table, and running checks


def test_importing_it_is_light():
    program = (
        "import sys, qailab.doctor; "
        "print([name for name in ('ray', 'torch', 'qiskit', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_row_is_wrapped_to_100_columns():
    long = Finding("a" * 40, "words " * 60, "one " * 50 + "x" * 90, "do " * 40)
    lines = (doctor.header() + "\n" + doctor.row(long)).splitlines()
    assert max(map(len, lines)) <= 100
    assert all(line.count("|") in (1, 2, 3) for line in lines[2:])
    assert len(lines[1]) == 100
    assert "x" * 25 in lines[-1] or any("x" * 25 in line for line in lines)


def test_a_row_says_ok_warning_or_wrong():
    assert "| OK" in doctor.row(finding())
    assert "mend it" not in doctor.row(finding())  # there is nothing to do
    assert "| wrong: it leaks" in doctor.row(finding("it leaks"))
    assert "| warning: it leaks" in doctor.row(finding("it leaks", warning=True))
    assert "mend it" in doctor.row(finding("it leaks"))
    assert "\x1b[31m" in doctor.row(finding("it leaks"), colour=True)
    assert "\x1b" not in doctor.row(Finding("a", "\x1b[36mred\x1b[0m", "\x1b[31mx", "\x07"))


def test_a_problem_says_what_to_do():
    with pytest.raises(InputError, match="what to do"):
        Finding("engine", "four cylinders", "it leaks")


@pytest.mark.parametrize(
    ("found", "code", "summary"),
    [
        ([finding()], 0, "nothing wrong, no warnings"),
        ([finding(), finding("it leaks", warning=True)], 0, "nothing wrong, 1 warning"),
        ([finding("it leaks"), finding()], 1, "1 wrong, no warnings"),
        ([], 0, "nothing wrong, no warnings"),
    ],
)
def test_exit_code(found, code, summary, capsys):
    assert doctor.report([check(lambda: found)]) == code
    assert capsys.readouterr().out.splitlines()[-1] == summary


@pytest.mark.parametrize("error", [ValueError("no\nfuel"), SystemExit(3), KeyboardInterrupt()])
def test_a_check_that_raises_is_a_row_and_the_others_go_on(error, capsys):
    def fails():
        yield finding()
        raise error

    assert doctor.report([check(fails), check(lambda: [Finding("wheels", "two")])]) == 1
    rows = rows_of(capsys.readouterr().out)
    assert rows["wheels"] == ["two", "OK", ""]
    assert f"wrong: {type(error).__name__}" in rows["engine"][1]
    assert rows["engine"][2] == "mend it"


def test_a_check_that_is_late_is_a_row_and_the_others_go_on():
    released = threading.Event()

    def hangs():
        yield finding()
        released.wait(300)

    checks = [check(hangs, seconds=0.3), check(lambda: [Finding("wheels", "two")])]
    started = time.monotonic()
    found = list(findings_of(checks))
    assert time.monotonic() - started < 200
    assert [one.found for one in found] == ["four cylinders", "no answer within 0.3 s", "two"]
    assert found[1].wrong
    assert found[1].to_do == "mend it"
    released.set()


def test_checks_that_are_in_time_share_a_thread():
    threads = []
    checks = [check(lambda: threads.append(threading.current_thread()) or []) for _ in range(3)]
    assert list(findings_of(checks)) == []
    assert len(set(threads)) == 1
    assert not threads[0].is_alive()


def test_secrets_and_their_parts_are_hidden(capsys, monkeypatch):
    for text in (TOKEN, f"'{TOKEN[:12]}'", f"apikey {TOKEN[-9:]}\n", TOKEN[8:20]):
        shown = Finding("a", text, text, text).without([TOKEN, ""])
        assert (shown.check, shown.found, shown.problem, shown.to_do) == ("a", *[HIDDEN] * 3)
    assert Finding("a", "planted", "").without([TOKEN]).found == "planted"
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    assert doctor.report([check(lambda: [Finding("a", "b", f"token {TOKEN}", "c")])]) == 1
    assert TOKEN[:8] not in capsys.readouterr().out


def test_long_and_coloured_messages_are_cut():
    text = message_of(RuntimeError("\x1b[36mfirst\x1b[39m\n" + "middle " * 1000 + "last"))
    assert text.startswith("RuntimeError: first")
    assert text.endswith("last")
    assert len(text) < 400
    assert message_of(TimeoutError()) == "TimeoutError"


@pytest.mark.parametrize("arguments", [["--adress"], ["--address"], ["--address", " "], ["x"]])
def test_bad_usage(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        doctor.main(arguments)
    assert ended.value.code == 2
    assert "usage: python -m qailab.doctor" in capsys.readouterr().err


# Versions


def metadata_of(monkeypatch, text, versions):
    """Pretend that qailab was installed with this metadata, among these packages."""

    def version(name):
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    parsed = importlib.metadata.PathDistribution.__mro__[1]  # Distribution

    class Installed(parsed):
        def read_text(self, filename):
            return text if filename == "METADATA" else None

        def locate_file(self, path):
            return path

    monkeypatch.setattr(importlib.metadata, "metadata", lambda _: Installed().metadata)
    monkeypatch.setattr(importlib.metadata, "version", version)


def test_versions_are_compared_with_the_metadata(monkeypatch):
    text = (
        "Metadata-Version: 2.1\nName: qailab\nVersion: 0.0.9\nRequires-Python: >=3.11\n"
        "Requires-Dist: ray[default]<3,>=2.50\nRequires-Dist: torch<3,>=2.6\n"
        "Requires-Dist: qiskit<3,>=2.1\nRequires-Dist: pytest>=8; extra == 'dev'\n"
    )
    metadata_of(monkeypatch, text, {"ray": "2.9.0", "torch": "2.13.0+cpu"})
    rows = {one.check: one for one in doctor._versions()}
    assert list(rows) == ["Python", "qailab", "ray", "torch", "qiskit"]
    assert not rows["Python"].problem
    assert not rows["torch"].problem
    assert rows["qailab"].warning
    assert "0.0.9" in rows["qailab"].problem
    assert rows["ray"].problem == "qailab needs <3,>=2.50"
    assert rows["ray"].to_do == "pip install 'ray[default]<3,>=2.50'"
    assert rows["qiskit"].found == "not installed"
    assert rows["qiskit"].wrong


def test_without_metadata_versions_are_shown_with_a_warning(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "metadata", missing)
    rows = {one.check: one for one in doctor._versions()}
    assert rows["qailab"].warning
    assert not any(one.wrong for one in rows.values())
    assert rows["qiskit-ibm-runtime"].found == importlib.metadata.version("qiskit-ibm-runtime")


def test_a_library_that_cannot_be_imported_is_a_row(monkeypatch):
    monkeypatch.setitem(sys.modules, "qailab.torch", None)
    loaded = []
    (row,) = doctor._imports(loaded)
    assert row.wrong
    assert "qailab.torch" in row.found
    assert loaded == ["qailab.backends.checkup", "qailab.distributed.checkup"]


# Aer and Ray


def test_aer():
    rows = {one.check: one for one in findings_of([backends.aer_check()])}
    assert "CPU" in rows["Aer devices"].found
    assert "density_matrix" in rows["Aer methods"].found
    assert not any(one.problem for one in rows.values())


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        ("Version mismatch: The cluster was started with Ray: 2.9", "the Python and the Ray"),
        ("AuthenticationError: Invalid token", "RAY_AUTH_MODE=token"),
        ("ConnectionError: Failed to connect to Ray cluster at 10.0.0.5:6379", "RAY_AUTH_MODE"),
        ("Connection refused", "ray start --head"),
    ],
)
def test_what_to_do_about_no_connection(message, advice):
    assert advice in distributed._after_no_connection(message)


def test_a_late_loopback_address_has_advice_of_its_own(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    first = distributed.RayCheckup("127.0.0.1:6379").checks()[0]
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0" in first.to_do
    assert "127.0.0.1" not in distributed.RayCheckup("10.0.0.5:6379").checks()[0].to_do
    assert "127.0.0.1" not in distributed.RayCheckup(None).checks()[0].to_do


@pytest.mark.parametrize(
    ("total", "free", "kind"),
    [(0, 0, "wrong"), (4, 0.5, "warning"), (4, 1, "OK")],
)
def test_cpus(total, free, kind):
    row, *_ = distributed._resources({"CPU": total}, {"CPU": free})
    assert f"| {kind}" in doctor.row(row)


def test_a_small_shared_memory_is_a_warning():
    node = {"NodeID": "a", "Resources": {"object_store_memory": 2**60}}
    row = distributed._object_store([node], "a")
    assert row.warning
    assert "--shm-size" in row.to_do
    assert not distributed._object_store([node], "elsewhere").problem


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_ray_that_works(capsys):
    import ray

    assert doctor.report(distributed.RayCheckup(None).checks()) == 0
    rows = rows_of(capsys.readouterr().out)
    assert ray.is_initialized()  # it was not the doctor's to end
    assert "the one that this process uses" in rows["Ray"][0]
    assert rows["nodes"][0] == "1"
    assert rows["CPUs"][0].startswith("4, ")
    assert rows["GPUs"][0].isdigit()
    assert rows["qpu_session"][0] == "0"
    assert "80 MiB in all; /dev/shm" in rows["object store"][0]
    assert "as here on all nodes: Python 3." in rows["node versions"][0]
    assert rows["gradient"][0].startswith("through one actor")
    assert {row[1] for row in rows.values()} == {"OK"}


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_nodes_that_differ():
    import ray

    expected = {"Python": "3.11.7", "qailab": "0.1.0", "qiskit": "2.6.2"}
    compare = distributed._compared
    assert not compare("n", expected, ray.put(expected)).problem
    rounding = compare("n", expected, ray.put({**expected, "qiskit": "2.6.3"}))
    assert (rounding.found, rounding.problem) == ("n: qiskit 2.6.3", "here: qiskit 2.6.2")
    assert rounding.warning
    assert compare("n", expected, ray.put({**expected, "Python": "3.12.1"})).wrong
    assert compare("n", expected, ray.put({**expected, "qiskit": "missing"})).wrong


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("error", [1e-3, float("nan")])
def test_a_wrong_gradient_is_a_row(error, monkeypatch):
    monkeypatch.setattr(distributed, "_gradient_error", lambda: error)
    connected = distributed.RayCheckup(None)
    connected._connected = True
    (row,) = connected.gradient()
    assert row.wrong
    assert "not the gradient" in row.problem


def test_without_ray_the_gradient_is_not_run(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", CLOSED)
    monkeypatch.setattr(distributed, "current_session", lambda: None)
    monkeypatch.setattr("qailab.distributed.connection.current_session", lambda: None)
    rows = {one.check: one for one in findings_of(distributed.RayCheckup(None).checks())}
    assert list(rows) == ["Ray", "gradient"]
    assert "from RAY_ADDRESS" in rows["Ray"].found
    assert rows["Ray"].wrong
    assert "ray start --head" in rows["Ray"].to_do
    assert rows["gradient"].wrong


# The IBM account


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("QISKIT_IBM_TOKEN", raising=False)
    return tmp_path


def test_no_ibm_account(home):
    (row,) = findings_of([backends.ibm_check()])
    assert row.wrong
    assert "QISKIT_IBM_TOKEN" in row.to_do
    assert not list(home.iterdir())  # looking makes no file


def test_tokens_are_known_to_be_hidden(home, monkeypatch):
    file = home / ".qiskit" / "qiskit-ibm.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"a": {"token": TOKEN, "channel": "nowhere"}}))
    monkeypatch.setenv("QISKIT_IBM_TOKEN", "from-the-environment ")
    assert set(backends.known_tokens()) == {TOKEN, "from-the-environment ", "from-the-environment"}
    file.write_text("not json")
    assert TOKEN not in backends.known_tokens()

    def tells():
        yield Finding("IBM account", f"it is {TOKEN}")
        raise ValueError(f"bad header: 'apikey {TOKEN}'")

    file.write_text(json.dumps({"a": {"token": TOKEN}}))
    monkeypatch.setattr(backends, "_account", tells)
    rows = list(backends._ibm())
    assert [row.wrong for row in rows] == [False, True]
    assert TOKEN[:8] not in repr(rows)


class Refused(Exception):
    """What IBM's client raises, one from another."""

    def __init__(self, message, status_code=None):
        super().__init__(message)
        self.status_code = status_code


@pytest.mark.parametrize(
    ("kind", "code", "cause", "found"),
    [
        ("InvalidAccountError", None, ConnectionError("no route"), "IBM cannot be reached"),
        ("ApiException", 400, None, "IBM refuses the API key (HTTP 400)"),
        ("RequestsApiError", 401, None, "IBM refuses the API key (HTTP 401)"),
        ("RequestsApiError", 500, None, "the account cannot be used"),
        ("AccountNotFoundError", None, None, "no account is found"),
    ],
)
def test_what_errors_of_the_client_mean(kind, code, cause, found):
    error = type(kind, (Refused,), {})("check your API token", code)
    error.__cause__ = cause
    row = backends._failure(error)
    assert row.found == found
    assert row.wrong


# The program, as a user starts it


@pytest.mark.integration
@pytest.mark.slow
def test_the_whole_program(tmp_path):
    done = doctor_process(home=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = rows_of(done.stdout)
    assert {"Python", "qailab", "ray", "torch", "Aer devices", "Ray", "gradient"} <= set(rows)
    assert "started for this check" in rows["Ray"][0]
    assert rows["gradient"][1] == "OK"
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert "Traceback" not in done.stderr  # Ray's own processes may say something there


@pytest.mark.integration
def test_an_unreachable_address_and_no_account(tmp_path):
    done = doctor_process("--address", CLOSED, "--ibm", home=tmp_path)
    assert done.returncode == 1
    rows = rows_of(done.stdout)
    assert "from --address" in rows["Ray"][0]
    assert "ConnectionRefusedError" in rows["Ray"][1]
    assert "ray start --head" in rows["Ray"][2]
    assert rows["IBM account"][1] == "wrong: there is no account to use"
    assert "QISKIT_IBM_TOKEN" in rows["IBM account"][2]
    assert done.stderr == ""


@pytest.mark.integration
@pytest.mark.parametrize("token", [TOKEN, f"{TOKEN}\n", f" {TOKEN}"], ids=["good", "nl", "blank"])
def test_a_token_is_never_shown(tmp_path, token):
    environment = ibm_at(f"http://{CLOSED}", token)
    done = doctor_process("--ibm", "--address", CLOSED, home=tmp_path, **environment)
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert not any(TOKEN[at : at + 8] in said for at in range(len(TOKEN) - 7))
    rows = rows_of(done.stdout)
    assert rows["IBM account"][1].startswith("wrong: ")
    assert done.stderr == ""


class FakeIBM(BaseHTTPRequestHandler):
    """As much of IBM's services as an account's check asks for."""

    refuses = hangs = False

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/identity/token":
            return self._identity()
        assert self.path.startswith("/v3/resources/search"), self.path
        item = {"crn": CRN, "name": "lab", "service_plan_unique_id": "p", "tags": []}
        return self._answer({"items": [{**item, "doc": {"extensions": [1]}}]})

    def do_GET(self):
        from qiskit_ibm_runtime.fake_provider import FakeManilaV2

        path = self.path.removeprefix("/experimental").partition("?")[0]
        manila = FakeManilaV2()
        with open(os.path.join(manila.dirname, manila.conf_filename)) as file:
            configuration = json.load(file)
        status = {"backend_version": "1", "state": True, "length_queue": 17}
        answers = {
            "/catalog/p": {
                "overview_ui": {"en": {"display_name": "Open"}},
                "metadata": {"pricing": {"type": "free"}},
            },
            "/backends": {"devices": [{"name": "ibm_up"}, {"name": "ibm_paused"}]},
            "/instances/usage": {"usage_consumed_seconds": 60, "usage_limit_seconds": 600},
        }
        for name, reason in (("ibm_up", "active"), ("ibm_paused", "internal")):
            about = {"backend_name": name, "simulator": False}
            answers[f"/backends/{name}/configuration"] = {**configuration, **about}
            answers[f"/backends/{name}/status"] = {**status, **about, "status": reason}
        self._answer(answers[path])

    def _identity(self):
        if self.hangs:
            time.sleep(200)
        if self.refuses:
            return self._answer({"errorMessage": "Provided API key could not be found."}, 400)
        now = int(time.time())
        claims = json.dumps({"iat": now, "exp": now + 3600}).encode()
        part = base64.urlsafe_b64encode(claims).decode().rstrip("=")
        token = {"access_token": f"e30.{part}.c2ln", "refresh_token": "r", "token_type": "Bearer"}
        return self._answer({**token, "expires_in": 3600, "expiration": now + 3600})

    def _answer(self, body, status=200):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def fake_ibm(**behaviour):
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("IBM", (FakeIBM,), behaviour))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


@pytest.mark.integration
def test_an_account_that_works(tmp_path):
    with fake_ibm() as url:
        done = doctor_process("--ibm", "--address", CLOSED, home=tmp_path, **ibm_at(url))
    rows = rows_of(done.stdout)
    assert rows["IBM account"] == ["from QISKIT_IBM_TOKEN", "OK", ""]
    assert rows["IBM instances"] == ["lab (plan open, in use)", "OK", ""]
    assert rows["IBM usage"] == ["60 s used, 540 s left", "OK", ""]
    assert rows["ibm_up"] == ["5 qubits, 17 jobs waiting", "OK", ""]
    assert rows["ibm_paused"][1].startswith("warning: it takes jobs, but runs none now")
    assert TOKEN[:8] not in done.stdout + done.stderr
    assert done.stderr == ""


@pytest.mark.integration
def test_a_key_that_is_refused(tmp_path):
    with fake_ibm(refuses=True) as url:
        done = doctor_process("--ibm", "--address", CLOSED, home=tmp_path, **ibm_at(url))
    found, _, to_do = rows_of(done.stdout)["IBM account"]
    assert found == "IBM refuses the API key (HTTP 400)"
    assert "make an API key" in to_do
    assert done.returncode == 1
    assert TOKEN[:8] not in done.stdout + done.stderr


@pytest.mark.integration
def test_a_server_that_does_not_answer(tmp_path):
    program = (
        "import qailab.backends.checkup as c, runpy, sys; c._IBM_SECONDS = 4; "
        "sys.argv = ['doctor', '--ibm', '--address', '127.0.0.1:9']; "
        "runpy.run_module('qailab.doctor', run_name='__main__')"
    )
    with fake_ibm(hangs=True) as url:
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=190,
            env={**os.environ, **ibm_at(url), "NO_PROXY": "127.0.0.1", "HOME": str(tmp_path)},
        )  # fmt: skip
        assert time.monotonic() - started < 150  # the server holds its answer for 200 s
    assert done.returncode == 1
    assert rows_of(done.stdout)["IBM account"][0] == "no answer within 4 s"
