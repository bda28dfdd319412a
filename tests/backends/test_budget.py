import copy
import itertools
import pickle
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qailab.backends.budget import BOUND_FACTOR, Budget, BudgetGuard, Cost, UsageEstimate
from qailab.backends.shared import LocalState
from qailab.errors import BudgetExceededError, InputError, InputTypeError

WHAT = "backward of step 12: 3,000 rows of 1,024 shots"


def job(seconds=0.0, rows=1, shots=100):
    return Cost(jobs=1, rows=rows, shots=rows * shots, qpu_seconds=seconds)


def guard(state=None, **limits):
    return BudgetGuard(Budget(**limits), LocalState() if state is None else state)


# The values


def test_a_budget_is_the_same_in_every_process():
    budget = Budget(qpu_seconds=60, rows=np.int64(5))
    others = [pickle.loads(pickle.dumps(budget)), copy.copy(budget), copy.deepcopy(budget)]
    assert {budget, *others} == {budget}
    assert {other.id for other in others} == {budget.id}
    assert others[0].limits == {"qpu_seconds": 60.0, "rows": 5}
    assert Budget(qpu_seconds=60, rows=5) != budget
    assert repr(budget) == "Budget(qpu_seconds=60.0, rows=5)"


@pytest.mark.parametrize("name", ["qpu_seconds", "jobs", "shots", "rows"])
@pytest.mark.parametrize("value", [0, -1, 0.0, True, "10", float("nan"), float("inf"), 1j])
def test_a_limit_must_be_positive(name, value):
    with pytest.raises(InputError, match=f"(?s){name} must be a positive .*budget of zero"):
        Budget(**{name: value})
    for limits in ({"jobs": 1.5}, {"qpu_seconds": "60"}):
        with pytest.raises(InputTypeError):
            Budget(**limits)
    with pytest.raises(InputError, match="needs a limit: qpu_seconds=, jobs=, shots= or rows="):
        Budget()


@pytest.mark.parametrize(
    "wrong", [{"jobs": -1}, {"rows": 0.5}, {"qpu_seconds": float("nan")}, {"qpu_seconds": -1.0}]
)
def test_a_cost_that_would_spoil_sums_is_refused(wrong):
    with pytest.raises(InputError, match="a cost's"):
        Cost(**wrong)


# One guard


def test_what_is_reserved_is_settled_by_what_it_did_cost():
    books = guard(rows=100, qpu_seconds=1e3)
    books.reserve("one", job(2.0, rows=10), what=WHAT)
    assert (books.reserved, books.spent) == (job(2.0, rows=10), Cost())
    books.settle("one", job(3.0, rows=10))
    books.settle("one", job(9.0, rows=90))  # idempotent
    books.settle("never reserved", job(9.0, rows=90))
    assert (books.reserved, books.spent) == (Cost(), job(3.0, rows=10))
    books.reserve("two", job(2.0, rows=90), what=WHAT)
    books.settle("two", Cost())  # never sent
    assert (books.reserved, books.spent) == (Cost(), job(3.0, rows=10))
    books.reserve("two", job(2.0, rows=90), what=WHAT)  # but later
    assert books.reserved == job(2.0, rows=90)
    with pytest.raises(BudgetExceededError, match="its limit of QPU seconds"):
        books.reserve("b", job(1e4), what=WHAT)  # at once: it can never fit


