"""Sites and jobs: what would be submitted, and what is refused before it waits in a queue."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from builders.paths import ROOT
from photozhpc.cli import main
from photozhpc.config import bundled_configs
from photozhpc.errors import ConfigError, RunError
from photozhpc.workers.site import JOBS_DIR, STAGES, load_site, make_job

SITES = list(bundled_configs("site"))
CUSTOM = """
account: m1234
setup: [module load python, 'export A="b c"']
gpus_as: --gres=gpu:{n}
extract: {cpus_per_task: 4, time: "01:00:00", partition: cpu}
train: {cpus_per_task: 8, time: 1-00:00:00, nodes: 2, tasks_per_node: 4, gpus_per_node: 4}
infer: {cpus_per_task: 8, time: 90, gpus_per_node: 1, options: [--qos=premium]}
"""


@pytest.fixture
def custom(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.yaml"
    path.write_text(CUSTOM.replace("time: 90", 'time: "90"'))
    return path


@pytest.mark.parametrize("name", SITES)
@pytest.mark.parametrize("stage", STAGES)
def test_the_sites_that_come_along_make_jobs(name, stage, monkeypatch):
    monkeypatch.setenv("SCRATCH", "/scratch")
    job = make_job(load_site(name), stage, ["--out", "a b"])
    assert job.command[0] == "sbatch"
    assert job.command[-3:] == (str(JOBS_DIR / f"{stage}.slurm"), "--out", "a b")
    assert str(job).endswith("--out 'a b'")


def test_a_job_is_what_the_site_says(custom, tmp_path):
    site = load_site(custom)
    job = make_job(site, "train", ["--config", "c.yaml"], after=["7"], only_one="run")
    assert job.command == (
        "sbatch",
        "--parsable",
        "--job-name=photozhpc-train-run",
        "--account=m1234",
        "--time=1-00:00:00",
        "--gres=gpu:4",
        "--nodes=2",
        "--ntasks-per-node=4",
        "--cpus-per-task=8",
        f"--output={tmp_path}/%x-%j.log",
        "--dependency=afterok:7,singleton",
        "--kill-on-invalid-dep=yes",
        str(JOBS_DIR / "train.slurm"),
        "--config",
        "c.yaml",
    )
    assert job.environment == {"PHOTOZHPC_SETUP": 'module load python\nexport A="b c"'}
    extract = make_job(site, "extract", [], array=8).command
    assert {"--array=0-7", "--partition=cpu", "--nodes=1"} <= set(extract)
    assert "--qos=premium" in make_job(site, "infer", []).command


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("account: m1234", "acount: m1234"), "unknown key 'acount'; did you mean 'account'"),
        (('time: "90"', 'time: "9"'), "10 minutes or more"),
        (('time: "90"', "time: soon"), "time must be like"),
        (("--gres=gpu:{n}", "--gres=gpu"), "gpus_as must have {n}"),
        (("[--qos=premium]", "[qos]"), "'qos' is not an option of sbatch"),
        (("cpus_per_task: 4", "cpus_per_task: 0"), "must be at least 1"),
        (("account: m1234", "account: !!python/name:os.system"), "not valid YAML"),
    ],
)
def test_a_faulty_site_is_refused(custom, change, message):
    custom.write_text(custom.read_text().replace(*change))
    with pytest.raises(ConfigError, match=r"mine\.yaml") as caught:
        load_site(custom)
    assert message in str(caught.value)


def test_what_does_not_fit_is_refused(custom, monkeypatch):
    site = load_site(custom)
    with pytest.raises(ConfigError, match="unknown site 'perlmuter'; did you mean 'perlmutter'"):
        load_site("perlmuter")
    with pytest.raises(ConfigError, match="--array is for extract"):
        make_job(site, "infer", [], array=2)
    with pytest.raises(ConfigError, match="--nodes is for train"):
        make_job(site, "infer", [], nodes=2)
    monkeypatch.delenv("SCRATCH", raising=False)
    with pytest.raises(ConfigError, match=r"scratch is '\$SCRATCH', and a variable"):
        make_job(load_site("perlmutter"), "infer", [])
    monkeypatch.setenv("PATH", "/none")
    with pytest.raises(RunError, match="sbatch was not found"):
        make_job(site, "infer", []).submit()


def test_a_dry_run_prints_all_and_a_typing_error_is_found(custom):
    begin = ["submit", "infer", "--site", str(custom), "--dry-run", "--"]
    shown = CliRunner().invoke(main, [*begin, "--survey", "roman-sim", "--out", "o"])
    assert shown.exit_code == 0
    first, _, script = shown.output.partition("\n\n")
    assert first.startswith("PHOTOZHPC_SETUP=")
    assert first.endswith("infer.slurm --survey roman-sim --out o")
    assert (JOBS_DIR / "infer.slurm").read_text() in script
    wrong = CliRunner().invoke(main, [*begin, "--survey", "roman-sim", "--ouut", "o"])
    assert wrong.exit_code == 2
    assert "No such option" in wrong.output


def test_what_the_arguments_name_is_looked_up_before_the_job_waits(custom, tmp_path):
    begin = ["submit", "{}", "--site", str(custom), "--dry-run", "--json"]
    store = tmp_path / "store"
    wrong = {
        "infer --survey roman-simm": "did you mean 'roman-sim'",
        f"infer --store {store}": f"--store {store}: is not there; pass --after JOB if",
        f"infer --checkpoint {store}": f"--checkpoint {store}: is not there",
        "infer --survey roman-sim --site perlmuter": "did you mean 'perlmutter'",
        "train --config photometri": "did you mean 'photometry'",
        "train --config photometry": "photometry names no store; pass --store PATH",
        f"train --config photometry --store {store}": "is not there",
        f"extract --survey roman-l3 --mosaics {store}/* --store s": "is not there",
    }
    for words, message in wrong.items():
        stage, *rest = words.split()
        told = CliRunner().invoke(main, [*(word.format(stage) for word in begin), "--", *rest])
        assert told.exit_code == 1, words
        assert message in told.output, told.output
    store.mkdir()
    begin[1] = "infer"
    for more in ([], ["--after", "12"]):  # an earlier job will make the store
        told = CliRunner().invoke(main, [*begin, *more, "--", "--store", str(store)])
        assert told.exit_code == 0, told.output
        assert json.loads(told.stdout)["script"].endswith("infer.slurm")
        shutil.rmtree(store, ignore_errors=True)


def test_the_scripts_are_clean():
    program = Path(sys.executable).with_name("shellcheck")
    found = str(program) if program.exists() else shutil.which("shellcheck")
    assert found, "pip install photozhpc[dev]"
    scripts = [*JOBS_DIR.iterdir(), *ROOT.glob("tests/system/slurm/*.sh"), *ROOT.glob("docs/*.sh")]
    done = subprocess.run([found, *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
