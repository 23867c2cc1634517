"""The README's Python runs as it stands, and what it quotes of the source is there."""

import re
from pathlib import Path

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
    source = (ROOT / "capscore" / "routing" / "dynamic.py").read_text()
    for line in quoted.strip().splitlines():
        assert line.split("#")[0].strip() in source
