"""Lets a folder's face offer names that are imported on first use.

Knows nothing of the names themselves.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def lazily(
    package: str, names: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Builds `__getattr__`, `__dir__` and `__all__` for a package that imports its modules on first use.

    Args:
        package: The package's `__name__`.
        names: Module or folder of the package -> the names in it that others may use. The names under "" are modules
            and folders of the package.
    """
    homes = {name: module for module, offered in names.items() for name in offered}
    public = sorted(homes)

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if not homes[name]:
            return importlib.import_module(f"{package}.{name}")
        return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)

    return get, lambda: public, public
