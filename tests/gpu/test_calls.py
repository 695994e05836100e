"""Calls on a GPU without one: where arrays live, what the driver is asked for and told to start, and once more from a tape."""

import ctypes
import sys
import threading
import time
from contextlib import nullcontext
from types import SimpleNamespace

import numba
import numpy as np
import pytest

import fastconv
from fastconv import plan
from fastconv.algorithms import on_gpu
from fastconv.problem import ConvProblem, Direction

pytest.importorskip("numba_cuda")
from fastconv.cuda import compiler


class Foreign:
    """What a library shows of an array on a GPU."""

    def __init__(self, shape, pointer=0, stream=None, dtype=np.float32, readonly=False, **more):
        self.shape, self.pointer, self.stream, self.dtype = shape, pointer, stream, np.dtype(dtype)
        self.readonly, self.more = readonly, more

    @property
    def __cuda_array_interface__(self):
        data = self.pointer, self.readonly
        told = {"shape": self.shape, "typestr": self.dtype.str, "data": data, "version": 3}
        return told | {"stream": self.stream} | self.more


class Either:
    """An array whose class knows of GPUs, in host memory."""

    @property
    def __cuda_array_interface__(self):
        raise AttributeError("in host memory")

    def __array__(self, dtype=None, copy=None):
        return np.ones((1, 1, 3, 3), "float32")


def test_where_an_array_lives_is_asked_of_the_array():
    assert fastconv.conv2d(Either(), np.ones((1, 1, 3, 3), "float32")) == 9
    with pytest.raises(TypeError, match="weight is on a GPU"):
        fastconv.conv2d(np.ones((1, 1, 3, 3), "float32"), Foreign((1, 1, 3, 3)))
    with pytest.raises(TypeError, match="input is on a GPU"):
        fastconv.prepare(np.ones((1, 1, 3, 3)), (1, 1, 4, 4))(Foreign((1, 1, 4, 4)))


class Contexts:
    """A driver of two GPUs, with a context each; it tells of what it is asked."""

    CUresult = SimpleNamespace(CUDA_ERROR_NOT_INITIALIZED=3)
    CUpointer_attribute = SimpleNamespace(
        CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL="gpu", CU_POINTER_ATTRIBUTE_MEMORY_TYPE="kind",
        CU_POINTER_ATTRIBUTE_IS_MANAGED="managed",
    )  # fmt: skip

    def __init__(self):
        self.stack, self.seen, self.status, self.told = [1], [], 0, {}

    def cuCtxGetCurrent(self):
        return self.status, None if self.status else self.stack[-1]

    def cuCtxPushCurrent(self, context):
        self.stack.append(context)

    def cuCtxPopCurrent(self):
        self.stack.pop()

    def cuCtxGetDevice(self):
        return 0, self.stack[-1] - 1

    def cuPointerGetAttribute(self, name, pointer):
        return (0, self.told[name]) if name in self.told else (1, None)

    def cuMemAllocFromPoolAsync(self, count, pool, stream):
        self.seen.append((count, pool, stream))
        return 0, 4096

    def cuMemFreeAsync(self, pointer, stream):
        self.seen.append((pointer, stream, self.stack[-1]))


@pytest.fixture
def contexts(monkeypatch):
    from fastconv.cuda import driver

    contexts = Contexts()
    monkeypatch.setattr(driver, "bindings", lambda: contexts)
    monkeypatch.setattr(driver, "_pool", lambda context: "pool")
    return contexts


def test_memory_comes_from_the_pool_in_the_order_of_a_stream_and_goes_back(contexts):
    """On the GPU that it is of, though another one be current by then, and in a forked child nowhere."""
    from fastconv.cuda import driver

    driver.Block(100, 7)
    assert contexts.seen == [(100, "pool", 7), (4096, 7, 1)]
    block = driver.Block(100, 0)
    contexts.stack = [2]
    del block
    assert contexts.seen[2:] == [(100, "pool", 0), (4096, 0, 1)]
    assert contexts.stack == [2]
    block = driver.Block(100, 0)
    contexts.status = 3
    del block
    assert len(contexts.seen) == 5
    with pytest.raises(fastconv.DeviceError, match="forked"):
        driver.context()


