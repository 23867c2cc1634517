"""What README.md says of results, held by every engine in every precision."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
from conftest import (
    EXPORTED,
    FLOAT32,
    FLOAT64,
    NUMPY,
    backend,
    close,
    need,
    plain,
    random_images,
    random_params,
    small_spec,
)

from capscore.errors import ShapeError
from capscore.ops import OVERSHOOT, check_range, to_host

SPEC = small_spec()
PARAMS = random_params(SPEC, dtype="float32")
BEYOND = pytest.mark.filterwarnings("ignore:images go from")

NETWORKS = [(name, precision) for name in ("numpy", "torch", "cupy") for precision in ("float64", "fp32")]
FILES = [(name, precision) for name in ("onnxruntime", "openvino") for precision in ("fp32", "fp16", "int8")]
OURS = pytest.mark.parametrize("engine", NETWORKS + FILES[:3], indirect=True, ids="-".join)  # all but OpenVINO


@dataclass(frozen=True)
class Engine:
    name: str
    precision: str
    run: Callable[[Any], dict[str, np.ndarray]]

    @property
    def tolerance(self) -> float:
        return EXPORTED[self.precision]


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the file of a precision, with every output there is; each is written once."""
    onnx_export, folder = need("capscore.export.onnx", "onnx"), tmp_path_factory.mktemp("exports")

    def export(precision: str) -> Path:
        path = folder / f"{precision}.onnx"
        if not path.exists():
            outputs = ("lengths", "capsules", "reconstruction", "couplings")
            seen = random_images(SPEC, 64, seed=9, dtype="float32")
            net = NUMPY.CapsNet(SPEC, PARAMS)
            onnx_export.export(net, path, precision=precision, outputs=outputs, calibration=seen, verify=False)
        return path

    return export


@pytest.fixture(scope="module", params=NETWORKS + FILES, ids="-".join)
def engine(request: pytest.FixtureRequest, exports: Callable[[str], Path]) -> Engine:
    name, precision = request.param
    if (name, precision) in NETWORKS:
        net = backend(name).CapsNet(SPEC, PARAMS, dtype="float32" if precision == "fp32" else "float64")

        def network(images: Any) -> dict[str, np.ndarray]:
            out = net(images, couplings=True)
            found = {"lengths": out.lengths, "capsules": out.capsules, "drawn": net.reconstruct(out.capsules)}
            found |= {f"couplings.{i}.{r}": c for i, layer in enumerate(out.couplings) for r, c in enumerate(layer)}
            return {name: to_host(array) for name, array in found.items()}

        return Engine(name, precision, network)
    if name == "onnxruntime":
        session = need("capscore.export.runtime", "onnx").Session(exports(precision), "cpu", 1)

        def runtime(images: Any) -> dict[str, np.ndarray]:
            out = session(images)
            found = {"lengths": out.lengths, "capsules": out.capsules, "drawn": out.reconstruction}
            layers = enumerate(out.couplings)
            return found | {f"couplings.{i}.{r}": c for i, layer in layers for r, c in enumerate(layer, start=1)}

        return Engine(name, precision, runtime)
    openvino = need("openvino", "openvino")
    how = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(exports(precision)), "CPU", how)

    def other(images: Any) -> dict[str, np.ndarray]:
        found = {output.get_any_name(): np.array(array) for output, array in compiled([images]).items()}
        return found | {"drawn": found.pop("reconstruction")}

    return Engine(name, precision, other)


def images(batch: int, seed: int = 0) -> np.ndarray:
    return random_images(SPEC, batch, seed, "float32")


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_all_of_them_agree_with_the_paper(engine: Engine, batch: int) -> None:
    found = engine.run(images(batch, seed=batch))
    expected = oracle.network(plain(SPEC), PARAMS, images(batch, seed=batch))
    close(found["lengths"], expected.lengths, engine.tolerance, "lengths")
    close(found["capsules"], expected.capsules, engine.tolerance, "capsules")
    drawn = oracle.reconstruct(plain(SPEC), PARAMS, found["capsules"], found["lengths"].argmax(1))
    close(found["drawn"], drawn, engine.tolerance, "drawn")
    for name, c in found.items():
        if name.startswith("couplings"):
            layer, iteration = map(int, name.split(".")[1:])
            close(c, expected.couplings[layer][iteration], engine.tolerance, name)


