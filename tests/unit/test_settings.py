from dataclasses import dataclass

import pytest

from glassbox.errors import SettingsError
from glassbox.settings import from_env, setting


@dataclass(frozen=True)
class Pair:
    low: float = setting(within=(0, 1))
    high: float | None = setting(None, within=(0, 1))
    name: str = ""

    def problems(self):
        if self.high is not None and not self.name:
            yield "HIGH needs NAME"
        if self.name == "Nobody":
            yield "NAME is nobody"


@dataclass(frozen=True)
class Example:
    table: str
    threshold: float = setting(within=(0, 1))
    n: int = setting(50, within=(1, None))
    publish: bool = setting(False)
    drift: float | None = setting(None, within=(0, 1))


def test_reads_every_kind_and_keeps_defaults():
    got = from_env(Example, {"TABLE": " counts ", "THRESHOLD": "0.5", "PUBLISH": "Enabled"})
    assert got == Example(table="counts", threshold=0.5, n=50, publish=True, drift=None)


@pytest.mark.parametrize(
    ("word", "value"), [("Disabled", False), ("Enabled", True), ("NO", False), ("1", True)]
)
def test_booleans_are_words(word, value):
    assert from_env(Example, {"TABLE": "t", "THRESHOLD": "1", "PUBLISH": word}).publish is value


@pytest.mark.parametrize("threshold", ["", "nan", "inf", "1.01", "-0.1", "half"])
def test_a_threshold_that_judges_nothing_is_refused(threshold):
    with pytest.raises(SettingsError, match="THRESHOLD"):
        from_env(Example, {"TABLE": "t", "THRESHOLD": threshold})


def test_all_problems_are_named_at_once():
    with pytest.raises(SettingsError) as error:
        from_env(Example, {"THRESHOLD": "nan", "N": "2.5", "PUBLISH": "maybe", "DRIFT": "7"})
    for name in ("TABLE is not set", "THRESHOLD='nan'", "N='2.5'", "PUBLISH='maybe'", "DRIFT='7'"):
        assert name in str(error.value)


@pytest.mark.parametrize(
    ("env", "problems"),
    [
        ({"LOW": "0", "HIGH": "1"}, "HIGH needs NAME"),
        ({"HIGH": "1"}, "LOW is not set; HIGH needs NAME"),
        ({"LOW": "0", "HIGH": "2"}, "HIGH='2' must be at least 0 and at most 1; HIGH needs NAME"),
        ({"LOW": "nan", "NAME": "Nobody"}, "LOW='nan' is not a finite number; NAME is nobody"),
    ],
)
def test_what_a_class_knows_of_its_variables_together_is_named_beside_the_others(env, problems):
    with pytest.raises(SettingsError) as error:
        from_env(Pair, env)
    assert str(error.value) == f"Pair: {problems}"


def test_settings_without_a_problem_are_read():
    assert from_env(Pair, {"LOW": "0", "HIGH": "1", "NAME": "x"}) == Pair(0.0, 1.0, "x")


def test_an_empty_optional_is_none():
    assert from_env(Example, {"TABLE": "t", "THRESHOLD": "0", "DRIFT": ""}).drift is None
