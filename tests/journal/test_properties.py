"""Whatever several owners do in whatever order, each row belongs to one live entry at most."""

import collections

from hypothesis import given, settings
from hypothesis import strategies as st

from qailab.journal import Cause, Journal, MemoryRecord, State
from qailab.journal.record import LIVE, UNSENT
from tests.support.journal import counts_of, reserve, submit, work

ROWS = 24
OWNERS = st.sampled_from(["anna", "bert", "cleo"])
NUMBERS = st.integers(0, 10**6)  # of an entry: modulo how many there are

RESERVE = st.tuples(
    st.just("reserve"), OWNERS, st.integers(0, ROWS - 1), st.integers(1, ROWS),
    st.integers(1, 9), st.integers(1, 3), st.integers(0, 1), st.integers(0, 1),
)  # fmt: skip
OTHERS = st.tuples(
    st.sampled_from(
        ["submit", "submit", "done", "failed", "cancelled", "withdraw", "lose", "take over",
         "again", "halve", "crash"]
    ),
    OWNERS,
    NUMBERS,
    st.integers(1, 3),
)  # fmt: skip


class Model:
    """A record, and what must be true of it."""

    def __init__(self, path):
        self.path = path
        self.record = MemoryRecord() if path is None else Journal(path)
        self.entries = {}
        self.results = {}  # of which entry, by (step, data, row)

    def saw(self, wanted, data, entries):
        starts = [entry.work.start for entry in entries]
        assert starts == sorted(starts)
        rows = [row for entry in entries for row in range(entry.work.start, entry.work.stop)]
        assert len(rows) == len(set(rows))
        assert set(rows) >= set(range(wanted.start, wanted.stop))
        for entry in entries:
            assert entry.state in LIVE
            assert entry.work.common(wanted) == wanted.common(entry.work)
            self.entries[entry.id] = data
            part = entry.work.common(wanted)
            for row in range(part.start, part.stop):  # what is done is never handed out again
                key = (part.step, data, row)
                assert self.results.get(key, entry.id) == entry.id

    def step(self, action):
        kind, owner, *values = action
        if kind == "reserve":
            start, length, most, group, step, data = values
            wanted = work(start, min(ROWS, start + length), step=step, data=data)
            most = max(most, group)
            made = reserve(self.record, wanted, most_rows=most, group=group, owner=owner)
            new = [entry for entry in made if entry.id not in self.entries]
            ends = {wanted.start} | {entry.work.stop for entry in made if entry not in new}
            for entry in new:
                assert (entry.owner, entry.state) == (owner, State.PENDING)
                assert entry.work.num_rows <= most
                assert entry.work.start % group == 0 or entry.work.start in ends
            self.saw(wanted, data, made)
        elif kind == "crash" and self.path is not None:
            self.record.close()
            self.record = Journal(self.path)
        elif self.entries:
            number = sorted(self.entries)[values[0] % len(self.entries)]
            self.change(kind, owner, self.record.entry(number), values[1])

    def change(self, kind, owner, entry, group):
        data = self.entries[entry.id]
        unsent = entry.state in UNSENT
        if kind == "submit" and unsent:
            submit(self.record, entry, f"d{entry.id}")
        elif kind == "done" and entry.state is State.SUBMITTED:
            self.record.done(entry.id, counts_of(entry), 1.0)
            for row in range(entry.work.start, entry.work.stop):
                self.results[entry.work.step, data, row] = entry.id
        elif kind in ("failed", "cancelled"):
            now = self.record.ended(entry.id, State(kind), Cause.DEVICE, "bad luck")
            assert now.state in (kind, State.DONE, entry.state)
        elif kind == "withdraw":
            assert self.record.unsent(entry, State.WITHDRAWN, owner, "lost") == unsent
        elif kind == "lose":
            assert self.record.unsent(entry, State.UNCONFIRMED, "") == unsent
        elif kind == "take over":
            assert self.record.unsent(entry, State.UNCONFIRMED, owner) == unsent
        elif kind in ("again", "halve") and entry.state not in LIVE:
            rows = entry.work.num_rows
            most = max(group, rows if kind == "again" else -(-rows // 2))
            made = reserve(self.record, entry.work, most_rows=most, group=group, owner=owner)
            self.saw(entry.work, data, made)

    def check(self):
        live = collections.Counter()
        tags = collections.Counter()
        for number, data in self.entries.items():
            entry = self.record.entry(number)
            if entry.state in LIVE:
                live.update(
                    (entry.work.step, data, row) for row in range(entry.work.start, entry.work.stop)
                )
            if entry.job_id is not None:
                tags[entry.tag] += 1
            if entry.state == "done":
                assert (self.record.counts(number) == counts_of(entry)).all()
        assert set(live.values()) <= {1}
        assert set(tags.values()) <= {1}  # no two jobs of one tag
        done = {key for key, number in self.results.items()}
        assert done <= set(live)


@given(st.lists(st.one_of(RESERVE, OTHERS), max_size=40))
@settings(max_examples=150)
def test_each_row_has_one_live_entry_at_most(actions):
    model = Model(None)
    for action in actions:
        model.step(action)
        model.check()
    model.record.close()


@given(st.lists(st.one_of(RESERVE, OTHERS), max_size=25))
@settings(max_examples=10)
def test_also_in_a_file_that_is_opened_again(tmp_path_factory, actions):
    model = Model(tmp_path_factory.mktemp("journal") / "jobs.db")
    for action in actions:
        model.step(action)
    model.check()
    model.record.close()
