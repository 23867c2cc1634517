"""The same weights and images give the same answers: paper, NumPy, PyTorch, CuPy and ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import oracle
import pytest
from conftest import (
    BACKENDS,
    DTYPES,
    FLOAT32,
    FLOAT64,
    NUMPY,
    SEEDS,
    TOLERANCE,
    backend,
    close,
    given_each,
    plain,
    random_images,
    random_params,
    small_spec,
    specs,
    whole,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from capscore import PRESETS, CapsNetSpec, Conv, DenseCaps, PrimaryCaps
from capscore.agree import allowed
from capscore.errors import ShapeError
from capscore.routing import LinearVotes, dynamic_routing


@given_each(spec=specs(), seed=SEEDS, dtype=DTYPES, batch=st.integers(1, 3))
def test_every_backend_is_the_paper(caps: ModuleType, spec: CapsNetSpec, seed: int, dtype: str, batch: int) -> None:
    params, images = random_params(spec, seed, dtype), random_images(spec, batch, seed, dtype)
    expected = oracle.network(plain(spec), params, images)
    net = caps.CapsNet(spec, params, dtype=dtype)
    out = net(images, couplings=True)
    assert caps.to_numpy(out.lengths).dtype == dtype
    close(caps.to_numpy(out.lengths), expected.lengths, TOLERANCE[dtype], "lengths")
    close(caps.to_numpy(out.capsules), expected.capsules, TOLERANCE[dtype], "capsules")
    for i, (layer, found, wanted) in enumerate(zip(spec.capsules, out.couplings, expected.couplings, strict=True)):
        assert len(found) == layer.routing.iterations
        for r, (c, w) in enumerate(zip(map(caps.to_numpy, found), wanted, strict=True)):
            close(c, w, TOLERANCE[dtype], f"couplings of layer {i}, iteration {r}")
            if layer.routing.leaky:
                assert (c.sum(-1) < 1 + TOLERANCE[dtype]).all()
            else:
                close(c.sum(-1), np.ones(c.shape[:-1]), TOLERANCE[dtype], "sum of couplings")
    if spec.decoder is not None:
        labels = caps.to_numpy(out.lengths).argmax(-1)
        drawn = oracle.reconstruct(plain(spec), params, expected.capsules, labels)
        close(caps.to_numpy(net.reconstruct(out.capsules)), drawn, TOLERANCE[dtype], "of the longest")
        labels = np.random.default_rng(seed).integers(0, spec.classes, batch)
        drawn = oracle.reconstruct(plain(spec), params, expected.capsules, labels)
        close(caps.to_numpy(net.reconstruct(out.capsules, labels)), drawn, TOLERANCE[dtype], "of the labels")


@given(spec=specs(), seed=SEEDS, opset=st.sampled_from([None, 13, 20]))
def test_onnx_runtime_is_the_paper(
    onnx_export: ModuleType,
    runtime: ModuleType,
    tmp_path_factory: pytest.TempPathFactory,
    spec: CapsNetSpec,
    seed: int,
    opset: int | None,
) -> None:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    params = random_params(spec, seed, "float32")
    onnx_export.export(NUMPY.CapsNet(spec, params), path, verify=False, **({} if opset is None else {"opset": opset}))
    session = runtime.Session(path, threads=1)
    for batch in (1, 3):  # of one file
        agrees_with_oracle(session, spec, params, random_images(spec, batch, seed, "float32"))


def agrees_with_oracle(session: Any, spec: CapsNetSpec, params: dict[str, Any], images: Any) -> None:
    expected, out = oracle.network(plain(spec), params, images), session(images)
    close(out.lengths, expected.lengths, FLOAT32, "lengths")
    close(out.capsules, expected.capsules, FLOAT32, "capsules")
    if spec.decoder is None:
        assert out.reconstruction is None
    else:
        drawn = oracle.reconstruct(plain(spec), params, expected.capsules, out.lengths.argmax(-1))
        close(out.reconstruction, drawn, FLOAT32, "reconstruction")


@settings(max_examples=5)
@given(spec=specs(decoder=True), seed=SEEDS, opset=st.sampled_from([17, 18, 20]))
def test_the_file_means_the_same_to_the_reference_evaluator(
    onnx_export: ModuleType, tmp_path_factory: pytest.TempPathFactory, spec: CapsNetSpec, seed: int, opset: int
) -> None:
    from onnx.reference import ReferenceEvaluator

    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    params, images = random_params(spec, seed, "float32"), random_images(spec, 2, seed, "float32")
    onnx_export.export(NUMPY.CapsNet(spec, params), path, opset=opset, verify=False)
    lengths, capsules, drawn = ReferenceEvaluator(str(path)).run(None, {"images": images})
    expected = oracle.network(plain(spec), params, images)
    close(lengths, expected.lengths, FLOAT32)
    close(capsules, expected.capsules, FLOAT32)
    close(drawn, oracle.reconstruct(plain(spec), params, capsules, lengths.argmax(-1)), FLOAT32)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_agree(
    name: str, torch_caps: ModuleType, onnx_export: ModuleType, runtime: ModuleType, tmp_path: Path
) -> None:
    spec = PRESETS[name]
    images = random_images(spec, 2, dtype="float32")
    net = NUMPY.CapsNet(spec, seed=1)
    expected, exact = net(images), NUMPY.CapsNet(spec, seed=1, dtype="float64")(images)
    other = torch_caps.CapsNet(spec, seed=1)
    out = other(images)
    onnx_export.export(net, tmp_path / "model.onnx", verify=False)
    deployed = runtime.Session(tmp_path / "model.onnx")(images)
    for name in ("scores", "lengths", "capsules"):
        wanted = getattr(exact, name)
        if wanted is None:  # the network ends in scores
            continue
        tolerance = allowed("fp32", getattr(expected, name), wanted)  # a deep network's own rounding is larger
        close(torch_caps.to_numpy(getattr(out, name)), wanted, tolerance)
        close(getattr(deployed, name), wanted, tolerance)
    if spec.decoder is not None:
        drawn = net.reconstruct(expected)
        close(torch_caps.to_numpy(other.reconstruct(out)), drawn, FLOAT32)
        close(deployed.reconstruction, drawn, FLOAT32)


# ------------------------------------------------------------------------------- weights trained by somebody else

FOREIGN = CapsNetSpec(
    input=(1, 28, 28),
    stem=(Conv(16, kernel=7),),
    primary=PrimaryCaps(types=16, dim=4, kernel=7, stride=2),
    capsules=(DenseCaps(10, dim=6, bias=False),),
    decoder=None,
)


def foreign_weights() -> dict[str, np.ndarray]:
    """Arrays as some other program might leave them: no capsule bias, one in Fortran order, one in float64."""
    rng = np.random.default_rng(5)
    return {
        "capsules.0.weight": rng.normal(0, 0.5, (16 * 8 * 8, 10, 6, 4)).astype(np.float32),
        "stem.0.weight": np.asfortranarray(rng.normal(0, 0.06, (16, 1, 7, 7)).astype(np.float32)),
        "stem.0.bias": rng.normal(0, 0.1, 16).astype(np.float32).astype(np.float64),
        "primary.weight": rng.normal(0, 0.04, (64, 16, 7, 7)).astype(np.float32),
        "primary.bias": rng.normal(0, 0.1, 64).astype(np.float32),
    }


def test_weights_trained_by_somebody_else_drop_in(
    torch_caps: ModuleType, onnx_export: ModuleType, runtime: ModuleType, tmp_path: Path
) -> None:
    import torch

    weights, images = foreign_weights(), random_images(FOREIGN, 2, dtype="float32")
    tensors = {name: torch.nn.Parameter(torch.from_numpy(array.copy())) for name, array in weights.items()}
    expected = oracle.network(plain(FOREIGN), weights, images)
    cupy_caps = backend("cupy")
    for caps in (NUMPY, torch_caps, cupy_caps):
        for given_params in (weights, tensors, NUMPY.CapsNet(FOREIGN, weights).params):
            for given_images in (images, torch.from_numpy(images)):
                out = caps.CapsNet(FOREIGN, given_params)(given_images)
                close(caps.to_numpy(out.lengths), expected.lengths, FLOAT32)
                close(caps.to_numpy(out.capsules), expected.capsules, FLOAT32)
    for net in (NUMPY.CapsNet(FOREIGN, tensors), torch_caps.CapsNet(FOREIGN, weights)):
        onnx_export.export(net, tmp_path / "model.onnx", verify=False)
        agrees_with_oracle(runtime.Session(tmp_path / "model.onnx"), FOREIGN, weights, images)
        assert runtime.Session(tmp_path / "model.onnx")(torch.from_numpy(images)).reconstruction is None


def test_parameters_travel_between_all_backends(caps: ModuleType) -> None:
    spec = small_spec()
    net = caps.CapsNet(spec, random_params(spec), dtype="float64")
    for name in BACKENDS:
        other = backend(name)
        copy = other.CapsNet(spec, net.params, dtype="float64")
        assert list(copy.params) == list(spec.parameters)
        for parameter, array in copy.params.items():
            np.testing.assert_array_equal(other.to_numpy(array), caps.to_numpy(net.params[parameter]))
        out, images = net(random_images(spec, 2)), random_images(spec, 2)
        close(other.to_numpy(copy(caps.asarray(images)).lengths), caps.to_numpy(out.lengths), FLOAT64)


def test_a_seed_means_the_same_parameters_on_every_backend(caps: ModuleType) -> None:
    expected = NUMPY.CapsNet(small_spec(), seed=9).params
    for name, array in caps.CapsNet(small_spec(), seed=9).params.items():
        np.testing.assert_array_equal(caps.to_numpy(array), expected[name])


def test_a_network_does_not_share_memory_with_the_weights_given(caps: ModuleType) -> None:
    params = random_params(small_spec(), dtype="float32")
    net = caps.CapsNet(small_spec(), params)
    before = {name: array.copy() for name, array in params.items()}
    for array in params.values():
        array += 1
    for name, array in net.params.items():
        np.testing.assert_array_equal(caps.to_numpy(array), before[name])


# ----------------------------------------------------------------- an image's answer depends on that image alone


@pytest.fixture(params=[*BACKENDS, "onnx"])
def predict(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Images → lengths, capsules and reconstruction of one network, on each backend and in ONNX Runtime."""
    spec = small_spec()
    params = random_params(spec, dtype="float32")
    if request.param == "onnx":
        request.getfixturevalue("onnx_export").export(
            NUMPY.CapsNet(spec, params), tmp_path / "model.onnx", verify=False
        )
        session = request.getfixturevalue("runtime").Session(tmp_path / "model.onnx")
        return lambda images: tuple(session(images)[:3])
    caps = backend(request.param)
    net = caps.CapsNet(spec, params)

    def run(images: np.ndarray) -> tuple[np.ndarray, ...]:
        out = net(images)
        return tuple(map(caps.to_numpy, (out.lengths, out.capsules, net.reconstruct(out.capsules))))

    return run


