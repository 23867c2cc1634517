"""Where a session runs: the execution providers of ONNX Runtime, a row for each, and how a session gets one.

Some are built into a build of ONNX Runtime; others are plugins, each a package of its own beside any build.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from hashlib import sha256
from importlib import metadata
from json import dumps
from pathlib import Path
from typing import Any

from capscore.disk import write_atomically
from capscore.errors import BackendError, CapscoreError, ModelFileError, short

try:
    import onnxruntime
except ModuleNotFoundError as error:
    raise BackendError("running ONNX needs ONNX Runtime: pip install 'capscore[onnx]' or 'capscore[gpu]'") from error
if not hasattr(onnxruntime, "InferenceSession"):  # what is left when one of two is uninstalled
    raise BackendError(
        "ONNX Runtime is installed but empty, as when one of two builds was uninstalled: "
        "pip uninstall onnxruntime onnxruntime-gpu, then pip install 'capscore[onnx]' or 'capscore[gpu]'"
    )

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"


@dataclass(frozen=True)
class Provider:
    """An execution provider: ONNX Runtime's name of it, and what it takes to run there.

    `brings` is the command that brings it, `module` the Python module of a plugin (None for what is built in). `exact`
    makes the options under which float32 is float32, from the kind of device (CPU, GPU or NPU). `then` takes the nodes
    that it lacks; after all others, the CPU does. It `rounds` to TF32 unless the environment forbids it; what it
    `compiles` of a graph can be kept. It `needs` a device; `cures` tells what helps where an error holds a text.
    """

    name: str
    brings: str = "another build of ONNX Runtime brings it"
    module: str | None = None
    exact: Callable[[str], dict[str, str]] = field(default=lambda kind: {})
    then: str | None = None
    rounds: bool = False
    compiles: bool = False
    needs: str = ""
    cures: Mapping[str, str] = field(default_factory=dict)

    def cure(self, error: Exception) -> str | None:
        """Return what helps against an error, if that is known."""
        return next((cure for text, cure in self.cures.items() if text in str(error)), None)


GPU = "pip uninstall onnxruntime, then pip install 'capscore[gpu]'"
PROVIDERS = {
    "cpu": Provider(CPU),
    "cuda": Provider(
        CUDA,
        GPU,
        exact=lambda kind: {"use_tf32": "0"},
        needs="pip install 'onnxruntime-gpu[cuda,cudnn]' brings the libraries",
    ),
    "tensorrt": Provider(TENSORRT, GPU, then="cuda", rounds=True, needs="pip install tensorrt brings the libraries"),
    "tensorrt-rtx": Provider(
        "NvTensorRTRTXExecutionProvider",
        "pip install 'capscore[tensorrt-rtx]'",
        "onnxruntime_ep_nv_tensorrt_rtx",
        rounds=True,
        compiles=True,
        needs="it takes NVIDIA's RTX GPUs, Ampere or later, with a driver for CUDA 13",
    ),
    "openvino": Provider(
        "OpenVINOExecutionProvider",
        "pip install 'capscore[openvino]'",
        "onnxruntime_ep_openvino",
        exact=lambda kind: {"load_config": dumps({kind: {"INFERENCE_PRECISION_HINT": "f32"}})},
        compiles=True,
        needs="it takes Intel's processors, GPUs and NPUs alone; elsewhere the package openvino runs the file",
    ),
    "webgpu": Provider(
        "WebGpuExecutionProvider",
        "pip install 'capscore[webgpu]'",
        "onnxruntime_ep_webgpu",
        # In its own layout, NHWC, version 0.4.0 gets convolutions wrong: tests/test_engines.py has the shapes.
        exact=lambda kind: {"preferredLayout": "NCHW"},
        needs="it takes a GPU, or with ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER=1 in the environment a software adapter, "
        "which is slow",
        cures={
            "requires f16": "this GPU has no f16, in which an fp16 file computes: export it as fp32",
            "Failed to get a WebGPU adapter": "the GPU has no driver that WebGPU can use: on Linux, install the Vulkan "
            "loader (libvulkan1) and the GPU's Vulkan driver",
        },
    ),
}  # fmt: skip
_BY_NAME = {row.name: row for row in PROVIDERS.values()}
_registering = threading.Lock()


def find(provider: str | Sequence[str]) -> tuple[Provider, ...]:
    """Return the providers that are meant, in order of preference, or say which is absent and what brings it."""
    there = onnxruntime.get_available_providers()
    if provider == "auto":
        if CUDA not in there and (problem := _pair()):
            warnings.warn(f"running on the CPU: {problem}", RuntimeWarning, stacklevel=3)
        provider = "cuda" if CUDA in there else "cpu"
    named = (provider,) if isinstance(provider, str) else tuple(provider) if isinstance(provider, Sequence) else ()
    if not named or not all(isinstance(name, str) for name in named):
        raise BackendError(f"no provider is named; choose auto, {', '.join(PROVIDERS)} or ONNX Runtime's own names")
    rows = [PROVIDERS.get(name) or _BY_NAME.get(name) or Provider(name) for name in named]
    if len(named) == 1 and rows[0].then:
        rows.append(PROVIDERS[rows[0].then])
    if absent := [row for row in rows if row.module is None and row.name not in there]:
        raise BackendError(
            f"this ONNX Runtime has no {absent[0].name}, only {', '.join(there)} and the plugins "
            f"{', '.join(name for name, row in PROVIDERS.items() if row.module)}; {_pair() or absent[0].brings}"
        )
    return tuple(rows)


def start(
    path: Path,
    wanted: Sequence[Provider],
    device: int | str = 0,
    options: Mapping[str, str] | None = None,
    threads: int = 0,
    cache: Path | None = None,
    profile: str | None = None,
) -> Any:
    """Return ONNX Runtime's session on the providers; ModelFileError if it is the file's fault, else BackendError.

    `options` are those of the first provider, beside the ones that make float32 exact. What a plugin compiles is kept
    in the folder `cache`. With `profile`, what runs where is written to a file whose name begins so.
    """
    if cache is not None and not wanted[0].compiles:
        those = " and ".join(name for name, row in PROVIDERS.items() if row.compiles)
        raise CapscoreError(f"a cache is for {those}; {wanted[0].name} compiles nothing to keep: leave it out")
    settings, source = _settings(threads, profile), _source(path)
    built_in: list[tuple[str, dict[str, str]]] = []
    for row in wanted:
        more = {name: str(value) for name, value in (options or {}).items()} if row is wanted[0] else {}
        if row.module is not None:
            chosen = _choose(row, devices(row), device)
            more = row.exact(chosen.device.type.name) | more
            _add(row, chosen, more, settings)
            if cache is not None:
                source = _compiled(path, row, f"{described(chosen)} {chosen.ep_metadata} {more}", settings, cache)
        elif row.name == CPU:
            if more:  # ONNX Runtime would drop them without a word
                raise CapscoreError(f"{CPU} takes no options: leave {short(more)} out (threads has its own argument)")
            built_in.append((CPU, {}))
        elif isinstance(device, int):
            built_in.append((row.name, {"device_id": str(device)} | row.exact("GPU") | more))
        else:
            raise CapscoreError(f"{row.name} takes the number of a GPU as its device, not {short(device)}")
    names = [row.name for row in wanted]
    if CUDA in names and hasattr(onnxruntime, "preload_dlls"):
        with redirect_stdout(sys.stderr):  # it prints what it cannot load
            onnxruntime.preload_dlls()
    try:
        session = onnxruntime.InferenceSession(source, settings, built_in or None, enable_fallback=0)
        lost = [row for row in wanted if row.name not in session.get_providers()]
        why = "a library or the driver is missing"
    except Exception as error:  # ONNX Runtime's errors share no base class; those of providers are these
        cure = wanted[0].cure(error)
        theirs = isinstance(error, RuntimeError | ValueError) or type(error).__name__ == "EPFail"
        if names == [CPU] or not (cure or theirs):
            raise ModelFileError(f"cannot load the ONNX model {path}: {reason(error)}") from None
        if cure:
            raise BackendError(f"{wanted[0].name} cannot run {path}: {cure}") from None
        lost, why = list(wanted[:1]), reason(error)
    if lost:
        needs = "" if lost[0].module else _needs(lost[0])  # a plugin has found its device
        raise BackendError(f"this ONNX Runtime has {lost[0].name} but cannot start it: {why}{needs}")
    return session


def devices(row: Provider) -> list[Any]:
    """Return the devices that a plugin offers, registered if it is not yet; BackendError says why there are none."""
    if not hasattr(onnxruntime, "register_execution_provider_library"):
        raise BackendError(
            f"plugins need ONNX Runtime 1.24, and this is {onnxruntime.__version__}: pip install -U onnxruntime"
        )
    with _registering:
        if found := _offered(row):
            return found
        assert row.module is not None
        try:
            library = importlib.import_module(row.module).get_library_path()
        except ModuleNotFoundError:
            raise BackendError(f"there is no {row.module} for {row.name}: {row.brings}") from None
        try:
            onnxruntime.register_execution_provider_library(row.name, library)
        except Exception as error:  # as above
            raise BackendError(
                f"ONNX Runtime {onnxruntime.__version__} cannot load {row.name}: {reason(error)}{_needs(row)}"
            ) from None
        if not (found := _offered(row)):
            onnxruntime.unregister_execution_provider_library(row.name)  # what it looked for may be there next time
            raise BackendError(f"{row.name} finds no device here{_needs(row)}")
        return found


def described(device: Any) -> str:
    """Return what a plugin's device is called: its kind, its maker, and what more is known of it."""
    known = {**device.device.metadata, **device.ep_metadata}
    more = [value for name, value in known.items() if name not in ("library_path", "version")]
    return " ".join(dict.fromkeys([device.device.type.name, device.device.vendor, *more]))


