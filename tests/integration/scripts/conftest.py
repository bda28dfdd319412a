"""Puts scripts/ on the path, as Python does for a script."""

import tests.support.training  # noqa: F401
