"""The parts of ``scripts/sweep.py``: :mod:`options` to choose from, :mod:`report` of results."""
