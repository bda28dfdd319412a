"""A record of hardware jobs, so that nothing that was paid for is lost, or paid for twice.

`Journal` is an SQLite file (the standard library's). Every job is noted before it is sent and
after, with its result; whoever starts again finds what runs and what finished.
``python -m qailab.journal FILE`` lists it. No account or token is ever in it.
"""

from qailab.journal.owners import owner_alive, this_owner
from qailab.journal.record import DIGEST_BYTES, Cause, Entry, MemoryRecord, Record, State, Work
from qailab.journal.store import Journal, Totals

__all__ = [
    "DIGEST_BYTES",
    "Cause",
    "Entry",
    "Journal",
    "MemoryRecord",
    "Record",
    "State",
    "Totals",
    "Work",
    "owner_alive",
    "this_owner",
]
