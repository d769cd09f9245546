"""Parts that are whole, and not what their run made under their name, are not read."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from photozhpc.catalog import read_catalog, read_pdf
from photozhpc.catalog.notes import read_notes
from photozhpc.catalog.pdf import make_pdf_table, write_pdf_part
from photozhpc.catalog.photoz_catalog import make_table, write_part
from photozhpc.catalog.run_folder import Part, RunFolder, note_part
from photozhpc.catalog.status import describe, status_of
from photozhpc.catalog.verify import verify_catalog
from photozhpc.errors import CatalogError
from photozhpc.evaluation.match import match
from photozhpc.evaluation.truth import Truth
from photozhpc.exports.export import export
from photozhpc.html_report.catalog_scan import scan_catalog
from photozhpc.store import ShardKey
from photozhpc.survey import load_survey

SURVEY = load_survey("roman-sim")
N, N_PARTS = 60, 3
WRITER = {"compression": "zstd", "use_dictionary": ["tile_id"], "write_page_checksum": True}


def make_run(out: Path, checkpoint: str = "one") -> Path:
    """A finished run of three parts, with p(z)."""
    identity = {
        "store_fingerprint": "s",
        "checkpoint_sha256": checkpoint,
        "schema_version": 3,
        "rows_per_part": N,
        "compiled": False,
        "pdf": "quantiles",
    }
    run = RunFolder(out, identity)
    run.catalog.mkdir(parents=True)
    run.pdf.mkdir()
    provenance = run.begin({"n_parts": N_PARTS, "n_rows": N_PARTS * N, "survey": SURVEY.name})
    levels = np.array([0.16, 0.5, 0.84])
    for index in range(N_PARTS):
        rng = np.random.default_rng(index)
        photoz_N = rng.uniform(0.5, 3, N).astype(np.float32)
        id_N = np.arange(N) + 1000 * index
        flux_NCR = rng.normal(100, 9, (N, len(SURVEY.bands), len(SURVEY.aperture_radii_arcsec)))
        rows = make_table(
            SURVEY,
            source_id_N=id_N,
            ra_N=rng.uniform(0, 360, N),
            dec_N=rng.uniform(-90, 90, N),
            tile_id_N=np.full(N, "t"),
            photoz_N=photoz_N,
            quantile_NQ=photoz_N[:, None] + np.linspace(-0.3, 0.3, 9, dtype=np.float32),
            ood_N=np.ones(N, np.float32),
            photoz_flags_N=np.zeros(N, np.int32),
            flux_NCR=flux_NCR.astype(np.float32),
            flux_err_NCR=np.ones_like(flux_NCR, np.float32),
        )
        value_NP = photoz_N[:, None] + np.linspace(-0.2, 0.2, 3, dtype=np.float32)
        pdf_rows = make_pdf_table("quantiles", levels, 6.0, id_N, value_NP)
        part = Part(index, (ShardKey("t", index),), (N,))
        about = run.part_identity(part)
        pdf = write_pdf_part(pdf_rows, run.pdf / part.file_name, about, provenance)
        note = write_part(rows, run.part_path(part), about, provenance)
        note_part(run.part_path(part), part, _with(note, pdf), 0.1)
    return out


def _with(note, pdf):
    return type(note)(note.counts, note.file, pdf)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def _part(run: Path, index: int, folder: str = "catalog") -> Path:
    return run / folder / f"part-{index:06d}.parquet"


def _swap_parts(run: Path, folder: str = "catalog") -> None:
    one, other = _part(run, 0, folder), _part(run, 1, folder)
    one.rename(run / "aside")
    other.rename(one)
    (run / "aside").rename(other)


def _of_another_run(run: Path) -> None:
    other = make_run(run.with_name("other"), "two")
    shutil.copy(_part(other, 1), _part(run, 1))


def _rewrite(change: Callable[[pa.Table], pa.Table], keep_size: bool = False) -> Callable:
    """Change rows of a part, whose metadata stay; or see that its size stays too."""

    def rewrite(run: Path) -> None:
        part = _part(run, 1)
        size = part.stat().st_size
        pq.write_table(change(pq.read_table(part)), part, **WRITER)
        if keep_size:
            assert part.stat().st_size == size
        (run / "same size").write_text(str(part.stat().st_size == size))

    return rewrite


def _reversed(table: pa.Table) -> pa.Table:
    return table.take(np.arange(len(table))[::-1])


def _overwritten(table: pa.Table) -> pa.Table:
    """Two rows change their redshifts: as many bytes, most likely."""
    at = table.column_names.index("photoz")
    z_N = table["photoz"].to_numpy().copy()
    z_N[[3, 4]] = z_N[[4, 3]]
    return table.set_column(at, table.schema.field(at), pa.array(z_N))


def _edit_run(run: Path) -> None:
    about = json.loads((run / "run.json").read_text())
    about["identity"]["checkpoint_sha256"] = "two"
    (run / "run.json").write_text(json.dumps(about))


def _forget_metadata(run: Path) -> None:
    pq.write_table(pq.read_table(_part(run, 1)).replace_schema_metadata(None), _part(run, 1))


FAULTS: dict[str, Callable[[Path], object]] = {
    "parts swapped": _swap_parts,
    "a part twice": lambda run: shutil.copy(_part(run, 0), _part(run, 1)),
    "a part of another run": _of_another_run,
    "rows reversed": _rewrite(_reversed),
    "values overwritten": _rewrite(_overwritten),
    "rows left out": _rewrite(lambda table: table.slice(1)),
    "a part without metadata": _forget_metadata,
    "run.json of another run": _edit_run,
}


def test_a_sound_run_is_read_in_every_way(run: Path, tmp_path: Path) -> None:
    assert len(read_catalog(run, verify=True)) == N * N_PARTS
    assert read_catalog(run / "catalog", verify=True).equals(read_catalog(run))
    assert len(read_catalog(_part(run, 2), ["ra"], verify=True)) == N
    assert sum(len(part.source_id_N) for part in read_pdf(run)) == N * N_PARTS
    for to in ("fits", "vo-parquet", "qp"):
        out = tmp_path / f"out-{to}.hdf5"
        assert export(run, to, out).rows == N * N_PARTS
    assert verify_catalog(run) == (N * N_PARTS, [])
    assert status_of(run)["parts_lost"] == []


@pytest.mark.parametrize("fault", FAULTS)
def test_no_export_of_what_the_run_did_not_make(run: Path, tmp_path: Path, fault: str) -> None:
    FAULTS[fault](run)
    for to in ("fits", "vo-parquet", "hats", "qp"):
        with pytest.raises(CatalogError) as told:
            export(run, to, tmp_path / "exported.hdf5")
        assert "\n" not in str(told.value)
        assert not (tmp_path / "exported.hdf5").exists()
    with pytest.raises(CatalogError):
        read_catalog(run, verify=True)
    assert verify_catalog(run)[1] != []


@pytest.mark.parametrize("fault", FAULTS)
def test_readers_see_by_the_way_what_is_no_part_of_the_run(run: Path, fault: str) -> None:
    """Without SHA-256: by its metadata, its rows and its size."""
    FAULTS[fault](run)
    if (run / "same size").exists() and (run / "same size").read_text() == "True":
        pytest.skip("values that take as many bytes are found by their SHA-256")
    known = Truth(np.arange(N), np.ones(N), "true", {})
    for read in (
        lambda: read_catalog(run, ["ra"]),
        lambda: read_catalog(_part(run, 1), ["ra"]),
        lambda: match(run, known),
        lambda: scan_catalog([_part(run, index) for index in range(N_PARTS)]),
    ):
        with pytest.raises(CatalogError, match=r"part-00000\d\.parquet"):
            read()


@pytest.mark.parametrize("fault", ["swapped", "reversed", "another run"])
def test_p_of_z_out_of_place_is_not_read(run: Path, tmp_path: Path, fault: str) -> None:
    if fault == "swapped":
        _swap_parts(run, "pdf")
    elif fault == "reversed":
        file = _part(run, 0, "pdf")
        pq.write_table(_reversed(pq.read_table(file)), file, **WRITER | {"use_dictionary": False})
    else:
        other = make_run(tmp_path / "other", "two")
        shutil.copy(_part(other, 0, "pdf"), _part(run, 0, "pdf"))
    with pytest.raises(CatalogError, match=r"pdf/part-000000\.parquet"):
        list(read_pdf(run))
    with pytest.raises(CatalogError, match=r"pdf/part-000000\.parquet"):
        export(run, "qp", tmp_path / "out.hdf5")
    assert verify_catalog(run)[1] != []


def test_without_notes_parts_are_known_by_their_metadata(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(run / "notes")
    assert len(read_catalog(run)) == N * N_PARTS
    with pytest.raises(CatalogError, match="cannot be verified, because the run has no note"):
        read_catalog(run, verify=True)
    assert export(run, "fits", tmp_path / "out.fits").rows == N * N_PARTS
    assert "has no note on" in caplog.text
    assert len(verify_catalog(run)[1]) == N_PARTS
    _swap_parts(run)
    with pytest.raises(CatalogError, match="parts have changed places"):
        export(run, "fits", tmp_path / "out.fits")


def test_a_copy_of_the_parts_alone_is_read(run: Path, tmp_path: Path) -> None:
    """They may be renamed there: which run they are of is for the folder of the run to know."""
    shutil.copytree(run / "catalog", tmp_path / "copy")
    _part(tmp_path, 0, "copy").rename(_part(tmp_path, 7, "copy"))
    assert len(read_catalog(tmp_path / "copy")) == N * N_PARTS


def test_of_two_notes_on_a_part_the_later_holds(run: Path) -> None:
    """Whatever the files' own dates are, which a copy does not keep."""
    (file,) = (run / "notes").iterdir()
    line = json.loads(file.read_text().splitlines()[0])
    line |= {"at": line["at"] - 60, "sha256": "before"}
    (run / "notes" / "z.jsonl").write_text(json.dumps(line) + "\n")
    assert read_notes(run)[0].file.sha256 != "before"
    assert len(read_catalog(run, verify=True)) == N * N_PARTS


