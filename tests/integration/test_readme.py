"""The README's code, run from top to bottom as a reader would."""

import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.ray
@pytest.mark.integration
@pytest.mark.usefixtures("ray_cluster")
def test_the_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # it writes files
    monkeypatch.setenv("HOME", str(tmp_path))
    before = dict(os.environ)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) >= 5
    namespace = {"__name__": "readme"}
    try:
        for block in blocks:
            # One namespace: later blocks use the names of earlier ones.
            exec(compile(block, "README.md", "exec"), namespace)
    finally:
        os.environ.clear()
        os.environ.update(before)


def test_the_files_it_names_exist():
    named = set(re.findall(r"`((?:scripts|tests|qailab)/[\w/.]+)`", README))
    assert named
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


def test_the_names_in_its_api_table_exist():
    import importlib

    rows = re.findall(r"^\| (`.+`.*) \| `(qailab[\w.]*)` \|$", README, flags=re.MULTILINE)
    assert len(rows) >= 6
    for names, module in rows:
        for name in re.findall(r"`(\w+)`", names):
            assert hasattr(importlib.import_module(module), name), f"{module}.{name}"
