"""The playground, in a browser: on WebAssembly and a software WebGPU, by mouse and keyboard, and without a network."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REQUIRED, need, random_params

from capscore import PRESETS, CapsNetSpec, Conv, Decoder, DenseCaps, PrimaryCaps, zoo
from capscore.backends import numpy as NUMPY
from capscore.errors import CapscoreError

need("onnxruntime", "onnx")
from capscore.cli.play import AT, PAGE, serve  # noqa: E402
from capscore.export import onnx as onnx_export  # noqa: E402
from capscore.export import onnxfile, playground  # noqa: E402

ROOT = Path(__file__).parents[1]
MODULES = Path(os.environ.get("CAPSCORE_NODE", ROOT / "examples" / "web")) / "node_modules"
RUNTIME, AXE = MODULES / "onnxruntime-web" / "dist", MODULES / "axe-core" / "axe.min.js"
PATIENCE = 60_000  # ms: a busy machine compiles the runtime slowly
WEBGPU = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]
COLOUR = CapsNetSpec((3, 16, 20), (Conv(8, 5, 2), PrimaryCaps(4, 4, 3), DenseCaps(3, 6)), decoder=Decoder(hidden=(16,)))


def network(spec: CapsNetSpec = COLOUR, seed: int = 0) -> Any:
    return NUMPY.CapsNet(spec, random_params(spec, seed, dtype="float32"), classes=("cat", "dog", "<b>owl"))


# ---- in the browser ----


@pytest.fixture(scope="module")
def chromium() -> Iterator[Callable[..., Any]]:
    """Return what starts a browser with arguments."""
    api = need("playwright.sync_api", "browser")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None or not RUNTIME.is_dir() or not AXE.is_file():
        if "browser" in REQUIRED:
            pytest.fail("CAPSCORE_REQUIRE names browser")
        pytest.skip("needs chromium, and npm install onnxruntime-web axe-core in the folder CAPSCORE_NODE")
    with ExitStack() as stack:
        launch = stack.enter_context(api.sync_playwright()).chromium.launch
        started: dict[tuple[str, ...], Any] = {}

        def start(*arguments: str) -> Any:
            if arguments not in started:
                started[arguments] = launch(executable_path=path, args=["--no-sandbox", *arguments])
                stack.callback(started[arguments].close)
            return started[arguments]

        yield start


@contextmanager
def served(models: Path, port: int = 0) -> Iterator[str]:
    """Serve the page with the runtime, and yield its address."""
    folders = {AT: PAGE, f"{AT}models/": models, f"{AT}runtime/": RUNTIME}
    with serve(folders, port) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}{AT}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models of the page, told to take the runtime from beside it."""
    folder: Path = tmp_path_factory.mktemp("page") / "models"
    shutil.copytree(PAGE / "models", folder)
    told = json.loads((folder / playground.LIST).read_text())
    (folder / playground.LIST).write_text(json.dumps(told | {"runtime": "runtime/"}))
    return folder


@pytest.fixture(scope="module")
def address(models: Path) -> Iterator[str]:
    with served(models) as address:
        yield address


@contextmanager
def opened(browser: Any, address: str, **options: Any) -> Iterator[Any]:
    """Open the page, and see to it that nothing is said on the console or goes wrong."""
    context = browser.new_context(**options)
    context.set_default_timeout(PATIENCE)
    page, wrong = context.new_page(), []
    page.on("console", lambda told: wrong.append(told.text) if told.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    try:
        page.goto(address)
        page.wait_for_function("performance.getEntriesByName('answered').length > 0")
        yield page
        assert not wrong
    finally:
        context.close()


@pytest.fixture
def page(chromium: Callable[..., Any], address: str) -> Iterator[Any]:
    with opened(chromium(), address) as page:
        yield page


def says(page: Any, what: str, where: str = "#answer") -> None:
    """Wait until an element's text fits a regular expression."""
    page.wait_for_function(
        "([where, what]) => new RegExp(what).test(document.querySelector(where).textContent)", arg=[where, what]
    )


def pixels(page: Any, canvas: str) -> str:
    found: str = page.evaluate("id => document.getElementById(id).toDataURL()", canvas)
    return found


def changes(page: Any, canvas: str, before: str) -> None:
    """Wait until a canvas shows something else."""
    page.wait_for_function("([id, was]) => document.getElementById(id).toDataURL() !== was", arg=[canvas, before])


def slide(page: Any, slider: str, value: float) -> None:
    page.locator(slider).evaluate(
        "(input, value) => { input.value = value; input.dispatchEvent(new Event('input', { bubbles: true })); }", value
    )


def stroke(page: Any, *points: tuple[float, float]) -> None:
    """Draw a line by mouse through points that are shares of the paper."""
    box = page.locator("#paper").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=5)
    page.mouse.up()


