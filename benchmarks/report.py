"""Write benchmarks/RESULTS.md, its figures and the tables of the model card from the results.

python benchmarks/report.py
"""

import json
import re
from pathlib import Path

from photozhpc.report.scaling import plot_learning_curves, plot_scaling, scaling_table

HERE = Path(__file__).parent
RESULTS = HERE / "results"
CARD = HERE.parent / "photozhpc" / "model" / "bundled" / "MODEL_CARD.md"


def metrics_table(result: dict) -> str:
    """A Markdown table: one row a cut, three numbers a method."""
    methods = list(result["metrics"]["all"])
    lines = [
        "| galaxies | n | " + " | ".join(methods) + " |",
        "|---|---|" + "---|" * len(methods),
    ]
    for cut, by_method in result["metrics"].items():
        cells = [
            f"{m['bias']:+.4f} / {m['nmad']:.4f} / {100 * m['outlier_fraction']:.2f}%"
            for m in by_method.values()
        ]
        n = next(iter(by_method.values()))["n"]
        lines.append(f"| {cut} | {n} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def gain_lines(result: dict) -> str:
    """How sure the difference between PITA and each MLP is."""
    return "\n".join(
        f"- against {name}: better in NMAD in {100 * gain['nmad']['better_in']:.1f}% of 500 "
        f"bootstrap samples (by {gain['nmad']['mean']:.4f} +- {gain['nmad']['std']:.4f}), in the "
        f"outlier fraction in {100 * gain['outlier_fraction']['better_in']:.1f}% (by "
        f"{100 * gain['outlier_fraction']['mean']:.2f} +- "
        f"{100 * gain['outlier_fraction']['std']:.2f} points)."
        for name, gain in result["pita_gain_bootstrap"].items()
    )


def interval_table(evaluation: dict) -> str:
    """Coverage, PIT and CRPS as `photozhpc evaluate` found them: overall and against magnitude."""
    lines = [
        "| galaxies | n | 68% | 90% | 99% | KS of PIT | CRPS | CRPS, global Gaussian |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for group in [evaluation["overall"], *evaluation["groups"]["magnitude"]]:
        cells = [_percent(group[f"coverage{level}"]) for level in (68, 90, 99)]
        cells += [_number(group[name], 3) for name in ("pit_ks",)]
        cells += [_number(group[name], 4) for name in ("crps", "crps_global_gaussian")]
        lines.append(f"| {group['label']} | {group['n_intervals']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _percent(measured: dict) -> str:
    value, error = 100 * measured["value"], measured["error"]
    return f"{value:.1f}" + ("" if error is None else f" ± {100 * error:.1f}")


def _number(measured: dict, digits: int) -> str:
    value, error = measured["value"], measured["error"]
    return f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def science_section(path: Path) -> str:
    """The four methods against the number of labels, with figures."""
    result = json.loads(path.read_text())
    figures = HERE / "figures"
    figures.mkdir(exist_ok=True)
    recipe = result["recipe"]
    scaling, curves = figures / f"scaling_{recipe}.png", figures / f"learning_{recipe}.png"
    plot_scaling(result["runs"], scaling)
    plot_learning_curves([run for run in result["runs"] if run.get("history")], curves)
    before = [
        {**run, "metrics": run["metrics_before_refit"]}
        for run in result["runs"]
        if "metrics_before_refit" in run
    ]
    hours = sum(run["seconds_of_last_attempt"] for run in result["runs"]) / 3600
    text = (
        f"## The paper's four methods, recipe '{recipe}'\n\n"
        f"`python benchmarks/science.py --recipe {recipe} --store STORE --test TEST... --truth "
        f"TRUTH... --work DIR`, on {result['machine']}, {hours:.1f} process-hours of one thread; "
        f"{result['training_sources']} images, {result['labelled_sources']} of them labelled (70% "
        f"of these for training), {result['test_sources']} sources of unseen skies. Mean and "
        f"standard deviation over seeds; a bootstrap of the test sample gives another 0.001 in "
        f"NMAD and 0.35 points in outliers.\n\n{scaling_table(result['runs'])}\n\n"
        f"![against the number of labels](figures/{scaling.name})\n\n"
        f"![learning curves](figures/{curves.name})"
    )
    if before:
        text += (
            "\n\nThe image methods as their joint training left them, before the redshift heads "
            f"were refitted on the finished features:\n\n{scaling_table(before)}"
        )
    notes = RESULTS / f"science_{recipe}.md"
    return text + ("\n\n" + notes.read_text().strip() if notes.exists() else "")


def timing_section(path: Path) -> str:
    """The ratios of one benchmark, as its JSON has them."""
    result = json.loads(path.read_text())
    return "```json\n" + json.dumps(result, indent=1) + "\n```"


def main() -> None:
    sections = ["# Results\n\nWritten by `python benchmarks/report.py` from `benchmarks/results/`."]
    bundled = RESULTS / "bundled_model.json"
    if bundled.exists():
        result = json.loads(bundled.read_text())
        block = (
            f"bias / NMAD / outlier fraction, on {result['test_galaxies']} galaxies of an unseen "
            f"sky; {result['training_sources']} training sources, {result['training_labels']} "
            f"training labels.\n\n{metrics_table(result)}\n\nPITA:\n\n{gain_lines(result)}"
        )
        evaluation = json.loads((RESULTS / "bundled_evaluation.json").read_text())
        block += f"\n\nIntervals (`photozhpc evaluate`):\n\n{interval_table(evaluation)}"
        sections.append(
            "## The bundled model against photometry-MLPs\n\n"
            f"The command is in the model card.\n\n{block}\n\n"
            "![z-z](figures/bundled_zz.png) ![coverage](figures/bundled_coverage.png) "
            "![PIT](figures/bundled_pit.png)"
        )
        card = CARD.read_text()
        CARD.write_text(
            re.sub(
                r"(<!-- metrics -->\n).*?(<!-- /metrics -->)",
                lambda m: f"{m[1]}{block}\n{m[2]}",
                card,
                flags=re.DOTALL,
            )
        )
    sections += [science_section(path) for path in sorted(RESULTS.glob("science_*.json"))]
    for path in sorted(RESULTS.glob("*.json")):
        if path != bundled and (HERE / f"bench_{path.stem}.py").exists():
            sections.append(
                f"## {path.stem}\n\n`python benchmarks/bench_{path.stem}.py --save`\n\n"
                + timing_section(path)
            )
    (HERE / "RESULTS.md").write_text("\n\n".join(sections) + "\n")
    print(f"wrote {HERE / 'RESULTS.md'}")


if __name__ == "__main__":
    main()
