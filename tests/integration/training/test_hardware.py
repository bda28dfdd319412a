"""`AsyncTrainer` on a rehearsed device: with a journal a replay pays for nothing."""

import torch

from tests.support.ibm import device
from tests.support.lane_training import assert_same, make_batches, make_model, make_trainer


def test_a_replay_with_a_journal_is_the_same_run_without_a_job(rehearse, tmp_path):
    server = rehearse("manila").server
    backend = device(journal=tmp_path / "jobs.sqlite", mode="job")
    try:
        ran = make_trainer(places=[backend] * 3)
        ran.fit(make_batches(3), 2)
        jobs = len(server.jobs)
        assert jobs == 6  # prefetched: one a batch
        assert sum(row["jobs"] for row in ran.stats()) == jobs
        again = make_trainer(make_model(), places=[backend], replay=ran.log)
        again.fit(make_batches(3), 2)
    finally:
        backend.close()
    assert_same(again, ran)
    assert len(server.jobs) == jobs
    assert not torch.equal(again.model[1].weight, make_model()[1].weight)
