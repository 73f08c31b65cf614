#!/usr/bin/env python
"""Writes the reference of all public names as HTML, from their docstrings; a docstring that cannot be shown ends it."""

import argparse
import importlib
import pkgutil
import warnings
from pathlib import Path
from types import ModuleType

import pdoc
import pdoc.render

import ptuning


def resolved(package: ModuleType) -> None:
    """Loads every name that a package makes when it is first used, so that pdoc finds it."""
    for name in getattr(package, "__all__", ()):
        setattr(package, name, getattr(package, name))
    for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        module = importlib.import_module(found.name)
        if found.ispkg:
            resolved(module)


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("build/api"), help="where (default: build/api)")
    folder = parser.parse_args().folder
    resolved(ptuning)
    found = (each.name for each in pkgutil.iter_modules(ptuning.__path__) if each.ispkg)
    packages = [f"ptuning.{name}" for name in found if name not in ("cli", *ptuning.__all__)]  # these come along
    pdoc.render.configure(docformat="google")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # pdoc's own
        pdoc.pdoc("ptuning", *packages, output_directory=folder)
    print(f"saved: {folder / 'ptuning.html'}")


if __name__ == "__main__":
    main()
