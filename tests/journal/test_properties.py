"""Whatever several owners do in whatever order, each row belongs to one live entry at most."""

import collections

from hypothesis import given, settings
from hypothesis import strategies as st

from qailab.journal import Journal
from qailab.journal.work import LIVE
from tests.journal.rows import counts_of, work

ROWS = 24
OWNERS = st.sampled_from(["anna", "bert", "cleo"])
NUMBERS = st.integers(0, 10**6)  # of an entry: modulo how many there are

CLAIM = st.tuples(
    st.just("claim"), OWNERS, st.integers(0, ROWS - 1), st.integers(1, ROWS),
    st.integers(1, 9), st.integers(1, 3), st.integers(0, 1), st.integers(0, 1),
)  # fmt: skip
OTHERS = st.tuples(
    st.sampled_from(
        ["submit", "submit", "done", "failed", "cancelled", "withdraw", "take over", "again",
         "halve", "crash"]
    ),
    OWNERS,
    NUMBERS,
    st.integers(1, 3),
)  # fmt: skip


class Model:
    """A journal, and what must be true of it."""

    def __init__(self, path):
        self.path = path
        self.journal = Journal(path)
        self.entries = {}
        self.results = {}  # of which entry, by (step, data, row)

    def saw(self, wanted, data, entries):
        starts = [entry.start for entry in entries]
        assert starts == sorted(starts)
        rows = [row for entry in entries for row in range(entry.start, entry.stop)]
        assert len(rows) == len(set(rows))
        assert set(rows) >= set(range(wanted.start, wanted.stop))
        for entry in entries:
            assert entry.state in LIVE
            low, high = max(entry.start, wanted.start), min(entry.stop, wanted.stop)
            assert low < high
            assert entry.work.part(low, high) == wanted.part(low, high)
            self.entries[entry.id] = data
            for row in range(low, high):  # what is done is never handed out for another try
                key = (entry.step, data, row)
                assert self.results.get(key, entry.id) == entry.id

    def step(self, action):
        kind, owner, *values = action
        if kind == "claim":
            start, length, most, group, step, data = values
            wanted = work(start, min(ROWS, start + length), step=step, data=data)
            most = max(most, group)
            made = self.journal.claim(wanted, most_rows=most, group=group, backend="b", owner=owner)
            new = [entry for entry in made if entry.id not in self.entries]
            ends = {wanted.start} | {entry.stop for entry in made if entry not in new}
            for entry in new:
                assert (entry.owner, entry.state) == (owner, "intended")
                assert entry.num_rows <= most
                assert entry.start % group == 0 or entry.start in ends
            self.saw(wanted, data, made)
        elif kind == "crash" and self.path is not None:
            self.journal.close()
            self.journal = Journal(self.path)
        elif self.entries:
            number = sorted(self.entries)[values[0] % len(self.entries)]
            self.change(kind, owner, self.journal.entry(number), values[1])

    def change(self, kind, owner, entry, group):
        data = self.entries[entry.id]
        if kind == "submit" and entry.state == "intended":
            self.journal.submitted(entry.id, job_id=f"d{entry.id}", backend="b", session=None)
        elif kind == "done" and entry.state == "submitted":
            self.journal.done(entry.id, counts_of(entry), 1.0)
            for row in range(entry.start, entry.stop):
                self.results[entry.step, data, row] = entry.id
        elif kind in ("failed", "cancelled"):
            self.journal.ended(entry.id, kind, "bad luck")
            assert self.journal.entry(entry.id).state in (kind, "done", entry.state)
        elif kind == "withdraw":
            assert self.journal.withdraw(entry, "lost") == (entry.state == "intended")
        elif kind == "take over":
            assert self.journal.take_over(entry, owner) == (entry.state == "intended")
        elif kind in ("again", "halve") and entry.state not in LIVE:
            most = entry.num_rows if kind == "again" else -(-entry.num_rows // 2)
            made = self.journal.claim(
                entry.work, most_rows=max(most, group), group=group, backend="b", owner=owner
            )
            self.saw(entry.work, data, made)

    def check(self):
        live = collections.Counter()
        tags = collections.Counter()
        for number, data in self.entries.items():
            entry = self.journal.entry(number)
            if entry.state in LIVE:
                live.update((entry.step, data, row) for row in range(entry.start, entry.stop))
            if entry.job_id is not None:
                tags[entry.tag] += 1
            if entry.state == "done":
                assert (self.journal.counts(number) == counts_of(entry)).all()
        assert set(live.values()) <= {1}
        assert set(tags.values()) <= {1}  # no two jobs of one tag
        done = {key for key, number in self.results.items()}
        assert done <= set(live)


@given(st.lists(st.one_of(CLAIM, OTHERS), max_size=40))
@settings(max_examples=400)
def test_each_row_has_one_live_entry_at_most(actions):
    model = Model(None)
    for action in actions:
        model.step(action)
        model.check()
    model.journal.close()


@given(st.lists(st.one_of(CLAIM, OTHERS), max_size=25))
@settings(max_examples=25)
def test_also_in_a_file_that_is_opened_again(tmp_path_factory, actions):
    model = Model(tmp_path_factory.mktemp("journal") / "jobs.db")
    for action in actions:
        model.step(action)
    model.check()
    model.journal.close()
