"""The package's structure: folders and modules import only from lower floors, and importing it is cheap."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import ptuning

PACKAGE = Path(ptuning.__file__).parent
FLOORS = {
    **dict.fromkeys(("errors", "lazy", "typed"), 0),
    "files": 1,
    **dict.fromkeys(("data", "sealed"), 2),
    **dict.fromkeys(("config", "model"), 3),
    **dict.fromkeys(("prompts", "forward"), 4),
    **dict.fromkeys(("evaluation", "inference"), 5),
    **dict.fromkeys(("training", "export"), 6),
    "inspection": 7,
    **dict.fromkeys(("comparison", "estimators"), 8),
    "distillation": 9,
    "cli": 10,
    "__main__": 11,
}
FILES_ON_THE_GROUND = {"errors", "files", "lazy", "sealed", "typed"}


def modules() -> dict[str, Path]:
    """Dotted name below the package -> file; a folder's `__init__` has the folder's name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The package's own modules that a file imports, anywhere in it; a folder where one of its names is imported."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[2] for alias in node.names if alias.name.startswith("ptuning."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ptuning":
            module = (node.module or "").partition(".")[2]
            for alias in node.names:
                whole = f"{module}.{alias.name}".lstrip(".")
                yield whole if whole in known else module


def shown(face: Path) -> set[str]:
    """The names that a folder's `__init__` shows."""
    for node in ast.walk(ast.parse(face.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "lazily":
            return {name for names in ast.literal_eval(node.args[1]).values() for name in names}
    return set()


def test_folders_import_only_from_lower_floors() -> None:
    known, num_imports = modules(), 0
    for name, path in known.items():
        folder = name.partition(".")[0]
        for imported in imports_of(path, known):
            other = imported.partition(".")[0]
            if folder and other != folder:
                num_imports += 1
                assert FLOORS[other] < FLOORS[folder], f"{path} imports {imported}"
    assert num_imports > 40
    assert {name.partition(".")[0] for name in known} - {""} == set(FLOORS)


def test_modules_of_a_folder_import_only_downward() -> None:
    known = modules()
    graph = {name: set(imports_of(path, known)) for name, path in known.items()}
    num_inside = sum(len([each for each in imported if "." in each]) for imported in graph.values())
    assert num_inside > 40
    assert len(list(TopologicalSorter(graph).static_order())) >= len(known)  # raises CycleError where there is a circle


def test_folders_use_of_each_other_what_their_faces_show() -> None:
    known, num_imports = modules(), 0
    for name, path in known.items():
        for imported in imports_of(path, known):
            folder, _, rest = imported.partition(".")
            if folder and folder != name.partition(".")[0] and not FILES_ON_THE_GROUND & {folder}:
                num_imports += 1
                is_face = known[imported].name == "__init__.py"  # a folder's, or that of a folder in it
                is_face |= (name, imported) == ("__main__", "cli.main")
                assert is_face or rest in shown(known[folder]), f"{path} imports {imported}"
    assert num_imports > 40


def test_faces_show_the_same_to_type_checkers_as_to_programs() -> None:
    faces = [
        path for path in modules().values() if "lazily(" in path.read_text(encoding="utf-8") and path.name[0] == "_"
    ]
    for path in faces:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        (block,) = (node for node in tree.body if isinstance(node, ast.If))
        told = {alias.asname for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
        assert told == shown(path), path
        name = ".".join(("ptuning", *path.parent.relative_to(PACKAGE).parts))
        assert all(getattr(importlib.import_module(name), each) is not None for each in told)
    assert len(faces) > 8


def test_importing_the_package_loads_neither_torch_nor_transformers() -> None:
    code = "import sys, ptuning; print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_public_name_can_be_had() -> None:
    assert set(ptuning.__all__) <= set(dir(ptuning))
    assert all(getattr(ptuning, name) is not None for name in ptuning.__all__)
