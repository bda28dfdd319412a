"""When a bar is shown; what it looks like is in test_programs.py."""

from types import SimpleNamespace

import pytest

from qailab.distributed import progress
from qailab.distributed.progress import Progress


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


def job(number, rows, answered, began=0.0):
    batch = SimpleNamespace(num_rows=rows)
    return SimpleNamespace(number=number, batch=batch, answered=answered, began=began)


SLOTS = [SimpleNamespace(state="ready"), SimpleNamespace(state="starting")]


@pytest.fixture
def bars(monkeypatch):
    made = []

    def make(done):
        made.append(Bar(done))
        return made[-1]

    monkeypatch.setattr(progress, "_new_bar", make)
    return made


def test_short_evaluations_need_no_bar(bars):
    shown = Progress()
    for now in (0.0, 0.5, 1.9):
        shown.show([job(0, 100, 10)], SLOTS, 0, now)
    shown.show([], SLOTS, 0, 2.5)
    assert bars == []


def test_one_bar_counts_the_rows_of_all_jobs(bars):
    shown = Progress()
    first, second = job(0, 100, 40), job(1, 50, 0, began=1.0)
    shown.show([first, second], SLOTS, 0, 2.1)
    (bar,) = bars
    assert (bar.first, bar.n, bar.total) == (40, 40, 150)
    assert bar.notes == ["actors 1/2"]
    second.answered = 20
    shown.show([second], SLOTS, 3, 3.0)  # the first has ended
    assert (bar.n, bar.total) == (120, 150)
    assert bar.notes[-1] == "actors 1/2, retries 3"
    shown.show([], SLOTS, 3, 3.1)
    assert bar.closed


def test_who_does_not_want_it_or_cannot_see_it_gets_none(bars, monkeypatch):
    Progress(wanted=False).show([job(0, 100, 40)], SLOTS, 0, 9.0)
    assert bars == []
    monkeypatch.undo()  # pytest's standard error is no terminal
    hidden = Progress()
    hidden.show([job(0, 100, 40)], SLOTS, 0, 9.0)
    assert hidden._bar is None
    assert not hidden._wanted


def test_a_terminal_that_goes_away_is_no_reason_to_fail(bars, monkeypatch):
    def broken(*_):
        raise OSError("no such terminal")

    shown = Progress()
    shown.show([job(0, 100, 40)], SLOTS, 0, 2.1)
    monkeypatch.setattr(bars[0], "update", broken)
    monkeypatch.setattr(bars[0], "close", broken)
    shown.show([job(0, 100, 60)], SLOTS, 0, 3.1)
    shown.show([], SLOTS, 0, 4.1)
