"""The data of a small training."""

import pytest

from tests.support.lane_training import make_batches


@pytest.fixture
def batches():
    return make_batches()