def test_predictions_do_not_depend_on_the_batch(predict: Any) -> None:
    images = random_images(small_spec(), 7, dtype="float32")
    together = predict(images)
    order = np.random.default_rng(0).permutation(7)
    for found, each in zip(together, predict(images[order]), strict=True):
        close(each, found[order], FLOAT32, "permuted")
    for i in range(7):
        for found, alone in zip(together, predict(images[i : i + 1]), strict=True):
            close(alone[0], found[i], FLOAT32, "alone")


@pytest.mark.filterwarnings("ignore:images go from")
@pytest.mark.parametrize("value", [np.nan, 1e20])
def test_a_bad_image_harms_no_other(predict: Any, value: float) -> None:
    images = random_images(small_spec(), 3, dtype="float32")
    good = predict(images)
    images[1, 0, 3, 3] = value
    for found, wanted in zip(predict(images), good, strict=True):
        close(found[[0, 2]], wanted[[0, 2]], FLOAT32)
        assert np.isfinite(found[1]).all() or np.isnan(value)
    assert np.isnan(predict(images)[0][1]).any() == np.isnan(value)


def test_an_empty_batch_has_an_empty_answer(predict: Any) -> None:
    lengths, capsules, drawn = predict(random_images(small_spec(), 0, dtype="float32"))
    assert (lengths.shape, capsules.shape, drawn.shape) == ((0, 3), (0, 3, 6), (0, 2, 7, 6))


