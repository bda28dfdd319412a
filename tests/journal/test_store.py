import pickle
import sqlite3
import stat
import threading
from dataclasses import replace

import numpy as np
import pytest

from qailab.errors import InputError, InputTypeError, JournalError
from qailab.journal import Entry, Journal, Totals
from tests.journal.rows import claim, counts_of, finish, work


@pytest.fixture(params=["file", "memory"])
def journal(request, tmp_path):
    with Journal(tmp_path / "jobs.db" if request.param == "file" else None) as made:
        yield made


@pytest.fixture
def file(tmp_path):
    with Journal(tmp_path / "jobs.db") as made:
        yield made


def spans(entries):
    return [(entry.start, entry.stop) for entry in entries]


def test_a_job_from_claim_to_result(journal):
    (entry,) = claim(journal, work())
    assert (entry.state, entry.job_id, entry.session) == ("intended", None, None)
    assert (entry.tag, entry.attempt, entry.owner) == (work().tag, 0, "me")
    assert (entry.backend, entry.usage_seconds, entry.reason) == ("ibm_fez", None, "")
    assert entry.work == work()
    assert journal.entry(entry.id) == entry

    journal.submitted(entry.id, job_id="d1", backend="ibm_torino", session=None)
    sent = journal.entry(entry.id)
    assert (sent.state, sent.job_id, sent.backend) == ("submitted", "d1", "ibm_torino")
    with pytest.raises(JournalError, match="not done"):
        journal.counts(entry.id)

    journal.done(entry.id, counts_of(entry))
    assert journal.entry(entry.id).state == "done"
    assert journal.entry(entry.id).usage_seconds is None
    journal.done(entry.id, counts_of(entry), 2.5)  # servers tell late
    assert journal.totals() == Totals(jobs=1, rows=10, executions=1000, qpu_seconds=2.5)
    counts = journal.counts(entry.id)
    assert counts.dtype == np.uint32
    np.testing.assert_array_equal(counts, counts_of(entry))
    assert claim(journal, work()) == [journal.entry(entry.id)]


def test_what_is_covered_is_not_claimed_again(journal):
    (known,) = claim(journal, work(4, 8))
    finish(journal, known)
    every = claim(journal, work(0, 14), most_rows=3, owner="you")
    assert spans(every) == [(0, 2), (2, 4), (4, 8), (8, 11), (11, 14)]
    assert [entry.state for entry in every] == ["intended"] * 2 + ["done"] + ["intended"] * 2
    assert [entry.owner for entry in every] == ["you", "you", "me", "you", "you"]
    assert spans(claim(journal, work(5, 9))) == [(4, 8), (8, 11)]  # reaches beyond on both sides


def test_new_entries_are_cut_between_groups(journal):
    assert spans(claim(journal, work(3, 23), most_rows=9, group=4)) == [(3, 8), (8, 16), (16, 23)]
    with pytest.raises(InputError, match="most_rows must be an integer of at least 4"):
        claim(journal, work(), most_rows=3, group=4)


def test_rows_that_hold_something_else_neither_match_nor_block(journal):
    (old,) = claim(journal, work(0, 10, data=1))
    finish(journal, old)
    (new,) = claim(journal, work(0, 10, data=2))
    assert (new.start, new.stop, new.state) == (0, 10, "intended")
    assert new.tag != old.tag
    assert claim(journal, work(0, 10, data=1))[0].id == old.id


def test_an_entry_with_one_other_row_is_no_match(journal):
    (old,) = claim(journal, work(0, 10))
    digests = bytearray(work(5, 15).digests)
    digests[0] ^= 1  # row 5
    (new,) = claim(journal, replace(work(5, 15), digests=bytes(digests)))
    assert (new.id != old.id, new.start, new.stop) == (True, 5, 15)
    # Where one does not meet that row, the old entry is as good as ever.
    assert [entry.id for entry in claim(journal, work(6, 9))] == [old.id]


