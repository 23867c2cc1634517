"""Text from strangers on its way to a terminal: it shows what it holds, and has no effect."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from conftest import need
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from capscore import CapsNetSpec, DenseCaps, PrimaryCaps
from capscore.backends import numpy as caps
from capscore.terminal import LINES, Terminal, guard, json_line, printable

SPEC = CapsNetSpec((1, 6, 6), (PrimaryCaps(1, 2, kernel=3), DenseCaps(6, dim=3)))
CLIPBOARD, CLEAR, OVERRIDE = "\x1b]52;c;aGk=\x07", "\x1b[2J\x1b[H", "\u202e"
CLASSES = (f"{CLIPBOARD}zero", f"[bold]{CLEAR}", f"{OVERRIDE}two", "3\naccuracy 100%", "\x9b31m\x7f", "café 二 ×")
PHOTOS = (b"plain.png", b"caf\xe9.png", b"\x1b[2J.png", b"a\nb.png", "二.png".encode(), b":smile:[red].png")
ENCODINGS = ({"PYTHONIOENCODING": "cp1252"}, {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "utf-8"},
             {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"})  # fmt: skip


def capscore(*args: str | bytes | Path, where: dict[str, str], code: int = 0) -> str:
    """Run the command, see that it sends nothing but printable characters of the encoding, and return that."""
    ways = os.environ | {"COLUMNS": "200", "PYTHONPATH": os.pathsep.join(sys.path)} | where
    command = [sys.executable, "-W", "error::EncodingWarning", "-m", "capscore", *args]
    done = subprocess.run(command, capture_output=True, timeout=300, env=ways)
    encoding = where.get("PYTHONIOENCODING", "ascii")
    said = (done.stdout + done.stderr).decode(encoding)
    assert done.returncode == code, said
    assert "Traceback" not in said
    assert all(unicodedata.category(c) not in ("Cc", "Cs") for c in said.replace("\n", "")), repr(said)
    assert OVERRIDE not in said
    return said


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose class names and provenance are hostile, its export, and images with such names."""
    need("capscore.export.runtime", "onnx")
    from capscore.export import onnx

    folder = tmp_path_factory.mktemp("hostile")
    about = {"who": CLEAR, f"{CLIPBOARD}key": {"deep": [OVERRIDE, "\x7f"]}}
    net = caps.CapsNet(SPEC, classes=CLASSES, provenance=about)
    net.save(folder / "m.safetensors")
    onnx.export(net, folder / "m.onnx", verify=False)
    for photo in PHOTOS:
        Image.fromarray(np.arange(0, 252, 7, np.uint8).reshape(6, 6)).save(folder / "x.png")
        os.rename(os.fsencode(folder / "x.png"), os.fsencode(folder) + b"/" + photo)
    return folder


# ------------------------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize("where", ENCODINGS, ids=["cp1252", "ascii", "utf-8", "C"])
@pytest.mark.parametrize("model", ["m.safetensors", "m.onnx"])
def test_inspect_and_predict_of_a_hostile_model(where: dict[str, str], model: str, folder: Path) -> None:
    said = capscore("inspect", folder / model, where=where)
    lines = said.splitlines()
    assert any(
        line.startswith(r"classes: \x1b]52;c;aGk=\x07zero, [bold]\x1b[2J\x1b[H, \u202etwo, 3\n") for line in lines
    )
    assert r"who: \x1b[2J\x1b[H" in lines
    assert "accuracy 100%" not in [line[:13] for line in lines]
    assert ("1×6×6" in said) == ("ascii" not in where.values() and "C" not in where.values())
    assert "1×6×6" in said or "1x6x6" in said
    photos = [os.fsencode(folder) + b"/" + photo for photo in PHOTOS]
    backend = [] if model.endswith("onnx") else ["--backend", "numpy"]
    said = capscore("predict", folder / model, *photos, *backend, where=where)
    assert [part in said for part in (r"caf\xe9.png", r"\x1b[2J.png", r"a\nb.png", ":smile:[red].png")] == [True] * 4
    assert len(said.splitlines()) == 1 + len(photos)
    rows = [
        json.loads(line)
        for line in capscore("predict", "--json", folder / model, *photos, *backend, where=where).splitlines()
    ]
    assert tuple(rows[0]["lengths"]) == CLASSES  # a program is told exactly
    assert [Path(row["file"]).name for row in rows[2:4]] == ["\x1b[2J.png", "a\nb.png"]
    assert Path(rows[1]["file"]).name == r"caf\xe9.png"
    assert all(row["file"].encode() for row in rows)  # no lone surrogates, which other readers refuse


