"""Folders' faces: names that are loaded when they are first used.

Knows nothing of what they name.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def lazily(
    package: str, names: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package that imports nothing until it must.

    Args:
        package: The package's `__name__`.
        names: Module or folder of the package -> the names of it that others may use. What stands below "" are modules
            and folders that are used themselves.
    """
    homes = {name: module for module, own in names.items() for name in own}
    public = sorted(homes)

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if not homes[name]:
            return importlib.import_module(f"{package}.{name}")
        return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)

    return get, lambda: public, public
