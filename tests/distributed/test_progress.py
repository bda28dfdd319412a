"""When a bar is shown; what it looks like is in the integration tests."""

import pytest

from qailab.distributed import telemetry
from qailab.distributed.telemetry import Progress


class Bar:
    """What tqdm's bars have."""

    def __init__(self, done):
        self.n = self.first = done
        self.total = None
        self.notes = []
        self.closed = False

    def set_postfix_str(self, note, refresh):
        self.notes.append(note)

    def update(self, rows):
        self.n += rows

    def close(self):
        self.closed = True


@pytest.fixture
def bars(monkeypatch):
    made = []

    def make(done):
        made.append(Bar(done))
        return made[-1]

    monkeypatch.setattr(telemetry, "_new_bar", make)
    return made


def test_short_evaluations_need_no_bar(bars):
    shown = Progress()
    shown.began(0, 100, 0.0)
    for now in (0.0, 0.5, 1.9):
        shown.show("", now)
    shown.ended(0)
    shown.show("", 2.5)
    assert bars == []


def test_one_bar_counts_the_rows_of_all_evaluations(bars):
    shown = Progress()
    shown.began(0, 100, 0.0)
    shown.began(1, 50, 1.0)
    shown.answered(0, 40)
    shown.show("actors 1/2", 2.1)
    (bar,) = bars
    assert (bar.first, bar.n, bar.total) == (40, 40, 150)
    assert bar.notes == ["actors 1/2"]
    shown.answered(1, 20)
    shown.ended(0)  # it was cancelled: nobody waits for its rows
    shown.show("actors 2/2", 3.0)
    assert (bar.n, bar.total) == (120, 150)
    shown.ended(1)
    shown.show("", 3.1)
    assert bar.closed


def test_who_cannot_see_it_gets_none():
    shown = Progress()  # pytest's standard error is no terminal
    shown.began(0, 100, 0.0)
    shown.show("", 9.0)
    shown.show("", 10.0)
    shown.close()


def test_a_terminal_that_goes_away_is_no_reason_to_fail(bars, monkeypatch):
    def broken(*_):
        raise OSError("no such terminal")

    shown = Progress()
    shown.began(0, 100, 0.0)
    shown.show("", 2.1)
    monkeypatch.setattr(bars[0], "update", broken)
    monkeypatch.setattr(bars[0], "close", broken)
    shown.answered(0, 10)
    shown.show("", 3.1)
    shown.ended(0)
    shown.show("", 4.1)
