"""The parts of ``scripts/chaos.py``.

:mod:`harness` runs seeded trials, each in a process of its own, and reports them; it uses
:mod:`processes`. The trials: :mod:`pool`; :mod:`hardware` and :mod:`kills`, with their
:mod:`scenario`; :mod:`lanes`; :mod:`soak`. All but the last compute what :mod:`training` has.
"""
