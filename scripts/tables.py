"""Tables of at most 100 columns, printed line by line as the figures come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_WIDTH = 100


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        title: its heading, and the key of its value.
        format: how a number is written, as in ``format(value, ",.1f")``.
        width: characters; at least those of the title.
    """

    title: str
    format: str = ""
    width: int = 0

    def cell(self, value: Any) -> str:
        """Write a value: words to the left, numbers to the right, ``-`` for what is not known."""
        width = max(self.width, len(self.title))
        if isinstance(value, str):
            return value.ljust(width)
        return ("-" if value is None else format(value, self.format)).rjust(width)


class Table:
    """Prints a heading, then one line for each row of figures.

    Args:
        columns: what is shown; the last one may be a text, which is cut at 100 characters.
        title: a line above the heading.
    """

    def __init__(self, columns: Sequence[Column], title: str = "") -> None:
        self.rows: list[Mapping[str, Any]] = []
        self._columns = columns
        if title:
            print(f"\n{title}")
        widths = [max(column.width, len(column.title)) for column in columns]
        titles = zip(columns, widths, strict=True)
        print("  ".join(column.title.rjust(width) for column, width in titles))
        print("  ".join("-" * width for width in widths), flush=True)

    def add(self, row: Mapping[str, Any]) -> None:
        """Print a row and keep it; figures without a column are kept only."""
        self.rows.append(row)
        cells = (column.cell(row.get(column.title)) for column in self._columns)
        print("  ".join(cells)[:_WIDTH].rstrip(), flush=True)
