"""The README's Python runs as it stands, and what it quotes of the source is there."""

import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from conftest import need

from capscore import PRESETS
from capscore.backends import numpy as caps

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("block", [b for b in BLOCKS if "import" in b], ids=lambda b: b.split("\n")[0])
def test_examples_run(block, tmp_path, monkeypatch):
    need("torch", "torch")
    need("onnxruntime", "onnx")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    caps.CapsNet(PRESETS["small"]).save("demo/digits.safetensors")
    names = {}
    exec(compile(block, "README.md", "exec"), names)
    if "same" in names:
        assert abs(names["same"].lengths - caps.to_numpy(names["out"].lengths.detach().numpy())).max() < 2e-6


def test_the_routing_it_quotes_is_the_source():
    (quoted,) = [b for b in BLOCKS if "import" not in b]
    source = (ROOT / "capscore" / "routing.py").read_text()
    for line in quoted.strip().splitlines():
        assert line.split("#")[0].strip() in source


def test_the_routing_of_contributing_is_a_routing():
    """It trains, survives JSON and is exported, and nothing else had to know of it."""
    from capscore import CapsNetSpec, DenseCaps, PrimaryCaps
    from capscore.routing import Routing

    need("onnxruntime", "onnx")
    from capscore.export import onnx

    code = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)[0]
    names = {}
    exec(compile(code, "CONTRIBUTING.md", "exec"), names)
    try:
        layer = DenseCaps(3, 4, names["UniformRouting"]())
        spec = CapsNetSpec((1, 12, 12), PrimaryCaps(2, 4, 5, 2), (layer,), decoder=None)
        assert CapsNetSpec.from_json(spec.to_json()) == spec
        net = caps.CapsNet(spec)
        before = {name: p.copy() for name, p in net.params.items()}
        caps.Learner(net).step(np.ones((2, 1, 12, 12)), np.eye(3)[:2], 1e-3)
        assert all((net.params[name] != p).any() for name, p in before.items())
        with tempfile.TemporaryDirectory() as folder:
            assert max(onnx.export(net, f"{folder}/m.onnx").differences.values()) < 2e-6
    finally:
        del Routing.known["UniformRouting"]