def test_a_drawing_is_answered(page: Any) -> None:
    says(page, r"^4, \d+% sure$")
    says(page, r"Runs on WebAssembly: [\d.]+ ms a picture", "#engine")
    page.click("#clear")
    says(page, "^Draw something")
    stroke(page, (0.5, 0.15), (0.48, 0.85))
    says(page, r"^1, \d+% sure$")
    stroke(page, (0.3, 0.5), (0.7, 0.5))
    says(page, "^(?!1, )")  # a cross is no one
    page.get_by_label("Take a 7").click()
    says(page, r"^7, \d+% sure$")
    assert page.locator(".capsule.best b").text_content() == "7"
    assert page.locator("input[name=capsule][value='7']").is_checked()


def test_bending_a_capsule_changes_what_the_decoder_draws(page: Any) -> None:
    before = pixels(page, "drawn")
    slide(page, "[aria-label='Number 3']", 0.9)
    changes(page, "drawn", before)
    page.click("#unbend")
    page.wait_for_function("was => document.getElementById('drawn').toDataURL() === was", arg=before)
    page.locator("input[name=capsule][value='8']").check(force=True)  # short as it is, it has a picture
    says(page, "of 8", "#chosen")
    changes(page, "drawn", before)


def test_turning_moves_the_numbers(page: Any) -> None:
    moved = "[...document.querySelectorAll('.moved')].reduce((sum, bar) => sum + parseFloat(bar.style.width), 0)"
    assert page.evaluate(moved) == 0
    before, paper = pixels(page, "seen"), pixels(page, "paper")
    for slider, value in (("#turn", 15), ("#size", 90), ("#right", 2), ("#down", -1)):
        slide(page, slider, value)
        page.wait_for_function(f"{moved} > 1")
        changes(page, "seen", before)
        assert pixels(page, "paper") != paper
        page.click("#straight")
        page.wait_for_function(f"{moved} === 0")
        assert pixels(page, "seen") == before


def test_strokes_go_where_the_pen_is_on_a_drawing_that_was_moved(page: Any) -> None:
    inked = """([x, y]) => {
      const { width, height } = paper;
      return paper.getContext("2d").getImageData(x * width, y * height, 1, 1).data[0] > 100;
    }"""
    page.click("#clear")
    for slider, value in (("#turn", 30), ("#size", 80), ("#right", 3)):
        slide(page, slider, value)
    stroke(page, (0.4, 0.2), (0.4, 0.8))
    assert [page.evaluate(inked, [x, 0.5]) for x in (0.3, 0.4, 0.5)] == [False, True, False]
    says(page, r"\d")


def test_two_digits_are_taken_apart(page: Any) -> None:
    page.get_by_label("Second digit").check(force=True)
    page.get_by_label("Take a 0").click()
    page.wait_for_function("document.getElementById('network').value === 'efficient-multimnist'")
    for digit, name in (("4", "#first-name"), ("0", "#second-name")):  # as they were drawn, whichever is surer
        says(page, f"^{digit}, .*%", name)
    assert pixels(page, "first") != pixels(page, "both")
    page.click("#clear")
    page.wait_for_function("document.getElementById('network').value === 'small-mnist'")
    says(page, "^4, ")
    says(page, "no other digit", "#second-name")
    page.click("#overlap")
    page.wait_for_function("document.getElementById('network').value === 'efficient-multimnist'")


