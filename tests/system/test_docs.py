"""The documentation: its commands run, its pages build, and load nothing from elsewhere."""

import dataclasses
import importlib.util
import json
import os
import pydoc
import re
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import click
import pytest
import yaml
from snippets import Block, Runner, commands_of, compare, parse, read_blocks

import photozhpc
from builders.paths import ROOT
from photozhpc.config import from_mapping, load_yaml
from photozhpc.errors import ConfigError

DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.glob("*.md")), ROOT / "README.md"]
FIRST = DOCS / "tour.md"  # the others go on with what it leaves
ALONE = DOCS / "cone_search.md"  # test_docs_cone_search.py
LONG = [DOCS / "training.md", DOCS / "guide.md"]


def _generate():
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tour(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """The folder of a reader who has done the tour."""
    runner = Runner.in_checkout(tmp_path_factory.mktemp("reader"))
    runner.run_page(FIRST)
    return runner


@pytest.mark.timeout(400)
def test_the_tour_is_what_comes_out(tour: Runner) -> None:
    assert (tour.folder / "out/roman-sim/zz.png").read_bytes().startswith(b"\x89PNG")
    shown = re.search(
        r"<!-- quickstart -->\n```\w+\n(.*?)```", (ROOT / "README.md").read_text(), re.S
    )
    compare("README.md", shown[1], tour.outputs["photozhpc infer --survey roman-sim"])


def _runs(page: Path) -> bool:
    """Whether a page has something to run."""
    return any(b.language in ("bash", "console", "python") and not b.not_run
               for b in read_blocks(page))  # fmt: skip


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.stem, marks=pytest.mark.drawn if page in LONG else ())
        for page in PAGES
        if page not in (FIRST, ALONE) and _runs(page)
    ],
)
def test_what_a_page_shows_is_what_comes_out(page: Path, tour: Runner) -> None:
    tour.run_page(page)


def test_the_store_has_as_many_files_as_the_performance_page_counts(tour: Runner) -> None:
    tile = tour.folder / "out/roman-sim/store/sim002027t0000"
    files = [path for path in tile.rglob("*") if path.is_file()]
    shards = [path for path in files if path.is_relative_to(tile / "cutout/c")]
    counted = re.search(r"with (\d+) small files each", (DOCS / "performance.md").read_text())
    assert len(files) - len(shards) + 1 == int(counted[1])  # and its manifest


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_page_parses(page: Path) -> None:
    for block in read_blocks(page):
        for words in commands_of(block.text) if block.language != "python" else ():
            try:
                parse(words)
            except click.UsageError as error:
                pytest.fail(f"{block.where}: photozhpc {' '.join(words)}: {error.format_message()}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_command_is_run_or_the_page_says_why_not(page: Path) -> None:
    for block in read_blocks(page):
        if block.language in ("bash", "console", "python") or block.not_run:
            continue
        shell = re.compile(r"(\$ |[A-Z]+=\S+ )?(photozhpc|make|pip|python3?|bash|jobs/\S+) \S")
        for line in block.text.splitlines():
            assert not shell.match(line), f"{block.where}: run it, or say '<!-- not run: why -->'"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.stem)
def test_options_named_in_the_text_exist(page: Path) -> None:
    """`photozhpc export --format hats` within a sentence: that command has that option."""
    generate = _generate()
    commands = dict(generate.walk(generate.main, "photozhpc"))
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for text in re.findall(r"`photozhpc ([^`]+)`", prose):
        words = re.split(r"\s+", text)
        name = "photozhpc"
        while words and f"{name} {words[0]}" in commands:
            name = f"{name} {words.pop(0)}"
        is_option = words and words[0].startswith("-")
        assert name != "photozhpc" or is_option or words[0].isupper(), f"no command: {text}"
        known = {opt for p in commands[name].params for opt in (*p.opts, *p.secondary_opts)}
        known |= {"--help", "--version"}
        for word in words:
            assert not word.startswith("--") or word == "--" or word in known, text


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.stem)
def test_files_and_modules_named_in_the_text_exist(page: Path) -> None:
    """`model/engine.py`, `configs/train/`, `photozhpc.rail.PITAEstimator`; not what runs write."""
    text = page.read_text()
    files = [path for path in ROOT.rglob("*.*") if not {".git", ".venv"} & set(path.parts)]
    named = {path.as_posix() for path in files}
    for name in re.findall(r"`([\w./-]+\.(?:py|slurm|sh))`", text):
        assert any(path.endswith(f"/{name}") for path in named), f"{name} does not exist"
    for folder in re.findall(r"`((?:configs|benchmarks|tests|jobs|docs|photozhpc)/[\w/]*)`", text):
        assert (ROOT / folder).exists(), f"{folder} does not exist"
    for dotted in re.findall(r"`photozhpc((?:\.\w+)+)", text):
        if dotted in (".provenance", ".pdf"):  # keys of the Parquet metadata
            continue
        assert pydoc.locate(f"photozhpc{dotted}"), f"photozhpc{dotted} does not exist"


