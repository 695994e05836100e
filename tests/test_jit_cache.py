"""The disk cache runs no stale code, whatever happens to its folder.

Each test copies `fastconv.jit` into a package of a few small files and runs that in processes of its own.
"""

import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastconv import jit, machine

STEP = """
from small import jit

@jit.inner
def step(x):
    return FACTOR * x

FACTOR = 2.0
"""

ENTRY = """
import numba
from numba.np.ufunc.parallel import get_thread_id
from small import jit
from small.step import step

@jit.kernel
def entry(workers, values, ids):
    for worker in numba.prange(workers):
        ids[worker] = get_thread_id()
        values[worker] = step(values[worker])
"""

PROGRAM = """
import json
import numba, numpy as np
from small.entry import entry

numba.get_num_threads()  # the serial twin asks for a thread's number as well
report = {}
for name, twin, dtype in (TWINS):
    values, ids = np.ones(2, dtype), np.zeros(2, np.int64)
    twin(2, values, ids)
    report[name] = [*values.tolist(), sorted(ids.tolist())]
report["hits"] = sum(sum(d.stats.cache_hits.values()) for d in (entry.serial, entry.parallel))
report["misses"] = sum(sum(d.stats.cache_misses.values()) for d in (entry.serial, entry.parallel))
print(json.dumps(report))
"""
ONE = PROGRAM.replace("TWINS", "('serial', entry.serial, 'f4'),")
BOTH = PROGRAM.replace("TWINS", "('serial', entry.serial, 'f4'), ('parallel', entry.parallel, 'f4')")
WIDTHS = PROGRAM.replace("TWINS", "('serial', entry.serial, 'f4'), ('double', entry.serial, 'f8')")


@pytest.fixture
def package(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "step.py").write_text(STEP)
    (folder / "entry.py").write_text(ENTRY)
    shutil.copy(machine.__file__, folder / "machine.py")
    (folder / "jit.py").write_text(Path(jit.__file__).read_text().replace("from fastconv", "from small"))
    return folder


def start(package, program=ONE, before="", **environment):
    environment = os.environ | {
        "PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1", "NUMBA_NUM_THREADS": "2",
        "NUMBA_CACHE_DIR": str(package.parent / "cache"), "FASTCONV_CACHE": "1",
    } | environment  # fmt: skip
    return subprocess.Popen(
        ["/bin/sh", "-c", f'{before} exec "$@"', "sh", sys.executable, "-W", "error", "-c", program],
        env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process, factor=2):
    """Return (hits, misses) of a process that gave the right results."""
    out, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    report = json.loads(out.splitlines()[-1])
    threads = {"serial": [0, 0], "parallel": [0, 1], "double": [0, 0]}
    counts = report.pop("hits"), report.pop("misses")
    assert report == {name: [factor, factor, threads[name]] for name in report}
    return counts


def entries(package):
    return sorted(package.parent.joinpath("cache").rglob("*.nbc"))


def test_second_process_compiles_nothing_and_tells_the_twins_apart(package):
    assert finish(start(package, BOTH)) == (0, 2)
    before = entries(package)
    assert finish(start(package, BOTH)) == (2, 0)
    assert entries(package) == before
    assert {p.suffix for p in package.parent.joinpath("cache").rglob("*") if p.is_file()} == {".nbc"}


def test_edit_of_another_file_even_with_its_old_time_and_size(package):
    finish(start(package))
    file = package / "step.py"
    times = os.stat(file)
    file.write_text(STEP.replace("FACTOR = 2.0", "FACTOR = 7.0"))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert os.stat(file).st_size == times.st_size
    count = len(entries(package))
    assert finish(start(package), factor=7) == (0, 1)
    assert len(entries(package)) == count, "entries of the old sources are still there"
    assert finish(start(package), factor=7) == (1, 0)


def test_edit_of_a_file_that_is_not_imported(package):
    other = package / "other.py"
    other.write_text("FACTOR = 1.0")
    finish(start(package))
    other.write_text("FACTOR = 3.0")
    assert finish(start(package)) == (1, 0)


