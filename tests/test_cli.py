"""The `capscore` command: what it prints, its exit codes, and that errors of users show no traceback."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import backend, need
from PIL import Image
from test_plain_train import run
from typer.testing import CliRunner

from capscore import PRESETS, __version__, cli, modelfile
from capscore.backends import numpy as caps
from capscore.cli import explore
from capscore.cli.datasets import calibrating
from capscore.data import Dataset, load

COMMANDS = ["train", "eval", "predict", "export", "inspect", "verify", "import", "explore", "play", "demo"]


def capscore(*args, code=0, **options):
    """Run the command as a user does and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "capscore.cli", *map(str, args)],
        capture_output=True, text=True, timeout=300, env=os.environ | {"COLUMNS": "200"}, **options,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stderr


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small network that has seen a few digits."""
    folder = tmp_path_factory.mktemp("model")
    train, test = load("digits")
    part = {"train_images": train.images[:320], "train_labels": train.labels[:320]}
    np.savez(folder / "some.npz", **part, test_images=test.images[:80], test_labels=test.labels[:80])
    run = folder / "run"
    said = capscore("train", "--preset", "small", "--data", folder / "some.npz", "--out", run, "--epochs", 2,
                    "--batch", 32, "--backend", "numpy")  # fmt: skip
    assert "471,216 parameters on numpy; 320 images to learn from, 80 held out" in said
    assert "epoch 2/2 loss" in said
    return run / "best.safetensors"


def test_help_and_version():
    told = capscore("--help")
    for command in COMMANDS:
        assert command in told
        assert "--help" in run(command, "--help")
    assert capscore("--version").strip() == __version__


def test_a_training_goes_on_and_is_measured_on_jax(model, tmp_path):
    backend("jax")
    place = shutil.copytree(model.parent, tmp_path / "run")
    assert "epoch 3/3 loss" in run("train", "--resume", place, "--epochs", 3, "--backend", "jax")
    assert len((place / "log.jsonl").read_text().splitlines()) == 3
    found = [run("eval", place / "best.safetensors", "--backend", name) for name in ("jax", "numpy")]
    assert "of 1,000 test images of digits are wrong" in found[0]
    assert found[0].split(" of ")[0] == found[1].split(" of ")[0]


def test_eval_export_inspect_verify(model, tmp_path):
    need("capscore.export.runtime", "onnx")
    right = run("eval", model, "--backend", "numpy")
    assert "of 1,000 test images of digits are wrong" in right
    onnx = tmp_path / "model.onnx"
    assert f"{onnx}: 1.90 MB from 1.89 MB" in run("export", model, onnx)
    assert capscore("eval", onnx) == right
    _, test = load("digits")
    np.savez(tmp_path / "letters.npz", images=test.images[::5], labels=test.labels[::5], classes=list("abcdefghij"))
    assert "the test set's are a, b" in run("eval", model, "--data", tmp_path / "letters.npz")
    for path in (model, onnx, "small"):
        table = run("inspect", path)
        assert "471,216" in table
        assert "primary" in table
        assert "128×8" in table
    table = capscore("verify", model, "--data", "digits")
    assert table.count("agrees") >= 3
    assert "ONNX Runtime" in table


def test_verify_fails_when_something_differs(model, monkeypatch, capsys):
    from capscore import agree

    monkeypatch.setitem(agree.TOLERANCE, "float64", -1.0)  # not even equal numbers agree
    monkeypatch.setattr(sys, "argv", ["capscore", "verify", str(model)])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    assert exit.value.code == 1
    said = capsys.readouterr().out
    assert "differs (> -1)" in said
    assert "agrees" in said


def test_a_backend_that_computes_something_else_is_told(model, monkeypatch):
    from capscore.agree import verify

    torch = need("capscore.backends.torch", "torch")

    monkeypatch.setattr(torch, "softmax", lambda x, axis, leaky=False: x.softmax(1))
    rows = verify(modelfile.read(model))
    assert {row.engine for row in rows if not row.agrees} == {"torch"}


def test_predict_says_what_the_network_says(model, tmp_path):
    _, test = load("digits")
    paths = []
    for i in (3, 250, 777):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(test.images[i, 0]).save(paths[-1])
    lengths = caps.load(model).predict(test.batch(np.array([3, 250, 777]))[0])
    rows = [json.loads(line) for line in capscore("predict", model, *paths, "--json").splitlines()]
    assert [row["file"] for row in rows] == [str(path) for path in paths]
    assert [row["class"] for row in rows] == [str(i) for i in lengths.argmax(1)]
    np.testing.assert_allclose([list(row["lengths"].values()) for row in rows], lengths, atol=2e-6)
    odd = tmp_path / "[bold]:smile:.png"  # no markup
    odd.write_bytes(paths[0].read_bytes())
    table = capscore("predict", model, paths[0], odd)
    assert "3.png" in table
    assert "[bold]:smile:.png" in table
    assert f"{lengths[0].max():.3f}" in table
    dark = tmp_path / "dark.png"
    Image.fromarray(255 - test.images[3, 0]).save(dark)
    inverted = json.loads(capscore("predict", model, dark, "--json", "--invert"))
    np.testing.assert_allclose(list(inverted["lengths"].values()), lengths[0], atol=2e-6)


def test_predict_lays_transparency_on_what_invert_implies(model, tmp_path):
    _, test = load("digits")
    digit = test.images[3, 0]
    black = Image.merge("LA", (Image.new("L", digit.T.shape, 0), Image.fromarray(digit)))  # ink on a signature pad
    black.save(tmp_path / "black.png")
    Image.merge("LA", (Image.new("L", digit.T.shape, 255), Image.fromarray(digit))).save(tmp_path / "white.png")
    Image.fromarray(255 - digit).save(tmp_path / "paper.png")
    Image.fromarray(digit).save(tmp_path / "plain.png")

    def lengths(*names, options=()):
        said = capscore("predict", model, *(tmp_path / name for name in names), "--json", *options)
        return [list(json.loads(line)["lengths"].values()) for line in said.splitlines()]

    white, plain, black, paper = lengths("white.png", "plain.png", "black.png", "paper.png")
    inverted = lengths("black.png", "paper.png", options=["--invert"])
    np.testing.assert_allclose([white, *inverted], [plain] * 3, atol=2e-6)
    np.testing.assert_allclose(black, paper, atol=2e-6)
    assert np.abs(np.subtract(plain, paper)).max() > 0.01


def test_predict_calls_scores_of_their_own_scores(tmp_path):
    Image.fromarray(load("digits")[1].images[3, 0]).save(tmp_path / "7.png")
    said = run("predict", "inverted-mnist", tmp_path / "7.png", "--json")
    assert min(json.loads(said)["scores"].values()) < 0  # no length is
    assert "lengths" not in said


def test_a_network_of_the_zoo_is_measured_on_what_it_was_made_for(tmp_path):
    assert "dataset fashion-mnist" in run("explore", "efficient-fashion", "--data-dir", tmp_path, code=1)
    assert "test images of digits" in run("eval", "small-mnist", "--backend", "numpy")  # which are some of MNIST's


def test_every_command_takes_a_name_of_the_zoo(tmp_path):
    shipped = run("inspect", "efficient-multimnist")  # the trained one, not the preset of its name
    assert '"data": "multimnist"' in shipped
    images, labels = (array[:20] for array in (load("digits")[1].images, load("digits")[1].labels))
    np.savez(tmp_path / "few.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    options = "--data", tmp_path / "few.npz", "--epochs", 1, "--out", tmp_path / "run", "--backend", "numpy"
    assert "20 images to learn from" in run("train", "--finetune", "small-mnist", *options)


def test_int8_is_calibrated_on_images_of_every_class_as_many_as_a_batch(model, tmp_path):
    need("capscore.export.runtime", "onnx")
    train = load("digits")[0]
    order = np.argsort(train.labels, kind="stable")
    ordered = Dataset(train.images[order], train.labels[order], train.classes)
    assert len(calibrating(ordered)) == len(calibrating(ordered, 8)) == 512
    assert len(calibrating(ordered, 600)) == 600
    assert not np.array_equal(calibrating(ordered), ordered.batch(slice(0, 512))[0])  # which are of two classes
    capscore("export", model, tmp_path / "m.onnx", "--no-verify")
    assert "--data calibrates an int8 one" in capscore("bench", tmp_path / "m.onnx", "--data", "digits", code=1)


def test_an_export_of_some_outputs_of_a_network_with_scores(tmp_path):
    need("capscore.export.runtime", "onnx")

    def told(outputs):
        return run("export", "inverted-mnist", tmp_path / "m.onnx", "--outputs", outputs, "--data", "digits")

    assert "accuracy on 1,000 test images" in told("scores")
    assert "accuracy" not in told("lengths,reconstruction")  # it draws by the scores, which it does not tell


def test_notes_on_images_are_lines_on_standard_error(model, tmp_path):
    Image.new("L", (28, 28), 7).save(tmp_path / "grey.bmp")
    done = subprocess.run(
        [sys.executable, "-m", "capscore.cli", "predict", model, tmp_path / "grey.bmp", "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    json.loads(done.stdout)
    assert done.stderr.startswith(f"note: {tmp_path / 'grey.bmp'}: blank or nearly so")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("pressed", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_the_command_it_names_goes_on(pressed, tmp_path):
    out, (learn, test) = tmp_path / "my run", load("digits")
    some = {"train_images": learn.images[:1000], "train_labels": learn.labels[:1000]}
    np.savez(tmp_path / "some.npz", **some, test_images=test.images[:80], test_labels=test.labels[:80])
    program = [sys.executable, "-u", "-m", "capscore.cli"]
    args = ["train", "--backend", "numpy", "--out", str(out), "--batch", "50", "--epochs", "3"]
    args += ["--data", str(tmp_path / "some.npz")]
    with subprocess.Popen(program + args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        while "epoch 1/3" not in process.stdout.readline():
            pass
        time.sleep(0.3)
        process.send_signal(pressed)
        said = process.stdout.read()
    assert process.returncode == 130, said
    assert f"everything is saved. Go on with: capscore train --resume '{out}'" in said
    assert "Traceback" not in said
    before = modelfile.read(out / "last.safetensors").provenance["training"]
    assert before["steps"] >= 1
    assert "epoch 3/3" in capscore("train", "--resume", out)
    assert "best held-out" in capscore("train", "--resume", out, "--epochs", 3)


def test_a_demo_that_was_stopped_knows_all_that_resuming_asks(tmp_path, monkeypatch):
    from capscore.cli.training import Setup

    seen = {}

    def stopped(net, *_, **options):
        seen.update(options["resuming"])
        raise KeyboardInterrupt

    monkeypatch.setattr("capscore.cli.training.train", stopped)
    result = CliRunner().invoke(cli.app, ["demo", "--backend", "numpy", "--out", str(tmp_path)])
    assert result.exit_code == 130
    assert Setup.of({"recipe": {}, "resume": seen}) == Setup(backend="numpy")


def test_a_folder_of_colour_images_trains_and_keeps_its_class_names(tmp_path):
    rng = np.random.default_rng(0)
    for name, channel in (("red", 0), ("green", 1), ("blue", 2)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(10):
            pixels = rng.integers(0, 80, (20, 24, 3), np.uint8)
            pixels[..., channel] += 150
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    spec = json.loads(PRESETS["small"].to_json()) | {"input": [3, 16, 16], "decoder": None}
    spec["layers"][0]["channels"] = 8
    spec["layers"][-1]["count"] = 3
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    capscore("train", "--spec", tmp_path / "spec.json", "--data", tmp_path / "images", "--out", tmp_path / "run",
             "--epochs", 15, "--batch", 8, "--shift", 1, "--backend", "numpy")  # fmt: skip
    model = tmp_path / "run" / "best.safetensors"
    assert "accuracy 100.00%: 0 of" in (said := capscore("eval", model, "--data", tmp_path / "images"))
    assert "held-out images of" in said
    found = json.loads(capscore("predict", model, tmp_path / "images" / "green" / "0.png", "--json"))
    assert found["class"] == "green"
    assert set(found["lengths"]) == {"red", "green", "blue"}


def test_pairs_of_digits_are_learned_and_evaluated(tmp_path):
    """The paper's MultiMNIST by name: the dataset's own shift, two labels an image, the two longest capsules."""
    rng = np.random.default_rng(0)
    (tmp_path / "mnist").mkdir()
    for part, count in (("train", 2), ("t10k", 2)):
        images, labels = rng.integers(0, 256, (count, 28, 28), np.uint8), np.arange(count, dtype=np.uint8)
        header = bytes([0, 0, 8, 3]) + np.array(images.shape, ">i4").tobytes()
        (tmp_path / "mnist" / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = bytes([0, 0, 8, 1]) + np.array(labels.shape, ">i4").tobytes()
        (tmp_path / "mnist" / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    spec = json.loads(PRESETS["small"].to_json()) | {"input": [1, 36, 36]}
    spec["layers"][0]["channels"], spec["layers"][1]["types"] = 4, 2
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    data = ["--data", "multimnist", "--data-dir", tmp_path]
    said = capscore("train", "--spec", tmp_path / "spec.json", *data, "--out", tmp_path / "run", "--epochs", 1,
                    "--batch", 500, "--backend", "numpy")  # fmt: skip
    assert "2,000 images to learn from, 2,000 held out" in said
    best = tmp_path / "run" / "best.safetensors"
    assert modelfile.read(best).provenance["recipe"]["shift"] == 0
    assert "of 2 test images of multimnist are wrong" in capscore("eval", best, *data)


def test_what_belongs_to_the_checkout_is_no_command(tmp_path):
    page = tmp_path / "docs" / "results.md"
    page.parent.mkdir()
    page.write_text("of a user")
    for command in ("results", "experiment"):
        assert "No such command" in capscore(command, code=2, cwd=tmp_path)
    assert page.read_text() == "of a user"


def wrong(tmp_path, model):
    """Errors of users: a command line, and what the message must say."""
    (tmp_path / "garbage.safetensors").write_bytes(b"garbage" * 10)
    (tmp_path / "garbage.onnx").write_bytes(b"garbage" * 10)
    (tmp_path / "garbage.png").write_bytes(b"garbage" * 10)
    onnx = tmp_path / "model.onnx"
    capscore("export", model, onnx, "--outputs", "capsules, lengths", "--no-verify")
    (tmp_path / "spec.json").write_text('{"input": [1, 28, 28]}')
    (tmp_path / "empty").mkdir()
    garbage, nowhere = tmp_path / "garbage.safetensors", tmp_path / "nowhere.safetensors"
    return [
        (["eval", garbage], "cannot read the model"),
        (["eval", tmp_path / "garbage.onnx"], "cannot load the ONNX model"),
        (["inspect", nowhere], "there is no such file"),
        (["inspect", "medium"], "there is no such file"),
        (["train", "--preset", "medium"], "choose one of mnist"),
        (["train", "--spec", tmp_path / "spec.json"], "spec lacks layers"),
        (["train", "--data", tmp_path / "empty"], "has no class folders"),
        (["train", "--data", "mnits"], "use digits, mnist"),
        (["train", "--data", "mnist", "--data-dir", tmp_path], "mnist"),
        (["train", "--epochs", "-1"], "epochs must be a whole number of at least 1"),
        (["train", "--epochs", "0"], "epochs must be a whole number of at least 1"),
        (["train", "--resume", tmp_path], "no training to resume"),
        (
            ["train", "--resume", tmp_path, "--rate", "0.1", "--amp"],
            "as it began: without --amp, --rate, beside --resume",
        ),
        (
            ["train", "--backend", "tensorflow"],
            "there is no backend 'tensorflow'; choose one of cupy, jax, numpy, torch",
        ),
        (["train", "--backend", "numpy", "--amp", "--out", tmp_path / "amp"], "no option amp"),
        (["train", "--preset", "cifar10"], "1×28×28"),
        (["eval", model, "--split", "test"], "choose one of held-out, train, all"),
        (["predict", model, tmp_path / "garbage.png"], "garbage.png"),
        (["predict", model, tmp_path / "nowhere.png"], "nowhere.png is not there"),
        (["export", model, tmp_path / "no" / "folder.onnx"], "is its folder there and writable?"),
        (["export", model, tmp_path / "m.onnx", "--opset", "3"], "opset must be from 13"),
        (["export", model, model], "one file would be written over another"),
        (["export", model, "--decoder", model.parent / "." / model.name], "one file would be written over another"),
        (["export", model, "m.onnx", "--decoder", tmp_path / "m.onnx"], "one file would be written over another"),
        (["train", "--data", ""], "the name is empty"),
        (["train", "--shift", "28"], "a shift of 28 pixels moves images"),
        (["train", "--decay", "2"], "decay must be at most 1"),
        (["eval", onnx, "--backend", "numpy"], "--backend is for .safetensors models"),
        (["eval", onnx, "--threads", "1000000"], "threads must be 0"),
        (["explore", onnx], "it is an export; this takes the .safetensors model"),
        (["eval", tmp_path / "empty"], "it is a folder"),
        (["predict", model, tmp_path / "empty"], "empty has no images: they are .png"),
        (["verify", garbage], "cannot read the model"),
    ]


def test_a_second_demo_leaves_the_files_of_the_first(tmp_path):
    from capscore.train import locked

    run = tmp_path / "run"
    run.mkdir()
    (run / "last.safetensors").write_bytes(b"of the first")
    with locked(run):
        assert "another training is writing into" in capscore("demo", "--out", tmp_path, code=1)
    assert (run / "last.safetensors").read_bytes() == b"of the first"


def test_the_log_tells_whole_epochs(model):
    from capscore.cli.explore import read_log

    assert [str(row["epoch"]) for row in read_log(model.parent / "log.jsonl")] == ["1", "2"]


def test_an_export_of_any_name_is_measured(model, tmp_path):
    target = tmp_path / "net.bin"
    target.symlink_to(target)  # a loop, which the file takes the place of
    said = capscore("export", model, target, "--data", "digits", "--no-verify")
    assert "exported" in said.splitlines()[-1]


@pytest.mark.parametrize("log", [None, "[" * 10**5, "whole"])
def test_a_damaged_log_costs_no_picture_but_its_own(log, model, tmp_path):
    (tmp_path / "m.safetensors").write_bytes(model.read_bytes())
    if log is not None:
        (tmp_path / "log.jsonl").write_text((model.parent / "log.jsonl").read_text() if log == "whole" else log)
    said = run("explore", tmp_path / "m.safetensors", "--out", tmp_path, "--backend", "numpy")
    assert (tmp_path / "perturbations.png").exists()
    assert (tmp_path / "curves.png").exists() == (log == "whole")
    assert ("no training curves" in said) == (log not in (None, "whole"))


@pytest.mark.parametrize(
    "log",
    [
        '{"epoch": 1',
        "[1]",
        '{"epoch": 1, "loss": "high"}',
        '{"epoch": NaN, "loss": 1, "accuracy": 1, "held_out_accuracy": 1}',
        '{"epoch": 1, "loss": 1, "accuracy": NaN, "held_out_accuracy": 1}',
    ],
)
def test_a_damaged_log_is_told(log, tmp_path, capsys):
    (tmp_path / "log.jsonl").write_text(log)
    assert explore.read_log(tmp_path / "log.jsonl") is None
    assert "no training curves" in capsys.readouterr().out


def test_errors_of_users_are_one_line_and_exit_code_1(model, tmp_path, monkeypatch, capsys):

    monkeypatch.chdir(tmp_path)
    for args, message in wrong(tmp_path, model):
        monkeypatch.setattr(sys, "argv", ["capscore", *map(str, args)])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        err = capsys.readouterr().err
        assert exit.value.code == 1, args
        assert message in err, args
        assert err.startswith("capscore: error: "), args
        assert err.count("\n") <= 3, err


def test_a_wrong_option_is_exit_code_2():
    assert "No such option" in capscore("train", "--epoch", "3", code=2)
    assert "Missing argument" in capscore("predict", code=2)