def test_the_architecture_page_has_every_folder_and_layer() -> None:
    text = (DOCS / "architecture.md").read_text()
    for init in (ROOT / "photozhpc").glob("*/__init__.py"):
        assert re.search(rf"^### .*\b{init.parent.name}/", text, re.M), init.parent.name
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    shown = re.search(r"```text\n( cli\n.*?)```", text, re.S)[1]
    assert [line.split() for line in shown.splitlines()] == [
        re.findall(r"photozhpc\.(\w+)", layer) for layer in layers
    ]


def test_the_results_are_those_of_the_committed_json() -> None:
    """RESULTS.md, the model card and the tables of performance.md: what report.py makes."""
    spec = importlib.util.spec_from_file_location("report", ROOT / "benchmarks/report.py")
    report = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(report)
    for path, text in report.texts().items():
        assert path.read_text() == text, f"{path.name}: run python benchmarks/report.py"


def test_the_examples_of_the_help_parse() -> None:
    generate = _generate()
    for name, command in generate.walk(generate.main, "photozhpc"):
        if not isinstance(command, click.Group):
            examples = commands_of(command.epilog)
            assert examples, f"{name}: no example"
            for words in examples:
                parse(words)


YAML = [(page.stem, b) for page in PAGES for b in read_blocks(page) if b.language == "yaml"]


@pytest.mark.parametrize("block", [b for _, b in YAML], ids=[name for name, _ in YAML])
def test_every_yaml_of_a_page_is_read_without_a_complaint(block: Block, tmp_path) -> None:
    """It is a survey, a training, a sky or a site: one of these takes it."""
    for _, other in YAML:  # it may be the base of this one
        if other.title:
            (tmp_path / other.title).write_text(other.text)
    (tmp_path / "block.yaml").write_text(block.text)
    keys = load_yaml(tmp_path / "block.yaml")
    complaints = []
    for cls, _, _ in _generate().CONFIGS:
        try:
            from_mapping(cls, keys, block.where)
            return
        except ConfigError as error:
            complaints.append(str(error))
    pytest.fail("\n".join(complaints))


def test_a_wrong_command_or_output_is_found() -> None:
    for line in (
        "photozhpc infer --survy x",
        "photozhpc inferr",
        "photozhpc submit infer --site s",
    ):
        with pytest.raises(click.UsageError):
            parse(
                commands_of(f"$ {line} | tee log")[0] + (["--", "--no"] if "site" in line else [])
            )
    compare("here", "rows ...\nend", "rows 12\nand more\nend\n")
    with pytest.raises(AssertionError, match="here: the page shows"):
        compare("here", "rows 12", "rows 13\n")


def test_every_key_and_option_is_described() -> None:
    generate = _generate()
    for root, _, _ in generate.CONFIGS:
        for cls in generate.nested(root):
            texts = generate.descriptions(cls)
            fields = {field.name for field in dataclasses.fields(cls)}
            assert set(texts) == fields, f"{cls.__name__}: its docstring's Attributes"
            assert all(texts.values()), cls.__name__
    for name, command in generate.walk(generate.main, "photozhpc"):
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.help, f"{name} {option.opts[0]} has no help"
    texts = generate.descriptions(generate.PhotozFlag)
    assert set(texts) == {flag.name for flag in generate.PhotozFlag}


def test_the_reference_has_every_command_key_and_column() -> None:
    generate = _generate()
    commands, config = generate.commands(), generate.config()
    for name, command in generate.walk(generate.main, "photozhpc"):
        for option in command.params:
            if isinstance(option, click.Option) and not option.hidden:
                assert f"## {name}\n" in commands
                assert f"`{option.opts[0]}" in commands
    for root, _, _ in generate.CONFIGS:
        for cls in generate.nested(root):
            for field in dataclasses.fields(cls):
                assert f"| `{field.name}` | " in config
    assert "| `batch_size` | integer | `256` | sources in a step, over all ranks. |" in config
    columns = generate.catalogue()
    assert "| `photoz` | float |  | src.redshift.phot | photometric redshift |" in columns
    assert "| 8 | NO_PHOTOZ | " in columns


# What users and outside checks import (the design's entry points), and its arguments.
ENTRY_POINTS = {
    "photozhpc.metrics.point_metrics": ("z_ref", "z_phot"),
    "photozhpc.mosaic.photometry.sum_circles": ("image_HW", "y_N", "x_N", "radius_pix", "err_HW"),
    "photozhpc.mosaic.cutouts.extract_cutouts": ("image_CHW", "y_N", "x_N", "size"),
    "photozhpc.survey.load_survey": ("name_or_yaml_path",),
    "photozhpc.mosaic.tile.read_tile": ("paths", "survey"),
    "photozhpc.mosaic.tile.Tile.sky_to_pixel": ("ra_N", "dec_N"),
    "photozhpc.store.CutoutStore": (),
    "photozhpc.store.CutoutStore.open": ("path",),
    "photozhpc.model.load_checkpoint": ("path",),
    "photozhpc.catalog.read_catalog": ("path", "columns"),
}


