"""What ``scripts/submit.py`` is made of.

``options`` reads the command line, ``packing`` decides what goes and zips it, ``secrecy`` finds
what must not go, ``cluster`` reaches a dashboard, ``probe`` asks what is installed there,
``following`` shows a job's output until it ends, ``commands`` does what was asked.
"""
