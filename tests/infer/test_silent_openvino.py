"""OpenVINO and NNCF tell nobody what they do."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

CONVERT = """
import sys
import torch
from egobench.infer.silent_openvino import TELEMETRY, silent

openvino, nncf = silent("openvino"), silent("nncf")
graph = openvino.convert_model(torch.nn.Linear(64, 64), example_input=torch.zeros(1, 64))
nncf.compress_weights(graph)
loaded = [name for name, module in sys.modules.items() if name.startswith(TELEMETRY) and module is not None]
from openvino.tools.ovc import telemetry_utils
from nncf.telemetry import wrapper
print(loaded, telemetry_utils.tm.__name__, type(wrapper.telemetry).__name__)
"""


def test_the_telemetry_package_is_never_loaded(tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    # NNCF is silent by itself under pytest, and both are in CI: a user has neither.
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", CONVERT], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "[] openvino.tools.ovc.telemetry_stub MagicMock"
    assert not list(tmp_path.rglob("*telemetry*")) and not (tmp_path / "intel").exists()


def test_nobody_else_imports_them() -> None:
    direct = re.compile(r"^\s*(import|from) (openvino|nncf)\b", re.MULTILINE)
    found = [path.name for path in (ROOT / "egobench").rglob("*.py") if direct.search(path.read_text("utf-8"))]
    assert found == []
