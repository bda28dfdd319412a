"""The report: tables on screen and a CSV file of the same figures."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.claims import Claim
from benchmarks.timing import Figure


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Args:
        title: its name on screen.
        field: its name in the CSV file.
        value: what stands in it, or None for nothing.
        digits: decimals on screen.
    """

    title: str
    field: str
    value: Callable[[Figure], str | float | None]
    digits: int = 0

    def text(self, figure: Figure) -> str:
        """The cell on screen."""
        value = self.value(figure)
        if value is None:
            return "-"
        text = value if isinstance(value, str) else f"{value:,.{self.digits}f}"
        scaled = self.field in ("bound_ms", "of_bound") and figure.bound_scaled
        return text + "*" * scaled


def _ratio(figure: Figure, other: float | None) -> float | None:
    return None if other is None else figure.seconds / other


COLUMNS = (
    Column("n", "qubits", lambda f: f.case.qubits),
    Column("batch", "batch", lambda f: f.case.batch),
    Column("rows", "rows", lambda f: f.rows),
    Column("where", "mode", lambda f: f.mode),
    Column("ms", "ms", lambda f: 1e3 * f.seconds, 1),
    Column("best ms", "fastest_ms", lambda f: 1e3 * f.fastest, 1),
    Column("rows/s", "rows_per_second", lambda f: f.rows_per_second),
    Column(
        "raw Aer ms",
        "bound_ms",
        lambda f: None if f.bound_seconds is None else 1e3 * f.bound_seconds,
        1,
    ),
    Column("/ raw Aer", "of_bound", lambda f: _ratio(f, f.bound_seconds), 2),
    Column("/ in-proc", "of_in_process", lambda f: _ratio(f, f.in_process_seconds), 2),
    Column("bytes/row", "bytes_per_row", lambda f: f.bytes_per_row, 1),
    Column("driver MiB", "driver_peak_mib", lambda f: f.driver_mib),
    Column("actor MiB", "actor_peak_mib", lambda f: f.actor_mib),
    Column("rounds", "rounds", lambda f: f.rounds),
)

FOOTNOTE = """\
ms: one backward pass for inputs and weights, median over the rounds; best: of the round that
other work on the machine disturbed least. raw Aer: the bound, the same rows in the same rounds
(* measured on a stretch of them, scaled to all). /: median over median, lower is better.
MiB: peak resident memory, libraries and what earlier work left behind included."""


class Table:
    """Prints figures as they come, in aligned columns.

    Args:
        modes: the names that will come, for the width of their column.
    """

    def __init__(self, modes: Iterable[str]) -> None:
        widest = {"mode": max(map(len, modes)), "qubits": 3, "batch": 5, "rounds": 6}
        self._widths = [max(len(c.title), widest.get(c.field, 7)) for c in COLUMNS]
        self._case = ""

    def heading(self) -> None:
        """Print the titles."""
        print(self._line([column.title for column in COLUMNS]))
        print("  ".join("-" * width for width in self._widths))

    def add(self, figures: Sequence[Figure]) -> None:
        """Print one line for each figure, and a blank line between sizes."""
        for figure in figures:
            if self._case and figure.case.name != self._case:
                print()
            self._case = figure.case.name
            print(self._line([column.text(figure) for column in COLUMNS]), flush=True)

    def _line(self, cells: Sequence[str]) -> str:
        aligned = [
            cell.ljust(width) if column.field == "mode" else cell.rjust(width)
            for cell, width, column in zip(cells, self._widths, COLUMNS, strict=True)
        ]
        return "  ".join(aligned).rstrip()


def print_claims(claims: Sequence[Claim]) -> None:
    """Print what must hold, one line for each demand."""
    print("\nMust hold")
    header = ("what", "required", "measured", "verdict", "detail")
    lines = [header, *map(_claim_cells, claims)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print(("  " + "  ".join(cells)).rstrip())


def write_figures(path: Path, figures: Sequence[Figure]) -> None:
    """Write one line for each figure; an empty cell is what was not measured."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([column.field for column in COLUMNS] + ["shots", "inputs", "bound_scaled"])
        for figure in figures:
            cells = [column.value(figure) for column in COLUMNS]
            writer.writerow(
                [f"{cell:.6g}" if isinstance(cell, float) else cell for cell in cells]
                + [figure.case.shots, int(figure.case.for_inputs), int(figure.bound_scaled)]
            )


def write_claims(path: Path, claims: Sequence[Claim]) -> None:
    """Write one line for each demand."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["what", "required", "measured", "verdict", "detail"])
        writer.writerows(map(_claim_cells, claims))


def _claim_cells(claim: Claim) -> tuple[str, ...]:
    return (claim.what, claim.required, claim.measured, claim.verdict, claim.detail)
