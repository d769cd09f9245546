"""Strict configuration: every fault is named, with the nearest valid key."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pytest

from photozhpc.config import (
    KINDS,
    bundled_configs,
    config_path,
    from_mapping,
    load_yaml,
    on_base,
    to_mapping,
)
from photozhpc.errors import ConfigError, PhotozError
from photozhpc.survey import Band, Survey, load_survey, survey_names


@dataclass(frozen=True)
class _Inner:
    rate: float = 1.0
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class _Outer:
    name: str
    inner: _Inner = _Inner()
    widths: tuple[int, ...] = (1, 2)
    limit: float | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 0:
            raise ValueError(f"limit must not be negative, got {self.limit}")


def test_a_mapping_becomes_a_dataclass_and_back() -> None:
    mapping = {"name": "x", "inner": {"rate": 2, "kind": "b"}, "widths": [3], "limit": None}
    config = from_mapping(_Outer, mapping, "file")
    assert config == _Outer("x", _Inner(2.0, "b"), (3,), None)
    assert to_mapping(config) == {**mapping, "inner": {"rate": 2.0, "kind": "b"}}


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"name": "x", "widhts": [1]}, "unknown key 'widhts'; did you mean 'widths'"),
        ({"name": "x", "inner": {"rat": 1}}, "file: inner: unknown key 'rat'; did you mean 'rate'"),
        ({}, "the key 'name' is missing"),
        ({"name": 3}, "name: expected str, got '3' (int)"),
        ({"name": "x", "inner": {"rate": "fast"}}, "inner: rate: expected float, got 'fast'"),
        ({"name": "x", "inner": {"rate": True}}, "expected float, got 'True' (bool)"),
        ({"name": "x", "inner": {"kind": "c"}}, "unknown choice 'c'"),
        ({"name": "x", "widths": 5}, "expected a list"),
        ({"name": "x", "widths": [1, "b"]}, "widths[1]: expected int"),
        ({"name": "x", "limit": -1.0}, "limit must not be negative, got -1.0"),
        (["name"], "expected 'key: value' pairs"),
    ],
)
def test_a_fault_is_named(mapping: object, words: str) -> None:
    with pytest.raises(ConfigError, match="file") as caught:
        from_mapping(_Outer, mapping, "file")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "- a\n- b\n",
        "a: [1\n",
        "!!python/object/apply:os.system ['true']",
        "\x00\x01",
        "",
        "a: !x 1",
    ],
)
def test_yaml_that_is_not_a_plain_mapping_is_refused(tmp_path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_yaml(path)


def test_a_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(ConfigError, match="no such config file"):
        load_yaml(tmp_path / "none.yaml")


@pytest.mark.parametrize("name", survey_names())
def test_every_survey_that_comes_with_the_package_loads(name: str) -> None:
    survey = load_survey(name)
    assert survey.name == name
    assert survey.band(survey.band_names[0].lower()) == survey.bands[0]


@pytest.mark.parametrize("kind", KINDS)
def test_names_and_paths_follow_one_rule_for_all_kinds(kind, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, path in bundled_configs(kind).items():
        assert path.is_file()
        assert config_path(name, kind) == path
        with pytest.raises(ConfigError, match=f"unknown {kind} '{name}x'; did you mean '{name}'"):
            config_path(f"{name}x", kind)
    assert config_path("not/there.yaml", kind) == Path("not/there.yaml")  # its reader says so
    (tmp_path / "settings").touch()
    assert config_path("settings", kind) == Path("settings")
    (tmp_path / "folder").mkdir()
    for wrong in ("folder", "./settingz", "x" * 5000):
        with pytest.raises(ConfigError, match="or pass a YAML file"):
            config_path(wrong, kind)


def test_an_unknown_survey_or_band_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'roman-sim'"):
        load_survey("roman_sim")
    with pytest.raises(ConfigError, match="did you mean 'F158'"):
        load_survey("roman-sim").band("F159")


def test_a_survey_of_ones_own_is_a_yaml_file(tmp_path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\npixel_scale_arcsec: 0.2\n"
        "bands:\n  - {name: g, psf_fwhm_arcsec: 0.8, extinction_r: 3.2, zero_point_ab: 27}\n"
    )
    assert load_survey(path) == Survey("mine", (Band("g", 0.8, 3.2, 27.0),), 0.2)
    path.write_text(path.read_text().replace("extinction_r", "extinction"))
    with pytest.raises(ConfigError, match="did you mean 'extinction_r'"):
        load_survey(str(path))


@pytest.mark.parametrize(
    "line",
    [
        "name: !!int ''",
        "name: !!bool x",
        "name: !!timestamp x",
        "name: {" + "a: &a [x], " + "b: &b [*a, *a, *a]}",
        "'a\\nb': 1",
        "cutout_size: " + "9" * 5000,
        'name: "\\x1b[2J"\nbands: 1',
    ],
)
def test_hostile_yaml_is_one_printable_line(tmp_path, line):
    path = tmp_path / "s.yaml"
    path.write_text(f"{line}\n")
    with pytest.raises(ConfigError, match=r"s\.yaml") as caught:
        load_survey(path)
    assert str(caught.value).isprintable()


def test_a_list_that_aliases_make_endless_is_not_printed(tmp_path):
    path = tmp_path / "s.yaml"
    lists = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lists += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    path.write_text("name: {" + ", ".join(lists) + "}\n")
    with pytest.raises(ConfigError, match="expected str"):
        load_survey(path)
    document = load_yaml(path)["name"]
    with pytest.raises(ConfigError, match="unknown choice"):
        from_mapping(_Inner, {"kind": document["a11"]}, "x")
    with pytest.raises(ConfigError, match="expected float"):
        from_mapping(_Inner, {"rate": document["a11"]}, "x")


def test_a_band_is_named_so_that_fits_has_a_column_for_it():
    for name in ("i*", "g'", "F150W+F444W"):
        assert Band(name, 1.0, 1.0).name == name
    for name in ("Hα", "two words", "tab\t"):
        with pytest.raises(ValueError, match="name must be ASCII without spaces, got"):
            Band(name, 1.0, 1.0)


def test_an_alias_stands_for_a_band_of_the_survey():
    band = Band("F158", psf_fwhm_arcsec=0.1, extinction_r=0.5)
    with pytest.raises(ValueError, match=r"'h' stands for 'F160'.* not a band"):
        Survey("s", (band,), 0.1, band_aliases={"h": "F160"})


def test_an_error_is_one_line_of_a_length_that_can_be_read() -> None:
    line = str(PhotozError(f"a.yaml: 'x\ny\x1b{'z' * 10_000}'; do this"))
    assert len(line) < 1600
    assert line.startswith("a.yaml: 'x y?zzz")
    assert line.endswith("zzz'; do this")


SURVEY_YAML = (
    "pixel_scale_arcsec: 0.1\nbands: [{name: g, psf_fwhm_arcsec: 0.1, extinction_r: 3.0}]\n"
)


@pytest.mark.parametrize(
    "name",
    ["../../x", "..", ".hidden", "a/b", "/etc", "a\\b", "a\nb", "a\0b", "", "-x", "a" * 101, " a"],
)
def test_a_survey_is_called_like_a_folder(tmp_path, name) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(f"name: {json.dumps(name)}\n{SURVEY_YAML}")
    with pytest.raises(ConfigError, match=r"s\.yaml: .*name must be .*letters, digits"):
        load_survey(path)


@pytest.mark.parametrize("name", ["roman-sim", "HSC PDR3", "v1.2_a+b", "Ångström", "4XMM"])
def test_usual_names_of_surveys(tmp_path, name) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(f"name: {name}\n{SURVEY_YAML}")
    assert load_survey(path).name == name


@pytest.mark.parametrize(
    "regex",
    ["(a+)+", "(a|aa)*", "((a)+)+", "(?:a*)*", "(a?b)+", "(?P<x>a+)*b", "((a+))+", "(.*a)*"],
)
def test_a_regex_that_never_ends_is_refused(tmp_path, regex) -> None:
    path = tmp_path / "s.yaml"
    for key in ("mosaic_pattern", "source_pattern"):
        path.write_text(f"name: s\n{SURVEY_YAML}{key}: '{{tile:{regex}}}_{{band}}.fits'\n")
        with pytest.raises(ConfigError, match="take forever"):
            load_survey(path)


@pytest.mark.parametrize(
    ("regex", "tile"),
    [
        ("[0-9]+_[0-9]+", "12_3"),
        ("r?[0-9]+d?[pm][0-9]+", "r270p65"),
        ("cosmos|egs", "egs"),
        ("(ab)+", "abab"),
        ("(?:cosmos|egs)[0-9]*", "egs2"),
        (r"\(a+\)+", "(aa)"),
        ("[+*(]+", "+("),
        ("(a+)?b", "aab"),
    ],
)
def test_a_regex_that_ends_is_taken(tmp_path, regex, tile) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(f"name: s\n{SURVEY_YAML}mosaic_pattern: '{{tile:{regex}}}_**{{band}}.fits'\n")
    survey = load_survey(path)
    found = survey.match_mosaic(f"{tile}_x_g.fits")
    assert found is not None
    assert found[0] == tile
    assert survey.match_mosaic("a" * 200) is None


def test_a_file_has_what_its_base_says_where_it_says_nothing(tmp_path) -> None:
    (tmp_path / "first.yaml").write_text("a: 1\nb: {c: 2, d: [3, 4]}\n")
    (tmp_path / "second.yaml").write_text("base: first.yaml\nb: {d: [5]}\ne: 6\n")
    (tmp_path / "third.yaml").write_text(f"base: {tmp_path}/second.yaml\na: {{f: 7}}\n")
    assert load_yaml(tmp_path / "second.yaml") == {"a": 1, "b": {"c": 2, "d": [5]}, "e": 6}
    assert load_yaml(tmp_path / "third.yaml") == {"a": {"f": 7}, "b": {"c": 2, "d": [5]}, "e": 6}


def test_a_mapping_in_python_has_a_base_too() -> None:
    given = {"base": "roman-sim", "cutout_size": 64}
    survey = from_mapping(Survey, on_base(given, "mine"), "mine")
    assert survey == replace(load_survey("roman-sim"), cutout_size=64)
    assert given["base"] == "roman-sim"
    with pytest.raises(ConfigError, match="mine: base: expected a name or a path"):
        on_base({"base": 1}, "mine")


def test_a_bundled_configuration_is_a_base_by_its_name(tmp_path) -> None:
    (tmp_path / "mine.yaml").write_text("base: roman-sim\ncutout_size: 64\n")
    survey = load_survey(tmp_path / "mine.yaml")
    assert survey.cutout_size == 64
    assert survey.bands == load_survey("roman-sim").bands


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("[1]", "base: expected a name or a path"),
        ("roman-sims", r"mine\.yaml: base: unknown configuration 'roman-sims'"),
        ("mine.yaml", "is based on this file"),
        ("other.yaml", "is based on this file"),
        ("gone.yaml", "gone.yaml: no such config file"),
        ("roman-sin", "did you mean 'roman-sim'"),
    ],
)
def test_a_wrong_base_is_named(tmp_path, base: str, words: str) -> None:
    (tmp_path / "mine.yaml").write_text(f"base: {base}\n")
    (tmp_path / "other.yaml").write_text("base: mine.yaml\n")
    with pytest.raises(ConfigError, match=words):
        load_yaml(tmp_path / "mine.yaml")