# --------------------------------------------------------------------------- the routing and the votes by themselves


@given_each(
    shape=st.tuples(*[st.integers(1, n) for n in (3, 6, 5, 4)]),
    seed=SEEDS,
    iterations=st.integers(1, 5),
    leaky=st.booleans(),
    dtype=DTYPES,
)
def test_dynamic_routing_of_a_plain_array_is_procedure_1(
    caps: ModuleType, shape: tuple[int, ...], seed: int, iterations: int, leaky: bool, dtype: str
) -> None:
    u_hat = np.random.default_rng(seed).normal(0, 0.5, shape).astype(dtype)  # [B, N, J, D]
    v = whole(caps, lambda votes: dynamic_routing(caps, votes, iterations, leaky))(caps.asarray(u_hat))
    nothing = np.zeros(shape[2:])
    wanted = [oracle.routing(each.astype(np.float64), nothing, iterations, leaky)[0] for each in u_hat]
    close(caps.to_numpy(v), np.array(wanted), TOLERANCE[dtype])


def test_dynamic_routing_routes_three_times_unless_told(caps: ModuleType) -> None:
    u_hat = caps.asarray(np.random.default_rng(0).normal(size=(2, 6, 4, 3)))
    np.testing.assert_array_equal(
        caps.to_numpy(dynamic_routing(caps, u_hat)), caps.to_numpy(dynamic_routing(caps, u_hat, 3, False))
    )
    with pytest.raises(ShapeError, match="iterations must be at least 1, not 0"):
        dynamic_routing(caps, u_hat, 0)


