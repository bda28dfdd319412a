"""Work and results for the tests of records of jobs."""

import hashlib

import numpy as np

from qailab.journal import Work


def work(start=0, stop=10, *, step=0, data=0, circuit="c1", shots=100, seed=7, purpose="backward"):
    """Some rows; those of other ``data`` hold something else."""
    digests = b"".join(
        hashlib.sha256(f"{data} {row}".encode()).digest()[:8] for row in range(start, stop)
    )
    return Work(circuit, shots, seed, step, purpose, start, stop, digests)


def counts_of(entry, outcomes=4):
    """Counts that tell which row they are of, shape ``(rows, outcomes)``."""
    rows = np.arange(entry.work.start, entry.work.stop)[:, None]
    return (rows * 7 + np.arange(outcomes) + entry.work.step).astype(np.uint32)


def reserve(record, wanted, *, most_rows=10**6, group=1, backend="ibm_fez", owner="me"):
    return record.reserve(wanted, most_rows=most_rows, group=group, backend=backend, owner=owner)


def submit(record, entry, job_id=None, session=None, backend="ibm_fez"):
    job_id = job_id or f"job-{entry.id}"
    return record.submitted(entry.id, job_id=job_id, backend=backend, session=session)


def finish(record, entry, job_id=None, usage_seconds=1.0):
    submit(record, entry, job_id, session="s-1")
    return record.done(entry.id, counts_of(entry), usage_seconds)
