"""What `import fastconv` costs others: nothing beyond Numba's own modules."""

import functools
import json
import subprocess
import sys

PROGRAM = """
import json, sys
opened = []
def hook(event, arguments):
    if event == "open" and isinstance(arguments[0], str):
        opened.append(arguments[0])
import numpy, numba
before = set(sys.modules)
sys.addaudithook(hook)
import fastconv
hooked, opened = opened, []
print(json.dumps({"modules": sorted(set(sys.modules) - before), "opened": hooked}))
"""


@functools.cache
def imported():
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM], check=True, capture_output=True, text=True, timeout=60
    )
    return json.loads(result.stdout)


def test_only_modules_of_its_own_and_of_the_standard_library():
    foreign = {
        top
        for name in imported()["modules"]
        if (top := name.partition(".")[0]) not in sys.stdlib_module_names
        and top not in ("fastconv", "numba", "numpy")
    }
    assert not foreign


def test_no_kernel_is_defined_and_no_algorithm_imported():
    """They wait for the first call: defining a kernel hashes every source file for the cache."""
    modules = imported()["modules"]
    assert not [name for name in modules if name.startswith(("fastconv.gemm", "fastconv.algorithms."))
                and name != "fastconv.algorithms.base"]  # fmt: skip


def test_no_file_is_opened_but_modules():
    opened = imported()["opened"]
    assert not [path for path in opened if not path.endswith((".py", ".pyc", ".so")) and ".pyc." not in path]


def test_importing_alone_starts_no_threads_and_no_devices():
    program = """
import threading, sys, fastconv
assert threading.active_count() == 1
assert "numba.cuda" not in sys.modules or not sys.modules["numba.cuda"].cudadrv.driver.driver.is_initialized
if "numba" in sys.modules:
    import numba
    try:
        numba.threading_layer()
    except ValueError:
        pass
    else:
        raise SystemExit("the threading layer was started")
"""
    result = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