def test_everything_that_a_kernel_module_uses_is_in_its_fingerprint():
    """What its names lead to when it runs, against what the text of its imports says."""
    root = Path(jit.__file__).parent
    files = [p for p in root.rglob("*.py") if re.search(r"@jit\.\w", p.read_text())]
    assert len(files) > 20
    for file in files:
        module = importlib.import_module(".".join(file.relative_to(root.parent).with_suffix("").parts))
        for name, value in vars(module).items():
            origin = value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", None)
            if not isinstance(origin, str) or not origin.startswith("fastconv.") or name.startswith("__"):
                continue
            used = Path(sys.modules[origin].__file__)
            assert used in jit.sources(file), f"{file} uses {name} of {used}"


def test_edit_under_a_running_process_leaves_nothing_behind(package):
    """The process runs what it has loaded; what it compiles must not be taken for the new sources'."""
    edit = f"""
import time
from pathlib import Path
from small.step import step
time.sleep(0.05)
Path({str(package / "step.py")!r}).write_text({STEP.replace("2.0", "7.0")!r})
"""
    finish(start(package, edit + ONE))
    assert finish(start(package), factor=7) == (0, 1)


def test_compiler_settings_are_part_of_the_name(package):
    finish(start(package))
    assert finish(start(package, NUMBA_BOUNDSCHECK="1")) == (0, 1)
    assert finish(start(package)) == (1, 0)


FACTORY = """
from small import jit

def step_by(factor):
    @jit.inner
    def step(x):
LINES
        return x

    return step
""".replace(
    "LINES", "\n".join(f"        x = factor * x if x < {i} else x + {i}" for i in range(1, 99))
)  # too long to be inlined
MADE = """
from small import jit
from small.factory import step_by

step = step_by(FACTOR)

@jit.kernel
def entry(workers, values):
    for i in range(values.size):
        values[i] = step(values[i]) + step(-values[i])
"""


def test_steps_of_one_factory_that_processes_of_their_own_compiled(package):
    """Numba gives both one name; the code of each kernel calls its own."""
    (package / "factory.py").write_text(FACTORY)
    for factor in (2, 3):
        (package / f"by_{factor}.py").write_text(MADE.replace("FACTOR", f"{factor}.0"))
    program = """
import json, numpy as np
results = {}
for factor in FACTORS:
    entry = __import__(f"small.by_{factor}", fromlist=["entry"]).entry
    values = np.full(1, -1e-9)
    entry.serial(1, values)
    values = np.full(1, 1e-9)
    entry.serial(1, values)
    results[factor] = float(values[0])
print(json.dumps({"hits": len(entry.serial.stats.cache_hits), "misses": 0}))
assert len({*results.values()}) == len(FACTORS), results
"""
    assert [finish(start(package, program.replace("FACTORS", factors))) for factors in ("(2,)", "(3,)", "(2, 3)")] == [
        (0, 0), (0, 0), (1, 0)
    ]  # fmt: skip


LANES = """
from numba import types
from numba.extending import intrinsic
from small import jit, machine

@intrinsic
def lanes(typing):
    number = types.int64
    return number(), lambda context, *_: context.get_constant(number, machine.tile(4).vl)

@jit.function
def width():
    return lanes()
"""


def test_vectors_are_part_of_the_name(package):
    """Processes that believe in another vector unit, or tile, leave nothing to those that do not."""
    package.joinpath("lanes.py").write_text(LANES)
    program = """
from small import machine
{}
from small.lanes import width
print(width(), *width.stats.cache_hits.values())
"""
    unit = "machine.simd = lambda: machine.Simd('other', 96, 16, 6, 2)"
    tile = "machine.tile = lambda itemsize: machine.Tile(5, 6, 2)"
    for change, expected in (
        (unit, "3"),
        (tile, "5"),
        ("", here := str(machine.tile(4).vl)),
        (unit, "3 1"),
        ("", f"{here} 1"),
    ):
        out, errors = start(package, program.format(change)).communicate(timeout=120)
        assert out.strip() == expected, errors


CPU = """
from numba.core.registry import cpu_target
from small import machine
assert machine.cpu()[1:] == cpu_target.target_context.codegen().magic_tuple()[1:], machine.cpu()
print(machine.simd().bits)
"""