def reason(error: Exception) -> str:
    """Return the first line of an error; ONNX Runtime's go on for pages, with the reason at the line's end."""
    line = next(iter(str(error).splitlines()), type(error).__name__)
    return line if len(line) <= 300 else f"{line[:80]} … {line[-217:]}"


def warn_of_tf32(wanted: Sequence[Provider]) -> None:
    """Warn where a provider may round float32 and has no option against it."""
    if any(row.rounds for row in wanted) and "NVIDIA_TF32_OVERRIDE" not in os.environ:
        warnings.warn(
            "TensorRT may round the factors of float32 products to TF32, 11 bits: start Python with "
            "NVIDIA_TF32_OVERRIDE=0 in the environment to forbid it to all of NVIDIA's libraries, "
            "or with 1 to have no word of it",
            RuntimeWarning,
            stacklevel=3,
        )


def _settings(threads: int, profile: str | None) -> Any:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 4  # what is an error is raised; it would also be printed, with names from the file
    if profile is not None:
        settings.enable_profiling, settings.profile_file_prefix = True, profile
        settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return settings


def _offered(row: Provider) -> list[Any]:
    return [device for device in onnxruntime.get_ep_devices() if device.ep_name == row.name]


def _choose(row: Provider, offered: Sequence[Any], device: int | str) -> Any:
    """Return the device of that number, or the first whose description holds that text."""
    names = [described(each) for each in offered]
    for i, name in enumerate(names):
        if device == i or (isinstance(device, str) and device.lower() in name.lower()):
            return offered[i]
    listed = ", ".join(f"{i} ({name})" for i, name in enumerate(names))
    raise BackendError(f"{row.name} has no device {short(device)}; it has {listed}")


