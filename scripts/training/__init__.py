"""The parts of ``scripts/train.py``, in the order they are used.

:mod:`options` what to train, :mod:`settings` what decides the weights, :mod:`hardware` on which
devices, :mod:`placement` how much of which node, :mod:`starting` from where, :mod:`runs` the folder
of a run, :mod:`checkpoint` what is in it, :mod:`storage` where it outlives the machine,
:mod:`data` the digits, :mod:`model` the classifier, :mod:`cost` what it takes on hardware,
:mod:`session` one run, :mod:`place` its Ray, :mod:`messages` what it says, :mod:`trainer` the loop,
:mod:`team` who takes which part of a batch, :mod:`workers` and :mod:`together` both sides of Ray
Train, :mod:`display` the progress bar, :mod:`interrupts` Ctrl-C, :mod:`report` what is left behind.
"""
