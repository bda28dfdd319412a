"""Tables of at most 100 columns, printed line by line as the figures come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_MOST_CHARACTERS = 100


@dataclass(frozen=True)
class Column:
    """A column: ``title`` is its heading and the key of its values."""

    title: str
    format: str = ""  # of numbers, as in format(value, ",.1f")
    width: int = 0  # in characters, if more than the title's

    def cell(self, value: Any) -> str:
        """Write a value: words to the left, numbers to the right, ``-`` for what is not known."""
        width = max(self.width, len(self.title))
        if isinstance(value, str):
            return value.ljust(width)
        return ("-" if value is None else format(value, self.format)).rjust(width)


class Table:
    """Prints a heading, then a line for each row of figures; ``rows`` keeps all figures."""

    def __init__(self, columns: Sequence[Column], title: str = "") -> None:
        self.rows: list[Mapping[str, Any]] = []
        self._columns = columns
        if title:
            print(f"\n{title}")
        print("  ".join(column.title.rjust(column.width) for column in columns))
        print("  ".join("-" * len(column.cell("")) for column in columns), flush=True)

    def add(self, row: Mapping[str, Any]) -> None:
        """Print and keep a row; a last column of words is cut at the margin."""
        self.rows.append(row)
        cells = (column.cell(row.get(column.title)) for column in self._columns)
        print("  ".join(cells)[:_MOST_CHARACTERS].rstrip(), flush=True)
