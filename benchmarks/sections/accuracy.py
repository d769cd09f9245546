"""Sections on redshifts: against opponents, on real galaxies, intervals, convergence."""

import json
from pathlib import Path
from statistics import mean, stdev

from photozhpc.figures.scaling import plot_learning_curves, plot_scaling, scaling_table
from sections.tables import FIGURES, RESULTS, load, paired_table, rivals_table, table, with_error

LIMIT = "limit of the photometry"  # as in opponents.py, which needs more than this report

LEVELS = (68, 90, 99)

GOAL_POINTS = 3  # of the coverage in every bin

FIRST = "ConvNeXt-Atto that was bundled first"


def mean_of(entry: dict, key: str) -> float:
    return mean(run[key] for run in entry["runs"])


def interval_table(evaluation: dict) -> str:
    """Coverage, PIT and CRPS from `photozhpc evaluate`: overall and against magnitude."""
    rows = []
    for group in [evaluation["overall"], *evaluation["groups"]["magnitude"]]:
        cells = [with_error(group[f"coverage{level}"], 1, 100) for level in (68, 90, 99)]
        cells.append(with_error(group["pit_ks"], 3))
        cells += [with_error(group[name], 4) for name in ("crps", "crps_global_gaussian")]
        rows.append([group["label"], group["n_intervals"], *cells])
    levels = ["68%", "90%", "99%"]
    header = ["galaxies", "n", *levels, "KS of PIT", "CRPS", "CRPS, global Gaussian"]
    return table(header, rows, "-" * 8)


def coverage_section() -> str:
    result = load("interval_coverage")
    rows, beyond = [], []
    for kind, bins in result["bins"].items():
        for label, bin_ in bins.items():
            cells = [
                f"{bin_[f'inside_{level}']:.1f} ± {bin_[f'inside_{level}_err']:.1f}"
                for level in LEVELS
            ]
            rows.append([kind, label, bin_["n"], *cells])
            if any(abs(bin_[f"inside_{level}"] - level) > GOAL_POINTS for level in LEVELS):
                beyond.append(f"{kind}: {label}")
    n_bins, points = len(rows), f"{GOAL_POINTS} points"
    text = (
        f"In {n_bins - len(beyond)} of {n_bins} bins all three shares are within {points} of their "
        f"level. The others: {'; '.join(beyond)}."
    )
    header = ["by", "bin", "n", *(f"{level}%" for level in LEVELS)]
    return (
        f"### For every kind of galaxy\n\n{text}\n\n{table(header, rows, 'llrrrr')}\n\n"
        "`python benchmarks/interval_coverage.py CATALOGUE --truth 'SKY/*_truth.parquet' --save`, "
        "of the same catalogue; the errors are binomial, and bins have at least 300 galaxies."
    )


def science_section(path: Path) -> str:
    """The four methods against the number of labels."""
    result = json.loads(path.read_text())
    recipe = result["recipe"]
    before = [
        {**run, "metrics": run["metrics_before_refit"]}
        for run in result["runs"]
        if "metrics_before_refit" in run
    ]
    scaling, curves = (path.name for path in science_figures(recipe))
    hours = sum(run["seconds_of_last_attempt"] for run in result["runs"]) / 3600
    text = (
        f"## The paper's four methods, recipe '{recipe}'\n\n"
        f"`python benchmarks/science.py --recipe {recipe} --store STORE --test TEST... --truth "
        f"TRUTH... --work DIR`, on {result['machine']}, {hours:.1f} process-hours of one thread; "
        f"{result['training_sources']} images, {result['labelled_sources']} of them labelled (70% "
        f"of these for training), {result['test_sources']} sources of unseen skies. Mean and "
        f"standard deviation over seeds; a bootstrap of the test sample gives another 0.001 in "
        f"NMAD and 0.35 points in outliers.\n\n{scaling_table(result['runs'])}\n\n"
        f"![against the number of labels](figures/{scaling})\n\n"
        f"![learning curves](figures/{curves})"
    )
    if before:
        text += (
            "\n\nThe image methods as their joint training left them, before the redshift heads "
            f"were refitted on the finished features:\n\n{scaling_table(before)}"
        )
    notes = RESULTS / f"science_{recipe}.md"
    return text + ("\n\n" + notes.read_text().strip() if notes.exists() else "")


def real_section() -> str:
    """Real galaxies: method 'photometry' and its rivals, from a table."""
    result = load("real_photoz")
    text = f"""## Real galaxies: redshifts from a table

`python benchmarks/real_photoz.py DATA test`, on {result["processor"]}: CANDELS-COSMOS, four HST \
bands, 3 864 galaxies to train on and 966 others, which no choice of the method has seen. Their \
redshifts are mixed, and some 10% wrong. GPz's predictions are those of its authors; settings of \
the other rivals are tuned by cross-validation, ours were chosen in five folds of the 3 864. \
Errors are of a bootstrap.

{rivals_table(result["test"])}

How much larger each is than photozhpc's on the same galaxies, with the share of bootstrap samples \
in which photozhpc's is smaller:

{paired_table({"": result["test"]})}"""
    if "cross-validate" in result:
        text += f"""

`python benchmarks/real_photoz.py DATA cross-validate`, five folds of the 3 864:

{rivals_table(result["cross-validate"])}"""
    return text