def test_a_network_for_two_digits_in_a_larger_picture(chromium: Callable[..., Any], tmp_path: Path) -> None:
    """As the zoo has it: it sees digits as large as MNIST's, and where they were moved to, to the pixel."""
    layers = (Conv(8, 5, 2), PrimaryCaps(4, 4, 5, 2), DenseCaps(10, 8))
    for name, size in (("one", 28), ("pairs", 36)):
        spec = CapsNetSpec((1, size, size), layers, decoder=Decoder(hidden=(16,)))
        net = NUMPY.CapsNet(spec, random_params(spec, 0, dtype="float32"))
        net.provenance["source"] = [28, 28]
        net.save(tmp_path / f"{name}.safetensors")
    files = [tmp_path / "one.safetensors", tmp_path / "pairs.safetensors"]
    playground.write(files, tmp_path / "models", two="pairs", runtime="runtime/")
    with served(tmp_path / "models") as address, opened(chromium(), address) as page:
        read = "Array.from(seen.getContext('2d').getImageData(0, 0, seen.width, seen.height).data)"
        alone = np.array(page.evaluate(read)).reshape(28, 28, 4)[..., 0]
        page.get_by_label("Second digit").check(force=True)
        page.get_by_label("Take a 0").click()
        page.wait_for_function("document.getElementById('network').value === 'pairs'")
        page.wait_for_function("document.getElementById('seen').width === 36")
        assert page.evaluate("document.getElementById('second').width") == 36
        page.select_option("#network", "pairs")  # it stays with one digit, too
        page.click("#clear")
        page.wait_for_function("document.getElementById('answer').textContent !== 'Draw something.'")
        for right, down in ((0, 0), (4, 0), (-2, 3)):
            page.get_by_label("First digit").check(force=True)
            slide(page, "#right", right)
            slide(page, "#down", down)
            wanted = np.zeros((36, 36), int)
            wanted[4 + down : 32 + down, 4 + right : 32 + right] = alone
            page.wait_for_function(f"wanted => JSON.stringify({read}.filter((_, i) => i % 4 === 0)) === wanted",
                                   arg=json.dumps(wanted.ravel().tolist(), separators=(",", ":")))  # fmt: skip


def test_a_network_that_learned_by_a_spread_loss_names_one_digit(chromium: Callable[..., Any], tmp_path: Path) -> None:
    """Activations of EM capsules stand above one another: 2 has 43% of itself where 4 has 100%."""
    playground.write([zoo.path("em-mnist")], tmp_path / "models", runtime="runtime/")
    with served(tmp_path / "models") as address, opened(chromium(), address) as page:
        says(page, r"^4, \d+% sure$")
        page.click("#compare")
        page.wait_for_function("document.getElementById('row-em-mnist').cells[2].textContent === '4'")


def test_the_steps_of_a_network_with_routing_in_a_residual(chromium: Callable[..., Any], tmp_path: Path) -> None:
    """The last layer's are shown, whatever the names and the numbers of the others'."""
    NUMPY.CapsNet(PRESETS["small-deepcaps"]).save(tmp_path / "deepcaps.safetensors")
    playground.write([tmp_path / "deepcaps.safetensors"], tmp_path / "models", runtime="runtime/")
    with served(tmp_path / "models") as address, opened(chromium(), address) as page:
        says(page, "step 3", "#votes-words")


def test_the_steps_of_the_routing(page: Any) -> None:
    says(page, "After step 3, 4 has", "#votes-words")
    assert page.locator("#shares .best b").text_content() == "4"
    last = pixels(page, "votes")
    slide(page, "#step", 1)
    says(page, "In step 1 every capsule gives each digit the same part", "#votes-words")
    first = pixels(page, "votes")
    slide(page, "#step", 2)
    says(page, "After step 2", "#votes-words")
    assert len({first, pixels(page, "votes"), last}) == 3
    page.select_option("#network", "CNN")
    says(page, "tells of no routing", "#route-note")
    says(page, "has no capsules", "#bend-note")
    for gone in ("#votes", "#shares", "#step", "#votes-words", "#drawn", "#numbers"):
        assert not page.is_visible(gone)
    page.select_option("#network", "efficient-mnist")
    says(page, "No decoder of this network", "#bend-note")
    says(page, "After step 1", "#votes-words")
    assert [page.is_visible(what) for what in ("#drawn", "#numbers", "#votes", "#step")] == [False, True, True, True]