def test_couplings_are_a_softmax_over_output_capsules(engine: Engine) -> None:
    found = {name: c.sum(-1) for name, c in engine.run(images(3)).items() if name.startswith("couplings")}
    assert len(found) >= 3
    for name, total in found.items():
        if name.startswith("couplings.0"):  # leaky: some of it is left over
            assert (total < 1).all()
        else:
            close(total, np.ones_like(total), max(FLOAT32, FLOAT64), name)


def test_a_batch_never_changes_a_prediction(engine: Engine) -> None:
    x = images(7)
    together = engine.run(x)
    order = np.random.default_rng(0).permutation(7)
    permuted, alone = engine.run(x[order]), [engine.run(x[i : i + 1]) for i in range(7)]
    tolerance = FLOAT32 if engine.precision == "int8" else engine.tolerance  # its sums are of whole numbers
    for name in ("lengths", "capsules"):
        close(permuted[name], together[name][order], tolerance, name)
        close(np.concatenate([one[name] for one in alone]), together[name], tolerance, name)


def test_lengths_are_below_one_and_all_is_finite(engine: Engine) -> None:
    rng, shape = np.random.default_rng(0), (4, *SPEC.input)
    for x in (np.zeros(shape), np.ones(shape), rng.integers(0, 2, shape), rng.random(shape)):
        found = engine.run(x.astype(np.float32))
        assert all(np.isfinite(array).all() for array in found.values())
        assert (found["lengths"] >= 0).all()
        assert (found["lengths"] <= 1 + FLOAT32).all()
        lengths = np.linalg.norm(found["capsules"].astype(np.float64), axis=-1)
        close(found["lengths"], lengths, FLOAT32)
        assert (found["drawn"] >= 0).all()
        assert (found["drawn"] <= 1).all()


def test_an_image_that_holds_nan_gives_nan_and_harms_no_other(engine: Engine) -> None:
    x = images(3)
    good = engine.run(x)
    x[1, 0, 3, 3] = np.nan
    found = engine.run(x)
    for name in ("lengths", "capsules"):
        if engine.name != "openvino":  # whose ReLU makes 0 of NaN: docs/deploy.md says so
            assert np.isnan(found[name][1]).all(), name
        close(found[name][[0, 2]], good[name][[0, 2]], min(engine.tolerance, EXPORTED["fp16"]), name)


@OURS
@BEYOND
@pytest.mark.parametrize("value", [-1.0, 255.0, 1e10, 1e20, -1e20])
def test_squash_and_lengths_are_finite_up_to_1e20(engine: Engine, value: float) -> None:
    """In float32; where a precision cannot hold that, the session says so instead of answering."""
    x = images(3)
    good = engine.run(x)
    x[1, 0, 3, 3] = value
    if engine.precision in ("fp16", "int8"):
        with pytest.raises(ShapeError, match=rf"images go from .* to .*; {engine.precision} takes 0 to 1 alone"):
            engine.run(x)
        return
    found = engine.run(x)
    assert all(np.isfinite(array).all() for array in found.values())
    for name in ("lengths", "capsules"):
        close(found[name][[0, 2]], good[name][[0, 2]], engine.tolerance, name)


# Images that are not in [0, 1]

STANDARDISED = (images(3) - 0.1307) / 0.3081
WRONG = {
    "bytes": (np.round(images(3) * 255), r"images go from \d to 25\d; .*: images / 255 for whole"),
    "16 bits": (np.round(images(3) * 65535), r"images go from .*: images / 65535 for whole"),
    "standardised": (STANDARDISED, r"images go from -0\.4\d* to 2\.\d+; .*images \* std \+ mean undoes a"),
    "centred": (images(3) - np.float32(0.5), r"images go from -0\.\d+ to 0\.\d+; "),
    "noisy": (images(3) + np.float32(0.3), r"images\.clip\(0, 1\) cuts what overshoots"),
    "infinite": (np.where(images(3) > 0.9, np.float32(np.inf), 0), r"to inf; .*: scale images to that"),
    "beside NaN": (np.where(images(3) > 0.9, np.float32(np.nan), 255), r"images go from 255 to 255"),
}


