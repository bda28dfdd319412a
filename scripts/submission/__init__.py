"""What ``scripts/submit.py`` is made of.

``options`` reads the command line and ``variables`` its files, ``walking`` decides what goes and
``packing`` zips it, ``secrecy`` finds secret values and ``secret_files`` secret files, ``access``
has the address and the token, ``cluster`` reaches a dashboard, ``requirements`` says what a job
needs and ``probe`` what is installed there, ``commands`` does what was asked, ``jobs`` knows about
jobs, ``following`` shows a job's output until it ends, in ``lines``.
"""
