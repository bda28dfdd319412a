"""Statevector kernels: gate programs on one state after another, compiled by numba.

A state of n qubits is an array of ``N = 2**n`` floats, or of ``2 N``, real parts before imaginary
ones, if its program is not real (see `program.StateProgram`). A real gate does not
care which of the two it is given, or whether another state follows: all of that is more bits.

The answer of a row is the same floating-point operations whatever other rows there are: no sum
depends on the size of a batch, and nothing is contracted or reordered (no ``fastmath``). Vectors
of eight floats are therefore written out, below; the compiler's own would not be allowed to.

Everything stays in this file, because numba's cache does not see changes of what a kernel calls
elsewhere.
"""
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from qailab.gradients.rows import FloatArray, IntArray

_LANES, SUMS = 8, 64  # of a vector; partial sums of a scalar product
# `program.Kind`, again: numba's cache does not see when that file changes.
_RY, _RX, _RZ, _RZZ, _PAIRS, _REAL, _COMPLEX, _CX, _PERMUTATION = range(9)
_REAL_DIAGONAL, _COMPLEX_DIAGONAL, _REAL_MATRIX, _COMPLEX_MATRIX = range(9, 13)
_WORDS, _SLOT = 8, 7

Floats: TypeAlias = Any
Integers: TypeAlias = Any
"""Addresses of floats and integers: inner functions take these, because numba counts the references
to an array at every call, which costs more than a gate on four qubits."""

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


# Vectors of eight floats.


def _vector_at(builder: Any, pointer: Any, index: Any) -> Any:
    element = builder.gep(pointer, [index])
    return builder.bitcast(element, ir.VectorType(ir.DoubleType(), _LANES).as_pointer())


def _vector_of(values: list[Any], builder: Any) -> Any:
    vector = ir.Constant(ir.VectorType(ir.DoubleType(), _LANES), ir.Undefined)
    for lane, value in enumerate(values):
        vector = builder.insert_element(vector, value, ir.Constant(ir.IntType(32), lane))
    return vector


def _sum_of_products(builder: Any, a: Any, x: Any, b: Any, y: Any) -> Any:
    return builder.fadd(builder.fmul(a, x), builder.fmul(b, y))


