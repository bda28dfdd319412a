"""Tables of at most 100 columns, printed line by line as the figures come."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_MOST_CHARACTERS = 100


@dataclass(frozen=True)
class Column:
    """A column: ``title`` is its heading and the key of its values."""

    title: str
    format: str = ""  # of numbers, as in format(value, ",.1f"); by default about three digits
    width: int = 0  # in characters, if more than the title's

    def cell(self, value: Any) -> str:
        """Write a value: words to the left, numbers to the right, ``-`` for what is not known."""
        width = max(self.width, len(self.title))
        if isinstance(value, str):
            return value.ljust(width)
        decimals = sum(abs(value) < m for m in (100, 10, 1)) if isinstance(value, float) else 0
        form = self.format or f",.{decimals}f"
        return ("-" if value is None else format(value, form)).rjust(width)


class Table:
    """Prints a heading, then a line for each row of figures; ``rows`` keeps all figures.

    The columns are those of the first row, unless they are given.
    """

    def __init__(self, columns: Sequence[Column] = (), title: str = "") -> None:
        self.rows: list[Mapping[str, Any]] = []
        self._columns = columns
        if title:
            print(f"\n{title}", flush=True)

    def add(self, row: Mapping[str, Any]) -> None:
        """Print and keep a row; a last column of words is cut at the margin."""
        if not self.rows:
            self._columns = self._columns or [_fitting(*item) for item in row.items()]
            self._print(column.title.rjust(column.width) for column in self._columns)
            self._print("-" * len(column.cell("")) for column in self._columns)
        self.rows.append(row)
        self._print(column.cell(row.get(column.title)) for column in self._columns)

    def _print(self, cells: Iterable[str]) -> None:
        print("  ".join(cells)[:_MOST_CHARACTERS].rstrip(), flush=True)


def _fitting(title: str, value: Any) -> Column:
    """A column for values such as this one."""
    least = 11 if isinstance(value, str) else 5
    return Column(title, width=max(least, len(Column(title).cell(value))))
