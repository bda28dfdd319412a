"""What the READMEs name exists. `tests/integration/test_readme.py` runs their code."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
READMES = ["README.md", "qailab/backends/ibm/README.md", "qailab/training/README.md"]


def test_the_readme_fits_a_few_screens():
    assert (ROOT / "README.md").read_text().count("\n") <= 250


@pytest.mark.parametrize("readme", [*READMES, "cluster/README.md"])
def test_the_files_it_names_exist(readme):
    text = (ROOT / readme).read_text()
    named = set(re.findall(r"`((?:scripts|tests|qailab|cluster)/[\w/.]+)", text))
    links = {(ROOT / readme).parent / target for target in re.findall(r"\]\(([^)#:]+)\)", text)}
    missing = [path for path in {ROOT / name for name in named} | links if not path.exists()]
    assert not missing


def test_the_names_in_its_api_table_exist():
    text = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| (`.+`.*) \| `(qailab[\w.]*)` \|$", text, flags=re.MULTILINE)
    assert len(rows) >= 6
    for names, module in rows:
        for name in re.findall(r"`(\w+)`", names):
            assert hasattr(importlib.import_module(module), name), f"{module}.{name}"