def opponents_section() -> str:
    """What a reader wants to know first: is it better, than what, by how much."""
    result = load("opponents")
    rows = []
    for labels, methods in result["by_labels"].items():
        for method, entry in sorted(methods.items(), key=lambda item: mean_of(item[1], "nmad")):
            runs = entry["runs"]
            name = f"**{method}**" if method == result["ours"] else method
            cells = [labels, name, len(runs)]
            for key, digits in (("nmad", 4), ("outliers_percent", 2), ("crps", 4)):
                values = [run[key] for run in runs]
                spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
                cells.append(f"{mean(values):.{digits}f}{spread}")
            rows.append(cells)
    header = ["labels", "method", "seeds", "NMAD", "outliers, %", "CRPS"]
    limit = ""
    if any(LIMIT in methods for methods in result["by_labels"].values()):
        limit = (
            f"'{LIMIT}' is the density MLP with all {result['true_redshifts']} true redshifts of "
            "that sky. "
        )
    text = f"""## Is it better than a table of fluxes?

{verdicts(result)}

Opponents see the store's fluxes in all apertures and Kron, but no pixels; each is tuned by \
cross-validation of its labels. Each method has the same labels, and predicts the same \
{result["galaxies"]} galaxies of a simulated sky that nobody had seen. The training sky has \
{result["sources"]} sources, {result["labels"]} of them with a redshift. {limit}Mean \
and standard deviation over seeds of labels and networks. With most labels {result["ours"]} is the \
bundled model, whose densities are calibrated on another sky. 'Not calibrated', it has nothing but \
the labels of its opponents, and the same redshifts.

{table(header, rows, "rlrrrr")}"""
    if differences := paired_table(result["by_labels"]):
        text += f"""

How much larger each is than {result["ours"]}'s with the same labels, on the same galaxies (error \
from a paired bootstrap), with the share of bootstrap samples in which {result["ours"]}'s is \
smaller:

{differences}"""
    return f"{text}\n\n`python benchmarks/opponents.py`, on {result['processor']}."


def opponents_of(result: dict, methods: dict[str, dict]) -> dict[str, dict]:
    return {
        name: entry
        for name, entry in methods.items()
        if name != LIMIT and not name.startswith(result["ours"])
    }


def best_opponent(result: dict, methods: dict[str, dict], key: str) -> tuple[str, float]:
    """Return the opponent with the lowest mean, and that."""
    means = {name: mean_of(e, key) for name, e in opponents_of(result, methods).items()}
    name = min(means, key=means.__getitem__)
    return name, means[name]


def verdicts(result: dict) -> str:
    """A sentence for each number of labels: ours, and the best opponent in each measure."""
    lines = []
    for labels, methods in result["by_labels"].items():
        if result["ours"] not in methods or not opponents_of(result, methods):
            continue
        clauses = []
        for what, key, digits, unit in (
            ("NMAD", "nmad", 4, ""),
            ("outliers", "outliers_percent", 1, "%"),
            ("CRPS", "crps", 3, ""),
        ):
            ours = mean_of(methods[result["ours"]], key)
            name, best = best_opponent(result, methods, key)
            clauses.append(
                f"{what} {ours:.{digits}f}{unit} (best opponent {best:.{digits}f}{unit}, {name})"
            )
        lines.append(f"- **{labels} labels**: {', '.join(clauses)}.")
    return "\n".join(lines)


def why() -> str:
    """The sentence of the README: what images add, with the most labels that all methods have."""
    result = load("opponents")
    labels, methods = [(n, m) for n, m in result["by_labels"].items() if result["ours"] in m][-1]
    best, outliers = best_opponent(result, methods, "outliers_percent")
    ours = mean_of(methods[result["ours"]], "outliers_percent")
    n_opponents = len(opponents_of(result, methods))
    return (
        f"**Why**: images say more than a table of fluxes. With the same {labels} labels, "
        f"{ours:.1f}% of unseen simulated\ngalaxies are outliers; with the best of {n_opponents} "
        f"methods that see only fluxes ({best}), {outliers:.1f}%.\n[Results]"
        "(benchmarks/RESULTS.md) has every comparison, also where photozhpc is not ahead."
    )


def convergence_section() -> str:
    """Finished runs of the bundled model's recipe, by their length."""
    result = load("learning_curve")
    rows = [
        [n, f"{e['nmad']:.4f}", f"{e['outliers_percent']:.2f}", f"{e['crps']:.4f}"]
        for n, e in result["epochs"].items()
    ]
    return f"""## Has the bundled model's training converged?

Finished runs with the same labels, each with its whole schedule, without the expert, on \
{result["galaxies"]} galaxies of a development sky. The longest is the bundled model; it took \
{result["process_hours"]} process-hours by the clock, on a core that also did other work.

{table(["epochs", "NMAD", "outliers, %", "CRPS"], rows, "rrrr")}

`python benchmarks/learning_curve.py`, on {result["machine"]}."""


def science_figures(recipe: str) -> tuple[Path, Path]:
    """Files of the two figures of science_section."""
    return FIGURES / f"scaling_{recipe}.png", FIGURES / f"learning_{recipe}.png"


def draw_science(path: Path) -> None:
    """Draw the two figures of science_section."""
    result = json.loads(path.read_text())
    FIGURES.mkdir(exist_ok=True)
    scaling, curves = science_figures(result["recipe"])
    plot_scaling(result["runs"], scaling)
    plot_learning_curves([run for run in result["runs"] if run.get("history")], curves)
