"""The layers of docs/architecture.md hold: a module imports only what lies below it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "egobench"

BASE = {"errors", "units", "hardware", "__init__"}
CONTRACT = {"spec", "records"}
PURE = {"plan", "predict"}
SIDES = {
    "launch": {"launch"},
    "worker": {"worker", "trace", "data", "models", "train", "probes", "evaluate", "compress", "infer"},
    "report": {"report"},
}
HEAVY = {"torch", "transformers", "deepspeed", "peft", "pandas", "matplotlib"}
WEB = {"gradio", "fastapi", "starlette", "uvicorn"}


def side(room: str) -> str | None:
    return next((name for name, rooms in SIDES.items() if room in rooms), None)


def allowed(room: str, imported: str) -> bool:
    if room in {"cli", "__main__"} or room == imported or imported in BASE:
        return True
    if room in BASE:
        return False
    if imported in CONTRACT:
        return True
    if room in CONTRACT:
        return False
    if imported in PURE:
        # A worker gets everything it needs from trial.json, the report from the records; only its probes count FLOPs.
        return room in PURE or room == "launch" or (room == "probes" and imported == "predict")
    if room == "serve":
        # It shows what the report makes, and reaches models by process only (python -m egobench.infer.answering).
        return imported == "report"
    return side(room) is not None and side(room) == side(imported)


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "assets" not in path.parts)


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> list[tuple[str, bool]]:
    """Return (dotted name, inside a function) of every import."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in inside) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "egobench" else [node.module]
            )
            found += [(name, id(node) in inside) for name in names]
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_lower_layers(path: Path) -> None:
    room = room_of(path)
    wrong = [
        name for name, _ in imports(path) if name.startswith("egobench.") and not allowed(room, name.split(".")[1])
    ]
    assert not wrong, f"{room} may not import {wrong}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_login_and_report_sides_never_import_torch_at_the_top(path: Path) -> None:
    if side(room_of(path)) == "worker":
        return
    heavy = [name for name, in_function in imports(path) if name.split(".")[0] in HEAVY and not in_function]
    assert not heavy


def test_only_serve_knows_the_web_and_its_command_loads_without_it() -> None:
    for path in modules():
        web = {name.split(".")[0] for name, _ in imports(path)} & WEB
        at_top = {name.split(".")[0] for name, in_function in imports(path) if not in_function} & WEB
        assert not web or room_of(path) == "serve", path
        assert not at_top or path.stem in {"page", "server"}, path


def test_no_vague_names_and_no_giants() -> None:
    for path in modules():
        assert path.stem not in {"utils", "common", "helpers", "misc"}, path
        lines = path.read_text(encoding="utf-8").count("\n")
        assert lines <= 400, f"{path}: {lines} lines; which two rooms is it?"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                assert length <= 60, f"{path}:{node.lineno} {node.name}: {length} lines"


@pytest.mark.parametrize(
    "command", [["--help"], ["plan", "benchmarks/quickstart.yaml"], ["status", "--help"], ["serve", "--help"]]
)
def test_light_commands_load_nothing_heavy(command: list[str]) -> None:
    code = (
        "import sys\n"
        "from egobench.cli import main\n"
        f"sys.argv = ['egobench', *{command!r}]\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        f"print(sorted({HEAVY | WEB!r} & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip().splitlines()[-1] == "[]"