def test_other_networks_are_compared(page: Any) -> None:
    names = page.locator("#network option").evaluate_all("options => options.map((option) => option.value)")
    page.click("#compare")
    for name in names:
        says(page, r"^\d.*%[\d.]+ ms$|\d+%\s*[\d.]+ ms", f"#row-{name}")
    page.get_by_label("Take a 1", exact=True).click()
    for name in set(names) - {"efficient-multimnist"}:
        page.wait_for_function("id => document.getElementById(id).cells[2].textContent === '1'", arg=f"row-{name}")
    page.click("#overlap")
    page.wait_for_function("/^. and .$/.test(document.getElementById('row-efficient-multimnist').cells[2].textContent)")


def test_everything_goes_by_keyboard(page: Any) -> None:
    page.locator("#paper").focus()
    page.keyboard.press("7")
    says(page, "^7, ")
    page.keyboard.press("Tab")  # the radio button of the digits
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "clear"
    page.keyboard.press("Enter")
    says(page, "^Draw something")
    page.locator("#paper").focus()
    for key in ("ArrowUp", "ArrowUp", " ", *["ArrowDown"] * 13, " "):
        page.keyboard.press(key)
    says(page, "^1, ")
    page.locator("input[name=capsule][value='1']").focus()
    page.keyboard.press("ArrowRight")
    says(page, "of 2", "#chosen")
    before = pixels(page, "drawn")
    page.get_by_label("Number 5", exact=True).focus()
    for _ in range(30):
        page.keyboard.press("ArrowRight")
    changes(page, "drawn", before)


