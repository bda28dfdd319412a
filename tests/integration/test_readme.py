"""The code of the READMEs: each block alone, in a process of its own, as a reader pastes it."""

import os
import re
import subprocess
import sys

import pytest

from tests.test_readme import READMES, ROOT

BLOCKS = [
    (readme, block)
    for readme in READMES
    for block in re.findall(r"```python\n(.*?)```", (ROOT / readme).read_text(), flags=re.DOTALL)
]


@pytest.mark.parametrize(("readme", "block"), BLOCKS, ids=range(len(BLOCKS)))
@pytest.mark.usefixtures("ray_cluster")
def test_each_block_runs_alone(readme, block, tmp_path):
    import ray

    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
    }
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", block],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, f"{readme}:\n{block}\n{done.stderr}"
