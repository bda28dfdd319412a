"""The parts of ``scripts/chaos.py``, in the order they are used.

:mod:`schedule` which faults, from the seed; :mod:`workload` what is trained; :mod:`processes` the
processes of this machine that are ours; :mod:`arena` the private cluster; :mod:`injector` the
faults as they happen; :mod:`trial` one run; :mod:`worker` the process that runs them;
:mod:`supervisor` the one that watches it; :mod:`report` what came of it.
"""