@pytest.fixture
def foreign(tmp_path: Path) -> dict[str, Path]:
    """Files that the page cannot use, by what is wrong."""
    import onnx

    (tmp_path / "letter.onnx").write_text("Dear user, this is no network.")
    onnx_export.export(network(), tmp_path / "m.onnx", verify=False)
    stripped = onnx.load(tmp_path / "m.onnx")
    del stripped.metadata_props[:]
    onnx.save(stripped, tmp_path / "stripped.onnx")
    half = (tmp_path / "m.onnx").read_bytes()
    (tmp_path / "half.onnx").write_bytes(half[: len(half) // 2])
    onnx_export.export(network(), tmp_path / "eight.onnx", batch=8, verify=False)
    onnx_export.export_decoder(network(), tmp_path / "lonely.onnx", verify=False)
    inverted = NUMPY.CapsNet(PRESETS["small-inverted"])
    onnx_export.export(inverted, tmp_path / "lengths.onnx", outputs=["lengths", "capsules"], verify=False)
    return {path.stem: path for path in tmp_path.glob("*.onnx")}


def test_a_foreign_file_is_told_of_and_changes_nothing(page: Any, foreign: dict[str, Path]) -> None:
    before = pixels(page, "drawn")
    for name, words in {
        "letter": "letter.onnx cannot be used: it is no ONNX model",
        "stripped": "it is not from capscore: capscore export writes files that tell size, classes and scale",
        "half": "half.onnx cannot be used: it is (no ONNX model|damaged)",
        "eight": "it takes 8 images at a time: export it without --batch",
        "lengths": "it tells lengths,capsules, no scores: export it with --outputs scores",
        "lonely": "lonely.onnx cannot be used: it is the decoder of another network",
    }.items():
        page.set_input_files("#files", foreign[name])
        says(page, words, "#own-note")
        assert page.input_value("#network") == "small-mnist"
    says(page, "^4, ")
    assert pixels(page, "drawn") == before


LIES = {  # what a file may say of itself that its graph does not have
    "size": lambda about: about["spec"].update(input=[3, 100_000, 100_000]),
    "classes": lambda about: about.update(classes=["one"]),
    "names": lambda about: about.update(classes=[1, 2, 3]),
    "where": lambda about: about["provenance"]["export"].update(places={"inputs.0": {"grid": [1, 10_000, 10_000]}}),
    "what": lambda about: about["provenance"]["export"].update(places={"inputs.9": "there"}),
}


def test_a_file_that_lies_of_itself_is_told_of_and_changes_nothing(page: Any, tmp_path: Path) -> None:
    import onnx

    onnx_export.export(network(), tmp_path / "m.onnx", outputs=["lengths", "steps"], verify=False)
    for name, lie in LIES.items():
        model = onnx.load(tmp_path / "m.onnx")
        (told,) = (entry for entry in model.metadata_props if entry.key == "capscore")
        lie(about := json.loads(told.value))
        told.value = json.dumps(about)
        onnx.save(model, tmp_path / f"{name}.onnx")
        page.set_input_files("#files", tmp_path / f"{name}.onnx")
        says(page, f"^{name}.onnx cannot be used: what it says of itself is not what its graph has", "#own-note")
        assert page.input_value("#network") == "small-mnist"
    says(page, "^4, ")


@pytest.mark.parametrize(
    ("lacks", "where", "words"),
    [
        ("WebAssembly.validate = () => false", "#answer", "no SIMD. Browsers since 2023 have it"),
        ("WebAssembly.validate = () => false", "#engine", "Nothing runs here"),
        ("caches.open = () => Promise.reject(new Error('full'))", "#offline", "This browser keeps nothing"),
        ("caches.open = () => Promise.reject(new Error('full'))", "#answer", "^4, "),
    ],
)
def test_what_a_browser_lacks_is_told_of(
    chromium: Callable[..., Any], address: str, lacks: str, where: str, words: str
) -> None:
    context = chromium().new_context()
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.add_init_script(lacks)
    page.goto(f"{address}?engine=wasm")
    says(page, words, where)
    context.close()


def test_a_dropped_export_is_shown_by_its_own_metadata(page: Any, tmp_path: Path) -> None:
    net = network()
    onnx_export.export(
        net, tmp_path / "pets.onnx", byte_images=True, outputs=["lengths", "capsules", "couplings", "steps"]
    )
    onnx_export.export_decoder(net, tmp_path / "pets-decoder.onnx")
    contents = {path.name: list(path.read_bytes()) for path in tmp_path.glob("*.onnx")}
    page.evaluate(
        """contents => {
          const data = new DataTransfer();
          for (const [name, bytes] of Object.entries(contents)) data.items.add(new File([new Uint8Array(bytes)], name));
          document.dispatchEvent(new DragEvent("drop", { dataTransfer: data, cancelable: true }));
        }""",
        contents,
    )
    says(page, "pets.onnx takes 20 × 16 pixels in colour and knows 3 classes.*draws for pets", "#own-note")
    assert page.input_value("#network") == "pets"
    assert page.locator(".capsule b").all_text_contents() == ["cat", "dog", "<b>owl"]
    assert page.locator(".number").count() == 6
    assert page.evaluate("[document.getElementById('seen').width, document.getElementById('seen').height]") == [20, 16]
    seen = page.evaluate("[...document.getElementById('seen').getContext('2d').getImageData(0, 0, 20, 16).data]")
    image = np.array(seen, np.float32).reshape(1, 16, 20, 4)[..., :3].transpose(0, 3, 1, 2) / 255
    wanted = net(image).lengths[0]
    shown = page.locator(".capsule .chance").all_text_contents()
    assert shown == [f"{100 * length:.0f}%" for length in wanted]


def test_a_picture_is_put_on_the_paper(page: Any, tmp_path: Path) -> None:
    from PIL import Image

    sheet = np.asarray(Image.open(PAGE / "digits.png"))
    Image.fromarray(sheet[6 * 28 : 7 * 28, :28]).save(tmp_path / "six.png")
    page.set_input_files("#files", tmp_path / "six.png")
    says(page, "six.png is on the paper", "#own-note")
    says(page, "^6, ")


def test_the_page_works_without_a_network_once_loaded(chromium: Callable[..., Any], models: Path) -> None:
    context = chromium().new_context()
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    with served(models) as address:
        page.goto(address)
        says(page, "works offline", "#offline")
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(address)
    page.reload()
    says(page, r"^4, \d+% sure$")
    page.click("#compare")
    says(page, "ms", "#row-CNN")
    context.close()


@pytest.mark.parametrize("asked", ["webgpu", "wasm"])
def test_the_engine_can_be_chosen(chromium: Callable[..., Any], address: str, asked: str) -> None:
    with opened(chromium(*WEBGPU), f"{address}?engine={asked}") as page:
        says(
            page, {"webgpu": r"Runs on WebGPU \(google swiftshader\)", "wasm": "Runs on WebAssembly"}[asked], "#engine"
        )
        says(page, "^4, ")
        before = pixels(page, "drawn")
        page.get_by_label("Take a 0").click()
        says(page, "^0, ")
        changes(page, "drawn", before)


def test_webgpu_that_is_not_there_is_told_of(chromium: Callable[..., Any], address: str) -> None:
    with opened(chromium(), f"{address}?engine=webgpu") as page:
        says(page, "This browser offers no WebGPU. Runs on WebAssembly", "#engine")


@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_bars_anyone(chromium: Callable[..., Any], address: str, width: int, scheme: str) -> None:
    """By the rules of axe; and no page is wider than the screen."""
    options = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
    with opened(chromium(), address, **options) as page:
        page.click("#compare")
        says(page, "ms", "#row-CNN")
        page.add_script_tag(path=AXE)
        found = page.evaluate(
            "axe.run().then(({ violations }) => violations.map(({ id, nodes }) => id + ': ' + nodes[0].html))"
        )
        assert found == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width


# ---- what is served ----


def test_the_page_is_light() -> None:
    weights = {path: path.stat().st_size for path in PAGE.rglob("*") if path.is_file()}
    assert sum(weights.values()) <= 2_000_000, weights


def test_the_models_of_the_page_are_those_of_its_list() -> None:
    told = json.loads((PAGE / "models" / playground.LIST).read_text())
    files = {entry[key] for entry in told["models"] for key in ("file", "decoder") if key in entry}
    assert {path.name for path in (PAGE / "models").iterdir()} == files | {playground.LIST}
    for name in files:
        assert onnxfile.read(PAGE / "models" / name).provenance["export"]["precision"] == "int8-weights"
    assert told["two"] in [entry["name"] for entry in told["models"]]
    assert "runtime" not in told  # the site has none of its own


def test_files_for_the_page(tmp_path: Path) -> None:
    network().save(tmp_path / "pets.safetensors")
    onnx_export.export(network(), tmp_path / "own.onnx", verify=False)
    files = playground.write([tmp_path / "pets.safetensors", tmp_path / "own.onnx"], tmp_path / "page", two="pets")
    assert [path.name for path in files] == ["pets.onnx", "pets-decoder.onnx", "own.onnx", "models.json"]
    told = json.loads(files[-1].read_text())
    about = {"parameters": sum(row.parameter_count for row in COLOUR.rows), "routing": "Dynamic Routing, 3 steps"}
    assert told == {
        "two": "pets",
        "models": [
            {"name": "pets", "file": "pets.onnx", **about, "decoder": "pets-decoder.onnx"},
            {"name": "own", "file": "own.onnx", **about},
        ],
    }
    outputs = {output.name for output in onnxfile.read(files[0]).outputs}
    assert outputs >= {"lengths", "capsules", "couplings.0.2", "inputs.0", "lengths.0.0"}
    assert "reconstruction" not in outputs
    assert files[2].read_bytes() == (tmp_path / "own.onnx").read_bytes()


@pytest.mark.parametrize(
    ("preset", "routing", "ends"),
    [
        ("small-inverted", "Inverted Attention, 2 steps", "Grid"),  # of layers at the same time
        ("small-vectors", "Vector Routing, 2 steps", "Vector"),
        ("small-self-routing", "Self Routing", "Vector"),
    ],
)
def test_networks_of_other_routings(tmp_path: Path, preset: str, routing: str, ends: str) -> None:
    net = NUMPY.CapsNet(PRESETS[preset])
    assert type(net.spec.output).__name__ == ends
    net.save(tmp_path / "net.safetensors")
    files = playground.write([tmp_path / "net.safetensors"], tmp_path / "page")
    assert json.loads(files[-1].read_text())["models"][0]["routing"] == routing
    assert any(output.name.startswith("couplings") for output in onnxfile.read(files[0]).outputs)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "name at least one"),
        (["a.safetensors", "other/a.onnx"], "two models, or one and the decoder of another, are called a: rename one"),
        (["a.safetensors", "a-decoder.onnx"], "are called a-decoder: rename one"),
        (["decoder.onnx"], "decoder.onnx is a decoder: give the network"),
        (["letter.onnx"], "cannot load the ONNX model"),
        (["absent.safetensors"], "absent.safetensors"),
        (["half.safetensors"], "half.safetensors: no .safetensors file, or a damaged one"),
        (["stereo.safetensors"], "stereo.safetensors takes 2 channels: the page has grey and colour pictures"),
        (["eight.onnx"], "eight.onnx takes 8 images at a time: export it without --batch"),
    ],
)
def test_models_that_the_page_cannot_take(tmp_path: Path, names: list[str], message: str) -> None:
    (tmp_path / "letter.onnx").write_text("Dear user")
    onnx_export.export_decoder(network(), tmp_path / "decoder.onnx", verify=False)
    onnx_export.export(network(), tmp_path / "eight.onnx", batch=8, verify=False)
    network(replace(COLOUR, input=(2, 16, 20), decoder=None)).save(tmp_path / "stereo.safetensors")
    whole = (tmp_path / "stereo.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CapscoreError, match=re.escape(message)):
        playground.write([tmp_path / name for name in names], tmp_path / "page")


def play(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "capscore", "play", *map(str, arguments), "--no-browser"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_command_serves_page_and_models_until_it_is_stopped(tmp_path: Path) -> None:
    network().save(tmp_path / "pets.safetensors")
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "ort.wasm.bundle.min.mjs").write_text("// the runtime")
    process = play(tmp_path / "pets.safetensors", "--port", 0, "--runtime", tmp_path / "dist")
    assert process.stdout is not None
    with process:
        said = [process.stdout.readline(), process.stdout.readline()]
        address = said[1].split()[0]
        assert "2 files" in said[0]

        def get(path: str) -> tuple[str, bytes]:
            with urllib.request.urlopen(address.replace(AT, "") + path) as answer:
                return answer.headers["Content-Type"], answer.read()

        assert get("/") == ("text/html", (PAGE / "index.html").read_bytes())
        assert get(f"{AT}main.js")[0] == "text/javascript"
        told = json.loads(get(f"{AT}models/models.json")[1])
        assert (told["runtime"], told["models"][0]["decoder"]) == ("runtime/", "pets-decoder.onnx")
        assert len(get(f"{AT}models/pets.onnx")[1]) > 1000
        assert get(f"{AT}runtime/ort.wasm.bundle.min.mjs") == ("text/javascript", b"// the runtime")
        for hidden in (f"{AT}models/", "/etc/passwd", f"{AT}models/..%2f..%2fpets.safetensors", "/index.html"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                get(hidden)
        taken = play(tmp_path / "pets.safetensors", "--port", address.split(":")[2].split("/")[0])
        with taken:
            assert "cannot serve on port" in taken.communicate()[1]
        assert taken.returncode == 1
        process.send_signal(signal.SIGTERM)  # SIGINT is ignored by what a shell starts in the background
        try:
            assert process.communicate(timeout=60)[0].strip() == "ended"
        finally:
            process.kill()
    assert process.returncode == 0


def test_the_command_says_what_a_folder_lacks(tmp_path: Path) -> None:
    network().save(tmp_path / "pets.safetensors")
    with play(tmp_path / "pets.safetensors", "--runtime", tmp_path) as process:
        assert "there is no ort.wasm.bundle.min.mjs in" in process.communicate()[1]
    assert process.returncode == 1
