"""The parts of ``scripts/train.py``, in the order they are used.

:mod:`options` what to train, :mod:`runs` the folder of a run, :mod:`data` the digits,
:mod:`model` the classifier, :mod:`trainer` the loop, :mod:`display` the progress bar,
:mod:`interrupts` Ctrl-C, :mod:`report` what is left behind.
"""