@pytest.mark.parametrize(("kind", "managed", "refused"), [(2, 0, True), (2, 1, False), (1, 0, False)])
def test_memory_of_another_gpu_is_refused(kind, managed, refused, contexts):
    """But for what all of them reach: managed memory, and the CPU's own."""
    from fastconv.cuda import driver

    driver.check_here(4096)  # of which the driver knows nothing
    contexts.told = {"gpu": 0, "kind": kind, "managed": managed}
    driver.check_here(4096)
    contexts.told["gpu"] = 1
    error = pytest.raises(ValueError, match="on GPU 1, and the current one is 0")
    with error if refused else nullcontext():
        driver.check_here(4096)


def test_results_are_numba_arrays_each_of_its_own_memory(monkeypatch):
    """Which are described once; what is seen of them at a glance is what they tell when asked; a stream's object they keep."""
    from numba import cuda

    from fastconv.cuda import driver
    from fastconv.cuda.interface import Interface
    from fastconv.cuda.operands import glance_of

    pointers = iter((4096, 8192, 12288))
    monkeypatch.setattr(cuda, "current_context", lambda: SimpleNamespace(device=SimpleNamespace(id=0)))
    monkeypatch.setattr(cuda, "external_stream", lambda stream: stream)
    monkeypatch.setattr(driver, "context", lambda: -1)
    monkeypatch.setattr(driver, "bindings", lambda: pytest.importorskip("cuda.bindings.driver"))
    monkeypatch.setattr(
        driver, "Block", lambda count, stream: SimpleNamespace(pointer=next(pointers), nbytes=count)
    )
    stream = numba_stream(7)
    given = 0, 7, stream
    arrays = [driver.device_array((2, 3), (1, 2), np.dtype("float32"), at)[0] for at in given]
    assert arrays[2].stream is stream, "which ends with it"
    for array, pointer, at in zip(arrays, (4096, 8192, 12288), (0, 7, stream), strict=True):
        assert (array.shape, array.strides, array.dtype) == ((2, 3), (4, 8), np.float32)
        assert array.gpu_data.owner.nbytes == array.alloc_size == 24
        assert glance_of(type(array))(array)[:2] == (pointer, at)
        assert Interface.glance(array)[:2] == (pointer, int(at))


def numba_stream(number):
    from cuda.bindings.driver import CUstream
    from numba.cuda.cudadrv.driver import Stream

    return Stream(CUstream(number))


class Stub:
    """A driver that is told what to start, and starts nothing; what else it were asked for would be an error."""

    fails = 0

    def __init__(self):
        self.started, self.next, self.table = [], 2**40, 2**32

    def cuLaunchKernel(self, kernel, blocks, *rest):
        *_, stream, address, _ = rest
        assert blocks > 0
        values = (ctypes.c_void_p * (len(kernel.pointers) + len(kernel.geometry._fields))).from_address(
            address
        )
        kind = {"uint32": ctypes.c_uint32, "int64": ctypes.c_int64}[kernel.integer]
        pointers = tuple(ctypes.c_uint64.from_address(v).value for v in values[: len(kernel.pointers)])
        numbers = tuple(kind.from_address(v).value for v in values[len(kernel.pointers) :])
        self.started.append((kernel, blocks, stream, pointers, numbers))
        return (self.fails,)

    def array(self, shape, strides=None, dtype=np.float32, stream=0):
        self.next += 2**24
        return Foreign(shape, self.next, stream or None, dtype)

    def device_array(self, *described):
        return (made := self.array(*described)), made.pointer

    def buffer(self, content):
        self.table += 2**20
        return SimpleNamespace(pointer=self.table, nbytes=content.nbytes)

    def block(self, count, stream=0):
        return SimpleNamespace(pointer=self.array((count,)).pointer)