@pytest.mark.parametrize("other", [{"step": 1}, {"circuit": "c2"}, {"shots": 5}, {"seed": 1}])
def test_other_evaluations_are_others(journal, other):
    (first,) = claim(journal, work())
    (second,) = claim(journal, work(**other))
    assert first.id != second.id


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_rows_without_a_result_are_claimed_again_under_another_tag(journal, state):
    (entry,) = claim(journal, work())
    journal.submitted(entry.id, job_id="d1", backend="ibm_fez", session=None)
    journal.ended(entry.id, state, "error 1517", usage_seconds=0.5)
    ended = journal.entry(entry.id)
    assert (ended.state, ended.reason, ended.usage_seconds) == (state, "error 1517", 0.5)
    (second,) = claim(journal, work())
    assert (second.attempt, second.tag, second.state) == (1, work().tag_of(1), "intended")
    assert claim(journal, work(data=1))[0].attempt == 0  # other rows, of the same numbers
    assert journal.totals().qpu_seconds == 0.5


def test_a_withdrawn_entry_leaves_its_tag_to_the_next(journal):
    (entry,) = claim(journal, work())
    assert journal.withdraw(entry, "not at the server")
    assert journal.entry(entry.id).state == "withdrawn"
    assert not journal.withdraw(entry, "again")
    (new,) = claim(journal, entry.work)
    assert new.id != entry.id
    assert (new.tag, new.attempt) == (entry.tag, 0)  # a job that turns up late is found by it


def test_only_one_takes_over(journal):
    (entry,) = claim(journal, work(), owner="gone")
    assert journal.take_over(entry, "one")
    assert not journal.take_over(entry, "two")
    assert journal.entry(entry.id).owner == "one"
    assert not journal.withdraw(entry, "it was gone's, and is one's")
    mine = journal.entry(entry.id)
    journal.submitted(entry.id, job_id="d1", backend="ibm_fez", session=None)
    assert not journal.take_over(mine, "two")


def test_what_ended_is_cut_anew_once_whoever_asks(journal):
    (entry,) = claim(journal, work(0, 10), group=2)
    journal.submitted(entry.id, job_id="d1", backend="ibm_fez", session=None)
    journal.ended(entry.id, "failed", "ran too long")
    halves = claim(journal, entry.work, most_rows=6, group=2, owner="one", backend="ibm_torino")
    assert spans(halves) in ([(0, 4), (4, 10)], [(0, 6), (6, 10)])
    assert {(half.owner, half.backend) for half in halves} == {("one", "ibm_torino")}
    assert claim(journal, entry.work, most_rows=6, group=2, owner="two") == halves
    assert claim(journal, entry.work, owner="two") == halves


def test_a_result_is_never_thrown_away(journal):
    (entry,) = claim(journal, work())
    finish(journal, entry)
    for seconds in (None, 0.0):
        journal.ended(entry.id, "cancelled", "Ctrl-C", usage_seconds=seconds)
        assert journal.entry(entry.id).state == "done"
        assert journal.entry(entry.id).usage_seconds == 1.0
    (late,) = claim(journal, work(step=1))
    journal.submitted(late.id, job_id="d2", backend="ibm_fez", session=None)
    journal.ended(late.id, "failed", "no answer")
    journal.ended(late.id, "cancelled", "Ctrl-C")  # the first reason stays
    assert journal.entry(late.id).reason == "no answer"
    journal.done(late.id, counts_of(late), 3.0)
    assert journal.entry(late.id).state == "done"


def test_where_entries_overlap_the_surest_is_taken(journal):
    (late,) = claim(journal, work(5, 15))
    journal.submitted(late.id, job_id="d1", backend="ibm_fez", session=None)
    journal.ended(late.id, "failed", "no answer")
    (new,) = claim(journal, work(0, 20))
    journal.done(late.id, counts_of(late))  # its answer came after all
    assert [entry.id for entry in claim(journal, work(6, 14))] == [late.id]
    assert [entry.id for entry in claim(journal, work(0, 20))] == [new.id, late.id]
    assert [entry.id for entry in claim(journal, work(0, 5))] == [new.id]


def test_a_second_job_for_the_same_rows_is_an_error(journal):
    (entry,) = claim(journal, work())
    for _ in range(2):  # the same one twice is none
        journal.submitted(entry.id, job_id="d1", backend="ibm_fez", session=None)
    with pytest.raises(JournalError, match=r"has the job d1 already.*cancel d2"):
        journal.submitted(entry.id, job_id="d2", backend="ibm_fez", session=None)
    with pytest.raises(JournalError, match="has the job d1, so it cannot be withdrawn"):
        journal.ended(entry.id, "withdrawn", "?")


