# SPDX-License-Identifier: Apache-2.0
"""Tensors between MLX, torch and numpy: values, whose memory it is, and who may go first."""

import ctypes
import gc
import sys
import types
import weakref

import numpy as np
import pytest
import torch
from vllm_metal import _core
from vllm_metal.tensor_bridge import from_numpy, from_torch, to_numpy, to_torch

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
]


def values(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Return values of every bit pattern that arithmetic likes, zero among them."""
    count = int(np.prod(shape))
    numbers = torch.arange(count).reshape(shape)
    if dtype.is_complex:
        return torch.complex(numbers.float(), -numbers.float())
    if dtype == torch.bool:
        return numbers % 3 == 0
    return (numbers / 4 if dtype.is_floating_point else numbers).to(dtype)


def pointer_in_capsule(tensor) -> int:
    """Return the address that the core wrote into its DLPack struct, whose first field it is."""
    capsule = tensor.__dlpack__()
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return ctypes.c_void_p.from_address(get_pointer(capsule, b"dltensor")).value


def same(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    """Compare dtype, shape and values; torch.equal lacks some dtypes."""
    return actual.dtype == expected.dtype and np.array_equal(bits(actual), bits(expected))


def bits(tensor: torch.Tensor) -> np.ndarray:
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
class TestEveryDtype:
    def test_torch_to_mlx_and_back(self, dtype):
        expected = values(dtype, 3, 5)
        held = _core.to_mlx(from_torch(expected))
        seen = to_torch(held)
        assert same(seen, expected)
        assert seen.data_ptr() == pointer_in_capsule(held)

    def test_mlx_to_numpy_is_read_only_and_in_place(self, dtype):
        expected = values(dtype, 3, 5)
        held = _core.to_mlx(expected)
        array = to_numpy(held)
        assert array.ctypes.data == pointer_in_capsule(held)
        assert not array.flags.writeable
        assert np.array_equal(array, bits(expected).view(array.dtype))
        if dtype != torch.bfloat16:
            assert array.dtype == expected.numpy().dtype

    def test_numpy_to_mlx(self, dtype):
        array = bits(values(dtype, 4, 3))  # numpy has no bfloat16; see below
        array.flags.writeable = False
        given = from_numpy(array)
        assert given is array
        assert np.array_equal(to_numpy(_core.to_mlx(given)), array)

    def test_empty_and_scalar(self, dtype):
        for shape in ((0,), (2, 0, 3), ()):
            tensor = values(dtype, *shape)
            held = _core.to_mlx(from_torch(tensor))
            assert same(to_torch(held), tensor)
            assert to_torch(held).shape == tensor.shape == to_numpy(held).shape

    def test_transposed_and_strided(self, dtype):
        tensor = values(dtype, 4, 6, 2)
        transposed = tensor.permute(2, 1, 0)
        for view in (transposed, tensor[1:, ::2], transposed[1], tensor[:1].expand(3, 6, 2)):
            assert from_torch(view).data_ptr() == view.data_ptr()
            assert same(to_torch(_core.to_mlx(from_torch(view))), view.clone())


def test_torch_is_copied_once_on_the_cpu():
    tensor = torch.arange(1 << 16)
    before = _core.memory_stats()["active"]
    held = _core.to_mlx(from_torch(tensor))
    if _core.device_info()["type"] == "cpu":
        assert pointer_in_capsule(held) != tensor.data_ptr()
    assert _core.memory_stats()["active"] - before in (0, tensor.nbytes)
    tensor_copy = tensor.clone()
    del tensor
    assert same(to_torch(held), tensor_copy)


def test_pages_are_adopted_or_copied():
    """numpy's memory of whole pages, which Metal can adopt: right values either way."""
    page = 1 << 14
    raw = np.zeros(3 * page, np.uint8)
    begin = -raw.ctypes.data % page
    array = raw[begin : begin + page].view(np.int32)
    array[:] = np.arange(len(array))
    held = _core.to_mlx(array)
    del array, raw
    gc.collect()
    assert np.array_equal(to_numpy(held), np.arange(page // 4, dtype=np.int32))


@pytest.mark.parametrize("look", [to_torch, to_numpy])
def test_the_core_may_let_go_first(look):
    expected = torch.arange(1 << 18, dtype=torch.int32)
    before = _core.memory_stats()["active"]
    held = _core.to_mlx(expected)
    view = look(held)[5:]
    del held
    gc.collect()
    assert _core.memory_stats()["active"] == before + expected.nbytes
    assert np.array_equal(np.asarray(view), expected[5:])
    del view
    gc.collect()
    assert _core.memory_stats()["active"] == before


def test_the_view_may_go_first():
    expected = torch.arange(1 << 18, dtype=torch.int32)
    held = _core.to_mlx(expected)
    view = to_torch(held)
    assert same(view, expected)
    del view
    gc.collect()
    assert same(to_torch(held), expected)


def test_what_was_copied_is_let_go_of():
    tensor = torch.ones(5)
    gone = weakref.ref(tensor)
    held = _core.to_mlx(tensor)
    del tensor
    gc.collect()
    assert gone() is None
    assert to_torch(held).tolist() == [1] * 5


def test_numpy_refuses_to_write_what_the_core_holds():
    array = to_numpy(_core.to_mlx(torch.ones(3)))
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 2
    assert memoryview(_core.to_mlx(torch.ones(3))).readonly


def test_bfloat16_is_uint16_or_that_of_ml_dtypes(monkeypatch):
    numbers = torch.tensor([1.0, -2.5, 3.25], dtype=torch.bfloat16)
    held = _core.to_mlx(numbers)
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)  # the import fails
    assert to_numpy(held).dtype == np.uint16
    assert to_numpy(held).tolist() == [0x3F80, 0xC020, 0x4050]
    stand_in = np.dtype([("bits", np.uint16)])
    monkeypatch.setitem(sys.modules, "ml_dtypes", types.SimpleNamespace(bfloat16=stand_in))
    assert to_numpy(held).dtype == stand_in
    assert to_numpy(held)["bits"].tolist() == [0x3F80, 0xC020, 0x4050]
    assert to_numpy(held).ctypes.data == pointer_in_capsule(held)


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -2)])
def test_bfloat16_of_ml_dtypes_comes_as_that(order):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    array = np.arange(7).astype(ml_dtypes.bfloat16)[order]
    assert to_torch(_core.to_mlx(from_numpy(array))).tolist() == array.tolist()
    assert np.array_equal(to_numpy(_core.to_mlx(from_numpy(array))), array)