@intrinsic
def _mix_vectors(typing: Any, v: Any, i: Any, j: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """``[[a, b], [c, d]]`` on the pairs ``(v[i + l], v[j + l])`` of eight lanes."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, first, second, *matrix = arguments
        p = _vector_at(builder, pointer, first)
        q = _vector_at(builder, pointer, second)
        x, y = builder.load(p, align=8), builder.load(q, align=8)
        a, b, c, d = (_vector_of([value] * _LANES, builder) for value in matrix)
        builder.store(_sum_of_products(builder, a, x, b, y), p, align=8)
        builder.store(_sum_of_products(builder, c, x, d, y), q, align=8)
        return context.get_dummy_value()

    return types.void(v, types.int64, types.int64, *[types.float64] * 4), code


def _within_vectors(stride: int) -> Any:
    lanes = range(_LANES)
    mask = ir.Constant(ir.VectorType(ir.IntType(32), _LANES), [lane ^ stride for lane in lanes])

    @intrinsic
    def mix(typing: Any, v: Any, i: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            pointer, first, a, b, c, d = arguments
            p = _vector_at(builder, pointer, first)
            x = builder.load(p, align=8)
            y = builder.shuffle_vector(x, x, mask)
            own = _vector_of([d if lane & stride else a for lane in lanes], builder)
            other = _vector_of([c if lane & stride else b for lane in lanes], builder)
            builder.store(_sum_of_products(builder, own, x, other, y), p, align=8)
            return context.get_dummy_value()

        return types.void(v, types.int64, *[types.float64] * 4), code

    return mix


_mix_1, _mix_2, _mix_4 = map(_within_vectors, (1, 2, 4))


# Gates act on the ``size`` floats of ``v`` from ``first`` on, or on the ``n`` amplitudes there.


@_inner
def _mix(v: Floats, i: int, j: int, run: int, a: float, b: float, c: float, d: float) -> None:
    """``[[a, b], [c, d]]`` on the pairs ``(v[i + l], v[j + l])`` for ``l < run``."""
    if run >= _LANES:
        for k in range(0, run, _LANES):
            _mix_vectors(v, i + k, j + k, a, b, c, d)
        return
    for k in range(run):
        x, y = v[i + k], v[j + k]
        v[i + k] = a * x + b * y
        v[j + k] = d * y + c * x


@_inner
def _real(v: Floats, first: int, size: int, s: int, a: float, b: float, c: float, d: float) -> None:
    """A real matrix on the qubit of stride ``s``."""
    stop = first + size
    if s >= _LANES or size < _LANES:
        for block in range(first, stop, 2 * s):
            _mix(v, block, block + s, s, a, b, c, d)
    elif s == 1:
        for i in range(first, stop, _LANES):
            _mix_1(v, i, a, b, c, d)
    elif s == 2:
        for i in range(first, stop, _LANES):
            _mix_2(v, i, a, b, c, d)
    else:
        for i in range(first, stop, _LANES):
            _mix_4(v, i, a, b, c, d)


@_inner
def _complex(v: Floats, first: int, n: int, s: int, m: Floats, place: int, inverse: bool) -> None:
    """A complex matrix (real parts, imaginary parts) on the qubit of stride ``s``."""
    sign = -1.0 if inverse else 1.0
    flip = 1 if inverse else 0
    a, b, c, d = m[place], m[place + 1 + flip], m[place + 2 - flip], m[place + 3]
    e, f = sign * m[place + 4], sign * m[place + 5 + flip]
    g, h = sign * m[place + 6 - flip], sign * m[place + 7]
    for block in range(first, first + n, 2 * s):
        for i in range(block, block + s):
            x, x_, y, y_ = v[i], v[i + n], v[i + s], v[i + s + n]
            v[i] = (a * x - e * x_) + (b * y - f * y_)
            v[i + n] = (a * x_ + e * x) + (b * y_ + f * y)
            v[i + s] = (c * x - g * x_) + (d * y - h * y_)
            v[i + s + n] = (c * x_ + g * x) + (d * y_ + h * y)


@_inner
def _turn(v: Floats, n: int, i: int, run: int, c: float, s: float) -> None:
    """``c - 1j s`` on the amplitudes ``i + l``."""
    _mix(v, i, i + n, run, c, s, -s, c)


@_inner
def _flip(v: Floats, n: int, i: int, j: int, run: int, c: float, s: float) -> None:
    """``c - 1j s X`` on the pairs of amplitudes ``i + l`` and ``j + l``."""
    _mix(v, i, j + n, run, c, s, -s, c)
    _mix(v, j, i + n, run, c, s, -s, c)


@_inner
def _rotate_complex(
    v: Floats, first: int, n: int, words: Integers, w: int, c: float, s: float
) -> None:
    kind, lo, hi = words[w], words[w + 1], words[w + 2]
    stop = first + n
    if kind == _RX:
        for i in range(first, stop, 2 * lo):
            _flip(v, n, i, i + lo, lo, c, s)
    elif kind == _RZ:
        for i in range(first, stop, 2 * lo):
            _turn(v, n, i, lo, c, s)
            _turn(v, n, i + lo, lo, c, -s)
    elif kind == _RZZ:
        for outer in range(first, stop, 2 * hi):
            for i in range(outer, outer + hi, 2 * lo):
                _turn(v, n, i, lo, c, s)
                _turn(v, n, i + lo, lo, c, -s)
                _turn(v, n, i + hi, lo, c, -s)
                _turn(v, n, i + hi + lo, lo, c, s)
    else:
        flipped, second = words[w + 3], words[w + 4]
        s_1, s_2, last = words[w + 5] * s, words[w + 6] * s, second ^ flipped
        for outer in range(first, stop, 2 * hi):
            for i in range(outer, outer + hi, 2 * lo):
                _flip(v, n, i, i + flipped, lo, c, s_1)
                _flip(v, n, i + second, i + last, lo, c, s_2)


@_inner
def _cx(v: Floats, first: int, size: int, words: Integers, w: int) -> None:
    lo, hi, control, target = words[w + 1], words[w + 2], words[w + 3], words[w + 4]
    for outer in range(first, first + size, 2 * hi):
        for inner in range(outer + control, outer + control + hi, 2 * lo):
            for i in range(inner, inner + lo):
                v[i], v[i + target] = v[i + target], v[i]


# Gates of any width: ``offsets`` are the indices of their basis states where all else is zero,
# and ``base`` goes through all that can be added to them.


@_inner
def _permute(
    v: Floats, first: int, size: int, words: Integers, w: int, indices: Integers, t: Floats,
    inverse: bool,
) -> None:  # fmt: skip
    width, mask, offsets, moves = 1 << words[w + 1], words[w + 2], words[w + 3], words[w + 4]
    base = 0
    while base < size:
        start = first + base
        if inverse:
            for k in range(width):
                t[k] = v[start + indices[offsets + indices[moves + k]]]
        else:
            for k in range(width):
                t[indices[moves + k]] = v[start + indices[offsets + k]]
        for k in range(width):
            v[start + indices[offsets + k]] = t[k]
        base = ((base | mask) + 1) & ~mask


@_inner
def _diagonal(
    v: Floats, first: int, size: int, words: Integers, w: int, numbers: Floats, indices: Integers,
    inverse: bool,
) -> None:  # fmt: skip
    """Real values on all ``size`` floats, or complex ones on a state of that many amplitudes."""
    width, mask, offsets, values = 1 << words[w + 1], words[w + 2], words[w + 3], words[w + 4]
    is_complex, sign = words[w] == _COMPLEX_DIAGONAL, -1.0 if inverse else 1.0
    base = 0
    while base < size:
        for k in range(width):
            i, c = first + base + indices[offsets + k], numbers[values + k]
            if is_complex:
                s, j = sign * numbers[values + width + k], i + size
                v[i], v[j] = c * v[i] - s * v[j], c * v[j] + s * v[i]
            else:
                v[i] *= c
        base = ((base | mask) + 1) & ~mask


@_inner
def _matrix(
    v: Floats, first: int, size: int, words: Integers, w: int, numbers: Floats, indices: Integers,
    t: Floats, inverse: bool,
) -> None:  # fmt: skip
    """A real matrix on all ``size`` floats, or a complex one on a state of that many amplitudes."""
    width, mask, offsets, m = 1 << words[w + 1], words[w + 2], words[w + 3], words[w + 4]
    is_complex, sign = words[w] == _COMPLEX_MATRIX, -1.0 if inverse else 1.0
    row, column = (1, width) if inverse else (width, 1)
    base = 0
    while base < size:
        start = first + base
        for k in range(width):
            t[k] = v[start + indices[offsets + k]]
            if is_complex:
                t[width + k] = v[start + size + indices[offsets + k]]
        for r in range(width):
            x, y = 0.0, 0.0
            for k in range(width):
                a = numbers[m + r * row + k * column]
                x += a * t[k]
                if is_complex:
                    b = sign * numbers[m + width * width + r * row + k * column]
                    x -= b * t[width + k]
                    y += a * t[width + k] + b * t[k]
            v[start + indices[offsets + r]] = x
            if is_complex:
                v[start + size + indices[offsets + r]] = y
        base = ((base | mask) + 1) & ~mask


# Circuits. A program is the addresses of the arrays of a `StateProgram`.


@_inner
def _apply(
    v: Floats, first: int, size: int, n: int, program: Any, op: int, c: float, s: float, t: Floats,
    inverse: bool,
) -> None:  # fmt: skip
    """One operation, on all states there; rotations are ``c - 1j s P`` for their generator P."""
    words, numbers, indices = program[0], program[1], program[2]
    w = op * _WORDS
    kind, stride = words[w], words[w + 1]
    if kind in (_RY, _REAL):
        a, b, b_, d = c, -s, s, c
        if kind == _REAL:
            m = words[w + 2]
            a, b, b_, d = numbers[m], numbers[m + 1], numbers[m + 2], numbers[m + 3]
            if inverse:
                b, b_ = b_, b
        _real(v, first, size, stride, a, b, b_, d)
    elif kind == _CX:
        _cx(v, first, size, words, w)
    elif kind == _PERMUTATION:
        _permute(v, first, size, words, w, indices, t, inverse)
    elif kind == _REAL_DIAGONAL:
        _diagonal(v, first, size, words, w, numbers, indices, inverse)
    elif kind == _REAL_MATRIX:
        _matrix(v, first, size, words, w, numbers, indices, t, inverse)
    else:
        for state in range(first, first + size, 2 * n):
            if kind == _COMPLEX:
                _complex(v, state, n, stride, numbers, words[w + 2], inverse)
            elif kind == _COMPLEX_DIAGONAL:
                _diagonal(v, state, n, words, w, numbers, indices, inverse)
            elif kind == _COMPLEX_MATRIX:
                _matrix(v, state, n, words, w, numbers, indices, t, inverse)
            else:
                _rotate_complex(v, state, n, words, w, c, s)


@_inner
def _run(
    v: Floats, first: int, size: int, n: int, program: Any, start: int, stop: int, cos: Floats,
    sin: Floats, t: Floats,
) -> None:  # fmt: skip
    """Apply the operations ``start .. stop - 1``, or undo them backwards if ``stop < start``."""
    inverse = stop < start
    for op in range(start, stop, -1 if inverse else 1):
        slot, c, s = program[0][op * _WORDS + _SLOT], 0.0, 0.0
        if slot >= 0:
            c, s = cos[slot], -sin[slot] if inverse else sin[slot]
        _apply(v, first, size, n, program, op, c, s, t, inverse)


@_inner
def _angles(base: Floats, first: int, program: Any, slots: int, cos: Floats, sin: Floats) -> None:
    """Cosine and sine of half the angle of each slot; the angles of a sample begin at ``first``."""
    starts, columns = program[4], program[5]
    for slot in range(slots):
        angle = 0.0
        for k in range(starts[slot], starts[slot + 1]):
            angle += base[first + columns[k]]
        cos[slot] = math.cos(angle / 2.0)
        sin[slot] = math.sin(angle / 2.0)


@_inner
def _begin(v: Floats, first: int, size: int) -> None:
    for k in range(first, first + size):
        v[k] = 0.0
    v[first] = 1.0


@_inner
def _copy(v: Floats, source: int, target: int, size: int) -> None:
    for k in range(size):
        v[target + k] = v[source + k]


@_inner
def _probabilities(
    v: Floats, first: int, second: int, size: int, c: float, s: float, out: Floats, outcomes: int
) -> None:
    """The probabilities of ``c`` times the first state plus ``s`` times the second."""
    for k in range(outcomes):
        x = c * v[first + k] + s * v[second + k]
        out[k] = x * x
    for block in range(outcomes, size, outcomes):
        for k in range(outcomes):
            x = c * v[first + block + k] + s * v[second + block + k]
            out[k] += x * x


_TABLE, _INTEGERS = _given(types.float64, 2), _given(types.int64, 1)
_ARRAYS = types.Tuple(
    (
        _given(types.int64, 2), _given(types.float64, 1), _given(types.uint32, 1), _INTEGERS,
        _INTEGERS, _INTEGERS,
    )
)  # fmt: skip
_OUT, _PAIR = types.float64[:, ::1], types.UniTuple(types.int64, 2)
_MACHINE = types.Tuple((_ARRAYS, types.int64, types.int64, types.float64[::1]))


@_inner
def _addresses(arrays: Any) -> Any:
    a, b, c, d, e, f = arrays
    first = _pointer(a, 0), _pointer(b, 0), _pointer(c, 0)
    return first + (_pointer(d, 0), _pointer(e, 0), _pointer(f, 0))


@_inner
def _places(space: Any, size: int, slots: int) -> Any:
    """Room for states, cosines, sines, partial sums, and whatever operations need."""
    return (
        _pointer(space, 0),
        _pointer(space, size),
        _pointer(space, size + slots),
        _pointer(space, size + 2 * slots),
        _pointer(space, size + 2 * slots + SUMS),
    )


@_kernel(types.void(_MACHINE, _TABLE, _OUT))
def point_probabilities(machine: Any, angles: FloatArray, out: FloatArray) -> None:
    """Probabilities of the outcomes of some rows.

    Args:
        machine: the arrays of a `StateProgram`, the amplitudes and the floats of its states, and
            room for states, twice the slots, `SUMS` and its scratch.
        angles: shape ``(rows, A)``.
        out: the probabilities, shape ``(rows, K)``.
    """
    arrays, n, size, space = machine
    program, slots, last = _addresses(arrays), len(arrays[3]), len(arrays[0])
    v, cos, sin, _, t = _places(space, 3 * size, slots)
    for row in range(len(angles)):
        _angles(_pointer(angles, 0), row * angles.shape[1], program, slots, cos, sin)
        _begin(v, 0, size)
        _run(v, 0, size, n, program, 0, last, cos, sin, t)
        line = _pointer(out, row * out.shape[1])
        _probabilities(v, 0, 0, size, 1.0, 0.0, line, out.shape[1])


@_kernel(
    types.int64(
        _MACHINE, _TABLE, _TABLE, _INTEGERS, _PAIR, _PAIR, _PAIR, types.int64[::1],
        types.int64[::1], _OUT,
    )
)  # fmt: skip
def shifted_probabilities(
    machine: Any, base: FloatArray, shifts: FloatArray, wanted: IntArray,
    samples: tuple[int, int], rows: tuple[int, int], slots: tuple[int, int], cursor: IntArray,
    numbers: IntArray, out: FloatArray,
) -> int:  # fmt: skip
    """Probabilities of the outcomes of shifted rows, whose states share what they can.

    With ``R(t) = exp(-1j t P / 2)`` and ``P @ P = 1``, ``R(t + s)`` is ``cos(s/2) R(t) + sin(s/2)
    R(t + pi)``: the states of all shifts of a slot are sums of the sample's own state and one
    other, which has the gates before the slot in common with it. Rows come slot by slot.

    Args:
        machine: as in `point_probabilities`.
        base: angles of the samples, shape ``(S, A)``.
        shifts: cosine and sine of half of each shift of the rule, shape ``(2, T)``.
        wanted: place of each angle among the shifted ones, -1 if it is not, shape ``(A,)``.
        samples: the samples to do, from and to.
        rows: the rows to do, from and to, counted from the first row of the first sample.
        slots: the slots to do, from and to.
        cursor: the sample that the states in that room belong to, which the next call uses again,
            and how many operations the second of them has seen.
        numbers: filled with the number of each row, counted as ``rows``.
        out: the probabilities, a line for each row.

    Returns:
        How many rows these are.
    """
    arrays, n, size, space = machine
    program, last = _addresses(arrays), len(arrays[0])
    v, cos, sin, _, t = _places(space, 3 * size, len(arrays[3]))
    slot_operations, starts, columns = program[3], program[4], program[5]
    terms, per_sample = shifts.shape[1], shifts.shape[1] * np.sum(wanted >= 0)
    outcomes, places = out.shape[1], _pointer(wanted, 0)
    found = 0
    for sample in range(samples[0], samples[1]):
        first = sample * base.shape[1]
        _angles(_pointer(base, 0), first, program, len(arrays[3]), cos, sin)
        if cursor[0] != sample:
            _begin(v, 0, size)
            _run(v, 0, size, n, program, 0, last, cos, sin, t)
        if cursor[0] != sample or cursor[1] > slot_operations[slots[0]]:
            _begin(v, size, size)
            cursor[0], cursor[1] = sample, 0
        for slot in range(slots[0], slots[1]):
            here, ready = slot_operations[slot], False
            for k in range(starts[slot], starts[slot + 1]):
                place = places[columns[k]]
                for term in range(terms):
                    row = sample * per_sample + place * terms + term
                    if place < 0 or row < rows[0] or row >= rows[1]:
                        continue
                    if not ready:
                        _run(v, size, size, n, program, cursor[1], here, cos, sin, t)
                        cursor[1] = here
                        _copy(v, size, 2 * size, size)
                        c, s = -sin[slot], cos[slot]  # the angle and pi
                        _apply(v, 2 * size, size, n, program, here, c, s, t, False)
                        _run(v, 2 * size, size, n, program, here + 1, last, cos, sin, t)
                        ready = True
                    c, s = shifts[0, term], shifts[1, term]
                    line = _pointer(out, found * outcomes)
                    _probabilities(v, 0, 2 * size, size, c, s, line, outcomes)
                    numbers[found] = row
                    found += 1
    return found


@_inner
def _weigh(v: Floats, size: int, weights: Floats, outcomes: int) -> None:
    """The second state becomes the first times an observable: the diagonal of these weights."""
    for block in range(0, size, outcomes):
        for k in range(outcomes):
            v[size + block + k] = weights[k] * v[block + k]


@_inner
def _product(v: Floats, first: int, second: int, size: int, sums: Floats) -> float:
    """The scalar product of two states, in an order that depends on their size alone."""
    width = min(size, SUMS)
    for k in range(width):
        sums[k] = v[first + k] * v[second + k]
    for block in range(width, size, width):
        for k in range(width):
            sums[k] += v[first + block + k] * v[second + block + k]
    total = 0.0
    for k in range(width):
        total += sums[k]
    return total


@_inner
def _sweep(
    v: Floats, size: int, n: int, program: Any, start: int, stop: int, wanted: Integers,
    room: Any, out: Floats,
) -> None:  # fmt: skip
    """Undo the operations ``start .. stop`` on psi and lambda, and add their slopes to ``out``."""
    cos, sin, sums, t = room
    for here in range(start, stop - 1, -1):
        slot, slope, ready = program[0][here * _WORDS + _SLOT], 0.0, False
        first, end = (program[4][slot], program[4][slot + 1]) if slot >= 0 else (0, 0)
        for k in range(first, end):
            place = wanted[program[5][k]]
            if place >= 0 and not ready:
                _copy(v, 0, 2 * size, size)
                _apply(v, 2 * size, size, n, program, here, 0.0, 1.0, t, False)
                slope, ready = _product(v, size, 2 * size, size, sums), True
            if place >= 0:
                out[2 * place] += slope
        _run(v, 0, 2 * size, n, program, here, here - 1, cos, sin, t)


@_kernel(types.void(_MACHINE, _TABLE, _TABLE, _INTEGERS, types.UniTuple(types.int64, 3), _OUT))
def adjoint_slopes(
    machine: Any, base: FloatArray, cotangents: FloatArray, wanted: IntArray,
    stages: tuple[int, int, int], out: FloatArray,
) -> None:  # fmt: skip
    """Derivatives of ``sum_g <D_g>``, in G bases, by one sweep forward and one backward.

    With ``psi`` the state after a rotation by t and ``lambda`` the sum of the states D_g psi of the
    ends, D the cotangents' diagonals, brought back to there, the derivative is
    ``2 Re <lambda| d/dt |psi> = Re <lambda| -1j P |psi>`` (Jones, Gacon, arXiv:2009.02823).

    Args:
        machine: as in `point_probabilities`, with room for five states.
        base: angles of the samples, basis by basis, shape ``(S * G, A)``.
        cotangents: shape ``(S * G, K)``.
        wanted: place of each angle among the wanted ones, -1 if it is not, shape ``(A,)``.
        stages: G, and the first operations that differ between bases, and that have slopes.
        out: the derivatives and zeros, shape ``(S * C, 2)``, sample by sample.
    """
    arrays, n, size, space = machine
    program, slots, last = _addresses(arrays), len(arrays[3]), len(arrays[0])
    v, cos, sin, sums, t = _places(space, 5 * size, slots)
    room, places, per_sample = (cos, sin, sums, t), _pointer(wanted, 0), np.sum(wanted >= 0)
    bases, turned, earliest = stages[0], max(stages[1], stages[2]), stages[2]
    out[:] = 0.0
    for row in range(len(base)):
        basis, slopes = row % bases, _pointer(out, 2 * per_sample * (row // bases))
        _angles(_pointer(base, 0), row * base.shape[1], program, slots, cos, sin)
        if basis == 0:
            _begin(v, 3 * size, size)
            _run(v, 3 * size, size, n, program, 0, turned, cos, sin, t)
        _copy(v, 3 * size, 0, size)
        _run(v, 0, size, n, program, turned, last, cos, sin, t)
        _weigh(v, size, _pointer(cotangents, row * cotangents.shape[1]), cotangents.shape[1])
        _sweep(v, size, n, program, last - 1, turned, places, room, slopes)
        for k in range(size):
            v[4 * size + k] = v[size + k] + (v[4 * size + k] if basis else 0.0)
        if basis == bases - 1:  # psi was brought back to there as well
            _copy(v, 4 * size, size, size)
            _sweep(v, size, n, program, turned - 1, earliest, places, room, slopes)
