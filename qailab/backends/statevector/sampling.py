"""Shots from exact probabilities, compiled by numba.

The random numbers of a row are those of `NoiseStream.generators`: Philox4x64-10 with the stream's
words as key and counters ``(1, 0, row, 0)``, ``(2, 0, row, 0)``, ..., so that a row's shots depend
on the stream and its number alone. Of two exact ways to draw, the cheaper one is taken:

* few shots for many outcomes: each shot finds its outcome in the distribution function, from a
  place that a guide table tells. Costs about ``shots + K``;
* many shots for few outcomes: the count of each outcome in turn is binomial, given those before.
  Costs about ``K``, however many shots.

References:
    J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, Parallel random numbers: as easy as
    1, 2, 3, SC '11, doi:10.1145/2063384.2063405 (Philox).
    H.-C. Chen, Y. Asau, On generating random variates from an empirical distribution, AIIE
    Transactions 6, 163 (1974), doi:10.1080/05695557408974949 (guide tables).
    W. Hoermann, The generation of binomial random variates, J. Stat. Comput. Simul. 46, 101
    (1993), doi:10.1080/00949659308811496 (BTRS).
"""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from qailab.gradients.rows import FloatArray, IntArray

_BINOMIAL_SHOTS = 6
"""From this many shots for each outcome on, binomials are cheaper (measured: a binomial costs six
to ten times what a shot does)."""

_WORDS = 64  # random words that are made at once
_SUMS = 32  # partial sums of a contraction: as many as in `backends.answers.contract`
_MAX_GUIDE = 1 << 12
_SMALL_MEAN = 10.0  # below, counting up is cheaper than rejection, which needs at least that

Floats: TypeAlias = Any
Integers: TypeAlias = Any
"""Addresses of floats and integers: inner functions take these, because numba counts the references
to an array at every call, which costs more than a shot."""

_inner: Any = njit(error_model="numpy", nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)


def _kernel(signature: Any) -> Any:
    """A function that Python calls: compiled once per machine, for one signature."""
    return njit(signature, error_model="numpy", nogil=True, cache=True, no_cfunc_wrapper=True)


def _given(kind: Any, dimensions: int) -> Any:
    """An array that may be read-only, as it comes out of Ray's store."""
    return types.Array(kind, dimensions, "C", readonly=True)


@intrinsic
def _pointer(typing: Any, array: Any, offset: Any) -> Any:
    """The address of an element. Whoever calls the kernel keeps the array alive."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.gep(data, [arguments[1]])

    return types.CPointer(array.dtype)(array, types.int64), code


@intrinsic
def _multiply_high(typing: Any, a: Any, b: Any) -> Any:
    """The upper 64 bits of a product of 64-bit integers."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wide = ir.IntType(128)
        x, y = (builder.zext(argument, wide) for argument in arguments)
        product = builder.lshr(builder.mul(x, y), ir.Constant(wide, 64))
        return builder.trunc(product, ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), code


# The generator of a row is four addresses: of the key (two words), of the row's number, of words
# that were made, and of how many of them are used up, and how many blocks of four came before.