@pytest.fixture
def stub(monkeypatch):
    from fastconv.cuda import driver

    stub = Stub()
    for name, value in {
        "bindings": lambda: stub, "context": lambda: 1, "processors": lambda: 132,
        "_function": lambda kernel, _: kernel, "check_here": lambda pointer: None, "Buffer": stub.buffer, "device_array": stub.device_array, "Block": stub.block,
    }.items():  # fmt: skip
        monkeypatch.setattr(driver, name, value)
    plan.clear()
    yield stub
    plan.clear()


def test_parameters_are_packed_as_the_kernel_declares_them(stub):
    from fastconv.algorithms.reference.cuda import Geometry, kernel
    from fastconv.cuda.driver import Launch

    geometry = Geometry(*range(100, 100 + len(Geometry._fields)))
    launch = Launch(made := kernel(Direction.FORWARD, "float32", "none"), 7, [None] * 5, geometry)
    pointers = (2**40, 2**40 + 1, 0, 2**40 + 3, 2**40 + 4)
    launch.start(pointers, 9)
    assert stub.started == [(made, 7, 9, pointers, tuple(geometry))]


@pytest.mark.parametrize("algorithm", ["auto", *sorted(on_gpu()), "winograd:F(2,3)", "im2col:explicit"])
def test_a_later_call_starts_the_same_kernels_with_its_own_arrays(algorithm, stub, monkeypatch):
    """And asks for nothing but memory of results' kind: no table, no upload, no wait, as a graph's capture needs it."""
    from fastconv.cuda import driver

    shapes = (2, 4, 9, 8), (6, 4, 3, 3), (2, 6, 9, 8), (6,)
    walk = {"padding": 1, "algorithm": algorithm}

    def started(x, w, gy, b):
        stub.started.clear()
        stub.next = 2**44
        results = (
            fastconv.conv2d(x, w, b, activation="relu", residual=gy, **walk),
            fastconv.conv2d_input(shapes[0], w, gy, **walk),
            fastconv.conv2d_weight(x, shapes[1], gy, **walk),
            fastconv.conv_transpose2d(gy, w, **walk),
            *fastconv.conv2d_backward(x, w, gy, residual=x, **walk),
            *fastconv.conv_transpose2d_backward(gy, w, x, need=("weight",), **walk)[1:2],
        )
        return [(r.shape, r.pointer) for r in results], list(stub.started)

    one, other = ([stub.array(shape) for shape in shapes] for _ in range(2))
    first = started(*one)
    monkeypatch.setattr(driver, "Buffer", None)
    assert started(*one) == first
    played = started(*other)
    assert len(plan.tapes) == 6
    plan.tapes.clear()
    assert started(*other) == played
    assert played != first
    fastconv.conv2d(
        Foreign(shapes[0], 2**40 + 4), other[1], **walk
    )  # does not begin on 16 bytes: of another kind
    assert len(plan.tapes) == 7
    with pytest.raises(TypeError, match="stride"):
        fastconv.conv2d(*other[:2], stride=1.0, **walk)


def test_each_gpu_has_tables_of_its_own(stub, monkeypatch):
    """Of convolution and of pooling: one GPU cannot read another's."""
    from fastconv.cuda import driver

    tables = []
    for context in (1, 2):
        monkeypatch.setattr(driver, "context", lambda context=context: context)
        stub.started.clear()
        fastconv.conv2d(stub.array((2, 16, 9, 8)), stub.array((16, 16, 3, 3)), algorithm="im2col")
        fastconv.max_pool2d(stub.array((2, 16, 9, 8)), 2)
        used = {pointer for *_, pointers, _ in stub.started for pointer in pointers}
        tables.append({pointer for pointer in used if 2**32 <= pointer < 2**40})
    assert len(tables[0]) > 1
    assert not tables[0] & tables[1]


