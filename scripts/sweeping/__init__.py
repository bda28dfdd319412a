"""The parts of ``scripts/sweep.py``, in the order they are used.

:mod:`options` the command line, :mod:`settings` what is compared, :mod:`session` what Ray Tune runs
and how, :mod:`trials` how far each trial is, :mod:`watch` what is said meanwhile, :mod:`report` the
results.
"""
