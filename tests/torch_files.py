"""Reads what `torch.save` wrote, without PyTorch, and runs nothing that a file says."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import jax.numpy  # noqa: F401 - NumPy knows bfloat16 from it
import numpy as np

_DTYPES = {"Half": "<f2", "Float": "<f4", "Double": "<f8", "BFloat16": "bfloat16", "Bool": "|b1",
           "Byte": "|u1", "Char": "|i1", "Short": "<i2", "Int": "<i4", "Long": "<i8"}  # fmt: skip


class _Dict(dict[Any, Any]):
    """An OrderedDict without attributes: PyTorch keeps `_metadata` there."""

    def __setstate__(self, state: object) -> None:
        pass


def _tensor(storage: np.ndarray, offset: int, shape: Any, strides: Any, _grad: Any, _hooks: Any, meta: Any = None):
    if meta:
        raise pickle.UnpicklingError(f"a tensor with {meta} is not read")
    size = storage.itemsize  # NumPy checks that the view stays within the storage
    return np.ndarray(tuple(shape), storage.dtype, storage, offset * size, tuple(size * stride for stride in strides))


_GLOBALS: dict[str, Any] = {f"torch.{kind}Storage": dtype for kind, dtype in _DTYPES.items()} | {
    "collections.OrderedDict": _Dict, "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda value, _grad, _hooks: value}  # fmt: skip


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, limit: int) -> None:
        super().__init__(file, encoding="utf-8")
        self.limit, self.storages = limit, dict[str, np.ndarray]()

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _GLOBALS:
            raise pickle.UnpicklingError(f"{module}.{name} is not read: only tensors, dicts, lists, numbers, strings")
        return _GLOBALS[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> np.ndarray:
        kind, dtype, key, _device, count, *view = pid
        known = kind == "storage" and dtype in _DTYPES.values() and not any(view)
        if not known or not 0 <= count * np.dtype(dtype).itemsize <= self.limit:
            raise pickle.UnpicklingError(f"{pid} is not read")
        return self.storages.setdefault(key, np.zeros(count, dtype))  # filled once all are known


def read(file: str | Path | BinaryIO) -> dict[str, np.ndarray]:
    """The `state_dict` in a file; tensors that share memory do so as arrays."""
    data = Path(file).read_bytes() if isinstance(file, str | Path) else file.read()
    stream, parts = io.BytesIO(data), dict[str, bytes]()
    if data[:4] == b"PK\3\4":
        archive = zipfile.ZipFile(stream)
        root = next(name[:-8] for name in archive.namelist() if name.endswith("/data.pkl"))
        little = f"{root}byteorder" not in archive.namelist() or archive.read(f"{root}byteorder") == b"little"
        main = _Unpickler(archive.open(f"{root}data.pkl"), len(data))
        found = main.load()
        parts = {key: archive.read(f"{root}data/{key}") for key in main.storages}
    else:  # before PyTorch 1.6: pickles one after the other, then the storages
        if (_Unpickler(stream, 0).load(), _Unpickler(stream, 0).load()) != (0x1950A86A20F9469CFC6C, 1001):
            raise pickle.UnpicklingError("no file of torch.save")
        little = _Unpickler(stream, 0).load()["little_endian"]
        main = _Unpickler(stream, len(data))
        found = main.load()
        for key in _Unpickler(stream, 0).load():
            count = int.from_bytes(stream.read(8), "little")
            parts[key] = stream.read(count * main.storages[key].itemsize)
    for key, storage in main.storages.items():
        if not little or len(parts[key]) != storage.nbytes:
            raise pickle.UnpicklingError(f"storage {key} has other bytes than it should")
        storage[:] = np.frombuffer(parts[key], storage.dtype) if storage.size else storage
    if not isinstance(found, dict) or not all(isinstance(value, np.ndarray) for value in found.values()):
        raise ValueError(f"no state_dict: {list(found) if isinstance(found, dict) else type(found).__name__}")
    return dict(found)