def test_what_dlpack_has_no_words_for_is_copied():
    swapped = np.arange(5, dtype=">f4")
    fields = np.array([(1, 2.0), (3, 4.0)], dtype=[("a", "i1"), ("b", "f4")])["b"]
    for array in (swapped, fields, np.arange(6)[::-2], np.arange(6).reshape(2, 3).T):
        assert to_numpy(_core.to_mlx(from_numpy(array))).tolist() == array.tolist()
    assert from_numpy(np.arange(6)[::-2]).base is not None  # shared: DLPack has negative strides


def test_gradients_and_pending_conjugations_are_resolved():
    parameter = torch.nn.Parameter(torch.tensor([1.5, 2.5]))
    assert from_torch(parameter).data_ptr() == parameter.data_ptr()
    assert to_torch(_core.to_mlx(from_torch(parameter))).tolist() == [1.5, 2.5]
    number = torch.tensor([1 + 2j])
    assert to_torch(_core.to_mlx(from_torch(number.conj()))).tolist() == [1 - 2j]
    assert to_torch(_core.to_mlx(from_torch(number.conj().imag))).tolist() == [-2]


@pytest.mark.filterwarnings("ignore")
def test_refuses_what_is_more_or_less_than_numbers():
    quantised = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    with pytest.raises(ValueError, match=r"\[interop\] .* but is quantized\."):
        from_torch(quantised)
    with pytest.raises(ValueError, match="but is sparse_coo"):
        from_torch(torch.eye(3).to_sparse())
    with pytest.raises(ValueError, match="its device is meta"):
        from_torch(torch.ones(3, device="meta"))


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.complex128, "complex128"), (torch.float8_e4m3fn, "float8_e4m3fn")]
)
def test_names_dtypes_that_mlx_lacks(dtype, name):
    with pytest.raises(ValueError, match=rf"one of bool, .*, complex64 but got {name}\."):
        _core.to_mlx(from_torch(torch.ones(3).to(dtype)))


def test_names_what_is_no_tensor():
    for value in ("text", 3, np.array(["text"])):
        with pytest.raises(ValueError, match=r"speaks DLPack but got (str|int|ndarray)"):
            _core.to_mlx(value)


def test_another_device_is_one_function(monkeypatch):
    """`mps` is not here: what the bridge asks torch for is."""
    asked = []
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device: asked.append(device) or self)
    to_torch(_core.to_mlx(torch.ones(2)), "mps")
    from_torch(torch.ones(2))
    assert asked == ["mps", "cpu"]
