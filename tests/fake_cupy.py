"""A stand-in for CuPy on machines without a GPU, strict where CuPy is strict.

It checks that the code written over NumPy's dispatch protocols only calls what CuPy (13 and later) supplies, and
never lets an array of the host meet one of the device, nor one of another device than the current one. Its numbers
are NumPy's.
"""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

__version__ = "0 (stand-in)"

# NumPy functions → whether CuPy has them under the same module path, and the arguments that CuPy's take.
SUPPLIED: dict[Any, set[str]] = {
    np.abs: set(),
    np.array_equal: set(),
    np.amax: {"axis", "keepdims"},
    np.arange: {"dtype"},
    np.broadcast_to: set(),
    np.concatenate: {"axis"},
    np.empty_like: {"dtype", "order", "shape"},
    np.max: {"axis", "keepdims"},
    np.ones_like: {"dtype", "order", "shape"},
    np.pad: {"mode", "constant_values"},
    np.take: set(),
    np.squeeze: {"axis"},
    np.stack: {"axis"},
    np.sum: {"axis", "keepdims"},
    np.tensordot: {"axes"},
    np.where: set(),
    np.zeros_like: {"dtype", "order", "shape"},
}
SCALARS = (bool, int, float, np.generic)


class ndarray(NDArrayOperatorsMixin):
    """An array that only meets its own kind and scalars; never a subclass of NumPy's."""

    def __init__(self, held: Any, on: int | None = None) -> None:
        assert isinstance(held, np.ndarray | np.generic), type(held)
        self.held, self.device = np.asarray(held), cuda.Device(on)

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if method != "__call__" or set(kwargs) - {"out", "dtype"}:
            return NotImplemented
        out = kwargs.pop("out", None)
        if out is not None:
            kwargs["out"] = tuple(_unwrap(x) for x in out)
        result = ufunc(*(_unwrap(x) for x in inputs), **kwargs)
        return out[0] if out is not None else _wrap(result)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if func is np.asarray:  # of an array in host memory, which the GPU is sent
            return ndarray(np.array(*args))
        if func not in SUPPLIED or not all(issubclass(t, ndarray) for t in types):
            return NotImplemented
        if extra := set(kwargs) - SUPPLIED[func]:
            raise TypeError(f"cupy's {func.__name__} got an unexpected keyword argument {extra}")
        return _wrap(func(*map(_unwrap, args), **{name: _unwrap(x) for name, x in kwargs.items()}))

    def __getitem__(self, index: Any) -> ndarray:
        return self._view(self.held[_index(index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        _unwrap(self)[_index(index)] = _unwrap(value)

    def __len__(self) -> int:
        return len(self.held)

    def __bool__(self) -> bool:
        return bool(self.held)

    def __float__(self) -> float:
        return float(self.held)

    def __int__(self) -> int:
        return int(self.held)

    def __repr__(self) -> str:
        return f"fake_cupy.{self.held!r}"

    shape = property(lambda self: self.held.shape)
    dtype = property(lambda self: self.held.dtype)
    ndim = property(lambda self: self.held.ndim)
    size = property(lambda self: self.held.size)
    nbytes = property(lambda self: self.held.nbytes)
    itemsize = property(lambda self: self.held.itemsize)
    strides = property(lambda self: self.held.strides)
    T = property(lambda self: self._view(self.held.T))
    flags = property(lambda self: self.held.flags)
    data = property(lambda self: SimpleNamespace(ptr=self.held.ctypes.data))

    def _view(self, held: Any) -> ndarray:
        """The same memory, where it is."""
        return ndarray(held, self.device.id)

    def get(self) -> Any:
        """Copy to the host, as CuPy does."""
        return self.held.copy()

    def item(self) -> Any:
        return self.held.item()

    def tolist(self) -> Any:
        return self.held.tolist()

    def reshape(self, *shape: Any) -> ndarray:
        return self._view(self.held.reshape(*shape))

    def transpose(self, *axes: Any) -> ndarray:
        return self._view(self.held.transpose(*axes))

    def swapaxes(self, a: int, b: int) -> ndarray:
        return self._view(self.held.swapaxes(a, b))

    def squeeze(self, axis: Any = None) -> ndarray:
        return self._view(self.held.squeeze(axis))

    def astype(self, dtype: Any, order: str = "K", copy: bool = True) -> ndarray:
        return _wrap(self.held.astype(dtype, order=order, copy=copy))

    def copy(self, order: str = "C") -> ndarray:
        return _wrap(self.held.copy(order))

    def ravel(self) -> ndarray:
        return _wrap(self.held.ravel())

    def max(self, axis: Any = None, out: None = None, keepdims: bool = False) -> ndarray:
        return _wrap(_unwrap(self).max(axis=axis, keepdims=keepdims))

    def min(self, axis: Any = None, out: None = None, keepdims: bool = False) -> ndarray:
        return _wrap(_unwrap(self).min(axis=axis, keepdims=keepdims))

    def sum(self, axis: Any = None, dtype: Any = None, out: None = None, keepdims: bool = False) -> ndarray:
        return _wrap(_unwrap(self).sum(axis=axis, dtype=dtype, keepdims=keepdims))

    def mean(self, axis: Any = None, dtype: Any = None, out: None = None, keepdims: bool = False) -> ndarray:
        return _wrap(_unwrap(self).mean(axis=axis, dtype=dtype, keepdims=keepdims))

    def argmax(self, axis: Any = None, out: None = None, dtype: Any = None, keepdims: bool = False) -> ndarray:
        return _wrap(_unwrap(self).argmax(axis=axis, keepdims=keepdims))

    def clip(self, min: Any = None, max: Any = None, out: None = None) -> ndarray:
        return _wrap(_unwrap(self).clip(min, max))

    def take(self, indices: Any, axis: Any = None, out: None = None) -> ndarray:
        return _wrap(_unwrap(self).take(_unwrap(indices), axis))

    def any(self, axis: Any = None, out: None = None, keepdims: bool = False) -> ndarray:
        return _wrap(_unwrap(self).any(axis=axis, keepdims=keepdims))

    def all(self, axis: Any = None, out: None = None, keepdims: bool = False) -> ndarray:
        return _wrap(_unwrap(self).all(axis=axis, keepdims=keepdims))


def _wrap(x: Any) -> ndarray:
    """Hold what NumPy returned; CuPy has no scalars of its own, only arrays without axes."""
    return ndarray(np.asarray(x))


def _unwrap(x: Any) -> Any:
    if isinstance(x, ndarray):
        assert x.device == cuda.Device(), f"an array of {x.device} in work on {cuda.Device()}"
        return x.held
    if isinstance(x, list | tuple):
        return type(x)(map(_unwrap, x))
    if isinstance(x, np.ndarray):
        raise TypeError(f"Unsupported type {type(x)}")  # CuPy's own words
    return x


def _index(index: Any) -> Any:
    return tuple(map(_unwrap, index)) if isinstance(index, tuple) else _unwrap(index)


def asarray(a: Any, dtype: Any = None, order: Any = None) -> ndarray:
    if isinstance(a, ndarray):
        fits = (dtype is None or a.dtype == dtype) and (order is None or a.flags.c_contiguous)
        return a if fits else _wrap(_unwrap(a).astype(a.dtype if dtype is None else dtype, order=order or "K"))
    assert isinstance(a, (np.ndarray, list, tuple, *SCALARS)), f"CuPy cannot take {type(a)}"
    return ndarray(np.array(a, dtype=dtype, order="C"))  # to the device: always a copy


def empty(shape: Any, dtype: Any) -> ndarray:
    return ndarray(np.empty(shape, dtype))


def from_dlpack(x: Any) -> ndarray:
    return ndarray(x.__dlpack__(stream=1))  # the legacy stream, where CuPy works unless told otherwise


def asnumpy(a: Any) -> Any:
    return a.get() if isinstance(a, ndarray) else np.asarray(a)


class lib:
    class stride_tricks:
        @staticmethod
        def as_strided(x: ndarray, shape: Any = None, strides: Any = None) -> ndarray:
            return ndarray(np.lib.stride_tricks.as_strided(x.held, shape, strides))


class cuda:
    """GPUs without shared memory, on which no kernel of our own fits; any number of them."""

    synchronized: ClassVar[list[int]] = []  # of which devices streams have been waited for

    @staticmethod
    def get_current_stream() -> Any:
        device = cuda.Device().id
        return SimpleNamespace(synchronize=lambda: cuda.synchronized.append(device))

    class Device:
        attributes: ClassVar[dict[str, int]] = {"MaxSharedMemoryPerBlockOptin": 0}
        entered: ClassVar[Any] = threading.local()  # .ids: the current one is the last, 0 before any

        def __init__(self, device: int | None = None) -> None:
            self.id = (self._ids() or [0])[-1] if device is None else device

        def __repr__(self) -> str:
            return f"<CUDA Device {self.id}>"

        def __eq__(self, other: object) -> bool:
            return isinstance(other, cuda.Device) and self.id == other.id

        def __hash__(self) -> int:
            return hash(self.id)

        def __enter__(self) -> Any:
            self._ids().append(self.id)
            return self

        def __exit__(self, *_: Any) -> None:
            self._ids().pop()

        @classmethod
        def _ids(cls) -> list[int]:
            if not hasattr(cls.entered, "ids"):
                cls.entered.ids = []
            ids: list[int] = cls.entered.ids
            return ids