def test_the_python_reference_has_every_entry_point() -> None:
    page = _generate().python()
    sections = dict(re.findall(r"^#{3,4} (\S+)\n(.*?)(?=^##|\Z)", page, re.M | re.S))
    for dotted, arguments in ENTRY_POINTS.items():
        name = pydoc.locate(dotted).__qualname__
        if "." not in name:
            assert f"from {dotted.removesuffix('.' + name)} import {name}\n" in sections[name]
        for argument in arguments:
            assert f"{argument}: " in sections[name], f"{name}: {argument} is not in its signature"
    assert "| `ValueError` | the shapes do not fit" in sections["pit"]
    assert "**Returns:** cutout_NCSS" in sections["extract_cutouts"]


def test_what_the_python_reference_has_is_described() -> None:
    """Every class has its fields, every function its summary; sections are told apart."""
    generate = _generate()
    for names in generate.PYTHON.values():
        for dotted in names:
            target = pydoc.locate(dotted)
            assert pydoc.getdoc(target), dotted
            if dataclasses.is_dataclass(target):
                fields = {field.name for field in dataclasses.fields(target)}
                missing = fields - set(generate.descriptions(target))
                assert not missing, f"{dotted}: {missing} not under Attributes"
    assert not re.search(r"^(Args|Attributes|Returns|Raises):", generate.python(), re.M)


class _Loads(HTMLParser):
    """What a page makes the browser load, and where its links of this site lead."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video", "audio", "embed", "input"):
            self.loads += [given["src"]] if given.get("src") else []
        if tag == "link" and given.get("rel") not in ("canonical", "next", "prev"):
            self.loads += [given["href"] or ""]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        cwd=ROOT, capture_output=True, text=True, timeout=200,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return out


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        parser = _Loads()
        parser.feed(page.read_text())
        assert parser.loads
        for load in parser.loads:
            assert not re.match(r"(\w+:)?//", load), f"{page.name} loads {load}"
            base = site if load.startswith("/") else page.parent  # that of 404.html
            target = base / load.lstrip("/").split("?")[0]
            assert load.startswith("data:") or target.exists(), f"{page.name} loads {load}"
    for sheet in site.rglob("*.css"):
        for target in re.findall(r"(?:url\(|@import )['\"]?([^)'\"]+)", sheet.read_text()):
            assert not re.match(r"(\w+:)?//", target), f"{sheet.name} loads {target[:80]}"


def test_measured_ratios_are_those_of_the_results() -> None:
    """A number after <!-- FILE.json KEY --> is that of benchmarks/results, rounded."""
    text = (DOCS / "comparison.md").read_text()
    shown = re.findall(r"<!-- (\w+\.json) ([\w.]+) -->([\d.]+)", text)
    assert len(shown) >= 6
    for name, key, number in shown:
        value = json.loads((ROOT / "benchmarks/results" / name).read_text())
        for part in key.split("."):
            value = value[part]
        decimals = len(number.partition(".")[2])
        assert f"{value:.{decimals}f}" == number, f"{name} {key}: {value}, the page has {number}"


def test_the_citation_file_is_valid() -> None:
    """Keys and types of the Citation File Format 1.2.0 (its schema.json)."""
    document = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert document["cff-version"] == "1.2.0"
    assert document["type"] == "software"
    assert document["version"] == photozhpc.__version__
    assert document["license"] == "BSD-3-Clause"
    assert set(document) <= {
        "abstract", "authors", "cff-version", "commit", "contact", "date-released", "doi",
        "identifiers", "keywords", "license", "license-url", "message", "preferred-citation",
        "references", "repository", "repository-artifact", "repository-code", "title", "type",
        "url", "version",
    }  # fmt: skip
    works = [document["preferred-citation"], *document["references"]]
    assert works[0]["url"].endswith("2602.10207")
    for work in [document, *works]:
        assert work["title"]
        assert work["authors"]
        for author in work["authors"]:
            assert set(author) in ({"name"}, {"family-names", "given-names"})
        assert re.fullmatch(r"10\.\d{4,9}/\S+", work.get("doi", "10.1000/x"))
    for work in works:
        assert work["type"] in ("article", "conference-paper", "software")
        assert isinstance(work["year"], int)
        where = work.get("doi") or work["url"].removeprefix("https://arxiv.org/abs/")
        assert where in (DOCS / "cite.md").read_text(), f"{where} is not on the page"
