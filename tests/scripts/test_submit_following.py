"""How ``scripts/submit.py`` shows a job's output, and what it makes of its end."""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))  # as Python does for a script

from submission import following  # noqa: E402
from submission.errors import ClusterError, LostError, OutputError  # noqa: E402
from submission.following import exit_status  # noqa: E402
from submission.lines import Lines  # noqa: E402


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


BARS = [f"qailab:  {n}%|███  | {n}/100 [00:0{n}<00:09, 9 rows/s]" for n in range(1, 9)]


def test_bars_are_lines_now_and_then_in_a_file() -> None:
    out, now = io.StringIO(), [0.0]
    lines = Lines(out, clock=lambda: now[0])
    lines.write("begin\n")
    for bar in BARS:
        now[0] += 3
        lines.write(f"{bar}\n")
    lines.write("end")
    lines.write(" of it")
    lines.close()
    assert out.getvalue().splitlines() == ["begin", BARS[0], BARS[4], BARS[7], "end of it"]


@pytest.mark.parametrize(
    "line",
    [
        "| zero | 50%| ok |",
        "epoch 1/2  loss 2.407 (test 2.155)  accuracy 0.119 (test 0.300)  1,972 rows/s  2.0 s, "
        "00:02 left",
        "50% of it, 00:02 left",
        "[00:01<00:02] is a time",
    ],
)
def test_lines_that_are_no_bars_are_all_shown(line: str) -> None:
    for out in (io.StringIO(), Terminal()):
        lines = Lines(out)
        lines.write(f"{line}\n" * 3)
        lines.close()
        assert out.getvalue() == f"{line}\n" * 3


OWN = "epoch 1/3 {}%, loss 2.104, accuracy 0.212, 1,972 rows/s, 00:12 left"


@pytest.mark.parametrize(
    "bar",
    [
        OWN.format("███▌      35"),
        OWN.format("███  35"),
        OWN.format("##5       35"),
        OWN.format("            0"),
        "epoch 1/3 ██████████ 100%, 00:00 left",
        "qailab: 100%|██████████| 1.2k/1.2k [00:10<00:00, 118row/s]",
        "\r9 of 10",
    ],
)
def test_what_is_a_bar(bar: str) -> None:
    out = io.StringIO()
    lines = Lines(out, clock=lambda: 1.0)
    lines.write(f"{bar}\n" * 3 + "end\n")
    plain = bar.strip("\r")
    assert out.getvalue() == f"{plain}\n{plain}\nend\n"  # the first and the last


def test_a_bar_has_one_line_of_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    out = Terminal()
    Lines(out).write(OWN.format("███▌      35") + "\n")
    assert len(out.getvalue().removeprefix("\r\x1b[K")) == 39


def test_bars_replace_each_other_on_a_terminal() -> None:
    out = Terminal()
    lines = Lines(out)
    lines.write("\n".join(["begin", *BARS, "end", ""]))
    lines.close()
    seen = [line.rpartition("\r\x1b[K")[2] for line in out.getvalue().split("\n")][:-1]
    assert seen == ["begin", BARS[-1], "end"]


class Interrupted:
    """A client whose stream is lost in the middle of a line, is quiet, or ends before the job."""

    def __init__(self, *streams: tuple[str | float | Exception, ...], logs: str) -> None:
        self._streams, self._logs = list(streams), logs

    async def tail_job_logs(self, _: str) -> AsyncIterator[str]:
        for text in self._streams.pop(0):
            if isinstance(text, Exception):
                raise text
            if isinstance(text, float):
                await asyncio.sleep(text)
            else:
                yield text

    def get_job_info(self, _: str) -> Any:
        ended = not self._streams
        status = SimpleNamespace(is_terminal=lambda: ended)
        return SimpleNamespace(status=status)

    def get_job_logs(self, _: str) -> str:
        return self._logs


def test_output_is_whole_after_a_lost_connection(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(following, "_AGAIN_SECONDS", 0.01)
    client = Interrupted(
        ("one\ntw", RuntimeError("lost")),
        (ConnectionResetError("lost again"),),
        ("one\n", "two\nthree\n"),
        ("one\ntwo\nthree\n", "four\n"),
        logs="one\ntwo\nthree\nfour\nfive\n",
    )
    out = io.StringIO()
    following.follow(client, "job", out)
    assert out.getvalue() == "one\ntwo\nthree\nfour\nfive\n"
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "submit: connection lost (lost); trying again for 60 s",
        "submit: connected again",
    ]


class Unreadable(Interrupted):
    """A client whose job has printed what cannot be read, or whose log does not come."""

    def __init__(self, *streams: tuple[str | Exception, ...], error: Exception) -> None:
        super().__init__(*streams, logs="")
        self._error = error

    def get_job_logs(self, _: str) -> str:
        raise self._error


@pytest.mark.parametrize("error", [OutputError("not UTF-8"), ClusterError("status 500: why")])
def test_the_end_of_a_job_is_told_although_its_output_is_not(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(following, "_AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(following, "_LOST_SECONDS", 0.05)
    info = following.follow(Unreadable((), (), error=error), "job", io.StringIO())
    assert info.status.is_terminal()
    said = capsys.readouterr().err
    assert str(error) in said
    assert said.count("UTF-8") < 2


def test_a_job_that_has_ended_is_not_followed_line_by_line() -> None:
    out = io.StringIO()
    following.follow(Interrupted(logs="all\nof it\n"), "job", out)  # there is no stream
    assert out.getvalue() == "all\nof it\n"


def test_a_cluster_that_does_not_come_back_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "_AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(following, "_LOST_SECONDS", 0.05)
    lost = [(ConnectionResetError("gone"),)] * 1000
    with pytest.raises(LostError, match=r"gone\. The job may go on"):
        following.follow(Interrupted(*lost, logs=""), "job", io.StringIO())


def test_a_quiet_job_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"_AGAIN": 0.01, "_LOST": 0.2, "_QUIET": 0.02}.items():
        monkeypatch.setattr(following, f"{name}_SECONDS", seconds)
    gone = ConnectionResetError("gone")
    client = Interrupted((gone,), (0.3, gone), ("all\n",), logs="all\n")
    out = io.StringIO()
    following.follow(client, "job", out)
    assert out.getvalue() == "all\n"


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 3, 3),
        ("FAILED", None, 1),
        ("FAILED", -9, 137),
        ("STOPPED", None, 143),
    ],
)
def test_exit_statuses(status: str, code: int | None, expected: int) -> None:
    assert exit_status(SimpleNamespace(status=status, driver_exit_code=code)) == expected
