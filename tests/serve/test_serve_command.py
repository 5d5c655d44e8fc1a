from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from shown import ROOT

from egobench.errors import EXIT_ENVIRONMENT, EnvironmentProblem, InvalidInput
from egobench.serve import command


def serve(tmp_path: Path, host: str = "127.0.0.1", port: int = 0, *names: str) -> int:
    return command.serve(names, runs=tmp_path, results=tmp_path, host=host, port=port, keep=1)


def test_without_gradio_one_line_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['gradio'] = None\n"
        "import importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'gradio' else real(name, *more)\n"
        "sys.argv = ['egobench', 'serve']\n"
        "from egobench.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == EXIT_ENVIRONMENT and done.stdout == ""
    assert done.stderr.splitlines() == [
        "egobench: `egobench serve` needs Gradio: pip install -c constraints.txt -e '.[serve]'"
    ]


needs_gradio = pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="pip install 'egobench[serve]'")


@needs_gradio
def test_what_cannot_be_served_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no sweep has run yet"):
        serve(tmp_path, "127.0.0.1", 0, "nothing")
    with pytest.raises(InvalidInput, match="is no address"):
        serve(tmp_path, "no such host.")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EnvironmentProblem, match="choose another with --port"):
            serve(tmp_path, "127.0.0.1", port)


def test_who_can_reach_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert all(map(command.is_loopback, ("127.0.0.1", "127.0.0.2", "localhost", "::1")))
    assert not any(map(command.is_loopback, ("0.0.0.0", "::", "10.1.2.3", "login1")))
    command._warn("127.0.0.1")
    assert capsys.readouterr().err == ""
    command._warn("0.0.0.0")
    assert "can be reached from other machines" in capsys.readouterr().err
