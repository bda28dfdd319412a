"""A record of hardware jobs, so that nothing that was paid for is lost, or paid for twice.

`Journal` is an SQLite file (the standard library's). Every job is recorded before it is sent and
after, with its result; whoever starts again finds what runs and what finished.
``python -m qailab.journal PATH`` lists it. No account or token is ever in it.
"""

from qailab.journal.entries import Totals
from qailab.journal.owners import owner_alive, this_owner
from qailab.journal.shared import JournalLog
from qailab.journal.store import Journal
from qailab.journal.work import DIGEST_BYTES, Entry, Work

__all__ = [
    "DIGEST_BYTES",
    "Entry",
    "Journal",
    "JournalLog",
    "Totals",
    "Work",
    "owner_alive",
    "this_owner",
]
