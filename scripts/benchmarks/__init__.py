"""The parts of ``scripts/benchmark.py``: workloads, timing, memory, claims, peers, report."""
