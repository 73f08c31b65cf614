"""What scikit-learn asks of an estimator's parameters: they are the arguments of `__init__`, kept as they are given.

Knows nothing of what is estimated. scikit-learn is not needed, but for the tags that it alone asks for.
"""

import inspect
from pathlib import PurePath
from typing import Any, Self

from ptuning.errors import ConfigError


class Parameters:
    """Parameters that can be read, set and copied."""

    @classmethod
    def _names(cls) -> list[str]:
        return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Name -> value.

        Args:
            deep: For scikit-learn; no parameter has parameters of its own.
        """
        return {name: getattr(self, name) for name in self._names()}

    def set_params(self, **params: Any) -> Self:
        """Changes some, and gives the estimator itself.

        Raises:
            ConfigError: For a name that is no parameter.
        """
        names = self._names()
        for name, value in params.items():
            if name not in names:
                raise ConfigError(
                    f"the parameter {name} of {type(self).__name__}", f"one of {', '.join(names)}", "Correct it"
                )
            setattr(self, name, value)
        return self

    def __sklearn_clone__(self) -> Self:
        """An estimator that is not fitted, with the same parameters; a loaded base model is shared, not copied."""
        return type(self)(**self.get_params())

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self).__init__).parameters
        changed = {name: each for name, each in self.get_params().items() if each is not defaults[name].default}
        return f"{type(self).__name__}({', '.join(f'{name}={_told(value)}' for name, value in changed.items())})"


def _told(value: Any) -> str:
    if isinstance(value, PurePath):
        return repr(str(value))
    name = getattr(value, "name", None)  # a loaded base model's
    return repr(name if isinstance(name, str) else value)
