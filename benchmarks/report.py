"""Write benchmarks/RESULTS.md, its figures and the tables of the model card from the results.

python benchmarks/report.py
"""

import json
import re
from pathlib import Path

from sections.accuracy import (
    convergence_section,
    coverage_section,
    draw_science,
    interval_table,
    opponents_section,
    real_section,
    science_section,
    why,
)
from sections.tables import HERE, RESULTS, load, rivals_table
from sections.throughput import (
    cost_table,
    export_table,
    faults_section,
    gpu_table,
    throughput_section,
    timing_section,
)
from sections.warning_flags import warnings_section

README = HERE.parent / "README.md"
CARD = HERE.parent / "photozhpc" / "model" / "bundled" / "MODEL_CARD.md"


def between_marks(text: str, name: str, block: str) -> str:
    """Return a text with `block` between its comments <!-- name --> and <!-- /name -->."""
    marks = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    return re.sub(marks, lambda m: f"{m[1]}{block}\n{m[2]}", text, flags=re.DOTALL)


def texts() -> dict[Path, str]:
    """Return every file that is written from the results, with its text."""
    written: dict[Path, str] = {}
    sections = ["# Results\n\nWritten by `python benchmarks/report.py` from `benchmarks/results/`."]
    if (RESULTS / "opponents.json").exists():
        sections.append(opponents_section())
    evaluation = RESULTS / "bundled_evaluation.json"
    if evaluation.exists():
        block = interval_table(json.loads(evaluation.read_text()))
        sections.append(
            "## Are the bundled model's intervals right?\n\n"
            "`photozhpc evaluate`; the commands are in the "
            "[model card](../photozhpc/model/bundled/MODEL_CARD.md).\n\n"
            f"{block}\n\n"
            "![z-z](figures/bundled_zz.png) ![coverage](figures/bundled_coverage.png) "
            "![PIT](figures/bundled_pit.png)"
        )
        result = load("opponents")
        methods = [m for m in result["by_labels"].values() if result["ours"] in m][-1]
        first = {name: entry["runs"][0] for name, entry in methods.items()}
        written[CARD] = between_marks(
            CARD.read_text(), "metrics", f"{rivals_table(first)}\n\n{block}"
        )
        if (RESULTS / "interval_coverage.json").exists():
            sections.append(coverage_section())
    if (RESULTS / "learning_curve.json").exists():
        sections.append(convergence_section())
    sections += [science_section(path) for path in sorted(RESULTS.glob("science_*.json"))]
    if (RESULTS / "real_photoz.json").exists():
        sections.append(real_section())
    gpu = f"## On a GPU\n\n`benchmarks/gpu.sh`: {load('gpu').get('note', '')}\n\n{gpu_table()}"
    if (RESULTS / "defects.json").exists():
        sections.append(warnings_section())
    sections += [throughput_section(), gpu, faults_section()]
    if load("opponents"):
        written[README] = between_marks(README.read_text(), "why", why())
    guide = HERE.parent / "docs" / "performance.md"
    text = guide.read_text()
    tables = {"cost": cost_table(), "export": export_table(), "gpu": gpu_table()}
    for name, block in tables.items():
        text = between_marks(text, name, block)
    written[guide] = text
    for path in sorted(RESULTS.glob("*.json")):
        program = f"bench_{path.stem.split('_')[0]}.py"
        if (HERE / program).exists():
            command = f"`python benchmarks/{program} --save`"
            sections.append(f"## {path.stem}\n\n{command}\n\n{timing_section(path)}")
    written[HERE / "RESULTS.md"] = "\n\n".join(sections) + "\n"
    return written


def main() -> None:
    for path in sorted(RESULTS.glob("science_*.json")):
        draw_science(path)
    for path, text in texts().items():
        path.write_text(text)
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