def test_a_job_that_turns_up_late_is_recorded(journal):
    (entry,) = claim(journal, work())
    journal.withdraw(entry, "not found")
    journal.submitted(entry.id, job_id="d1", backend="ibm_fez", session=None)
    assert journal.entry(entry.id).state == "submitted"  # nobody else has its rows

    (second,) = claim(journal, work(step=1))
    journal.withdraw(second, "not found")
    claim(journal, work(step=1))
    with pytest.raises(JournalError, match=r"given up \(not found\).*cancel d2"):
        journal.submitted(second.id, job_id="d2", backend="ibm_fez", session=None)
    assert journal.entry(second.id).job_id == "d2"
    assert journal.entry(second.id).state == "withdrawn"
    assert journal.totals().jobs == 2


@pytest.mark.parametrize(
    ("counts", "kind", "message"),
    [
        (np.ones((9, 4), np.uint32), InputError, "has 10 rows, got counts of 9"),
        (np.ones((10, 4)), InputTypeError, "array of integers, got float64"),
        ([[1, 2]], InputTypeError, "array of integers, got list"),
        (np.ones(10, np.uint32), InputError, r"shape \(rows, outcomes\), got \(10,\)"),
        (np.zeros((10, 0), np.uint32), InputError, r"got \(10, 0\)"),
        (np.full((10, 4), -1), InputError, "at least 0"),
        (np.full((10, 4), 2**32), InputError, "at most 4294967295"),
    ],
)
def test_what_is_no_result(journal, counts, kind, message):
    (entry,) = claim(journal, work())
    journal.submitted(entry.id, job_id="d1", backend="ibm_fez", session=None)
    with pytest.raises(kind, match=message):
        journal.done(entry.id, counts)
    assert journal.entry(entry.id).state == "submitted"


def test_what_cannot_be_recorded(journal):
    (entry,) = claim(journal, work())
    with pytest.raises(JournalError, match="has no job yet"):
        journal.done(entry.id, counts_of(entry))
    with pytest.raises(JournalError, match="got 99: there is none"):
        journal.entry(99)
    with pytest.raises(InputError, match="'failed', 'cancelled', 'withdrawn'"):
        journal.ended(entry.id, "done", "")
    with pytest.raises(InputError, match="job_id must be"):
        journal.submitted(entry.id, job_id="", backend="ibm_fez", session=None)
    for seconds in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="QPU seconds must be finite"):
            journal.ended(entry.id, "failed", "", seconds)
    assert journal.entry(entry.id) == entry


@pytest.mark.parametrize("largest", [1, 255, 256, 65535, 65536, 2**32 - 1])
@pytest.mark.parametrize("dtype", [np.uint32, np.int64, ">u4"])
def test_counts_come_back_as_they_were(journal, largest, dtype):
    (entry,) = claim(journal, work(0, 3))
    journal.submitted(entry.id, job_id="d1", backend="ibm_fez", session=None)
    counts = np.array([[0, largest], [1, 0], [largest, largest]], dtype=dtype)
    journal.done(entry.id, counts[:, ::-1])  # not contiguous
    np.testing.assert_array_equal(journal.counts(entry.id), counts[:, ::-1])


@pytest.mark.parametrize("damage", ["x'00'", "substr(data, 1, length(data) - 3)", "zeroblob(50)"])
def test_a_damaged_result_names_the_job_and_can_be_stored_again(file, damage):
    (entry,) = claim(file, work())
    finish(file, entry, job_id="d1")
    with sqlite3.connect(file.path) as connection:
        connection.execute(f"UPDATE results SET data = {damage}")
    connection.close()
    with pytest.raises(JournalError, match=r"damaged.*job d1 on ibm_fez can be fetched again"):
        file.counts(entry.id)
    file.done(entry.id, counts_of(entry))
    np.testing.assert_array_equal(file.counts(entry.id), counts_of(entry))


@pytest.mark.parametrize(
    "change",
    ["num_rows = 9", "outcomes = 5", "width = 3", "width = 2", "num_rows = 20, outcomes = 2"],
)
def test_a_result_of_another_shape_is_damaged(file, change):
    (entry,) = claim(file, work())
    finish(file, entry)
    with sqlite3.connect(file.path) as connection:
        connection.execute(f"UPDATE results SET {change}")
    connection.close()
    with pytest.raises(JournalError, match="damaged"):
        file.counts(entry.id)


