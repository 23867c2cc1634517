"""Pictures: the numbers behind them exactly, the files as files; how they look is for eyes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from io import BytesIO
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import FLOAT32, FLOAT64, NUMPY, close, random_images, random_params, small_spec, specs
from hypothesis import given, settings
from PIL import Image

from capscore import PRESETS, Decoder, DenseCaps, DynamicRouting, SelfAttention
from capscore.data import Dataset, Pairs, load
from capscore.errors import ModelFileError, ShapeError

pytest.importorskip("matplotlib")
from capscore import figures

ROWS = [
    {"epoch": 1, "loss": 0.4, "accuracy": 0.8, "held_out_accuracy": 0.9},
    {"epoch": 2, "loss": 0.2, "accuracy": 0.92, "held_out_accuracy": 0.97},
]
LONG = ("ankle boot of fine leather", "a name with $ and \\frac{", "two\nlines")


def network(caps: ModuleType = NUMPY, classes: tuple[str, ...] = LONG, dtype: str = "float64", **changes: Any) -> Any:
    spec = small_spec(**changes)
    return caps.CapsNet(spec, random_params(spec), dtype=dtype, classes=classes[: spec.classes])


def one_layer(**routing: Any) -> tuple[DenseCaps, ...]:
    return (DenseCaps(3, dim=5, routing=DynamicRouting(**routing)),)


def png(figure: Any, folder: Path) -> tuple[bytes, tuple[int, int]]:
    """Save a figure; return the file's bytes and its size, decoded by another library."""
    path = folder / "figure.png"
    figures.save(figure, path)
    content = path.read_bytes()
    with Image.open(BytesIO(content)) as image:
        image.load()
        assert image.format == "PNG"
        return content, image.size


# The numbers


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_middle_of_a_perturbation_is_the_reconstruction(caps: ModuleType, dtype: str) -> None:
    net = network(caps, dtype=dtype)
    images = random_images(net.spec, 2)
    plain = net.ops.to_numpy(net.reconstruct(net(images).capsules))
    for image, wanted in zip(images, plain, strict=True):
        drawn = figures.perturb(net, image)
        assert drawn.shape == (6, 11, 2, 7, 6)
        close(drawn[:, 5], np.stack([wanted] * 6), FLOAT64 if dtype == "float64" else FLOAT32)


def test_a_perturbation_moves_one_dimension_of_one_capsule_by_its_step() -> None:
    net = network()
    image = random_images(net.spec, 1)
    drawn = figures.perturb(net, image[0], label=1, steps=[-0.1, 0.3])
    for d in range(6):
        for s, step in enumerate((-0.1, 0.3)):
            capsules = net(image).capsules.copy()
            capsules[0, 1, d] += step
            close(drawn[d, s], net.reconstruct(capsules, np.array([1]))[0], FLOAT64)


def test_the_steps_are_those_of_the_paper() -> None:
    close(figures.STEPS, np.linspace(-0.25, 0.25, 11), 1e-15)
    assert figures.STEPS[5] == 0


@pytest.mark.parametrize("leaky", [False, True])
@pytest.mark.parametrize("iterations", [1, 4])
@pytest.mark.parametrize("layers", [1, 2])
def test_agreement(eager_caps: ModuleType, layers: int, iterations: int, leaky: bool) -> None:
    last = one_layer(iterations=iterations, leaky=leaky)
    net = network(eager_caps, capsules=(DenseCaps(4, dim=5),) * (layers - 1) + last)
    images = random_images(net.spec, 3)
    output, found = net(images, couplings=True), figures.agreement(net, images)
    n = net.spec.rows[-1].input.dims[0]
    assert found.couplings.shape == (iterations, 3, n, 3)
    for ours, theirs in zip(found.couplings, output.couplings[-1], strict=True):
        close(ours, net.ops.to_numpy(theirs), FLOAT64)
    shares = found.couplings.sum(-1)
    assert (shares < 1).all() if leaky else np.allclose(shares, 1, rtol=0, atol=FLOAT64)
    close(found.entropy[0], np.full(3, np.log2(3 + leaky)), FLOAT64)  # all shares are even at first
    assert (found.entropy[1:] < found.entropy[:-1]).all()
    close(found.lengths[-1], net.ops.to_numpy(output.lengths), FLOAT64)
    assert found.lengths.shape == (iterations, 3, 3)


