"""The Markdown tables of the report, and what they are made of."""

import json
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).parent.parent

RESULTS = HERE / "results"

FIGURES = HERE / "figures"


def table(header: list[str], rows: Iterable[list[object]], align: str) -> str:
    """A Markdown table; `align` has l or r for each column, or - for the default."""
    marks = {"l": ":--", "r": "--:", "-": "---"}
    lines = [" | ".join(map(str, cells)) for cells in (header, *rows)]
    lines = [f"| {line} |" for line in lines]
    return "\n".join([lines[0], f"|{'|'.join(marks[a] for a in align)}|", *lines[1:]])


def with_error(measured: dict, digits: int, scale: float = 1) -> str:
    value, error = scale * measured["value"], measured["error"]
    return f"{value:.{digits}f}" + ("" if error is None else f" ± {scale * error:.{digits}f}")


def paired_table(groups: dict[str, dict[str, dict]]) -> str:
    """A row for each method that was compared with ours; "" if none was.

    Args:
        groups: methods by name, by number of labels; one group without a name has no such column.
    """
    rows = [
        [
            *([group] if group else []),
            name,
            *(
                f"{d['difference']:+.{digits}f} ± {d['error']:.{digits}f} "
                f"({d['better_percent']:.0f}%)"
                for d, digits in (
                    (entry["minus_ours"][key], digits)
                    for key, digits in (("nmad", 4), ("outliers_percent", 2), ("crps", 4))
                )
            ),
        ]
        for group, methods in groups.items()
        for name, entry in methods.items()
        if "minus_ours" in entry
    ]
    header = [*([] if "" in groups else ["labels"]), "method", "NMAD", "outliers, points", "CRPS"]
    return table(header, rows, "l" * (len(header) - 3) + "rrr") if rows else ""


def rivals_table(methods: dict[str, dict]) -> str:
    """A row for each method, by CRPS."""
    rows = [
        [
            name,
            *(
                f"{row[key]:.{digits}f} ± {row[f'{key}_err']:.{digits}f}"
                for key, digits in (("bias", 4), ("nmad", 4), ("outliers_percent", 1), ("crps", 4))
            ),
            " / ".join(
                f"{row[f'coverage_{p}']:.1f} ± {row[f'coverage_{p}_err']:.1f}" for p in (68, 90, 99)
            ),
            f"{row['pit_ks']:.3f} ± {row['pit_ks_err']:.3f}",
        ]
        for name, row in sorted(methods.items(), key=lambda item: item[1]["crps"])
    ]
    header = ["method", "bias", "NMAD", "outliers, %", "CRPS", "in 68 / 90 / 99%", "KS of PIT"]
    return table(header, rows, "lrrrrrr")


def load(name: str) -> dict:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}%"
