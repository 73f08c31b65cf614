"""The package's structure: modules import only from lower levels, and importing it is cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import ptuning

PACKAGE = Path(ptuning.__file__).parent
LEVELS = {
    "errors": 0,
    **dict.fromkeys(("assets", "attention", "checkpointing", "cost", "encoders", "files", "fingerprint", "grouped"), 1),
    **dict.fromkeys(
        ("ensemble", "initializers", "interrupts", "last_layer", "linear", "rows", "settings", "template"), 1
    ),
    **dict.fromkeys(("card", "config", "data", "kernels", "loading"), 2),
    **dict.fromkeys(("engine", "lines", "probes", "prompt", "run_directory", "schedule"), 3),
    "backbone": 4,
    **dict.fromkeys(("placement", "start"), 5),
    "prefix": 6,
    **dict.fromkeys(("forward", "library"), 7),
    **dict.fromkeys(("choices", "generation"), 8),
    **dict.fromkeys(("conversation", "objective"), 9),
    **dict.fromkeys(("evaluation", "gradient"), 10),
    **dict.fromkeys(("predict", "trainer"), 11),
    "inspection": 12,
    "cli": 13,
}


def imports_of(path: Path) -> set[str]:
    """The package's own modules that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "ptuning":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ptuning."):
            names.add((node.module or "").split(".")[1])
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("ptuning.")}
    return names


def test_modules_import_only_from_lower_levels() -> None:
    num_imports = 0
    for path in sorted(PACKAGE.rglob("*.py")):
        module = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if module == "__init__":
            continue
        for imported in imports_of(path) - {module}:
            num_imports += 1
            assert LEVELS[imported] < LEVELS[module], f"{path} imports {imported}"
    assert num_imports > 40


def test_modules_and_functions_stay_short() -> None:
    for path in sorted(PACKAGE.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        assert len(source.splitlines()) <= 400, path
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                start = node.body[1].lineno if ast.get_docstring(node) and len(node.body) > 1 else node.lineno
                assert (node.end_lineno or 0) - start < 40, f"{path}: {node.name}"


def test_importing_the_package_loads_neither_torch_nor_transformers() -> None:
    code = "import sys, ptuning; print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_public_name_can_be_had() -> None:
    assert set(ptuning.__all__) <= set(dir(ptuning))
    assert all(getattr(ptuning, name) is not None for name in ptuning.__all__)