@pytest.mark.parametrize("algorithm", sorted(on_gpu()))
def test_neither_layout_is_turned(algorithm, monkeypatch):
    """Images channels first or last are read and written as they lie, in every direction; weights may be copied."""
    from fastconv.bench.gpu import absent
    from fastconv.cuda import ahead, copy

    copied, note = [], ahead.Elsewhere.note

    def noted(gpu, kernel, blocks, pointers, geometry):
        copied.extend([geometry.count] if kernel.maker is copy.copying else [])
        return note(gpu, kernel, blocks, pointers, geometry)

    monkeypatch.setattr(ahead.Elsewhere, "note", noted)
    walk, w = {"padding": 1, "algorithm": algorithm}, ahead.Array((4, 8, 3, 3))
    for last in (False, True):
        x, y = (absent(shape, last) for shape in ((2, 8, 9, 7), (2, 4, 9, 7)))
        with ahead.elsewhere(132) as gpu:
            results = fastconv.conv2d(x, w, **walk), fastconv.conv2d_input(x.shape, w, y, **walk)
            fastconv.conv2d_weight(x, w.shape, y, **walk)
        assert gpu.kernels
        assert set(copied) <= {4 * 8 * 3 * 3}
        for result, like in zip(results, (y, x), strict=True):
            assert (result.strides or packed(result.shape)) == (like.strides or packed(like.shape))


def packed(shape):
    return tuple(4 * int(np.prod(shape[i + 1 :])) for i in range(len(shape)))


def test_what_a_race_starts_is_compiled_ahead(stub):
    from fastconv.bench import corpus, gpu

    problem = ConvProblem.parse("n2 c8 k8 i9x8 f3x3 p1")
    asked = gpu.kernels_of([corpus.Layer(problem, "3x3")], 132)
    x, w, gy = map(stub.array, (problem.input_shape, problem.weight_shape, problem.output_shape))
    for direction in Direction:
        gpu.call(problem, direction, x, w, gy)
    gpu.call(problem, Direction.FORWARD, x, w, gy, stub.array((8,)))
    assert {kernel for kernel, *_ in stub.started} <= set(asked)
    assert len(asked) > 10


def test_threads_that_compile_leave_numba_as_it_was(monkeypatch):
    """And one that compiles for a GPU of its own meanwhile is told of that."""
    from numba.cuda import dispatcher

    def before():
        return "real"

    monkeypatch.setattr(dispatcher, "get_current_device", before)
    entered, told = threading.Event(), []

    def other():
        told.append(dispatcher.get_current_device())
        entered.set()
        with compiler._without_driver():
            time.sleep(0.2)

    thread = threading.Thread(target=other)
    with compiler._without_driver():
        assert dispatcher.get_current_device().compute_capability == compiler.OLDEST
        thread.start()
        entered.wait()
        time.sleep(0.1)
    thread.join()
    assert told == ["real"]
    assert dispatcher.get_current_device is before


def test_kernels_of_one_folder_keep_each_others_machine_code(monkeypatch, tmp_path):
    """Those of one name, too, of which another file's would seem to be of sources that are gone."""
    from fastconv.algorithms.im2col import cuda, cuda_weight
    from fastconv.algorithms.im2col.implicit.geometry import Traits
    from fastconv.algorithms.im2col.implicit.weight import Way

    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    tile, compiled = cuda.TILES["float32"][0], []
    kernels = [
        cuda.gemm_kernel("float32", tile, Traits(*[True] * 5), "none"),
        cuda_weight.kernel("float32", tile, Way(True, True, 2, False), True),
    ]
    assert len({kernel.maker.__name__ for kernel in kernels}) == 1
    monkeypatch.setattr(compiler, "_compiled", lambda kernel, _: compiled.append(kernel) or b"code")
    for kernel in kernels * 2:
        assert kernel.cubin((9, 0)) == b"code"
    assert compiled == kernels