def test_entropy_of_couplings_that_are_decided_is_finite() -> None:
    net = network(capsules=one_layer(iterations=3))
    params = {k: v * (1000 if k == "capsules.0.weight" else 1) for k, v in net.params.items()}
    found = figures.agreement(NUMPY.CapsNet(net.spec, params, dtype="float64"), random_images(net.spec, 2))
    assert found.couplings[-1].max() == 1
    assert (found.entropy[-1] < found.entropy[0]).all()
    assert np.isfinite(found.entropy).all()


def test_entropy_of_couplings_with_a_prior() -> None:
    """Self-attention adds one to the softmax: couplings are negative, or above 1, and their sum is any."""
    net = NUMPY.CapsNet(small_spec(capsules=(DenseCaps(3, dim=5, routing=SelfAttention(), bias=False),)))
    prior = np.random.default_rng(0).normal(size=net.params["capsules.0.routing.prior"].shape)
    net.assign(net.params | {"capsules.0.routing.prior": prior.astype("float32")})
    found = figures.agreement(net, random_images(net.spec, 3))
    assert found.couplings.min() < 0
    assert (found.entropy >= 0).all()
    assert (found.entropy <= 2).all()  # bits of three capsules and none


def test_examples_take_the_classes_in_turn() -> None:
    labels = np.array([2, 2, 0, 0, 0, 2, 1], np.int64)
    data = Dataset(np.zeros((7, 1, 2, 2), np.uint8), labels, ("a", "b", "c", "none of these"))
    assert labels[figures.examples(data, 5)].tolist() == [0, 1, 2, 0, 2]
    assert sorted(figures.examples(data, 99)) == list(range(7))
    several = np.array([[1, 0], [0, 0], [1, 1], [0, 0]], bool)
    shown = several[figures.examples(Dataset(data.images[:4], several, ("a", "b")), 3)]
    assert shown.any(0).all()
    assert not shown.any(1).all()  # one shows none
    none = Dataset(data.images[:2], several[[1, 3]], ("a", "b"))  # no image shows a class
    assert sorted(figures.examples(none, 3)) == [0, 1]
    assert figures.examples(Pairs(data), 4).tolist() == [0, 1, 2, 3]  # of 7,000, whose labels are not drawn for it
    np.testing.assert_array_equal(figures.examples(data, 5), figures.examples(data, 5))


@pytest.mark.parametrize("iterations", [1, 3, 9])
def test_the_maps_show_the_couplings_to_the_winner_where_they_are(iterations: int) -> None:
    net = network(capsules=one_layer(iterations=iterations))
    images = random_images(net.spec, 2)
    types, height, width = net.spec.rows[-1].input[:3]
    output = net(images, couplings=True)
    shown = [ax.images[0].get_array() for ax in figures.couplings(net, images).axes if ax.images]
    turns = {1: [0], 3: [0, 1, 2], 9: [0, 4, 8]}[iterations]
    assert len(shown) == 2 * (1 + len(turns))
    for b in range(2):
        winner = output.lengths[b].argmax()
        for k, turn in enumerate(turns):
            c, found = output.couplings[0][turn][b, :, winner], shown[b * (1 + len(turns)) + 1 + k]
            assert found.shape == (height, width)
            for y in range(height):
                for x in range(width):
                    mean = sum(c[(t * height + y) * width + x] for t in range(types)) / types
                    assert abs(found[y, x] - (mean - 1 / 3)) < FLOAT64


def test_curves_are_errors_in_percent() -> None:
    left, right = figures.training_curves(ROWS).axes
    np.testing.assert_allclose(left.lines[0].get_ydata(), [0.4, 0.2])
    np.testing.assert_allclose(right.lines[0].get_ydata(), [20, 8])
    np.testing.assert_allclose(right.lines[1].get_ydata(), [10, 3])
    assert right.get_yscale() == "log"
    low, high = right.get_ylim()
    assert (low, high) == (2, 50)


def test_right_and_wrong_differ_in_word_and_colour() -> None:
    net = network(classes=("a", "b", "c"))
    images = random_images(net.spec, 1)
    answer = int(net(images).lengths[0].argmax())
    name, other = net.classes[answer], net.classes[answer - 1]
    assert figures._run_for_picture(net, images).says(net, 0, 1) == ("", f"→ {name}", figures.INK)
    assert figures._run_for_picture(net, images, [answer]).says(net, 0, 1) == (name, f"→ {name} ✓", figures.BLUE)
    labels = [(answer - 1) % 3]
    assert figures._run_for_picture(net, images, labels).says(net, 0, 1) == (other, f"→ {name} ✗", figures.ORANGE)


