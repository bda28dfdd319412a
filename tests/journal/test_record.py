"""The record of jobs, in memory and in a file: the same rules."""

import pickle
import sqlite3
import stat
import threading
from dataclasses import replace

import numpy as np
import pytest

from qailab.errors import InputError, JournalError
from qailab.journal import Cause, Entry, Journal, MemoryRecord, State, Totals
from tests.support.journal import counts_of, finish, reserve, submit, work


@pytest.fixture(params=["file", "memory"])
def record(request, tmp_path):
    made = Journal(tmp_path / "jobs.db") if request.param == "file" else MemoryRecord()
    yield made
    made.close()


@pytest.fixture
def journal(tmp_path):
    with Journal(tmp_path / "jobs.db") as made:
        yield made


def spans(entries):
    return [(entry.work.start, entry.work.stop) for entry in entries]


def fail(record, entry, reason="error 1517", **options):
    return record.ended(entry.id, State.FAILED, Cause.DEVICE, reason, **options)


def test_a_job_from_its_reservation_to_its_result(record):
    (entry,) = reserve(record, work())
    assert (entry.state, entry.job_id, entry.session) == (State.PENDING, None, None)
    assert (entry.tag, entry.attempt, entry.owner) == (work().tag(record.id), 0, "me")
    assert (entry.backend, entry.usage_seconds, entry.reason) == ("ibm_fez", None, "")
    assert entry.work == work()
    assert record.entry(entry.id) == entry

    assert submit(record, entry, "d1", backend="ibm_torino")
    sent = record.entry(entry.id)
    assert (sent.state, sent.job_id, sent.backend) == (State.SUBMITTED, "d1", "ibm_torino")
    assert record.entry_of("d1") == entry.id
    assert record.entry_of("d2") is None
    with pytest.raises(JournalError, match="not done"):
        record.counts(entry.id)

    assert record.done(entry.id, counts_of(entry)).state is State.DONE
    assert record.entry(entry.id).usage_seconds is None
    assert record.done(entry.id, counts_of(entry), 2.5).usage_seconds == 2.5  # servers tell late
    counts = record.counts(entry.id)
    assert counts.dtype == np.uint32
    np.testing.assert_array_equal(counts, counts_of(entry))
    assert reserve(record, work()) == [record.entry(entry.id)]


def test_what_is_covered_is_not_reserved_again(record):
    (known,) = reserve(record, work(4, 8))
    finish(record, known)
    every = reserve(record, work(0, 14), most_rows=3, owner="you")
    assert spans(every) == [(0, 2), (2, 4), (4, 8), (8, 11), (11, 14)]
    assert [entry.state for entry in every] == ["pending"] * 2 + ["done"] + ["pending"] * 2
    assert [entry.owner for entry in every] == ["you", "you", "me", "you", "you"]
    assert spans(reserve(record, work(5, 9))) == [(4, 8), (8, 11)]  # beyond on both sides


def test_new_entries_are_cut_between_groups(record):
    assert spans(reserve(record, work(3, 23), most_rows=9, group=4)) == [(3, 8), (8, 16), (16, 23)]
    with pytest.raises(InputError, match="most_rows must be an integer of at least 4"):
        reserve(record, work(), most_rows=3, group=4)


def test_rows_that_hold_something_else_neither_match_nor_block(record):
    (old,) = reserve(record, work(0, 10, data=1))
    finish(record, old)
    (new,) = reserve(record, work(0, 10, data=2))
    assert (spans([new]), new.state) == ([(0, 10)], State.PENDING)
    assert new.tag != old.tag
    assert reserve(record, work(0, 10, data=1))[0].id == old.id


def test_an_entry_with_one_other_row_is_no_match(record):
    (old,) = reserve(record, work(0, 10))
    digests = bytearray(work(5, 15).digests)
    digests[0] ^= 1  # row 5
    (new,) = reserve(record, replace(work(5, 15), digests=bytes(digests)))
    assert (new.id != old.id, spans([new])) == (True, [(5, 15)])
    # Where one does not meet that row, the old entry is as good as ever.
    assert [entry.id for entry in reserve(record, work(6, 9))] == [old.id]


