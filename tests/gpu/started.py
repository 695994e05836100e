"""Scripts of this folder, run in Numba's CUDA simulator by processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import fastconv

# The package that is tested, not one that is installed as well, and so the kernels that other tests have compiled.
ENVIRONMENT = {
    "NUMBA_ENABLE_CUDASIM": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(Path(fastconv.__file__).parents[1]),
}  # fmt: skip


def simulate(script, *arguments):
    """Run to its end, or fail with what it says."""
    result = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(script)), *arguments],
        check=False, capture_output=True, text=True, timeout=600, env=os.environ | ENVIRONMENT,
    )  # fmt: skip
    assert result.stdout.endswith("done\n"), result.stdout[-500:] + result.stderr[-3000:]