def test_names_are_cut_to_one_line_that_fits() -> None:
    assert figures._short("two\n lines", 1) == "two lines"
    assert figures._short("ankle boot of leather", 0.75) == "ankle boo…"


def test_pictures_of_one_two_and_three_channels() -> None:
    image = np.random.default_rng(0).random((3, 4, 5))
    np.testing.assert_array_equal(figures._picture(image), image.transpose(1, 2, 0))
    for channels in (1, 2):
        shown = figures._picture(image[:channels])
        np.testing.assert_array_equal(shown, np.stack([image[0]] * 3, -1))
    assert figures._picture(image * 4 - 2).min() == 0
    assert figures._picture(image * 4 - 2).max() == 1


def test_a_sheet_has_every_drawing_in_its_place() -> None:
    drawings = np.random.default_rng(0).random((3, 4, 3, 5, 6))  # [D, S, C, H, W]
    sheet = figures._sheet(drawings)
    assert sheet.shape == (3 * 7, 4 * 8, 3)
    for d in range(3):
        for s in range(4):
            tile = sheet[d * 7 : d * 7 + 7, s * 8 : s * 8 + 8]
            np.testing.assert_array_equal(tile[1:-1, 1:-1], drawings[d, s].transpose(1, 2, 0))
            assert (tile[[0, -1]] == 1).all()


# The files


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"input": (1, 12, 6), "capsules": (DenseCaps(1, dim=3),), "decoder": Decoder(())},
        {"input": (3, 6, 25), "capsules": one_layer(iterations=30, leaky=True)},
        {"capsules": (DenseCaps(40, dim=1, routing=DynamicRouting(1)),)},
    ],
)
def test_every_picture_of_every_network(tmp_path: Path, changes: dict[str, Any]) -> None:
    spec = small_spec(**changes)
    net = NUMPY.CapsNet(spec, random_params(spec), classes=LONG if spec.classes == 3 else None)
    images = random_images(spec, 6)
    labels = np.arange(6) % spec.classes
    drawn = [
        figures.reconstructions(net, images, labels),
        figures.perturbations(net, images[0]),
        figures.perturbations(net, images[:2], labels[:2]),
        figures.couplings(net, images[:2]),
        figures.lengths(net, images, labels),
        figures.lengths(net, images[:1]),
    ]
    for figure in drawn:
        _, (width, height) = png(figure, tmp_path)
        assert width == 1350
        assert 200 < height < 3000


@pytest.mark.parametrize(
    ("preset", "routed"),
    [
        ("small-inverted", True),  # logits beside the capsules, whose lengths are all one
        ("small-em", True),  # activations beside poses of any length
        ("small-vectors", True),  # no capsules in the end
        ("small-self-routing", False),  # its last layer averages
        ("small-hvc", False),
    ],
)
def test_networks_with_scores_of_their_own(tmp_path: Path, preset: str, routed: bool) -> None:
    net, data = NUMPY.CapsNet(PRESETS[preset]), load("digits")[1]
    names = {path.stem for path in figures.explore(net, data, tmp_path)}
    drawn = {"reconstructions", "perturbations"} if net.spec.decoder else set()
    assert names == drawn | {"lengths"} | ({"couplings"} if routed else set())
    images, _ = data.batch(slice(0, 4))
    scores = net(images).scores
    told = figures.lengths(net, images)
    assert told.texts[0].get_text() == "Scores of the classes"
    for row, ax in zip(scores, told.axes[1::2], strict=True):
        sure = np.array([bar.get_width() for bar in ax.patches])
        assert sure.argmax() == row.argmax()
        assert 0 <= sure.min() <= sure.max() <= 1
        if preset == "small-inverted":
            close(sure, np.exp(row) / np.exp(row).sum(), FLOAT32)
    if not routed:
        with pytest.raises(ShapeError, match="no layer that routes into its classes"):
            figures.couplings(net, images)