def test_models_are_told_apart(journal):
    journal.register("c1", 6, 50)
    journal.check_model("c2", 4, 20)  # no job was recorded yet
    claim(journal, work(circuit="c1"))
    claim(journal, work(circuit="c9"))
    journal.check_model("c1", 6, 50)
    journal.check_model("c9", 1, 1)
    with pytest.raises(JournalError, match="another model") as caught:
        journal.check_model("c2", 4, 20)
    for part in (
        "c1 (6 qubits, 50 angles, 1 job)", "c9 (qubits unknown, angles unknown, 1 job)",
        "c2 (4 qubits, 20 angles)", "another path",
    ):  # fmt: skip
        assert part in str(caught.value)
    journal.register("c2", 4, 20)
    journal.check_model("c2", 4, 20)


def test_a_log_takes_only_the_next_entry(journal):
    log = journal.log("budget")
    assert log.read(0) == []
    assert not log.append(1, b"too far")
    assert log.append(0, b"a")
    assert not log.append(0, b"too late")
    assert log.append(1, b"\x00b")
    assert journal.log("other").append(0, b"c")
    assert journal.log("budget").read(0) == [b"a", b"\x00b"]
    assert log.read(1) == [b"\x00b"]
    assert log.read(7) == []


def test_memory_forgets_and_files_do_not(journal):
    entries = claim(journal, work(0, 10), most_rows=5)
    finish(journal, entries[0])
    before = journal.totals()
    journal.forget([entry.id for entry in entries])
    assert journal.totals() == before == Totals(1, 5, 500, 1.0)
    assert journal.entry(entries[1].id) == entries[1]  # not done
    if journal.path is not None:
        assert journal.entry(entries[0].id).state == "done"
        return
    with pytest.raises(JournalError, match="there is none"):
        journal.entry(entries[0].id)
    (new,) = claim(journal, work(0, 5))
    assert new.id not in [entry.id for entry in entries]


def test_threads_share_a_journal(journal):
    taken, failed = [], []

    def run(number):
        try:
            for step in range(10):
                for entry in claim(journal, work(step=step), most_rows=2, owner=str(number)):
                    if entry.owner == str(number):
                        finish(journal, entry)
                        taken.append(entry.id)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(taken) == len(set(taken)) == 50
    assert journal.totals().rows == 100


def test_what_is_closed_says_so(journal):
    log = journal.log("x")
    journal.close()
    journal.close()
    for use in (journal.totals, lambda: log.read(0), lambda: claim(journal, work())):
        with pytest.raises(JournalError, match="was closed"):
            use()


def test_a_file_is_kept_and_is_for_its_user_only(tmp_path):
    path = tmp_path / "jobs with ? and # and %41.db"
    with Journal(path) as journal:
        (entry,) = claim(journal, work())
        finish(journal, entry)
        assert repr(journal) == f"Journal({str(path)!r})"
    assert [item.name for item in tmp_path.iterdir()] == [path.name]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with Journal(str(path)) as journal:
        assert isinstance(journal.entry(entry.id), Entry)
        np.testing.assert_array_equal(journal.counts(entry.id), counts_of(entry))


def test_a_pickled_journal_opens_the_same_file(file):
    (entry,) = claim(file, work())
    copy, log = pickle.loads(pickle.dumps((file, file.log("budget"))))
    assert copy.entry(entry.id) == entry
    assert file.log("budget").append(0, b"a")
    assert log.read(0) == [b"a"]
    copy.close()
    assert file.entry(entry.id) == entry
    log._database.close()
    with Journal(None) as memory, pytest.raises(JournalError, match="give it a path"):
        pickle.dumps(memory)


def test_a_claim_does_not_look_at_other_evaluations(file):
    statements = []
    file._database._connection.set_trace_callback(statements.append)
    claim(file, work())
    file._database._connection.set_trace_callback(None)
    assert statements[0] == "BEGIN IMMEDIATE"  # what it reads holds until it has written
    queries = [text for text in statements if "FROM entries" in text]
    assert len(queries) == 2
    with file._database.reading() as connection:
        for query in queries:
            plan = connection.execute(f"EXPLAIN QUERY PLAN {query}").fetchall()
            assert "SEARCH entries USING INDEX entries_by_rows (key=? AND start" in str(plan)
