import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from qailab.backends.statevector.sampling import (
    by_binomials,
    draw_frequencies,
    draw_space,
    random_words,
)
from qailab.gradients import NoiseStream

LEAST = 1e-5  # p-value, of some forty in this file, all with a fixed seed
ROWS = 400


def counts(exact, shots, binomials, rows=ROWS, seed=1, step=0, purpose="forward"):
    """Counts of many rows of one distribution, shape ``(rows, K)``."""
    table = np.repeat(np.asarray(exact, dtype=float)[None], rows, axis=0)
    out = np.empty_like(table)
    key = NoiseStream(seed, step, purpose).key()
    space = draw_space(table.shape[1])
    draw_frequencies(table, np.arange(rows), shots, binomials, key, space, out)
    whole = np.round(out * shots)
    np.testing.assert_allclose(whole, out * shots, atol=1e-6)
    assert (whole.sum(axis=1) == shots).all()
    return whole


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**40))
def test_random_words_are_numpys(seed, row):
    stream = NoiseStream(seed)
    expected = next(stream.generators(row, 1)).bit_generator.random_raw(128)
    place, words = np.array([64, 0]), np.empty((2, 64), dtype=np.uint64)
    for some in words:
        random_words(stream.key(), np.array([row]), place, some)
    np.testing.assert_array_equal(words.ravel(), expected)


STEEP = np.geomspace(1e-7, 1, 16)
DISTRIBUTIONS = {
    "two": [0.3, 0.7],
    "rare": [1e-4, 1 - 1e-4],
    "sure": [0.0, 1.0, 0.0, 0.0],
    "zeros": [0.0, 0.2, 0.0, 0.0, 0.5, 0.3, 0.0, 0.0],
    "steep": STEEP / STEEP.sum(),
    "flat": np.full(64, 1 / 64),
    "uneven": np.random.default_rng(1).dirichlet(np.full(256, 0.3)),
}


def check(exact, found, shots):
    exact = np.asarray(exact)
    assert (found[:, exact == 0] == 0).all()
    total, expected = found.sum(axis=0), exact * shots * len(found)
    often = expected > 5
    total = np.append(total[often], total[~often].sum())
    wanted = np.append(expected[often], expected[~often].sum())
    there = wanted > 0
    if there.sum() > 1:
        assert stats.chisquare(total[there], wanted[there]).pvalue > LEAST
    # Each row is binomial in each outcome: the variance, too, to a few standard errors.
    free = often & (exact < 1)
    variance = (shots * exact * (1 - exact))[free]
    ratio = found.var(axis=0)[free] / variance
    error = np.sqrt((2 + 1 / variance) / len(found))
    assert (np.abs(ratio - 1) < 6 * error).all()


@pytest.mark.parametrize("binomials", [True, False], ids=["binomials", "search"])
@pytest.mark.parametrize("shots", [1, 20, 1000])
@pytest.mark.parametrize("name", sorted(DISTRIBUTIONS))
def test_each_way_draws_the_distribution(name, shots, binomials):
    check(DISTRIBUTIONS[name], counts(DISTRIBUTIONS[name], shots, binomials), shots)


@pytest.mark.parametrize("name", ["rare", "steep", "flat"])
def test_ten_million_shots(name):
    found = counts(DISTRIBUTIONS[name], 10_000_000, True)
    check(DISTRIBUTIONS[name], found, 10_000_000)
    found = counts(DISTRIBUTIONS[name], 10_000_000, False, rows=2)
    exact = np.asarray(DISTRIBUTIONS[name])
    assert stats.chisquare(found.sum(axis=0), exact * 2e7).pvalue > LEAST


@pytest.mark.parametrize("mean", [0.5, 5.0, 9.9, 10.1, 40.0, 300.0, 500.0])
def test_binomial_counts_have_all_their_probabilities(mean):
    # On either side of where counting up ends and rejection begins, value by value.
    shots = 1000
    found = counts([mean / shots, 1 - mean / shots], shots, True, rows=40_000)[:, 0]
    expected = 40_000 * stats.binom.pmf(np.arange(shots + 1), shots, mean / shots)
    seen = np.bincount(found.astype(int), minlength=shots + 1)
    often = expected > 10
    observed = np.append(seen[often], seen[~often].sum())
    wanted = np.append(expected[often], expected[~often].sum())
    assert stats.chisquare(observed, wanted).pvalue > LEAST


@pytest.mark.parametrize("binomials", [True, False], ids=["binomials", "search"])
def test_rows_steps_and_passes_are_independent(binomials):
    exact = np.full(8, 1 / 8)
    tables = [
        counts(exact, 100, binomials, 2000, step=step, purpose=purpose)[:, :7].ravel()
        for step in (0, 1)
        for purpose in ("forward", "backward")
    ]
    tables.append(np.roll(tables[0], 7))  # the row before
    tables.append(np.roll(tables[0], 14))
    correlations = np.corrcoef(tables)[~np.eye(len(tables), dtype=bool)]
    # Outcomes of one row are correlated by -1/7, which makes the spread of this a little larger.
    assert np.abs(correlations).max() < 6 / np.sqrt(2000 * 7)


def test_the_way_depends_on_shots_and_outcomes():
    assert by_binomials(1000, 16)
    assert not by_binomials(1000, 1024)