@given_each(shape=st.tuples(*[st.integers(1, n) for n in (3, 6, 5, 4, 3)]), seed=SEEDS)
def test_votes_never_written_down_are_the_votes(caps: ModuleType, shape: tuple[int, ...], seed: int) -> None:
    b, n, j, d, k = shape
    rng = np.random.default_rng(seed)
    u, w, bias = rng.normal(size=(b, n, k)), rng.normal(size=(n, j, d, k)), rng.normal(size=(j, d))
    u_hat = np.array([oracle.votes(each, w) for each in u])
    c, v = rng.random((j, b, n)), rng.normal(size=(j, b, d))

    def ask(u: Any, w: Any, bias: Any, c: Any, v: Any) -> list[Any]:
        votes = LinearVotes(caps, u, w, bias, (n, j, d, k))
        return [votes.array(), votes.combine(c), votes.combine(0.25), votes.agree(v)]

    written, summed, mean, agreed = map(caps.to_numpy, whole(caps, ask)(*map(caps.asarray, (u, w, bias, c, v))))
    close(written, u_hat.transpose(2, 0, 1, 3), FLOAT64)
    close(summed, np.einsum("jbn,bnjd->jbd", c, u_hat) + bias[:, None], FLOAT64)
    close(mean, 0.25 * np.einsum("bnjd->jbd", u_hat) + bias[:, None], FLOAT64)
    close(agreed, np.einsum("bnjd,jbd->jbn", u_hat, v), FLOAT64)
