"""The parts of ``scripts/chaos_hardware.py``, in the order they are used.

:mod:`scenario` what a seed asks for; :mod:`workload` what is computed; :mod:`place` the server;
:mod:`watch` deadlines; :mod:`inspection` what the server and the journal must agree on;
:mod:`faults` gradients while faults hit; :mod:`hopeless` faults that do not pass; :mod:`proxy` and
:mod:`late` jobs that arrive late; :mod:`driver` a training in a process of its own;
:mod:`kills` and how that is killed; :mod:`budgets` how much is spent; :mod:`report` what came of
it all.
"""