def test_work_waits_for_the_streams_that_arrays_name(stub, monkeypatch):
    """And runs on the first of them, where its result is, each time."""
    from fastconv.cuda import driver

    waits = []
    monkeypatch.setattr(driver, "wait", lambda stream, other: waits.append((stream, other)))
    for _ in range(2):
        x, w, b = (stub.array(shape) for shape in ((1, 3, 5, 5), (2, 3, 3, 3), (2,)))
        w.stream, b.stream = 7, 9
        stub.started.clear()
        y = fastconv.conv2d(x, w, b)
        assert {stream for _, _, stream, *_ in stub.started} == {7}
        assert y.stream == 7
        assert waits == [(7, 9), (9, 7)], "and what is freed on the other stream is read before"
        waits.clear()
        out = stub.array((1, 2, 3, 3), stream=9)
        assert fastconv.conv2d(x, w, out=out) is out
        assert waits == [(7, 9), (9, 7)], "where the result is read"
        waits.clear()
        x.stream = 5
        fastconv.max_pool2d_backward(x, stub.array((1, 3, 2, 2), stream=9), 2)
        assert waits == [(5, 9), (9, 5)]
        waits.clear()


def test_streams_are_ordered_whatever_happens(stub, monkeypatch):
    """Of images that are viewed in another order, too, and where a launch fails half way."""
    from fastconv.cuda import driver

    waits = []
    monkeypatch.setattr(driver, "wait", lambda stream, other: waits.append((stream, other)))
    w, gy = stub.array((2, 3, 3, 3), stream=7), stub.array((2, 3, 3), stream=9)
    for _ in range(2):
        fastconv.conv2d_input((3, 5, 5), w, gy)
        assert waits == [(7, 9), (9, 7)]
        waits.clear()
    monkeypatch.setattr(
        driver, "checked", lambda answer: (_ for _ in ()).throw(fastconv.DeviceError("no more"))
    )
    monkeypatch.setattr(stub, "fails", True)
    with pytest.raises(fastconv.DeviceError, match="no more"):
        fastconv.conv2d_input((3, 5, 5), w, gy)
    assert waits == [(7, 9), (9, 7)]


def test_all_kernels_of_a_call_run_where_out_lives(stub):
    """That which copies weights, too."""
    w = Foreign((2, 3, 3, 3), 2**40, strides=(4, 8, 24, 72))
    fastconv.conv2d(stub.array((1, 3, 5, 5)), w, out=stub.array((1, 2, 3, 3), stream=9))
    assert len(stub.started) > 1
    assert {stream for _, _, stream, *_ in stub.started} == {9}


def test_where_results_are_written_is_theirs_alone(stub, monkeypatch):
    """As on the CPU: byte by byte, and not between the first and the last."""
    from fastconv.cuda import driver

    monkeypatch.setattr(driver, "upload", lambda *_: None)
    whole, step = (2, 3, 5, 5), 4 * 3 * 25
    every_other = (2 * step, 100, 20, 4)
    x, w = Foreign(whole, 2**40, strides=every_other), stub.array((3, 3, 3, 3))

    def into(begin=2**41, strides=None, **more):
        return fastconv.conv2d(x, w, padding=1, out=Foreign(whole, begin, strides=strides, **more))

    into()
    into(2**40 + step, every_other)
    for begin in (2**40, 2**40 + 2 * step - 4, 2**40 - step):
        with pytest.raises(ValueError, match="share memory"):
            into(begin)
    with pytest.raises(ValueError, match="share memory"):
        into(2**40 - 4 * step, (4 * step, 100, 20, 4))
    with pytest.raises(ValueError, match="writeable"):
        into(readonly=True)
    with pytest.raises(ValueError, match="memory of its own for each element"):
        into(strides=(0, 100, 20, 4))
    y = np.zeros(whole, "float32")
    y.flags.writeable = False
    images, weights = np.zeros(whole, "float32"), np.zeros((3, 3, 3, 3), "float32")
    with fastconv.config(device="cuda"), pytest.raises(ValueError, match="writeable"):
        fastconv.conv2d(images, weights, padding=1, out=y)
    with fastconv.config(device="cuda"), pytest.raises(ValueError, match="share memory"):
        fastconv.conv2d(images, weights, padding=1, out=images)


