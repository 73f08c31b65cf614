"""The mistakes a user can make, each told in one line: what came, what was expected, what to do.

Knows nothing of models, files or the command line; the command line turns every one of these into exit status 2.
"""

from collections.abc import Sequence


class PTuningError(Exception):
    """A mistake the user can mend.

    Args:
        received: What came, naming the file, key or value.
        expected: What was expected in its place.
        remedy: What the user can do about it, as a sentence without its full stop.
    """

    def __init__(self, received: str, expected: str, remedy: str) -> None:
        self.received, self.expected, self.remedy = (_one_line(part) for part in (received, expected, remedy))
        super().__init__(f"{self.received}; expected {self.expected}. {self.remedy}.")


class ConfigError(PTuningError):
    """A setting, or a pair of settings, that cannot be used; or several of them, told together."""

    problems: tuple["ConfigError", ...] = ()
    """The single mistakes, where there are several."""

    @classmethod
    def together(cls, problems: Sequence["ConfigError"], source: str) -> "ConfigError":
        """One error for all `problems`; `source` names the config."""
        single = [each for problem in problems for each in problem.problems or (problem,)]
        if len(single) == 1:
            error = cls(f"{source}: {single[0].received}", single[0].expected, single[0].remedy)
        else:
            told = " ".join(f"({i}) {each.received}, expected {each.expected};" for i, each in enumerate(single, 1))
            error = cls(
                f"{source} has {len(single)} mistakes: {told.rstrip(';')}",
                "a config without them",
                "Correct them; ptuning train --help shows every setting",
            )
        error.problems = tuple(single)
        return error


class DataError(PTuningError):
    """A data file, or a row of one, that cannot be used."""


class ModelError(PTuningError):
    """A base model that cannot be loaded or cannot do what is asked of it."""


class PromptError(PTuningError):
    """A saved prompt that cannot be read, or does not fit the base model."""


class TrainingError(PTuningError):
    """A training run that cannot start or cannot go on."""


class FileError(PTuningError):
    """A file or directory that cannot be written."""


class DiskFullError(FileError):
    """A file that cannot be written because the disk is full."""


def _one_line(text: str) -> str:
    return " ".join(text.split())
