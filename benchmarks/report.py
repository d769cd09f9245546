"""Write benchmarks/RESULTS.md and the tables of the model card from benchmarks/results/*.json.

python benchmarks/report.py
"""

import json
import re
from pathlib import Path

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
            f"sky; {result['training_sources']} training sources, {result['training_labels']} of "
            f"them labelled.\n\n{metrics_table(result)}\n\nPITA:\n\n{gain_lines(result)}"
        )
        sections.append(
            "## The bundled model against photometry-MLPs\n\n"
            f"The command is in the model card.\n\n{block}"
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
