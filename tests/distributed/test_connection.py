"""What is said where a cluster cannot be joined; joining itself is in test_pool.py."""

from __future__ import annotations

import pytest
import ray
from ray._private.utils import check_version_info

from qailab.distributed.connection import _refusal


def test_different_versions_are_told_with_both_numbers():
    theirs = {"ray_version": "2.41.0", "python_version": "3.12.1"}
    with pytest.raises(RuntimeError) as raised:
        check_version_info(theirs, "10.0.0.7")
    said = str(_refusal("10.0.0.5:6379", raised.value))
    assert "different versions" in said
    assert "2.41.0" in said
    assert ray.__version__ in said
    assert "3.12.1" in said


def test_a_cluster_that_refuses_is_no_missing_one():
    error = ConnectionError("Failed to connect to Ray cluster at 10.0.0.5:6379")
    said = str(_refusal("10.0.0.5:6379", error))
    assert "something listens" in said
    assert "RAY_AUTH_MODE" in said
    assert "RAY_USE_TLS" in said


def test_without_an_address_it_is_a_missing_one():
    error = ConnectionError("Could not find any running Ray instance.")
    assert "no Ray cluster answers at 'auto'" in str(_refusal("auto", error))