@pytest.mark.parametrize(
    ("limits", "each"),
    [
        ({"jobs": 3}, Cost(jobs=1)),
        ({"rows": 10}, Cost(rows=3)),
        ({"shots": 10**10}, Cost(shots=(10**10 - 1) // 3)),  # exact, however many
        ({"qpu_seconds": 0.3}, Cost(qpu_seconds=0.1)),  # 0.1 + 0.1 + 0.1 > 0.3 in floats
    ],
)
def test_each_limit_holds(limits, each):
    books = guard(**limits)
    for key in "abc":
        books.reserve(key, each, what=WHAT)
        books.settle(key, each)
    with pytest.raises(BudgetExceededError):
        books.reserve("d", each, what=WHAT)


def test_the_message_says_what_is_spent_and_needed_and_what_to_do():
    books = guard(qpu_seconds=600, rows=5000)
    books.reserve("a", job(100, rows=1000), what="forward")
    books.settle("a", job(512, rows=1000))
    books.reserve("b", job(10, rows=2000), what="forward of step 11")
    with pytest.raises(BudgetExceededError) as caught:
        books.reserve("c", job(50, rows=3000, shots=1024), what=WHAT)
    said = str(caught.value)
    assert said.startswith(f"{WHAT} does not fit the budget (its limit of rows); it was not sent.")
    seconds = "QPU seconds: 512.0 of 600.0 spent, 10.0 reserved by jobs in flight, 50.0 needed"
    assert seconds in said
    assert "rows: 1,000 of 5,000 spent, 2,000 reserved by jobs in flight, 3,000 needed" in said
    assert "1 in flight" in said
    assert "forward of step 11" in said
    for hint in ("Raise the budget", "fewer shots", "smaller batch", "SPSA", "--resume"):
        assert hint in said


def test_a_spent_budget_refuses_at_once_whatever_the_estimate():
    books = guard(qpu_seconds=10)
    books.reserve("alone", job(10), what=WHAT)
    books.settle("alone", job(35))  # a job alone may pass the limit, if it takes longer
    with pytest.raises(BudgetExceededError, match=r"35\.0 of 10\.0 spent"):
        books.reserve("next", job(0.0), what=WHAT)


# Many jobs in flight


def test_beside_others_upper_bounds_must_fit():
    books = guard(qpu_seconds=10)
    books.reserve("a", job(2), what=WHAT)
    books.reserve("b", job(3), what=WHAT)  # 2 * (2 + 3) <= 10
    with pytest.raises(BudgetExceededError, match=r"after 0 s of waiting"):
        books.reserve("c", job(0.1), what=WHAT, timeout=0)
    books.settle("a", job(2))
    books.reserve("d", job(1), what=WHAT, timeout=0)  # 2 + 2 * 3 + 2 * 1 <= 10
    with pytest.raises(BudgetExceededError):
        books.reserve("e", job(1), what=WHAT, timeout=0)
    books.settle("b", job(1))
    books.reserve("f", job(1), what=WHAT, bound=5.0, timeout=0)  # 3 + 2 * 1 + 5 <= 10
    with pytest.raises(InputError, match="bound"):
        books.reserve("g", job(1), what=WHAT, bound=float("nan"))


def test_a_job_waits_until_others_are_settled():
    state, budget = LocalState(), Budget(qpu_seconds=10)
    mine = BudgetGuard(budget, state)
    other = BudgetGuard(pickle.loads(pickle.dumps(budget)), state)
    other.reserve("other", job(8), what="other")
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(mine.reserve, "mine", job(2), what=WHAT)
        time.sleep(0.1)
        assert not waiting.done()
        other.settle("other", job(7))
        waiting.result(timeout=30)
    assert mine.reserved == job(2)


def test_waiting_ends_when_it_is_stopped():
    books, stop = guard(qpu_seconds=10), threading.Event()
    books.reserve("other", job(8), what="other")
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(books.reserve, "mine", job(1), what=WHAT, stop=stop)
        time.sleep(0.05)
        stop.set()
        with pytest.raises(CancelledError, match="step 12"):
            waiting.result(timeout=30)
    assert books.reserved == job(8)


def test_waiting_has_a_deadline_that_names_who_is_waited_for():
    books = guard(qpu_seconds=10)
    books.reserve("other", job(8), what="forward of step 3")
    with pytest.raises(BudgetExceededError, match=r"(?s)0\.1 s of waiting.* ago by .*step 3"):
        books.reserve("mine", job(1), what=WHAT, timeout=0.1)


# Runs that go on after they died


def test_a_job_that_is_reserved_again_counts_once():
    state, budget = LocalState(), Budget(jobs=1)
    BudgetGuard(budget, state).reserve("tag", job(), what=WHAT)
    resumed = BudgetGuard(budget, state)
    resumed.reserve("tag", job(), what=WHAT)
    assert resumed.reserved == job()
    resumed.settle("tag", job(4.0))
    resumed.reserve("tag", job(), what=WHAT)  # its result is fetched again
    resumed.adopt("tag", job(), what=WHAT)
    BudgetGuard(budget, state).settle("tag", job(4.0))
    assert (resumed.spent, resumed.reserved) == (job(4.0), Cost())


def test_a_job_that_nobody_reserved_counts_once_it_is_adopted():
    books = guard(jobs=2)
    books.adopt("theirs", job(3.0), what=WHAT)
    books.adopt("theirs", job(3.0), what=WHAT)
    assert books.reserved == job(3.0)
    books.settle("theirs", job(2.0))
    assert (books.spent, books.reserved) == (job(2.0), Cost())


def test_a_raised_budget_goes_on_from_what_was_spent():
    state = LocalState()
    small = guard(state, rows=10)
    small.reserve("a", job(rows=10), what=WHAT)
    small.settle("a", job(rows=10))
    raised = guard(state, rows=15)
    raised.reserve("b", job(rows=5), what=WHAT)
    with pytest.raises(BudgetExceededError):
        raised.reserve("c", job(rows=1), what=WHAT)


def test_the_shared_value_stays_small():
    state = LocalState()
    books = guard(state, jobs=1000)
    for number in range(300):
        books.reserve(str(number), job(1.0), what=WHAT, bound=float("inf"))
        books.settle(str(number), job(1.0))
    assert len(state.get("budget")[1]) < 3000
    assert books.spent.jobs == 300


def test_what_a_journal_knows_of_is_spent_at_least():
    """Also where runs without a budget spent it; what is in flight is not counted twice."""
    state = LocalState()
    first = guard(state, jobs=9)
    first.reserve("in flight", job(), what=WHAT)
    seen = []

    def spent_beside(in_flight):
        seen.append(set(in_flight))
        return Cost(jobs=3, rows=3, shots=300, qpu_seconds=6.0)

    for _ in range(2):
        books = BudgetGuard(Budget(jobs=9), state, spent_beside=spent_beside)
        assert books.spent == Cost(jobs=3, rows=3, shots=300, qpu_seconds=6.0)
        assert books.reserved == job()
    assert seen == [{"in flight"}] * 2


def test_an_answer_that_was_lost_counts_once():
    class ForgetfulState(LocalState):
        calls = 0

        def put(self, name, version, value):
            done = super().put(name, version, value)
            self.calls += 1
            if self.calls % 2:
                raise ConnectionError("lost")
            return done

    books = guard(ForgetfulState(), jobs=5)
    with pytest.raises(ConnectionError):
        books.reserve("tag", job(), what=WHAT)
    books.reserve("tag", job(), what=WHAT)
    books.settle("tag", job(2.0))
    assert (books.spent, books.reserved) == (job(2.0), Cost())


# The promise: never passed by more than one job's real usage


@settings(max_examples=80)
@given(data=st.data())
def test_the_budget_is_never_passed_by_more_than_one_jobs_usage(data):
    """Guards in any order of steps, with estimates wrong by any factor.

    Of jobs that were in flight together, at most one takes longer than its bound: as much longer
    as it likes.
    """
    state = LocalState()
    limit = data.draw(st.floats(1.0, 100.0), label="limit")
    rows = data.draw(st.integers(1, 60), label="rows")
    budget = Budget(qpu_seconds=limit, rows=rows)
    guards = [BudgetGuard(budget, state) for _ in range(data.draw(st.integers(1, 4)))]
    in_flight, beside, wild, usage = {}, {}, set(), []

    def settle(key):
        cost = in_flight.pop(key)
        share = data.draw(st.floats(0.0, 1.0))
        real = share * BOUND_FACTOR * cost.qpu_seconds
        if not (beside[key] & wild) and data.draw(st.booleans(), label="longer than its bound"):
            wild.add(key)
            real = data.draw(st.floats(0.0, 1e4))
        usage.append(real)
        fails = data.draw(st.booleans(), label="fails")
        books = data.draw(st.sampled_from(guards))
        books.settle(key, Cost(cost.jobs, 0 if fails else cost.rows, 0, real))

    for number in range(data.draw(st.integers(1, 40), label="steps")):
        if in_flight and data.draw(st.booleans(), label="settle"):
            settle(data.draw(st.sampled_from(sorted(in_flight))))
            continue
        cost = Cost(1, data.draw(st.integers(0, 5)), 0, data.draw(st.floats(0.0, limit)))
        books, key = data.draw(st.sampled_from(guards)), str(number)
        try:
            books.reserve(key, cost, what="a job", timeout=0)
        except BudgetExceededError:
            continue
        beside[key] = set(in_flight)
        for other in in_flight:
            beside[other].add(key)
        in_flight[key] = cost
    for key in sorted(in_flight):
        settle(key)
    assert all(each.reserved == Cost() for each in guards)
    spent = guards[0].spent
    assert spent.qpu_seconds == pytest.approx(sum(usage))
    assert spent.qpu_seconds - limit <= max(usage, default=0.0) + 1e-6 * limit
    assert spent.rows <= rows


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1), threads=st.integers(2, 8), processes=st.integers(1, 4))
def test_the_promise_holds_between_threads(seed, threads, processes):
    """The same with threads that really race, and whose jobs take up to their bound."""
    state, budget = LocalState(), Budget(qpu_seconds=30.0, jobs=60)
    guards = [BudgetGuard(budget, state) for _ in range(processes)]
    usage, most = [], []
    lock, running = threading.Lock(), set()

    def work(number):
        random = np.random.default_rng([seed, number])
        books = guards[number % processes]
        for count in itertools.count():
            estimate, key = random.uniform(0.1, 4.0), f"{number}-{count}"
            try:
                books.reserve(key, job(estimate), what="a job", timeout=20)
            except BudgetExceededError:
                return
            with lock:
                running.add(key)
                most.append(len(running))
            time.sleep(random.uniform(0, 0.002))
            real = estimate * random.uniform(0.2, BOUND_FACTOR)
            with lock:
                running.discard(key)
                usage.append(real)
            books.settle(key, job(real))

    with ThreadPoolExecutor(threads) as executor:
        list(executor.map(work, range(threads)))
    spent = guards[0].spent
    assert spent.jobs == len(usage) <= 60
    assert spent.qpu_seconds == pytest.approx(sum(usage))
    assert spent.qpu_seconds - 30.0 <= max(usage)
    assert spent.qpu_seconds > 20.0  # and it is used, not only kept
    assert max(most) > 1 or threads == 1


