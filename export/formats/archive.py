"""Read files of tensors without executing anything that is in them."""

import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import safetensors
import safetensors.torch
import torch

from export import ExportError

State = dict[str, torch.Tensor]

ROOTS = ("state_dict", "model")
"""Under which trainers keep the weights beside the state of their training."""
PREFIXES = ("module.", "_orig_mod.")
"""What torch's wrappers for many GPUs and for compiling put before every name."""


class Content(NamedTuple):
    """What a file holds."""

    state: State
    """Name -> values, as the file has them."""
    activation: str | None
    """As in `Architecture.activation`, if the file tells it, as TorchScript archives do."""


def read(path: Path, *, trusted: bool = False) -> Content:
    """Read a TorchScript archive, a pickle of torch's (``.pt``, ``.bin``), or a safetensors file.

    `trusted`: a file of OpenAI's, by its sha256. If it holds what the reader of archives here does
    not know, torch loads it, which may run code of the archive.

    Raises:
        ExportError: it is none of these, truncated, or holds something else than tensors.
    """
    if not path.is_file():
        raise ExportError(f"no such file: {path}")
    try:
        if _is_safetensors(path):
            return Content(safetensors.torch.load_file(path), None)
        if _is_torchscript(path):
            return _torchscript(path, trusted)
        return Content(_unwrapped(torch.load(path, "cpu", weights_only=True)), None)
    except Exception as error:  # damaged files raise anything
        raise ExportError(f"{path} {_why(error)}") from error


def _why(error: Exception) -> str:
    text = str(error).split("\n", maxsplit=1)[0]
    if isinstance(error, pickle.UnpicklingError):
        return f"is refused: it is damaged, or holds something else than tensors ({text[:200]})"
    return f"cannot be read: it is truncated, damaged, or no checkpoint ({text[:200]})"


def _unwrapped(found: Any) -> State:
    """The weights themselves, out of what a trainer saved."""
    for root in ROOTS:
        if isinstance(found, Mapping) and isinstance(found.get(root), Mapping):
            found = found[root]
    if not isinstance(found, Mapping) or not found:
        raise TypeError("no state dict")
    for prefix in PREFIXES:
        if all(str(name).startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): value for name, value in found.items()}
    other = [str(name) for name, value in found.items() if not isinstance(value, torch.Tensor)]
    if other:
        raise TypeError(f"no state dict: {', '.join(other[:3])} are no tensors")
    return dict(found)


def _is_safetensors(path: Path) -> bool:
    """Return True if the file begins with the length of a JSON object and its brace."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


# --- TorchScript ----------------------------------------------------------------------------------


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _torchscript(path: Path, trusted: bool) -> Content:
    """The tensors of an archive that ``torch.jit.save`` wrote, none of whose code is loaded.

    It is a zip file. ``data.pkl`` in it is a pickle of the modules, of which only the attributes
    are taken, and their tensors are in ``data/0``, ``data/1`` and so on.
    """
    with zipfile.ZipFile(path) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        with archive.open(name) as file:
            reader = _Unpickler(file, archive, name.removesuffix(".pkl"))
            try:
                module = reader.load()
            except pickle.UnpicklingError:
                if not trusted:
                    raise
                return Content(torch.jit.load(path, "cpu").state_dict(), None)
    if not isinstance(module, _Module):
        raise TypeError("no module")
    # torch numbers the classes of a process that has traced others before.
    named = re.sub(r"___torch_mangle_\d+\.", "", " ".join(reader.classes))
    found = [kind for word, kind in _ACTIVATIONS.items() if word in named]
    return Content(dict(_tensors(module, "")), found[0] if len(found) == 1 else None)


_ACTIVATIONS = {"QuickGELU": "quick_gelu", "activation.GELU": "gelu"}
"""How the name of its class ends or goes on -> as in `Architecture.activation`."""


class _Module(dict[str, Any]):
    """A module of an archive: its attributes."""

    def __setstate__(self, attributes: Mapping[str, Any]) -> None:
        self.update(attributes)


def _tensors(module: _Module, prefix: str) -> Any:
    for name, value in module.items():
        if isinstance(value, torch.Tensor):
            yield prefix + name, value
        elif isinstance(value, _Module):
            yield from _tensors(value, f"{prefix}{name}.")


def _rebuild(storage: torch.Tensor, offset: int, size: Any, stride: Any, *_: Any) -> torch.Tensor:
    return torch.as_strided(storage, size, stride, offset)


class _Unpickler(pickle.Unpickler):
    """Knows what the pickle of a TorchScript archive needs, and refuses everything else."""

    TYPES = {  # noqa: RUF012
        "HalfStorage": torch.float16,
        "BFloat16Storage": torch.bfloat16,
        "FloatStorage": torch.float32,
        "DoubleStorage": torch.float64,
        "LongStorage": torch.int64,
        "IntStorage": torch.int32,
        "BoolStorage": torch.bool,
    }

    def __init__(self, file: IO[bytes], archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(file)
        self.classes: set[str] = set()
        self._archive = archive
        self._folder = folder
        self._storages: dict[str, torch.Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            self.classes.add(f"{module}.{name}")
            return _Module
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if module == "torch" and name in self.TYPES:
            return self.TYPES[name]
        if module == "torch.jit._pickle" and name.startswith("build_"):  # lists of one type
            return list
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> torch.Tensor:
        _, dtype, key, _, count = pid
        if key not in self._storages:
            entry = self._archive.getinfo(f"{self._folder}/{key}")
            if entry.compress_type != zipfile.ZIP_STORED:  # torch compresses nothing
                raise ValueError(f"{key} is compressed")
            data = self._archive.read(entry)
            storage = torch.frombuffer(bytearray(data), dtype=dtype)
            if len(storage) != count:
                raise ValueError(f"{key} has {len(storage)} numbers instead of {count}")
            self._storages[key] = storage
        return self._storages[key]