def says(engine: Engine, x: np.ndarray, message: str) -> None:
    if engine.precision in ("fp16", "int8"):
        with pytest.raises(ShapeError, match=message):
            engine.run(x)
    else:
        with pytest.warns(RuntimeWarning, match=message):
            engine.run(x)


@OURS
@pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow")
@pytest.mark.parametrize("what", WRONG)
def test_images_beyond_0_to_1_are_told_of(engine: Engine, what: str) -> None:
    x, message = WRONG[what]
    says(engine, x.astype(np.float32), message)
    if engine.precision == "fp32":
        says(engine, x.astype(np.float64), message)


def test_noise_and_overshooting_filters_are_let_pass(engine: Engine) -> None:
    x = images(3)
    x[0, 0, 0, 0], x[1, 0, 0, 0] = -OVERSHOOT, 1 + OVERSHOOT
    engine.run(x)  # warnings are errors here
    engine.run(x[:0] if engine.name != "openvino" else x)


def test_what_the_messages_advise_brings_the_images_there() -> None:
    names = {"std": np.float32(0.3081), "mean": np.float32(0.1307)}
    cures = {
        "bytes": "images / 255", "16 bits": "images / 65535", "standardised": "images * std + mean",
        "noisy": "images.clip(0, 1)",
    }  # fmt: skip
    torch = need("torch", "torch")
    for what, cure in cures.items():
        x, _ = WRONG[what]
        with pytest.warns(RuntimeWarning, match="images go from") as told:
            check_range(x)
        assert cure in str(told[0].message)
        for array in (x, torch.from_numpy(x)):
            check_range(to_host(eval(cure, names | {"images": array})))


@pytest.mark.parametrize("name", ["numpy", "torch", "cupy"])
def test_training_and_predict_tell_of_them_too(name: str) -> None:
    caps, x = backend(name), STANDARDISED
    net = caps.CapsNet(SPEC, PARAMS)
    with pytest.warns(RuntimeWarning, match="images go from"):
        net.predict(x)
    with pytest.warns(RuntimeWarning, match="images go from"):
        caps.Learner(net).step(x, np.eye(3, dtype=np.float32), 1e-3)


def test_python_shows_such_a_warning_once() -> None:
    net = NUMPY.CapsNet(SPEC, PARAMS)
    with warnings.catch_warnings(record=True) as told:
        warnings.resetwarnings()
        for _ in range(3):
            net(STANDARDISED)
    assert len(told) == 1


def test_tensors_on_the_cpu_are_looked_at_without_a_trace_of_it() -> None:
    torch = need("torch", "torch")
    net, x = backend("torch").CapsNet(SPEC, PARAMS), torch.from_numpy(np.float32(STANDARDISED))
    for tensor in (x, x.clone().requires_grad_(), x.double(), x.bfloat16()):
        with pytest.warns(RuntimeWarning, match="images go from"):
            net(tensor)
    torch._dynamo.reset()
    torch.compile(net, fullgraph=True, backend="eager")(x)  # nothing is said: what is looked at would break the graph
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert net(mode.from_tensor(x)).lengths.shape == (3, 3)


# Files


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_file_is_flat_takes_any_batch_and_names_its_nodes(exports: Callable[[str], Path], precision: str) -> None:
    onnx = need("onnx", "onnx")
    graph = onnx.load(exports(precision)).graph
    assert "capsules.1/route/2/softmax" in {node.name for node in graph.node}
    assert not {"Loop", "Scan", "If"} & {node.op_type for node in graph.node}
    for value in (*graph.input, *graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    session = need("capscore.export.runtime", "onnx").Session(exports(precision), "cpu", 1)
    assert session.precision == precision


def test_calibration_images_must_fit_as_well(tmp_path: Path) -> None:
    onnx_export, seen = need("capscore.export.onnx", "onnx"), np.round(images(40) * 255)
    for byte_images in (False, True):
        with pytest.raises(ShapeError, match="calibration images go from 0 to 255; int8 takes 0 to 1 alone"):
            onnx_export.export(
                NUMPY.CapsNet(SPEC, PARAMS), tmp_path / "m", precision="int8", calibration=seen, byte_images=byte_images
            )