def test_verify_finds_edited_numbers_stray_files_and_notes_of_other_parts(run: Path) -> None:
    file = run / "run.json"
    about = json.loads(file.read_text())
    file.write_text(json.dumps(about | {"n_parts": 2, "n_rows": 2 * N}))
    (run / "catalog" / "all.parquet").write_bytes(b"x")
    problems = "\n".join(verify_catalog(run)[1])
    assert "run.json: was altered after part-000000.parquet" in problems
    assert "all.parquet: is not of this run" in problems
    assert "part-000002.parquet: is not of this run" in problems
    assert "notes: list part-000002.parquet, but the run has 2 parts" in problems


def test_status_does_not_count_parts_that_are_gone_or_of_another_size(run: Path) -> None:
    _part(run, 0).unlink()
    _part(run, 1).write_bytes(b"x")
    status = status_of(run)
    assert (status["parts_done"], status["parts_lost"]) == (1, [0, 1])
    assert "2 finished parts are gone or altered" in describe(status)
    assert status["state"] == "stopped"


def test_a_pipe_among_the_notes_is_not_waited_for(tmp_path: Path) -> None:
    out = make_run(tmp_path / "out")
    noted = read_notes(out)
    os.mkfifo(out / "notes" / "another.jsonl")
    assert read_notes(out) == noted
