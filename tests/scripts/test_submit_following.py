"""How ``scripts/submit.py`` shows a job's output, and what it makes of its end."""

from __future__ import annotations

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
from submission.cluster import ClusterError  # noqa: E402
from submission.following import Lines, exit_status  # noqa: E402


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


def test_bars_replace_each_other_on_a_terminal() -> None:
    out = Terminal()
    lines = Lines(out)
    lines.write("\n".join(["begin", *BARS, "end", ""]))
    lines.close()
    seen = [line.rpartition("\r\x1b[K")[2] for line in out.getvalue().split("\n")][:-1]
    assert seen == ["begin", BARS[-1], "end"]


class Interrupted:
    """A client whose stream is lost in the middle of a line, or ends before the job."""

    def __init__(self, *streams: tuple[str | Exception, ...], logs: str) -> None:
        self._streams, self._logs = list(streams), logs

    async def tail_job_logs(self, _: str) -> AsyncIterator[str]:
        for text in self._streams.pop(0):
            if isinstance(text, Exception):
                raise text
            yield text

    def get_job_info(self, _: str) -> Any:
        ended = not self._streams
        status = SimpleNamespace(is_terminal=lambda: ended)
        return SimpleNamespace(status=status)

    def get_job_logs(self, _: str) -> str:
        return self._logs


def test_output_is_whole_after_a_lost_connection(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_cluster_that_does_not_come_back_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "_AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(following, "_LOST_SECONDS", 0.05)
    lost = [(ConnectionResetError("gone"),)] * 1000
    with pytest.raises(ClusterError, match=r"gone\. The job may go on"):
        following.follow(Interrupted(*lost, logs=""), "job", io.StringIO())


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