@pytest.mark.parametrize("where", ENCODINGS[::3], ids=["cp1252", "C"])
def test_errors_of_hostile_names_are_one_printable_line(where: dict[str, str], folder: Path) -> None:
    for args, code in (
        (("inspect", b"\x1b[2J\xe9.onnx"), 1),
        (("inspect", b"\x1b[2J\xe9.safetensors"), 1),
        (("eval", b"\xff\n.safetensors", "--backend", "numpy"), 1),
        (("train", "--spec", "\u202e二.json"), 1),
        (("train", b"--\x1b[2J\xff"), 2),
        (("\x1b]0;title\x07",), 2),
        (("train", "--epochs", CLEAR), 2),
    ):
        said = capscore(*args, where=where, code=code)
        assert said.startswith("capscore: error: ")
        assert said.count("\n") == 1


@pytest.mark.parametrize("where", ENCODINGS[:2], ids=["cp1252", "ascii"])
def test_help_needs_no_character_that_a_terminal_lacks(where: dict[str, str]) -> None:
    assert "--epochs" in capscore("train", "--help", where=where)
    assert "inspect" in capscore(where=where, code=2)


def test_all_commands_take_names_that_are_not_utf8(folder: Path, tmp_path: Path) -> None:
    where, root = ENCODINGS[2], os.fsencode(tmp_path)
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(5):
            image = tmp_path / "images" / name / f"{i}.png"
            Image.fromarray(np.full((28, 28), 20 * i, np.uint8)).save(image)
            os.rename(os.fsencode(image), os.fsencode(image)[:-5] + b"\xff%d.png" % i)
    data, model = root + b"/\xe9", tmp_path / "run" / "best.safetensors"
    os.rename(root + b"/images", data)
    capscore("train", "--data", data, "--out", tmp_path / "run", "--epochs", "1", "--backend", "numpy", where=where)
    assert r"\xe9 are wrong" in capscore("eval", model, "--data", data, "--backend", "numpy", where=where)
    exported, image = root + b"/\xff.onnx", data + b"/a/\xff1.png"
    assert "exported" in capscore("export", model, exported, "--data", data, where=where)
    assert r"\xff1.png" in capscore("predict", exported, image, where=where)
    assert r"\xe9" in capscore("inspect", exported, where=where)
    os.rename(data + b"/a", data + b"/\xff")  # a class name has to be text: it goes into files that are
    said = capscore("train", "--data", data, "--out", tmp_path / "other", "--backend", "numpy", where=where, code=1)
    assert r"capscore: error: the class name '\udcff' is no Unicode text: rename it, or its folder" in said


def test_tensorboard_says_which_folders_it_takes(tmp_path: Path) -> None:
    need("tensorboard", "tensorboard")
    from capscore.errors import TrainingError
    from capscore.train.report import TensorBoard

    with pytest.raises(TrainingError, match="its name is not UTF-8; choose another folder"):
        TensorBoard(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9"))).begin(1, 1, 1, 0)
    TensorBoard(tmp_path).begin(1, 1, 1, 0)


def test_what_onnx_runtime_says_of_a_node_is_not_sent(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import onnx
    from onnx import helper, numpy_helper

    from capscore.errors import ModelFileError
    from capscore.export.runtime import Session

    model = onnx.load(folder / "m.onnx")
    for node in model.graph.node:
        node.input[:] = ["gone" if name == "images" else name for name in node.input]
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 1, 2, 3, 4, 99]), "beyond"))
    model.graph.node.insert(0, helper.make_node("Gather", ["images", "beyond"], ["gone"], f"{CLEAR}node", axis=2))
    onnx.save(model, folder / "wrong.onnx")
    session = Session(folder / "wrong.onnx", "cpu")
    with pytest.raises(ModelFileError, match="out of data bounds"):
        session(np.zeros((1, 1, 6, 6), np.float32))
    assert capfd.readouterr() == ("", "")  # it would also write past Python, to the system's own handle
    said = capscore("predict", folder / "wrong.onnx", folder / "plain.png", where=ENCODINGS[2], code=1)
    assert r"\x1b[2J\x1b[Hnode" in said


# ----------------------------------------------------------------------------------------------------- the mechanism


@given(st.text(st.characters(codec=None)))
def test_printable_text_is_printable_and_stays(text: str) -> None:
    shown = printable(text)
    shown.encode()
    assert not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in shown)
    assert not any(unicodedata.bidirectional(c) in ("LRO", "RLO", "LRE", "RLE", "PDF", "LRI", "RLI", "FSI", "PDI")
                   for c in shown)  # fmt: skip
    assert printable(shown) == shown
    if all(c.isprintable() for c in text):
        assert shown == text
    assert printable(text, LINES).count("\n") == text.count("\n")
    assert json.loads(json_line(text)) == text
    assert re.fullmatch(r"[\x20-\x7e]*", json_line(text))


def test_words_of_other_scripts_stay() -> None:
    for text in ("ναι", "نعم", "כן", "はい", "👩\u200d🔬", "e\u0301", r"C:\path\x1b"):
        assert printable(text) == text