@pytest.mark.parametrize("other", [{"step": 1}, {"circuit": "c2"}, {"shots": 5}, {"seed": 1}])
def test_other_evaluations_are_others(record, other):
    assert reserve(record, work())[0].id != reserve(record, work(**other))[0].id


def test_rows_without_a_result_are_reserved_again_under_another_tag(record):
    (entry,) = reserve(record, work())
    submit(record, entry)
    ended = fail(record, entry, usage_seconds=0.5)
    assert (ended.state, ended.cause) == (State.FAILED, Cause.DEVICE)
    assert (ended.reason, ended.usage_seconds) == ("error 1517", 0.5)
    assert record.entry(entry.id) == ended
    (second,) = reserve(record, work())
    assert (second.attempt, second.tag) == (1, work().tag(record.id, 1))
    assert reserve(record, work(data=1))[0].attempt == 0  # other rows, of the same numbers


def test_a_withdrawn_entry_leaves_its_tag_to_the_next(record):
    (entry,) = reserve(record, work())
    assert record.unsent(entry, State.WITHDRAWN, "me", "not at the server")
    assert record.entry(entry.id).state is State.WITHDRAWN
    assert not record.unsent(entry, State.WITHDRAWN, "me", "again")
    (new,) = reserve(record, entry.work)
    assert new.id != entry.id
    assert (new.tag, new.attempt) == (entry.tag, 0)  # a job that turns up late is found by it


def test_only_one_takes_over(record):
    (entry,) = reserve(record, work(), owner="gone")
    assert record.unsent(entry, State.UNCONFIRMED, "one")
    assert not record.unsent(entry, State.UNCONFIRMED, "two")
    taken = record.entry(entry.id)
    assert (taken.owner, taken.state) == ("one", State.UNCONFIRMED)
    assert not record.unsent(entry, State.WITHDRAWN, "gone")
    submit(record, entry)
    assert not record.unsent(taken, State.UNCONFIRMED, "two")


def test_what_ended_is_cut_anew_once_whoever_asks(record):
    (entry,) = reserve(record, work(0, 10), group=2)
    submit(record, entry)
    record.ended(entry.id, State.FAILED, Cause.TOO_LONG, "ran too long")
    halves = reserve(record, entry.work, most_rows=6, group=2, owner="one", backend="ibm_torino")
    assert spans(halves) in ([(0, 4), (4, 10)], [(0, 6), (6, 10)])
    assert {(half.owner, half.backend) for half in halves} == {("one", "ibm_torino")}
    assert reserve(record, entry.work, most_rows=6, group=2, owner="two") == halves
    assert reserve(record, entry.work, owner="two") == halves


def test_a_result_is_never_thrown_away(record):
    (entry,) = reserve(record, work())
    finish(record, entry)
    for seconds in (None, 0.0):
        kept = fail(record, entry, usage_seconds=seconds)
        assert (kept.state, kept.usage_seconds) == (State.DONE, 1.0)
    (late,) = reserve(record, work(step=1))
    submit(record, late)
    fail(record, late, "no answer")
    assert fail(record, late, "Ctrl-C").reason == "no answer"  # the first reason stays
    assert record.done(late.id, counts_of(late), 3.0).state is State.DONE


def test_where_entries_overlap_the_surest_is_taken(record):
    (late,) = reserve(record, work(5, 15))
    submit(record, late)
    fail(record, late)
    (new,) = reserve(record, work(0, 20))
    record.done(late.id, counts_of(late))  # its answer came after all
    assert [entry.id for entry in reserve(record, work(6, 14))] == [late.id]
    assert [entry.id for entry in reserve(record, work(0, 20))] == [new.id, late.id]
    assert [entry.id for entry in reserve(record, work(0, 5))] == [new.id]


def test_a_second_job_for_the_same_rows_is_an_error(record):
    (entry,) = reserve(record, work())
    for _ in range(2):  # the same one twice is none
        submit(record, entry, "d1")
    with pytest.raises(JournalError, match=r"has the job d1 already.*cancel d2"):
        submit(record, entry, "d2")
    (other,) = reserve(record, work(step=1))
    with pytest.raises(JournalError, match=r"job d1 is that of entry 1 .*not entry 2"):
        submit(record, other, "d1")


