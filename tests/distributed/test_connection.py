"""What is said where a cluster cannot be joined; joining is in the integration tests."""

from qailab.distributed.connection import may_have_gpus, refusal


def test_different_versions_are_told_with_both_numbers():
    ray_says = (
        "Version mismatch: The cluster was started with:\n    Ray: 2.41.0\n    Python: 3.12.1"
    )
    said = str(refusal("10.0.0.5:6379", RuntimeError(ray_says)))
    assert "different versions" in said
    assert "2.41.0" in said
    assert "3.12.1" in said


def test_a_cluster_that_refuses_is_no_missing_one():
    error = ConnectionError("Failed to connect to Ray cluster at 10.0.0.5:6379")
    said = str(refusal("10.0.0.5:6379", error))
    assert "something listens" in said
    assert "RAY_AUTH_MODE" in said
    assert "RAY_USE_TLS" in said


def test_without_an_address_it_is_a_missing_one():
    error = ConnectionError("Could not find any running Ray instance.")
    assert "no Ray cluster answers at 'auto'" in str(refusal("auto", error))


def test_an_autoscaler_may_bring_a_gpu(monkeypatch):
    node = {"Alive": True, "Resources": {"CPU": 4.0}, "Labels": {"ray.io/node-id": "12"}}
    monkeypatch.setattr("ray.nodes", lambda: [node])
    assert not may_have_gpus()
    node["Labels"]["ray.io/node-group"] = "head"
    assert may_have_gpus()
    node["Alive"] = False
    assert not may_have_gpus()