@pytest.mark.parametrize("color", [False, True])
def test_nothing_that_rich_draws_carries_control_characters(color: bool) -> None:
    screen = io.TextIOWrapper(io.BytesIO(), "utf-8", newline="")
    console = Terminal(file=screen, force_terminal=color, width=200)
    table = Table(f"{CLEAR}head", f"{CLIPBOARD}head", title=CLEAR)
    table.add_row(CLEAR, Text.from_markup(f"[bold]{CLIPBOARD}[/bold]"), style="red")
    console.print(table, Text(CLEAR), CLEAR)
    console.say("[bold]:smile: " + OVERRIDE)
    with Progress("{task.description}", console=console) as progress:
        progress.update(progress.add_task(f"{CLIPBOARD}bar"), advance=1)
        progress.refresh()
    screen.flush()
    sent = screen.buffer.getvalue().decode()  # type: ignore[attr-defined]
    assert r"[bold]:smile: \u202e" in sent
    assert "\x07" not in sent
    assert OVERRIDE not in sent
    assert CLEAR not in sent
    own = re.sub(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]|\x1b\[[12][KA]|[\r\n]", "", sent)  # colours, the cursor, lines
    assert "\x1b" not in own
    assert ("\x1b" in sent) == color


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such terminals")
def test_a_bar_on_a_terminal_keeps_its_colours_beside_guarded_lines(tmp_path: Path) -> None:
    import pty

    program = tmp_path / "program.py"
    program.write_text(
        "import sys\nfrom capscore.terminal import Terminal, guard\nfrom capscore.train.report import Screen\nguard()\n"
        "screen = Screen(Terminal())\nscreen.begin(1, 1, 5, 0)\nscreen.step(2, 0.5, 0.5)\nscreen.bar.refresh()\n"
        "print('\\x1b[2Jhostile')\nprint('\\x07hostile', file=sys.stderr)\nscreen.close()\n"
    )
    ours, theirs = pty.openpty()
    ways = os.environ | {"TERM": "xterm-256color", "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "utf-8"}
    subprocess.run(
        [sys.executable, program], stdin=theirs, stdout=theirs, stderr=theirs, env=ways, timeout=60, check=True
    )
    os.close(theirs)
    sent = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert "\x1b[2K" in sent
    assert sent.count("hostile") == 2
    assert r"\x1b[3" not in sent.replace(r"\x1b[2Jhostile", "")
    assert r"\x1b[9" not in sent
    assert "\x1b[2J" not in sent
    assert "\x07" not in sent


def test_what_python_itself_prints_is_guarded(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, warnings, logging\nfrom capscore.terminal import guard\nguard()\nguard()\n"
        "print('\\x1b[2J', '\\udcff', '\\u4e8c\\u2026', end='\\n')\nsys.stdout.writelines(['\\x07', '\\n'])\n"
        "warnings.warn('\\x1b]0;\\x07')\nlogging.warning('\\u202e')\nraise ValueError('\\x9b')\n"
    )
    ways = os.environ | {"PYTHONIOENCODING": "cp1252", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, program], capture_output=True, env=ways, timeout=60)
    assert done.stdout.decode("cp1252").splitlines() == [r"\x1b[2J \xff \u4e8c…", r"\x07"]
    said = done.stderr.decode("cp1252")
    assert [part in said for part in (r"UserWarning: \x1b]0;\x07", r"\u202e", r"ValueError: \x9b")] == [True] * 3
    assert not set(said) & {"\x1b", "\x07", "\u202e", "\x9b"}


def test_a_pipe_that_nobody_reads_ends_the_command_quietly(folder: Path) -> None:
    unread, pipe = os.pipe()
    os.close(unread)
    command = [sys.executable, "-m", "capscore", "inspect", folder / "m.safetensors"]
    done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, timeout=60)
    os.close(pipe)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_without_streams_there_is_nothing_to_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)  # as under pythonw
    monkeypatch.setattr(sys, "stderr", other := io.StringIO())
    guard()
    assert sys.stdout is None
    print(CLEAR, file=sys.stderr)
    assert other.getvalue() == "\\x1b[2J\\x1b[H\n"


def test_a_bar_over_guarded_streams_keeps_its_own_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), "utf-8")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    guard()
    terminal = Terminal(force_terminal=True, color_system="standard", width=60)
    with Progress(console=terminal) as progress:
        progress.advance(progress.add_task(f"epoch{CLEAR}", total=2))
        progress.refresh()
        print(f"a note{CLEAR}")  # behind the proxy that rich lays on the guarded stream meanwhile
    stream.flush()
    drawn = stream.buffer.getvalue().decode()
    assert "\x1b[" in drawn
    assert CLEAR not in drawn
    assert set(re.findall(r"\\x1b\[\S\S?", drawn)) <= {r"\x1b[2J", r"\x1b[H"}  # nothing escaped but what was hostile
