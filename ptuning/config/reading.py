"""YAML files and command-line overrides as dotted settings, `{"train.max_steps": 50, …}`.

Knows nothing of which settings there are.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

from ptuning.errors import ConfigError


def of_yaml(path: Path) -> dict[str, Any]:
    """Reads a file's sections; raises `ConfigError` where it is missing, no YAML of sections, or has a key twice."""
    if not path.is_file():
        raise ConfigError(f"config file {path} does not exist", "a YAML file", "Check the path given to --config")
    try:
        text = path.read_text(encoding="utf-8")
        content, twice = get_loader("yaml")(text), _keys_given_twice(yaml.compose(text, Loader=yaml.SafeLoader))
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror})", "a YAML file", "Check its permissions"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML ({error})", "a YAML file", "Correct its syntax") from None
    if twice:
        raise ConfigError(f"{path} has {twice[0]} twice", "each setting once", "Remove one of them")
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path} holds {type(content).__name__}, not sections",
            "the sections model, prompt, data and train",
            "Write them",
        )
    return _flat(content)


def _keys_given_twice(node: yaml.Node | None) -> list[str]:
    """Where a mapping has a key twice, of which YAML would silently take the last: the keys and their lines."""
    if not isinstance(node, yaml.MappingNode):
        return []
    keys = [key.value for key, _ in node.value]
    twice = [f"{key.value} (line {key.start_mark.line + 1})" for key, _ in node.value if keys.count(key.value) > 1]
    return twice[1:] + [each for _, value in node.value for each in _keys_given_twice(value)]


def _flat(content: Mapping[Any, Any]) -> dict[str, Any]:
    """Section -> key -> value, as dotted keys."""
    flat = {}
    for section, settings in content.items():
        if isinstance(settings, Mapping):
            flat.update({f"{section}.{key}": value for key, value in settings.items()})
        elif settings is not None:
            flat[str(section)] = settings
    return flat


def of_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Reads `--section.key value` and `--section.key=value`; the values are text that has its type later."""
    settings = {}
    arguments = list(overrides)
    while arguments:
        argument = arguments.pop(0)
        name, equals, value = argument.partition("=")
        if not name.startswith("--") or not (equals or arguments):
            raise ConfigError(
                f"command-line argument {argument!r}", "settings as --section.key value", "Give each setting its value"
            )
        settings[name.removeprefix("--")] = value if equals else arguments.pop(0)
    return settings
