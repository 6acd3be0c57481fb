import dataclasses
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glassbox.errors import SettingsError
from glassbox.monitoring.count_file import CountingSettings
from glassbox.settings import from_env, setting


@dataclass(frozen=True)
class Pair:
    low: float = setting(within=(0, 1))
    high: float | None = setting(None, within=(0, 1))
    name: str = ""

    def problems(self):
        if self.high is not None and not self.name:
            yield "HIGH needs NAME"
        if self.name == "Forbidden":
            yield "NAME is forbidden"


@dataclass(frozen=True)
class Example:
    table: str
    threshold: float = setting(within=(0, 1))
    n: int = setting(50, within=(1, None))
    publish: bool = setting(False)
    drift: float | None = setting(None, within=(0, 1))


def test_from_env_reads_every_type_and_keeps_defaults():
    got = from_env(Example, {"TABLE": " counts ", "THRESHOLD": "0.5", "PUBLISH": "Enabled"})
    assert got == Example(table="counts", threshold=0.5, n=50, publish=True, drift=None)


@pytest.mark.parametrize(
    ("word", "value"), [("Disabled", False), ("Enabled", True), ("NO", False), ("1", True)]
)
def test_from_env_reads_booleans_as_words(word, value):
    assert from_env(Example, {"TABLE": "t", "THRESHOLD": "1", "PUBLISH": word}).publish is value


@pytest.mark.parametrize("threshold", ["", "nan", "inf", "1.01", "-0.1", "half"])
def test_from_env_refuses_a_threshold_without_effect(threshold):
    with pytest.raises(SettingsError, match="THRESHOLD"):
        from_env(Example, {"TABLE": "t", "THRESHOLD": threshold})


def test_settings_error_names_all_problems():
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
        ({"LOW": "nan", "NAME": "Forbidden"}, "LOW='nan' is not a finite number; NAME is forbidden"),
    ],
)
def test_settings_error_includes_the_problems_of_the_class(env, problems):
    with pytest.raises(SettingsError) as error:
        from_env(Pair, env)
    assert str(error.value) == f"Pair: {problems}"


def test_settings_error_includes_the_problems_of_all_mixins_once():
    @dataclass(frozen=True, kw_only=True)
    class Network:
        subnets: str = ""

        def problems(self):
            yield "SUBNETS needs GROUPS"

    @dataclass(frozen=True, kw_only=True)
    class Composed(Network, Pair):
        def problems(self):
            yield "BOTH are wrong"

    with pytest.raises(SettingsError) as error:
        from_env(Composed, {"LOW": "0", "HIGH": "1"})
    assert str(error.value) == "Composed: BOTH are wrong; SUBNETS needs GROUPS; HIGH needs NAME"


def test_from_env_accepts_settings_without_problems():
    assert from_env(Pair, {"LOW": "0", "HIGH": "1", "NAME": "x"}) == Pair(0.0, 1.0, "x")


def test_from_env_reads_an_empty_optional_as_none():
    assert from_env(Example, {"TABLE": "t", "THRESHOLD": "0", "DRIFT": ""}).drift is None


@pytest.mark.parametrize(
    "value", ["9" * 400, "9" * 5000, "-" + "9" * 400, "1e400", "x" * 5000, "1\n2\x1b[31m"]
)
@pytest.mark.parametrize("name", ["N", "THRESHOLD"])
def test_settings_error_shortens_long_values(name, value):
    with pytest.raises(SettingsError, match=f"{name}='") as error:
        from_env(Example, {"TABLE": "t", "THRESHOLD": "1", "N": "7x", name: value})
    assert len(str(error.value)) < 500
    assert str(error.value).isprintable()


@pytest.mark.parametrize("path", ["[" * 2000, "[" * 900, "a." * 400, "\x00", "'", "a[?" * 300])
@pytest.mark.parametrize("name", ["CLASS_PATH", "CONFIDENCE_PATH"])
def test_settings_error_includes_invalid_paths(name, path):
    with pytest.raises(SettingsError, match=name):
        from_env(CountingSettings, {"THRESHOLD": "0.5", name: path})


numbers = st.text(max_size=6) | st.sampled_from(["9" * 400, "1e400", "nan", "0.5", "1", "٣", "0x1", "on"])


@given(
    st.fixed_dictionaries(
        {}, optional={field.name.upper(): numbers for field in dataclasses.fields(CountingSettings)}
    )
)
def test_from_env_returns_settings_or_raises_settings_error(env):
    try:
        assert 0 <= from_env(CountingSettings, env).threshold <= 1
    except SettingsError as error:
        assert str(error).startswith("CountingSettings: ")