# Estimates


def test_the_rule_is_that_of_the_devices_documentation():
    assert UsageEstimate().seconds(0) == 2.0
    assert UsageEstimate().seconds(3_072_000, jobs=2) == pytest.approx(4 + 1075.2)


@given(factor=st.floats(0.05, 20.0), noise=st.lists(st.floats(0.8, 1.25), min_size=3, max_size=40))
def test_estimates_follow_what_jobs_took(factor, noise):
    estimate, rule = UsageEstimate(), UsageEstimate()
    for part in noise:
        estimate.learn(factor * part * rule.seconds(10**6), 10**6)
    assert estimate.seconds(10**6) / (factor * rule.seconds(10**6)) == pytest.approx(1, rel=0.26)
    assert estimate.seconds(10**9) / (factor * rule.seconds(10**9)) == pytest.approx(1, rel=0.26)


def test_estimates_bear_jobs_that_were_held_up_and_those_without_usage():
    estimate = UsageEstimate()
    for seconds in (100.0, 100.0, 5000.0, 100.0, 0.0, float("nan"), 100.0):
        estimate.learn(seconds, 300_000)
        estimate.learn(4.0, 1000)  # short jobs say nothing about long ones
    assert estimate.seconds(300_000) == pytest.approx(100.0)
    assert estimate.seconds(1000) == pytest.approx(4.0)