@_inner
def _refill(generator: Any) -> None:
    key, row, words, place = generator
    multiplier_0, multiplier_1 = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
    weyl_0, weyl_1 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)
    for block in range(_WORDS // 4):
        k_0, k_1 = key[0], key[1]
        x_0 = np.uint64(place[1] + 1 + block)  # numpy counts before it makes a block
        x_1, x_2, x_3 = np.uint64(0), np.uint64(row[0]), np.uint64(0)
        for _ in range(10):
            high_0, low_0 = _multiply_high(multiplier_0, x_0), multiplier_0 * x_0
            high_1, low_1 = _multiply_high(multiplier_1, x_2), multiplier_1 * x_2
            x_0, x_1, x_2, x_3 = high_1 ^ x_1 ^ k_0, low_1, high_0 ^ x_3 ^ k_1, low_0
            k_0 += weyl_0
            k_1 += weyl_1
        i = 4 * block
        words[i], words[i + 1], words[i + 2], words[i + 3] = x_0, x_1, x_2, x_3
    place[0] = 0
    place[1] += _WORDS // 4


@_inner
def _fraction(word: Any) -> Any:
    """A number in [0, 1) of 53 random bits, as numpy makes it."""
    return np.float64(word >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@_inner
def _uniform(generator: Any) -> Any:
    """The next number in [0, 1)."""
    words, place = generator[2], generator[3]
    if place[0] == _WORDS:
        _refill(generator)
    word = words[place[0]]
    place[0] += 1
    return _fraction(word)


@_inner
def _stirling(k: float) -> float:
    """What Stirling's formula for ``log k!`` lacks, to 1e-16 from ten on and by sum below."""
    missing = 0.0
    while k < 10.0:  # f(k) - f(k + 1) is known
        missing += (k + 1.5) * math.log((k + 2.0) / (k + 1.0)) - 1.0
        k += 1.0
    x = k + 1.0
    y = 1.0 / (x * x)
    series = 1.0 / 12.0 - y * (1.0 / 360.0 - y * (1.0 / 1260.0 - y / 1680.0))
    return missing + series / x


@_inner
def _counted_up(shots: int, p: float, generator: Any) -> int:
    """A binomial number of small mean."""
    while True:
        u = _uniform(generator)
        if u < 1.0 - shots * p:  # less than (1 - p)**shots
            return 0
        term = math.exp(shots * math.log1p(-p))
        odds = p / (1.0 - p)
        count = 0
        while u >= term and count <= shots:
            u -= term
            count += 1
            term *= odds * (shots - count + 1) / count
        if count <= shots:  # else rounding left something over
            return count


@_inner
def _rejected(shots: int, p: float, generator: Any) -> int:
    """A binomial number of mean 10 or more, for ``p`` of at most a half (BTRS)."""
    spread = math.sqrt(shots * p * (1.0 - p))
    b = 1.15 + 2.53 * spread
    a = -0.0873 + 0.0248 * b + 0.01 * p
    quick = 0.92 - 4.2 / b
    alpha = (2.83 + 5.1 / b) * spread
    mode = math.floor((shots + 1) * p)
    while True:
        u = _uniform(generator) - 0.5
        v = _uniform(generator)
        edge = 0.5 - abs(u)
        k = math.floor((2.0 * a / edge + b) * u + shots * p + 0.5) if edge > 0.0 else -1.0
        if edge >= 0.07 and v <= quick:
            return int(k)
        if k < 0 or k > shots or v <= 0.0:
            continue
        limit = (mode + 0.5) * math.log((mode + 1.0) * (1.0 - p) / (p * (shots - mode + 1.0)))
        limit += (shots + 1.0) * math.log((shots - mode + 1.0) / (shots - k + 1.0))
        limit += (k + 0.5) * math.log(p * (shots - k + 1.0) / ((1.0 - p) * (k + 1.0)))
        limit += _stirling(mode) + _stirling(shots - mode) - _stirling(k) - _stirling(shots - k)
        if math.log(v * alpha / (a / (edge * edge) + b)) <= limit:
            return int(k)


@_inner
def _by_binomials(
    exact: Floats, outcomes: int, shots: int, counts: Floats, sums: Floats, generator: Any
) -> None:
    total = 0.0
    for k in range(outcomes - 1, -1, -1):  # from the end: small sums are of small terms alone
        total += exact[k]
        sums[k] = total
    left = shots
    for k in range(outcomes):
        p = exact[k]
        counts[k] = 0.0
        if left == 0 or p <= 0.0:
            continue
        p /= sums[k]
        rare = p <= 0.5
        q = p if rare else (sums[k + 1] / sums[k] if k + 1 < outcomes else 0.0)
        if q <= 0.0:  # the last outcome that there is
            count = 0
        elif left * q < _SMALL_MEAN:
            count = _counted_up(left, q, generator)
        else:
            count = _rejected(left, q, generator)
        count = count if rare else left - count
        counts[k] = count
        left -= count


@_inner
def _by_search(
    exact: Floats, outcomes: int, shots: int, counts: Floats, sums: Floats, guide: Integers,
    generator: Any,
) -> None:  # fmt: skip
    total, last = 0.0, 0
    for k in range(outcomes):
        p = exact[k]
        total += p
        sums[k] = total
        counts[k] = 0.0
        last = k if p > 0.0 else last
    cells = 1
    while cells < min(outcomes, 2 * shots, _MAX_GUIDE):
        cells *= 2
    k = 0
    for cell in range(cells):
        while k < last and sums[k] <= total * (cell / cells):
            k += 1
        guide[cell] = k
    sums[last] = math.inf  # nothing is beyond
    words, left = generator[2], shots
    while left > 0:
        _refill(generator)
        for i in range(min(left, _WORDS)):
            u = _fraction(words[i])
            x = u * total
            k = guide[int(u * cells)]
            k += sums[k] <= x  # mostly enough, and nothing for a processor to guess
            k += sums[k] <= x
            while sums[k] <= x:
                k += 1
            counts[k] += 1.0
        left -= _WORDS


@_inner
def _draw(
    exact: Floats, outcomes: int, row: Integers, shots: int, binomials: bool, key: Any, space: Any,
    out: Floats,
) -> None:  # fmt: skip
    """The frequencies of a row; ``space`` is a `draw_space`."""
    integers, words, floats = space
    place, guide, sums = _pointer(integers, 0), _pointer(integers, 2), _pointer(floats, _SUMS)
    place[0], place[1] = _WORDS, 0
    generator = (_pointer(key, 0), row, _pointer(words, 0), place)
    if binomials:
        _by_binomials(exact, outcomes, shots, out, sums, generator)
    else:
        _by_search(exact, outcomes, shots, out, sums, guide, generator)
    for k in range(outcomes):
        out[k] /= shots


def by_binomials(shots: int, outcomes: int) -> bool:
    """Whether binomials are the cheaper way."""
    return shots >= _BINOMIAL_SHOTS * outcomes


def draw_space(outcomes: int) -> tuple[IntArray, NDArray[np.uint64], FloatArray]:
    """Room that the kernels work in, for K outcomes."""
    integers = np.empty(2 + min(outcomes, _MAX_GUIDE), dtype=np.int64)
    return integers, np.empty(_WORDS, dtype=np.uint64), np.empty(_SUMS + outcomes)


_TABLE = _given(types.float64, 2)
_INTEGERS, _KEY = _given(types.int64, 1), _given(types.uint64, 1)
_OUT = types.float64[:, ::1]
_SPACE = types.Tuple((types.int64[::1], types.uint64[::1], types.float64[::1]))


@_kernel(types.void(_TABLE, _INTEGERS, types.int64, types.boolean, _KEY, _SPACE, _OUT))
def draw_frequencies(
    exact: FloatArray,
    row_of: IntArray,
    shots: int,
    binomials: bool,
    key: NDArray[np.uint64],
    space: Any,
    out: FloatArray,
) -> None:
    """Draw shots for each row. Outcomes of probability zero never come.

    Args:
        exact: probabilities, shape ``(rows, K)`` with K a power of two; each row is taken relative
            to its sum.
        row_of: the number of each row, which its random numbers go by, shape ``(rows,)``.
        shots: shots for each row.
        binomials: the way, `by_binomials`.
        key: the two words of the noise stream.
        space: room, `draw_space`.
        out: the frequencies, shape ``(rows, K)``; may be ``exact``.
    """
    outcomes = exact.shape[1]
    for line in range(len(row_of)):
        source, target = _pointer(exact, line * outcomes), _pointer(out, line * outcomes)
        _draw(source, outcomes, _pointer(row_of, line), shots, binomials, key, space, target)


@_inner
def _weighted(
    table: Floats, weights: Floats, mean: float, squared: bool, outcomes: int, sums: Floats
) -> float:
    """``sum_k table[k] (weights[k] - mean)``, or of squares, in an order that K alone decides."""
    width = min(outcomes, _SUMS)
    for i in range(width):
        sums[i] = 0.0
    for block in range(0, outcomes, width):
        for i in range(width):
            distance = weights[block + i] - mean
            sums[i] += table[block + i] * (distance * distance if squared else distance)
    total = 0.0
    for i in range(width):
        total += sums[i]
    return total


_THREE = types.UniTuple(types.int64, 3)


@_kernel(
    types.void(
        _TABLE, _INTEGERS, types.int64, types.boolean, _KEY, _TABLE, _THREE, _SPACE,
        types.float64[::1], _OUT,
    )
)  # fmt: skip
def contract_rows(
    exact: FloatArray,
    row_of: IntArray,
    shots: int,
    binomials: bool,
    key: NDArray[np.uint64],
    cotangents: FloatArray,
    numbering: tuple[int, int, int],
    space: Any,
    drawn: FloatArray,
    out: FloatArray,
) -> None:
    """The answers of rows: ``sum_k cotangents[k] p_k``, and its shot variance.

    The variance is that of the exact distribution, as in `backends.answers.contract`.

    Args:
        exact: probabilities, shape ``(rows, K)``.
        row_of: the number of each row, shape ``(rows,)``.
        shots: shots for each row, 0 for exact values without variance.
        binomials: the way, `by_binomials`.
        key: the two words of the noise stream.
        cotangents: shape ``(S, K)``.
        numbering: how many rows have the same cotangents, the sample that ``cotangents[0]`` belongs
            to, and the row that ``out[0]`` belongs to.
        space: room, `draw_space`.
        drawn: room for the frequencies of a row, shape ``(K,)``.
        out: values and variances, shape ``(rows, 2)``.
    """
    outcomes = exact.shape[1]
    sums, frequencies = _pointer(space[2], 0), _pointer(drawn, 0)
    for line in range(len(row_of)):
        sample = row_of[line] // numbering[0] - numbering[1]
        weights = _pointer(cotangents, sample * outcomes)
        probabilities = _pointer(exact, line * outcomes)
        value, variance = _weighted(probabilities, weights, 0.0, False, outcomes, sums), 0.0
        if shots:
            variance = _weighted(probabilities, weights, value, True, outcomes, sums) / shots
            row = _pointer(row_of, line)
            _draw(probabilities, outcomes, row, shots, binomials, key, space, frequencies)
            value = _weighted(frequencies, weights, 0.0, False, outcomes, sums)
        out[row_of[line] - numbering[2], 0] = value
        out[row_of[line] - numbering[2], 1] = variance


@_kernel(types.void(_KEY, _INTEGERS, types.int64[::1], types.uint64[::1]))
def random_words(
    key: NDArray[np.uint64], row: IntArray, place: IntArray, words: NDArray[np.uint64]
) -> None:
    """The words that all of this is made of, for tests.

    Args:
        key: the two words of the noise stream.
        row: the number of the row, shape ``(1,)``.
        place: two integers; the second says how many blocks of four words came before.
        words: filled, shape ``(64,)``.
    """
    _refill((_pointer(key, 0), _pointer(row, 0), _pointer(words, 0), _pointer(place, 0)))