def test_a_job_that_turns_up_late_is_noted(record):
    (entry,) = reserve(record, work())
    record.unsent(entry, State.WITHDRAWN, "me", "not found")
    assert submit(record, entry, "d1")
    assert record.entry(entry.id).state is State.SUBMITTED  # nobody else has its rows

    (second,) = reserve(record, work(step=1))
    record.unsent(second, State.WITHDRAWN, "me", "not found")
    reserve(record, work(step=1))
    assert not submit(record, second, "d2")  # it is one too many
    noted = record.entry(second.id)
    assert (noted.job_id, noted.state) == ("d2", State.WITHDRAWN)


@pytest.mark.parametrize(
    "counts",
    [np.ones((9, 4), np.uint32), np.ones((10, 4)), np.ones(10, np.uint32), np.ones((10, 4), int)],
)
def test_what_is_no_result(record, counts):
    (entry,) = reserve(record, work())
    submit(record, entry)
    with pytest.raises(InputError, match="has 10 rows; got counts of shape"):
        record.done(entry.id, counts)
    assert record.entry(entry.id).state is State.SUBMITTED


def test_what_cannot_be_noted(record):
    (entry,) = reserve(record, work())
    with pytest.raises(JournalError, match="has no job yet"):
        record.done(entry.id, counts_of(entry))
    with pytest.raises(JournalError, match="99"):
        record.entry(99)
    with pytest.raises(InputError, match="failed, cancelled, withdrawn"):
        record.ended(entry.id, State.DONE, Cause.NONE, "")
    for job_id in ("", None, 3):
        with pytest.raises(InputError, match="job_id must be"):
            record.submitted(entry.id, job_id=job_id, backend="ibm_fez", session=None)
    for seconds in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="QPU seconds must be finite"):
            fail(record, entry, usage_seconds=seconds)
    assert record.entry(entry.id) == entry


def test_memory_forgets_and_files_do_not(record):
    entries = reserve(record, work(0, 10), most_rows=5)
    submit(record, entries[0], "d0")
    fail(record, entries[0])
    (again,) = reserve(record, work(0, 5))
    finish(record, again)
    record.forget([again.id, entries[1].id])
    if record.path is not None:
        assert record.entry(again.id).state is State.DONE
        return
    with pytest.raises(JournalError, match="no entry"):
        record.entry(again.id)
    assert record.entry_of("d0") is None  # nor what was tried before
    (new,) = reserve(record, work(0, 5))
    assert (new.state, new.attempt) == (State.PENDING, 0)


def test_threads_share_a_record(record):
    taken, failed = [], []

    def run(number):
        try:
            for step in range(6):
                for entry in reserve(record, work(step=step), most_rows=2, owner=str(number)):
                    if entry.owner == str(number):
                        finish(record, entry)
                        taken.append(entry.id)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(taken) == len(set(taken)) == 30


# The file


@pytest.mark.parametrize("largest", [1, 255, 256, 65535, 65536, 2**32 - 1])
def test_counts_come_back_as_they_were(journal, largest):
    (entry,) = reserve(journal, work(0, 3))
    submit(journal, entry)
    counts = np.array([[0, largest], [1, 0], [largest, largest]], dtype=np.uint32)
    journal.done(entry.id, counts[:, ::-1])  # not contiguous
    np.testing.assert_array_equal(journal.counts(entry.id), counts[:, ::-1])


@pytest.mark.parametrize(
    "damage",
    ["data = x'00'", "data = substr(data, 1, length(data) - 3)", "num_rows = 9", "outcomes = 5",
     "width = 3", "width = 2", "num_rows = 20, outcomes = 2"],
)  # fmt: skip
def test_a_damaged_result_names_the_job_and_can_be_stored_again(journal, damage):
    (entry,) = reserve(journal, work())
    finish(journal, entry, job_id="d1")
    with sqlite3.connect(journal.path) as connection:
        connection.execute(f"UPDATE results SET {damage}")
    connection.close()
    with pytest.raises(JournalError, match=r"damaged.*job d1 on ibm_fez can be fetched again"):
        journal.counts(entry.id)
    journal.done(entry.id, counts_of(entry))
    np.testing.assert_array_equal(journal.counts(entry.id), counts_of(entry))