@settings(max_examples=3)
@given(spec=specs(decoder=True))
def test_no_network_is_too_odd(spec: Any) -> None:
    net = NUMPY.CapsNet(spec, random_params(spec))
    images = random_images(spec, 2)
    for figure in (
        figures.reconstructions(net, images),
        figures.perturbations(net, images[0]),
        figures.couplings(net, images),
        figures.lengths(net, images),
    ):
        figure.savefig(BytesIO(), format="png", dpi=20)


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], [ROWS[0] | {"held_out_accuracy": 1.0}], [ROWS[0] | {"accuracy": 0}]])
def test_training_curves(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    _, size = png(figures.training_curves(rows), tmp_path)
    assert size == (1350, 607)


def test_the_same_picture_has_the_same_bytes(tmp_path: Path) -> None:
    net = network()
    images = random_images(net.spec, 2)
    first, _ = png(figures.couplings(net, images), tmp_path)
    again, _ = png(figures.couplings(net, images), tmp_path)
    assert first == again
    assert b"Software" not in first
    figure = figures.training_curves(ROWS)
    assert png(figure, tmp_path)[0] == png(figure, tmp_path)[0]


def test_pictures_can_be_made_in_threads(tmp_path: Path) -> None:
    net = network()
    image = random_images(net.spec, 1)[0]
    paths = [tmp_path / f"{i}.png" for i in range(2)]

    def work(path: Path) -> None:
        figures.save(figures.perturbations(net, image), path)

    workers = [threading.Thread(target=work, args=(path,)) for path in paths]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len({path.read_bytes() for path in paths}) == 1


def test_explore(eager_caps: ModuleType, tmp_path: Path) -> None:
    net = network(eager_caps, dtype="float32")
    data = Dataset(random_images(net.spec, 9, dtype="float32"), np.arange(9) % 3, LONG)
    paths = figures.explore(net, data, tmp_path / "new" / "folder", ROWS, count=4)
    wanted = ["reconstructions", "perturbations", "couplings", "lengths", "curves"]
    assert [path.name for path in paths] == [f"{name}.png" for name in wanted]
    assert sorted(paths) == sorted((tmp_path / "new" / "folder").iterdir())
    for path in paths:
        with Image.open(path) as image:
            assert image.format == "PNG"


def test_explore_without_a_decoder_or_a_log(tmp_path: Path) -> None:
    net = network(decoder=None)
    data = Dataset(random_images(net.spec, 2, dtype="float32"), np.array([2, 2]), LONG)
    assert [path.name for path in figures.explore(net, data, tmp_path)] == ["couplings.png", "lengths.png"]


# What goes wrong


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    net = network()
    images = random_images(net.spec, 2)
    without = network(decoder=None)
    for draw in (
        lambda: figures.reconstructions(without, images),
        lambda: figures.perturbations(without, images[0]),
    ):
        with pytest.raises(ShapeError, match="has no decoder"):
            draw()
    with pytest.raises(ShapeError, match="no images to show"):
        figures.lengths(net, images[:0])
    with pytest.raises(ShapeError, match="wanted 2 whole numbers"):
        figures.lengths(net, images, [0, 1, 2])
    with pytest.raises(ShapeError, match="wanted 0 to 2"):
        figures.perturbations(net, images[0], label=3)
    with pytest.raises(ShapeError, match=r"wanted \[batch, 2, 7, 6\]"):
        figures.couplings(net, images[:, :1])
    with pytest.raises(ShapeError, match="no log rows"):
        figures.training_curves([])
    with pytest.raises(ModelFileError, match="is its folder there"):
        figures.save(figures.training_curves(ROWS), tmp_path / "missing" / "x.png")


def test_without_matplotlib_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from capscore.errors import BackendError\n"
        "try: import capscore.figures\n"
        "except BackendError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    assert run.stdout.strip() == "figures need matplotlib: pip install 'capscore[plot]'"


def test_pyplot_is_not_needed() -> None:
    code = "import sys, capscore.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_eastern_names_have_a_font_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.text import Text

    monkeypatch.setattr(figures, "fontManager", SimpleNamespace(ttflist=[SimpleNamespace(name="SimHei")]))
    page = figures._page(2, "Names", "北京")
    monkeypatch.setattr(page, "savefig", lambda *args, **kwargs: None)
    figures.png(page)
    families = {text.get_text(): text.get_fontfamily() for text in page.findobj(Text)}
    assert families["北京"] == ["sans-serif", "SimHei"]
    assert families["Names"] == ["sans-serif"]
