"""Calls on a GPU without one: where arrays live, what the driver is asked for and told to start, and once more from a tape."""

import ctypes
import sys
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

    def __init__(self, shape, pointer=0, stream=None, dtype=np.float32):
        self.shape, self.pointer, self.stream, self.dtype = shape, pointer, stream, np.dtype(dtype)

    @property
    def __cuda_array_interface__(self):
        told = {"shape": self.shape, "typestr": self.dtype.str, "data": (self.pointer, False), "version": 3}
        return told | {"stream": self.stream}


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


def test_memory_comes_from_the_pool_in_the_order_of_a_stream_and_goes_back(monkeypatch):
    from fastconv.cuda import driver

    seen, done = [], SimpleNamespace(CUDA_SUCCESS=0)
    fake = SimpleNamespace(
        CUresult=done,
        cuMemAllocFromPoolAsync=lambda count, pool, stream: seen.append((count, pool, stream)) or (0, 4096),
        cuMemFreeAsync=lambda pointer, stream: seen.append((pointer, stream)),
    )
    for name, value in (
        ("bindings", lambda: fake),
        ("context", lambda: 1),
        ("_pool", lambda context: "pool"),
    ):
        monkeypatch.setattr(driver, name, value)
    block = driver.Block(100, 7)
    assert block.pointer == 4096
    del block
    assert seen == [(100, "pool", 7), (4096, 7)]


def test_results_are_numba_arrays_each_of_its_own_memory(monkeypatch):
    """Which are described once; what is seen of them at a glance is what they tell when asked."""
    from numba import cuda

    from fastconv.cuda import driver
    from fastconv.cuda.memory import Interface, glance_of

    pointers = iter((4096, 8192))
    monkeypatch.setattr(cuda, "current_context", lambda: None)
    monkeypatch.setattr(cuda, "external_stream", lambda stream: stream)
    monkeypatch.setattr(driver, "context", lambda: -1)
    monkeypatch.setattr(driver, "bindings", lambda: pytest.importorskip("cuda.bindings.driver"))
    monkeypatch.setattr(
        driver, "Block", lambda count, stream: SimpleNamespace(pointer=next(pointers), nbytes=count)
    )
    arrays = [driver.device_array((2, 3), (1, 2), np.dtype("float32"), stream)[0] for stream in (0, 7)]
    for array, pointer, stream in zip(arrays, (4096, 8192), (0, 7), strict=True):
        assert (array.shape, array.strides, array.dtype) == ((2, 3), (4, 8), np.float32)
        assert array.gpu_data.owner.nbytes == array.alloc_size == 24
        assert glance_of(type(array))(array)[:2] == Interface.glance(array)[:2] == (pointer, stream)


class Stub:
    """A driver that is told what to start, and starts nothing; what else it were asked for would be an error."""

    CUresult = SimpleNamespace(CUDA_SUCCESS=0)

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
        return (0,)

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
        "_function": lambda kernel, _: kernel, "Buffer": stub.buffer, "device_array": stub.device_array, "Block": stub.block,
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


def test_kernels_of_one_folder_keep_each_others_machine_code(monkeypatch, tmp_path):
    """Those of one name, too, of which another file's would seem to be of sources that are gone."""
    from fastconv.algorithms.im2col import cuda, cuda_weight, implicit, implicit_weight

    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    tile, compiled = cuda.TILES["float32"][0], []
    kernels = [
        cuda.gemm_kernel("float32", tile, implicit.Traits(*[True] * 5), "none"),
        cuda_weight.kernel("float32", tile, implicit_weight.Way(True, True, True, False), True),
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


def test_arrays_of_another_gpu_are_refused(monkeypatch):
    torch = pytest.importorskip("torch")
    from fastconv.cuda.memory import Torch

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    tensor = SimpleNamespace(requires_grad=False, dtype=torch.float32, device=torch.device("cuda:1"))
    with pytest.raises(ValueError, match="on GPU 1, and the current one is 0"):
        Torch.of(tensor)


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


def test_a_tensors_call_runs_on_pytorchs_current_stream(stub, monkeypatch):
    """The driver is asked for nothing but launches, in the first call as in later ones; memory is PyTorch's."""
    torch = pytest.importorskip("torch")
    here, empty = torch.device("cuda:0"), torch.empty

    class Tensor(torch.Tensor):
        is_cuda, device, __module__ = True, here, "torch"
        __torch_function__ = torch._C._disabled_torch_function_impl

    def on_gpu(shape, dtype=torch.float32, device=here):
        assert device == here
        return empty(shape, dtype=dtype).as_subclass(Tensor)

    monkeypatch.setattr(
        torch, "empty_strided", lambda shape, strides, dtype, device: on_gpu(shape, dtype, device)
    )
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
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
