"""Cutting rows into jobs: as few as the limit allows, and as equal as groups allow."""

from __future__ import annotations

from itertools import pairwise


def cuts(start: int, stop: int, *, most: int, group: int) -> list[tuple[int, int]]:
    """Cut the rows ``start .. stop - 1`` into pieces, where row numbers are divisible by ``group``.

    Args:
        start: the number of the first row.
        stop: one past the number of the last row.
        most: how many rows a piece may have, at least ``group``.
        group: how many consecutive rows must stay together.

    Returns:
        The pieces' (start, stop), in order.

    Example:
        >>> cuts(0, 20, most=9, group=2)
        [(0, 6), (6, 14), (14, 20)]
    """
    # The earliest place of each cut that leaves no more than the pieces after it can hold.
    earliest = [stop]
    while earliest[0] - start > most:
        earliest.insert(0, -(-(earliest[0] - most) // group) * group)
    pieces = len(earliest)
    ends = [start]
    for number, low in enumerate(earliest[:-1], start=1):
        even = round((start + number * (stop - start) / pieces) / group) * group
        latest = (ends[-1] + most) // group * group
        ends.append(min(max(even, low), latest))
    ends.append(stop)
    return list(pairwise(ends))