@pytest.mark.parametrize("environment", [{}, {"NUMBA_ENABLE_AVX": "0"}, {"NUMBA_CPU_NAME": "nehalem"}])
def test_vectors_are_those_of_the_code(package, environment):
    """Numba and the tiles mean the same CPU, whatever the environment says of it."""
    out, errors = start(package, CPU, **environment).communicate(timeout=120)
    assert out, errors
    assert int(out) == 128 or "NUMBA_ENABLE_AVX" not in environment


def test_processes_that_warm_an_empty_cache_at_once(package):
    """They write entries of one function for different types, where numbers for names would clash."""
    for process in [start(package, program) for program in (ONE, WIDTHS, ONE, WIDTHS)]:
        finish(process)
    assert finish(start(package, WIDTHS)) == (2, 0)


@pytest.mark.parametrize("damage", ["emptied", "cut", "changed"])
def test_damaged_entries_are_replaced(package, damage):
    finish(start(package))
    for file in entries(package):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 255
        file.write_bytes(content[: {"emptied": 0, "cut": 1000, "changed": None}[damage]])
    assert finish(start(package)) == (0, 1)
    assert finish(start(package)) == (1, 0)


def test_full_disk(package):
    """No file may grow beyond one block: every write of an entry fails."""
    pytest.importorskip("resource")
    assert finish(start(package, before="trap '' XFSZ; ulimit -f 1;")) == (0, 1)
    assert not entries(package)
    assert not list(package.parent.joinpath("cache").rglob("*.tmp"))


def test_no_folder_to_write_to(package):
    """A file stands where each of the three folders would be made."""
    blocked = package.parent / "blocked"
    blocked.write_text("")
    (package / "__pycache__").write_text("")
    environment = {"HOME": str(blocked), "XDG_CACHE_HOME": str(blocked), "NUMBA_CACHE_DIR": str(blocked)}
    assert finish(start(package, **environment))[0] == 0


def test_switched_off(package):
    finish(start(package, FASTCONV_CACHE="0"))
    assert not entries(package)


def test_callers_own_functions_are_not_kept(package):
    """A function without a file of the package has no name that means anything to the next process."""
    program = """
import numba, numpy as np
from small import jit
import small.own
print(small.own.apply(numba.njit(lambda x: x + 1), np.zeros(1)))
"""
    package.joinpath("own.py").write_text("""
from small import jit

@jit.function
def apply(function, values):
    return function(values[0])
""")
    for _ in range(2):
        process = start(package, program)
        assert process.communicate(timeout=120)[0].strip() == "1.0"
    assert not entries(package)


FOREIGN = """
import numba, numpy as np
from small.step import step

@numba.njit
def twice(x):
    return step(step(x))

print(twice(1.0))
try:
    step(1.0)
except TypeError as error:
    print("TypeError")
"""


def test_inner_functions_are_for_jitted_code(package):
    """A caller's own too, compiled here or read from disk; Python's call is an error, not a crash."""
    for _ in range(2):
        out, errors = start(package, FOREIGN).communicate(timeout=120)
        assert out.split() == ["4.0", "TypeError"], errors
    assert len(entries(package)) == 1


def test_errors_of_inner_functions_reach_python(package):
    """Out of machine code that was made long after the function it comes from, here or in another process."""
    package.joinpath("step.py").write_text("""
from small import jit

@jit.inner
def step(x):
    if x > 0:
        raise ValueError("positive")
    return x
""")
    program = """
import numba, numpy as np
from small.entry import entry

numba.get_num_threads()
try:
    entry.serial(2, np.ones(2), np.zeros(2, np.int64))
except ValueError as error:
    print(error)
"""
    for _ in range(2):
        out, errors = start(package, program).communicate(timeout=120)
        assert out == "positive\n", errors


def test_import_without_compiler():
    """NUMBA_DISABLE_JIT leaves functions as they are; modules can still be imported."""
    program = "import fastconv; from fastconv.algorithms import registry; print(sorted(registry()))"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        check=False, capture_output=True, text=True, timeout=120, env=os.environ | {"NUMBA_DISABLE_JIT": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "reference" in result.stdout


def test_every_kernel_is_decorated_in_one_place():
    """``njit`` and its options appear in `fastconv.jit` alone."""
    root = Path(jit.__file__).parent
    users = [p.relative_to(root).as_posix() for p in root.rglob("*.py") if "njit(" in p.read_text()]
    assert users == ["jit.py"]
