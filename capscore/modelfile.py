"""A model as one .safetensors file: the parameters, and in the metadata all that is needed to use them.

The metadata's one entry `capscore` is JSON: format, spec, class names, preprocessing, provenance and a digest of all
this and the tensors, by which a file tells that it is damaged. Tensors whose names begin with `optimizer.` belong to a
checkpoint; they are the only ones beside the parameters.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .disk import write_atomically
from .errors import CapscoreError, ModelFileError, ShapeError, short
from .net import CapsNetSpec, numbered
from .ops import to_host

FORMAT = 2  # that is written; 1, of version 0.1, is read too
STATE = "optimizer."
CHECKPOINT = ("training", "log", "resume")  # entries of a provenance that only going on with a training asks for


@dataclass(frozen=True)
class Model:
    """What a model file holds: spec, parameters as stored, class names, provenance and a checkpoint's state."""

    spec: CapsNetSpec
    params: dict[str, NDArray[Any]]
    classes: tuple[str, ...]
    provenance: dict[str, Any] = field(default_factory=dict)
    state: dict[str, NDArray[Any]] = field(default_factory=dict)


def check_params(spec: CapsNetSpec, params: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Return `params` as NumPy arrays in the spec's order, or say which is missing, unknown or misshapen."""
    if not hasattr(params, "keys"):  # torch's containers of parameters are no Mapping
        raise ShapeError(f"parameters must be arrays by name, such as {min(spec.parameters)}, not {short(params)}")
    if missing := [name for name in spec.parameters if name not in params]:
        raise ShapeError(f"parameter {', '.join(missing[:3])} is missing; the spec has {len(spec.parameters)}")
    if unknown := [name for name in params if name not in spec.parameters]:
        raise ShapeError(f"parameter {', '.join(unknown[:3])} is not in the spec: {', '.join(spec.parameters)}")
    arrays = {}
    for name, shape in spec.parameters.items():
        try:
            arrays[name] = to_host(params[name])
        except ShapeError as error:
            raise ShapeError(f"parameter {name}: {error}") from None
        if arrays[name].shape != shape:
            raise ShapeError(f"parameter {name} has shape {arrays[name].shape}; the spec wants {shape}")
        if arrays[name].dtype.kind != "f":
            raise ShapeError(f"parameter {name} has dtype {arrays[name].dtype}; it must be a float")
    return arrays


def check_classes(spec: CapsNetSpec, classes: Any) -> tuple[str, ...]:
    """Return the class names, "0", "1", … for None, or say why they do not fit the spec."""
    if classes is None:
        return numbered(spec.classes)
    names = tuple(classes) if isinstance(classes, list | tuple) else ()
    if len(names) != spec.classes or not all(isinstance(name, str) for name in names):
        raise ShapeError(f"classes must be {spec.classes} names, one per class capsule, not {short(classes)}")
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:  # half a character, or a byte of a folder's name that is not UTF-8
            raise ShapeError(f"the class name {short(name)} is no Unicode text: rename it, or its folder") from None
    if len(set(names)) < len(names):
        raise ShapeError(f"every class needs a name of its own, not {short(names)}")
    return names


def preprocessing(spec: CapsNetSpec) -> dict[str, Any]:
    """Return what has to be done to an image file before the network sees it, for users of the file alone."""
    channels, height, width = spec.input
    color = {1: "grey", 3: "rgb"}.get(channels)
    return {"color": color, "height": height, "width": width, "resize": "bilinear", "scale": 1 / 255}


def public(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return a provenance without what only a checkpoint needs, and with file names for paths: to be passed on."""
    told = {name: value for name, value in provenance.items() if name not in (*CHECKPOINT, "data_dir")}
    if isinstance(data := told.get("data"), str):
        told["data"] = PureWindowsPath(data).name  # of a path of either kind
    return told


def describe(spec: CapsNetSpec, classes: tuple[str, ...], provenance: Mapping[str, Any]) -> str:
    """Return the JSON that travels with a model, in a .safetensors or an ONNX file."""
    about = {"format": FORMAT, "spec": json.loads(spec.to_json()), "classes": classes}
    try:
        return json.dumps(about | {"preprocessing": preprocessing(spec), "provenance": dict(provenance)})
    except (TypeError, ValueError, RecursionError) as error:
        raise ModelFileError(f"the provenance must be JSON values: {error}") from None


def read_description(text: str, kind: Any = CapsNetSpec) -> tuple[CapsNetSpec, tuple[str, ...], dict[str, Any]]:
    """Read spec, class names and provenance back from untrusted JSON of `describe`; the spec is of class `kind`."""
    try:
        about = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"the capscore metadata is not JSON: {error}") from None
    if not isinstance(about, dict) or about.get("format") not in range(1, FORMAT + 1):
        found = about.get("format") if isinstance(about, dict) else None
        raise ModelFileError(f"the capscore metadata has format {found!r:.60}; this version reads 1 to {FORMAT}")
    spec = kind.from_json(json.dumps(about.get("spec")))
    provenance = about.get("provenance", {})
    if not isinstance(provenance, dict):
        raise ModelFileError("the capscore metadata's provenance is not a JSON object")
    return spec, check_classes(spec, about.get("classes")), provenance


def save(path: str | os.PathLike[str], model: Model, dtype: str | None = None) -> None:
    """Write a model file; `dtype` "float16" halves it (the parameters alone: state keeps its precision)."""
    from safetensors.numpy import save as serialize

    tensors = {name: np.ascontiguousarray(array) for name, array in model.params.items()}
    if dtype is not None:
        if dtype not in ("float16", "float32", "float64"):
            raise ModelFileError(f"a model is stored as float16, float32 or float64, not {dtype!r}")
        limit = np.finfo(dtype).max
        for name, array in tensors.items():
            if np.any((np.abs(array) > limit) & np.isfinite(array)):
                raise ModelFileError(f"{name} has values beyond {limit}, {dtype}'s largest; store it as it is")
            tensors[name] = array.astype(dtype)
    tensors |= {name: np.ascontiguousarray(array) for name, array in model.state.items()}
    text = describe(model.spec, model.classes, model.provenance)
    about = json.loads(text)
    about["digest"] = _digest(about, tensors)
    write_atomically(path, serialize(tensors, metadata={"capscore": json.dumps(about)}))


def read(path: str | os.PathLike[str], kind: Any = CapsNetSpec) -> Model:
    """Read an untrusted model file whose spec is of class `kind`. ModelFileError says what is wrong with it."""
    from safetensors import SafetensorError, safe_open

    path = as_path(path)
    try:
        if not path.is_file():
            raise ModelFileError("it is a folder" if path.is_dir() else "there is no such file")
        if path.suffix.lower() == ".onnx":
            raise ModelFileError("it is an export; this takes the .safetensors model that it was made of")
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if "capscore" not in metadata:
                raise ModelFileError("it holds no capscore metadata; its spec is unknown")
            spec, classes, provenance = read_description(metadata["capscore"], kind)
            names = set(file.keys())
            for name in names:  # NumPy has no bfloat16 and no float8
                if (stored := file.get_slice(name).get_dtype()) not in ("F16", "F32", "F64"):
                    raise ModelFileError(f"{name:.60} is stored as {stored}, not as F16, F32 or F64")
            tensors = {name: file.get_tensor(name) for name in names}
        _check_digest(metadata["capscore"], tensors)
        params = {name: array for name, array in tensors.items() if not name.startswith(STATE)}
        state = {name: array for name, array in tensors.items() if name.startswith(STATE)}
        return Model(spec, check_params(spec, params), classes, provenance, state)
    except SafetensorError as error:
        raise ModelFileError(
            f"cannot read the model {path}: no .safetensors file, or a damaged one ({error})"
        ) from None
    except (CapscoreError, OSError, TypeError, ValueError, KeyError) as error:
        raise ModelFileError(f"cannot read the model {path}: {error}") from None


def as_path(path: Any) -> Path:
    """Return the path of a file; ModelFileError for what cannot be one."""
    try:
        return Path(path)
    except TypeError:
        raise ModelFileError(f"a model is read from a path, a str or Path, not {short(path)}") from None


def _digest(about: dict[str, Any], tensors: Mapping[str, NDArray[Any]]) -> str:
    """Return the SHA-256 of a description and of the tensors that belong to it."""
    found = hashlib.sha256(json.dumps(about).encode())
    for name, array in sorted(tensors.items()):
        found.update(f"\n{name} {array.dtype} {array.shape}\n".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def _check_digest(text: str, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Raise ModelFileError if a file is not as it was written; one of an earlier version has no digest."""
    about = json.loads(text)
    try:
        whole = "digest" not in about or about.pop("digest") == _digest(about, tensors)
    except RecursionError:  # nothing that was written here lies as deep
        whole = False
    if not whole:
        raise ModelFileError("it is damaged: its digest is not that of its contents; take another copy of it")