@pytest.mark.parametrize("more", [{"pointer": 2**40 + 2}, {"strides": (300, 100, 20, 6)}, {"mask": Either()}])
def test_arrays_that_kernels_could_not_read_are_refused(more, stub):
    w = stub.array((2, 3, 3, 3))
    with pytest.raises((TypeError, ValueError), match=r"multiple|mask"):
        fastconv.conv2d(Foreign((1, 3, 5, 5), **{"pointer": 2**40} | more), w)


def test_numbers_of_numpys_are_told_apart(stub):
    """Of which a key in bytes has what they hold, and not what they are."""
    x, w = stub.array((1, 3, 5, 5)), stub.array((2, 3, 3, 3))
    assert fastconv.conv2d(x, w, padding=np.int64(1)).shape == (1, 2, 5, 5)
    assert fastconv.conv2d(x, w, padding=np.array([1, 0], np.int32)).shape == (1, 2, 5, 3)


class Capsule:
    """An array that shows DLPack and nothing else."""

    def __init__(self, array):
        self.array = array

    def __dlpack_device__(self):
        return (2, 0)

    def __dlpack__(self, stream=None):
        return self.array.__dlpack__()


def test_what_has_dlpack_alone_goes_with_the_results_it_gets(stub, monkeypatch):
    from fastconv.cuda import driver

    waits = []
    monkeypatch.setattr(driver, "wait", lambda stream, other: waits.append((stream, other)))
    monkeypatch.setattr(driver, "fill_zero", lambda *_: None)
    x, places = (Capsule(np.zeros((1, 3, 4, 4), dtype)) for dtype in ("float32", "int64"))
    y = fastconv.max_unpool2d(x, places, 2)
    assert y.stream == 1
    fastconv.max_unpool2d(stub.array((1, 3, 4, 4), stream=7), places, 2)
    assert waits == [(7, 1), (1, 7)], "elements are ready on the default stream"


def test_a_later_call_of_pooling_starts_kernels_alone(stub, monkeypatch):
    from fastconv.cuda import driver

    def started(x, gy, places):
        stub.started.clear()
        stub.next = 2**44
        results = (
            fastconv.max_pool2d(x, 2),
            *fastconv.max_pool2d(x, 2, return_indices=True),
            fastconv.max_pool2d_backward(x, gy, 2),
            fastconv.max_pool2d_backward(x, gy, 2, indices=places),
            fastconv.avg_pool2d(x, 2),
            fastconv.avg_pool2d_backward(x.shape, gy, 2),
            fastconv.lp_pool2d(x, 2.0, 2),
            fastconv.unfold(x, 3),
        )
        return [(r.shape, r.pointer) for r in results], list(stub.started)

    def arrays():
        places = stub.array((2, 4, 4, 4), dtype=np.int64)
        return stub.array((2, 4, 9, 8)), stub.array((2, 4, 4, 4)), places

    one, other = arrays(), arrays()
    first = started(*one)
    assert len(plan.tapes) == 8
    monkeypatch.setattr(driver, "Buffer", None)
    assert started(*one) == first
    played = started(*other)
    plan.tapes.clear()
    assert started(*other) == played
    assert played != first


@pytest.mark.parametrize("algorithm", ["direct", "im2col", "winograd:F(4,3)"])
@pytest.mark.parametrize("strides", [None, (4 * 576, 4, 4 * 64, 4 * 8)], ids=["nchw", "nhwc"])
def test_a_later_call_into_out_starts_the_same_kernels(algorithm, strides, stub, monkeypatch):
    """And is refused as the first one, where an operand is or nobody may write."""
    from fastconv.cuda import driver

    whole, walk = (2, 8, 9, 8), {"padding": 1, "algorithm": algorithm}

    def started(x, w, y, begin, **more):
        stub.started.clear()
        stub.next = 2**44
        into = Foreign(whole, begin, strides=strides, **more)
        assert fastconv.conv2d(x, w, residual=y, out=into, **walk) is into
        assert fastconv.conv2d_input(whole, w, y, out=into, **walk) is into
        assert fastconv.conv_transpose2d(y, w, out=into, **walk) is into
        gw = Foreign(w.shape, begin + 2**20)
        assert fastconv.conv2d_weight(x, w.shape, y, out=gw, **walk) is gw
        return list(stub.started)

    one, other = ([stub.array(shape) for shape in (whole, (8, 8, 3, 3), whole)] for _ in range(2))
    first = started(*one, 2**42)
    assert len(plan.tapes) == 4
    monkeypatch.setattr(driver, "Buffer", None)
    assert started(*one, 2**42) == first
    played = started(*other, 2**43)
    plan.tapes.clear()
    assert started(*other, 2**43) == played
    assert played != first
    with pytest.raises(ValueError, match="share memory"):
        started(*other, other[0].pointer + 4 * 576)
    with pytest.raises(ValueError, match="writeable"):
        started(*other, 2**43, readonly=True)


