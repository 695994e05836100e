"""Memory of results: handed out again when nobody looks into it, and never before."""

import threading

import numpy as np
import pytest

import fastconv
from fastconv import reuse

SHAPE, FLOAT = (64, 1024), np.dtype("float32")


@pytest.fixture(autouse=True)
def nothing_kept():
    reuse.release()
    yield
    reuse.release()


def address(array):
    return array.__array_interface__["data"][0]


@fastconv.config(reuse=True)
def test_used_again_when_the_last_array_is_gone():
    first = reuse.empty(SHAPE, FLOAT)
    place, view = address(first), first[3:].T
    del first
    assert address(second := reuse.empty(SHAPE, FLOAT)) != place
    del view
    third = reuse.empty((1024, 64), np.dtype("int32"))
    assert address(third) == place
    assert address(second) != place
    assert third.flags.carray
    assert place % 64 == 0


@fastconv.config(reuse=True)
@pytest.mark.parametrize("hold", [memoryview, np.asarray, np.ravel, lambda a: {"a": a}])
def test_whoever_holds_a_result_keeps_it(hold):
    first = reuse.empty(SHAPE, FLOAT)
    place, held = address(first), hold(first)
    del first
    assert address(reuse.empty(SHAPE, FLOAT)) != place
    del held
    assert address(reuse.empty(SHAPE, FLOAT)) == place


def test_off_unless_asked_for_and_small_arrays_never():
    place = address(reuse.empty(SHAPE, FLOAT))
    with fastconv.config(reuse=True):
        small = reuse.empty((4,), FLOAT)
        assert small.base is None
    assert reuse.empty(SHAPE, FLOAT).base is None
    assert place


@fastconv.config(reuse=True)
def test_results_of_calls():
    """Values do not depend on it, a result stays while it is held, and a loop takes two buffers at most."""
    rng = np.random.default_rng(0)
    x, w = (
        rng.standard_normal((2, 4, 64, 64), dtype="float32"),
        rng.standard_normal((4, 4, 3, 3), dtype="float32"),
    )
    with fastconv.config(reuse=False):
        expected = fastconv.conv2d(x, w, padding=1)
    kept = fastconv.conv2d(x, w, padding=1)
    places = set()
    for _ in range(5):
        places.add(address(y := fastconv.conv2d(x, w, padding=1)))
        y[...] = np.nan
        fastconv.max_pool2d(y, 2)
    np.testing.assert_array_equal(kept, expected)
    assert len(places) <= 2
    assert address(kept) not in places


@fastconv.config(reuse=True)
def test_free_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(reuse, "_kept", reuse._Kept())  # other tests' results may still be held
    size = 64 * 1024 * 4
    monkeypatch.setattr(reuse, "MOST", 3 * size)
    held = [reuse.empty((64 * (1 + i), 1024), FLOAT) for i in range(2)]
    places = [address(a) for a in held]
    del held
    reuse.empty((128, 2048), FLOAT)
    kept = [address(buffer) for buffers in reuse._kept.buffers.values() for buffer, _ in buffers]
    assert len(kept) == 1
    assert places


def test_threads_have_their_own():
    places = []

    @fastconv.config(reuse=True)
    def take():
        places.append(address(reuse.empty(SHAPE, FLOAT)))
        barrier.wait()

    barrier = threading.Barrier(2)
    both = [threading.Thread(target=take) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(set(places)) == 2


def test_bad_setting():
    with pytest.raises(TypeError, match="reuse must be True or False, got 1"), fastconv.config(reuse=1):
        pass
