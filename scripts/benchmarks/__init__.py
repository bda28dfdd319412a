"""The parts of ``scripts/benchmark.py``: a module for each subcommand, and what they share.

:mod:`workload` what is computed; :mod:`timing` how it is timed; :mod:`report` files and plots;
:mod:`gradients` with :mod:`steps`, :mod:`exact`, :mod:`observables` and :mod:`peers`; :mod:`scale`
with :mod:`arithmetic`; :mod:`hardware`; and :mod:`lanes` of ``async``.
"""