@pytest.mark.parametrize("module", ["torch", "vision"])
def test_a_tensors_call_runs_on_pytorchs_current_stream(module, stub, monkeypatch):
    """The driver is asked for nothing but launches, in the first call as in later ones; memory is PyTorch's.

    So it is of tensors whose class is another library's.
    """
    torch = pytest.importorskip("torch")
    here, empty = torch.device("cuda:0"), torch.empty

    class Tensor(torch.Tensor):
        is_cuda, device, __module__ = True, here, module
        __torch_function__ = torch._C._disabled_torch_function_impl

    def on_gpu(shape, dtype=torch.float32, device=here):
        assert device == here
        return empty(shape, dtype=dtype).as_subclass(Tensor)

    monkeypatch.setattr(
        torch, "empty_strided", lambda shape, strides, dtype, device: on_gpu(shape, dtype, device)
    )
    x, w = on_gpu((2, 3, 5, 5)), on_gpu((4, 3, 3, 3))
    for stream in (77, 78):
        monkeypatch.setattr(
            torch.cuda, "current_stream", lambda device, at=stream: SimpleNamespace(cuda_stream=at)
        )
        stub.started.clear()
        y = fastconv.conv2d(x, w)
        places = fastconv.max_pool2d(y, 2, return_indices=True)[1]
        assert type(y) is type(places) is Tensor
        assert places.dtype == torch.int64
        assert {at for _, _, at, *_ in stub.started} == {stream}
        assert y.data_ptr() in {pointer for *_, pointers, _ in stub.started for pointer in pointers}
    assert len(plan.tapes) == 2


def test_a_tensor_that_shows_the_negative_of_its_memory_is_refused():
    torch = pytest.importorskip("torch")
    from fastconv.cuda.libraries import Torch

    negative = torch.ones(2, 2, dtype=torch.complex64).conj().imag
    with pytest.raises(TypeError, match="resolve_neg"):
        Torch.of(negative)
    assert Torch.of(negative.resolve_neg()).shape == (2, 2)


def test_a_cupy_array_runs_on_cupys_current_stream(stub, monkeypatch):
    """Its results are CuPy's, in memory of CuPy's."""

    class ndarray(Foreign):
        __module__, device = "cupy", SimpleNamespace(id=0)

        def __init__(self, shape, dtype):
            super().__init__(shape, stub.array(shape).pointer, dtype=dtype)
            self.strides, self.ndim = packed(shape), len(shape)
            self.data = SimpleNamespace(ptr=self.pointer)

    stream = SimpleNamespace(ptr=55)
    runtime = SimpleNamespace(getDevice=lambda: 0)
    cuda = SimpleNamespace(get_current_stream=lambda: stream, runtime=runtime)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(empty=ndarray, cuda=cuda))
    x, w = ndarray((2, 3, 5, 5), "float32"), ndarray((4, 3, 3, 3), "float32")
    for stream.ptr in (55, 56):
        stub.started.clear()
        y = fastconv.conv2d(x, w)
        assert type(y) is ndarray
        assert {at for _, _, at, *_ in stub.started} == {stream.ptr}
        assert y.pointer in {pointer for *_, pointers, _ in stub.started for pointer in pointers}