def test_models_are_told_apart(journal):
    journal.register("c1", 6, 50)
    reserve(journal, work(circuit="c1"))
    reserve(journal, work(circuit="c9"))
    journal.register("c1", 6, 50)
    with pytest.raises(JournalError, match="another model") as caught:
        journal.register("c2", 4, 20)
    for part in (
        "c1 of 6 qubits and 50 angles with 1 jobs", "c9 of ? qubits and ? angles with 1 jobs",
        "c2 of 4 qubits and 20 angles", "another path",
    ):  # fmt: skip
        assert part in str(caught.value)
    reserve(journal, work(circuit="c2"))
    journal.register("c2", 4, 20)  # a model may have several


def test_totals_are_of_what_reached_a_server(journal):
    entries = reserve(journal, work(), most_rows=3)
    finish(journal, entries[0], usage_seconds=2.5)
    submit(journal, entries[1])
    fail(journal, entries[1], usage_seconds=0.5)
    submit(journal, entries[2])
    assert journal.totals() == Totals(jobs=3, rows=8, executions=800, qpu_seconds=3.0)
    assert journal.totals(ended_beside=[]) == Totals(2, 5, 500, 3.0)
    assert journal.totals(ended_beside=[entries[0].tag]).qpu_seconds == 0.5


def test_shared_values_change_one_version_at_a_time(journal):
    assert journal.get("budget") == (0, None)
    assert not journal.put("budget", 1, b"too far")
    assert journal.put("budget", 0, b"a")
    assert not journal.put("budget", 0, b"too late")
    assert journal.put("budget", 1, b"\x00b")
    assert journal.put("other", 0, b"c")
    assert journal.get("budget") == (2, b"\x00b")


def test_an_entry_is_given_up_by_hand(journal):
    first, second = reserve(journal, work(), most_rows=5)
    submit(journal, first, "d1")
    given_up = journal.give_up(first.id, "deleted at the server")
    assert (given_up.state, given_up.cause) == (State.FAILED, Cause.DELETED)
    assert reserve(journal, work(0, 5))[0].attempt == 1
    finish(journal, second)
    with pytest.raises(JournalError, match="nothing to give up"):
        journal.give_up(second.id, "by mistake")


def test_what_is_closed_says_so(journal):
    journal.close()
    journal.close()
    for use in (journal.totals, lambda: journal.get("x"), lambda: reserve(journal, work())):
        with pytest.raises(JournalError, match="was closed"):
            use()


def test_a_file_is_kept_and_is_for_its_user_only(tmp_path):
    path = tmp_path / "jobs with ? and # and %41.db"
    with Journal(path) as journal:
        (entry,) = reserve(journal, work())
        finish(journal, entry)
        assert repr(journal) == f"Journal({str(path)!r})"
    assert [item.name for item in tmp_path.iterdir()] == [path.name]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with Journal(str(path)) as again:
        assert isinstance(again.entry(entry.id), Entry)
        assert again.id == journal.id
        np.testing.assert_array_equal(again.counts(entry.id), counts_of(entry))


def test_a_pickled_journal_opens_the_same_file(journal):
    (entry,) = reserve(journal, work())
    copy = pickle.loads(pickle.dumps(journal))
    assert (copy.id, copy.entry(entry.id)) == (journal.id, entry)
    copy.close()
    assert journal.entry(entry.id) == entry


def test_a_reservation_does_not_look_at_other_evaluations(journal):
    statements = []
    connection = journal._database._connection
    connection.set_trace_callback(statements.append)
    reserve(journal, work())
    connection.set_trace_callback(None)
    assert statements[0] == "BEGIN IMMEDIATE"  # what it reads holds until it has written
    queries = [text for text in statements if "FROM entries" in text]
    assert len(queries) == 2
    for query in queries:
        plan = connection.execute(f"EXPLAIN QUERY PLAN {query}").fetchall()
        assert "SEARCH entries USING INDEX entries_by_rows (key=? AND start" in str(plan)
