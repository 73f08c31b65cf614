"""Reading a config class of one's own: types, required settings, near names, contradictions and help."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from ptuning.config.reading import defaults, from_settings, from_yaml, parser, to_yaml
from ptuning.errors import ConfigError


@dataclass(frozen=True)
class Teacher:
    """A section with required settings of several types."""

    num_layers: int
    """Layers to keep."""
    kind: Literal["large", "small"]
    weights: dict[str, float]
    note: str | None
    ratio: float
    layers: list[int] = field(default_factory=lambda: [1, 2])

    def __post_init__(self) -> None:
        if self.num_layers < 1:
            received = f"teacher.num_layers: {self.num_layers}"
            raise ConfigError(received, "1 or more", "Raise it", keys=("teacher.num_layers",))


@dataclass(frozen=True)
class Student:
    """A section with defaults only."""

    num_layers: int = 2


@dataclass(frozen=True)
class Distillation:
    """A config whose sections are no training run's."""

    teacher: Teacher
    student: Student
    command: ClassVar[str] = "ptuning distill"

    def __post_init__(self) -> None:
        ConfigError.raise_any(self.contradictions(self))

    @staticmethod
    def contradictions(sections: Any) -> list[ConfigError]:
        """The student may not be the deeper one."""
        if sections.student.num_layers <= sections.teacher.num_layers:
            return []
        return [
            ConfigError(
                f"student.num_layers: {sections.student.num_layers}",
                f"at most the teacher's {sections.teacher.num_layers}",
                "Lower it",
                keys=("student.num_layers", "teacher.num_layers"),
            )
        ]


GIVEN = {
    "teacher.num_layers": 4,
    "teacher.kind": "small",
    "teacher.weights": {"a": 1},
    "teacher.note": None,
    "teacher.ratio": 1,
}


def read(**changes: Any) -> Distillation:
    """The config with changed settings; two underscores stand for a dot, "left out" leaves a setting out."""
    settings = GIVEN | {key.replace("__", "."): value for key, value in changes.items()}
    return from_settings(Distillation, {key: value for key, value in settings.items() if value != "left out"}, "mine")


def test_any_config_class_is_read_from_yaml_and_overrides_and_written_back(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("teacher: {num_layers: 4, kind: small, weights: {a: 1}, note: null, ratio: 1}\n")
    config = from_yaml(Distillation, path, ["--student.num_layers=3"])
    assert config == Distillation(Teacher(4, "small", {"a": 1.0}, None, 1.0), Student(3))
    path.write_text(to_yaml(config))
    assert from_yaml(Distillation, path) == config


def test_defaults_may_be_made_anew() -> None:
    assert defaults(Teacher) == {"layers": [1, 2]}
    assert read().teacher.layers is not read().teacher.layers


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"teacher__num_layer": 1}, "^mine: unknown setting teacher.num_layer; expected teacher.num_layers"),
        ({"student__num_layer": 1}, "^mine: unknown setting student.num_layer; expected student.num_layers"),
        ({"zzz": 1}, "^mine: unknown setting zzz; expected a setting that ptuning distill --help shows"),
        ({"teacher__kind": "tall"}, "^mine: teacher.kind: 'tall'; expected one of large, small"),
        ({"student__num_layers": 5}, "^mine: student.num_layers: 5; expected at most the teacher's 4. Lower it"),
        ({"teacher__num_layers": 0}, r"^mine has 2 mistakes: .*Correct them; ptuning distill --help shows every"),
    ],
)
def test_mistakes_name_the_classes_own_settings_and_command(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        read(**changes)


@pytest.mark.parametrize("key", GIVEN)
@pytest.mark.parametrize("value", ["left out", {"a": []}])
def test_a_required_setting_of_any_type_may_be_missing_and_nothing_follows_from_it(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^mine") as caught:
        read(**{key: value})
    (problem,) = caught.value.problems
    assert problem.keys == (key,)


def test_a_file_without_sections_is_told_which_there_are(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("- a")
    with pytest.raises(ConfigError, match=r"c.yaml holds list, .*; expected the sections teacher and student"):
        from_yaml(Distillation, tmp_path / "c.yaml")


def test_the_help_is_the_commands_own() -> None:
    text = " ".join(parser(Distillation, "Distil.", {"--fast": "be quick"}).format_help().split())
    assert text.startswith("usage: ptuning distill")
    assert "Distil." in text
    assert "--fast be quick" in text
    assert "--teacher.num_layers NUM_LAYERS Layers to keep." in text
    assert "--student.num_layers" in text
    assert "--teacher CONFIG" not in text


def test_mistakes_put_together_keep_their_keys() -> None:
    first, second = (ConfigError(key, "another", "Mend it", keys=(key,)) for key in ("a.b", "c.d"))
    assert ConfigError.together([ConfigError.together([first, second], "x"), first], "y").keys == ("a.b", "c.d")
    assert first.about("e.f").keys == ("e.f",)
    assert str(first.about("e.f")) == str(first)