def _add(row: Provider, device: Any, options: dict[str, str], settings: Any) -> None:
    try:
        settings.add_provider_for_devices([device], options)
    except Exception as error:  # as in `start`
        raise BackendError(f"{row.name} refuses its options {short(options)}: {reason(error)}") from None


def _compiled(path: Path, row: Provider, known: str, settings: Any, folder: Path) -> str:
    """Return the file in `folder` with what the provider compiles of the graph, written if it is not there."""
    digest = sha256(f"{row.name} {onnxruntime.__version__} {known}\n".encode() + path.read_bytes()).hexdigest()
    target = folder / f"{path.stem}-{digest[:16]}.onnx"
    if not target.exists():
        flags = onnxruntime.OrtCompileApiFlags.ERROR_IF_NO_NODES_COMPILED
        compiler = onnxruntime.ModelCompiler(settings, _source(path), embed_compiled_data_into_model=True, flags=flags)
        try:
            content = compiler.compile_to_bytes()
        except Exception as error:  # as in `start`
            raise BackendError(f"{row.name} compiles nothing to keep: leave the cache out ({reason(error)})") from None
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(target, content)
    return os.fspath(target)


def _needs(row: Provider) -> str:
    return f"; {row.needs}" if row.needs else ""


def _pair() -> str | None:
    """Return what is wrong if both builds of ONNX Runtime have been installed over each other."""
    try:
        for name in ("onnxruntime", "onnxruntime-gpu"):
            metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
    return (
        "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files: pip uninstall both, "
        "then install one: pip install 'capscore[onnx]' or 'capscore[gpu]'"
    )


def _source(path: Path) -> str | bytes:
    """Return the path, or the file itself where the path is not UTF-8, which ONNX Runtime cannot take."""
    name = os.fspath(path)
    try:
        name.encode()
    except UnicodeEncodeError:
        return path.read_bytes()
    return name
