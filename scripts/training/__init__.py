"""The parts of ``scripts/train.py``, in the order they are used.

:mod:`options` what to train, :mod:`hardware` on which devices, :mod:`runs` the folder of a run,
:mod:`data` the digits, :mod:`model` the classifier, :mod:`cost` what it takes on hardware,
:mod:`session` one run, :mod:`messages` what it says, :mod:`trainer` the loop,
:mod:`display` the progress bar, :mod:`interrupts` Ctrl-C, :mod:`report` what is left behind.
"""
