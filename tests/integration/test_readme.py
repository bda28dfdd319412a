"""The code of the READMEs, run from top to bottom as a reader would."""

import os
import re

import pytest

from tests.test_readme import READMES, ROOT


@pytest.mark.parametrize("readme", READMES)
@pytest.mark.usefixtures("ray_cluster")
def test_the_code_runs(readme, tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / readme).read_text(), flags=re.DOTALL)
    assert blocks
    monkeypatch.chdir(tmp_path)  # it writes files
    monkeypatch.setenv("HOME", str(tmp_path))
    before = dict(os.environ)
    namespace = {"__name__": "readme"}
    try:
        for block in blocks:
            # One namespace: later blocks use the names of earlier ones.
            exec(compile(block, readme, "exec"), namespace)
    finally:
        os.environ.clear()
        os.environ.update(before)
