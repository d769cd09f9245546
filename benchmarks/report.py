"""Write benchmarks/RESULTS.md, its figures and the tables of the model card from the results.

python benchmarks/report.py
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, stdev

from photozhpc.figures.scaling import plot_learning_curves, plot_scaling, scaling_table
from photozhpc.store.schema import COLUMNS

HERE = Path(__file__).parent
RESULTS = HERE / "results"
FIGURES = HERE / "figures"
# Of a tile, beside its shards: two for each column, the metadata of cutouts and tile, the manifest.
SMALL_FILES = 2 * len(COLUMNS) + 3
LIMIT = "limit of the photometry"  # as in opponents.py, which needs more than this report
LEVELS = (68, 90, 99)
GOAL_POINTS = 3  # of the coverage in every bin
FIRST = "ConvNeXt-Atto that was bundled first"
CARD = HERE.parent / "photozhpc" / "model" / "bundled" / "MODEL_CARD.md"


def table(header: list[str], rows: Iterable[list[object]], align: str) -> str:
    """A Markdown table; `align` has l or r for each column, or - for the default."""
    marks = {"l": ":--", "r": "--:", "-": "---"}
    lines = [" | ".join(map(str, cells)) for cells in (header, *rows)]
    lines = [f"| {line} |" for line in lines]
    return "\n".join([lines[0], f"|{'|'.join(marks[a] for a in align)}|", *lines[1:]])


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


def with_error(measured: dict, digits: int, scale: float = 1) -> str:
    value, error = scale * measured["value"], measured["error"]
    return f"{value:.{digits}f}" + ("" if error is None else f" ± {scale * error:.{digits}f}")


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
        for method, entry in sorted(methods.items(), key=lambda item: _mean(item[1], "nmad")):
            runs = entry["runs"]
            name = f"**{method}**" if method == result["ours"] else method
            cells = [labels, name, len(runs)]
            for key, digits in (("nmad", 4), ("outliers_percent", 2), ("crps", 4)):
                values = [run[key] for run in runs]
                spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
                cells.append(f"{mean(values):.{digits}f}{spread}")
            rows.append(cells)
    header = ["labels", "method", "seeds", "NMAD", "outliers, %", "CRPS"]
    text = f"""## Is it better than a table of fluxes?

{verdicts(result)}

Opponents see the store's fluxes in all apertures and Kron, but no pixels; each is tuned by \
cross-validation of its labels. Each method has the same labels, and predicts the same \
{result["galaxies"]} galaxies of a simulated sky that nobody had seen. The training sky has \
{result["sources"]} sources, {result["labels"]} of them with a redshift. \
'{LIMIT}' is the density MLP with all {result["true_redshifts"]} true redshifts of that sky. Mean \
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


def verdicts(result: dict) -> str:
    """A sentence for each number of labels: ours, and the best opponent in each measure."""
    lines = []
    for labels, methods in result["by_labels"].items():
        others = {
            name: entry
            for name, entry in methods.items()
            if name != LIMIT and not name.startswith(result["ours"])
        }
        if result["ours"] not in methods or not others:
            continue
        clauses = []
        for what, key, digits, unit in (
            ("NMAD", "nmad", 4, ""),
            ("outliers", "outliers_percent", 1, "%"),
            ("CRPS", "crps", 3, ""),
        ):
            name = min(others, key=lambda n, key=key: _mean(others[n], key))
            ours, best = _mean(methods[result["ours"]], key), _mean(others[name], key)
            clauses.append(
                f"{what} {ours:.{digits}f}{unit} (best opponent {best:.{digits}f}{unit}, {name})"
            )
        lines.append(f"- **{labels} labels**: {', '.join(clauses)}.")
    return "\n".join(lines)


def convergence_section() -> str:
    """The bundled model's training, epoch by epoch."""
    result = load("learning_curve")
    epochs = {int(number): row for number, row in result["epochs"].items()}
    last = max(epochs)
    shown = sorted({number for number in epochs if number % 4 == 0} | {min(epochs), last})
    rows = [
        [n, f"{e['nmad']:.4f}", f"{e['outliers_percent']:.2f}", f"{e['crps']:.4f}"]
        for n, e in ((n, epochs[n]) for n in shown)
    ]
    before = epochs[min(epochs, key=lambda number: abs(number - 0.8 * last))]
    change = {key: epochs[last][key] - before[key] for key in before}
    return f"""## Has the bundled model's training converged?

The second stage, without the expert, on {result["galaxies"]} galaxies of a development sky. Over \
its last fifth NMAD changed by {change["nmad"]:+.4f}, outliers by \
{change["outliers_percent"]:+.2f} points and CRPS by {change["crps"]:+.4f}, while the learning \
rate falls to nothing. Both stages took {result["process_hours"]} process-hours by the \
clock, on cores that also did other work.

{table(["epoch", "NMAD", "outliers, %", "CRPS"], rows, "rrrr")}

`python benchmarks/learning_curve.py`, on {result["machine"]}."""


def _mean(entry: dict, key: str) -> float:
    return mean(run[key] for run in entry["runs"])


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


def load(name: str) -> dict:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def warnings_section() -> str:
    """Planted defects and noise, and stars: what is told of them."""
    skies = load("defects")["skies"]
    planted = [
        [name, kind, row["matter"], *(percent(row[key]) for key in _TOLD)]
        for name, sky in skies.items()
        for kind, row in sky["planted"].items()
    ]
    noise = [
        [name, f"{row['factor']:g}", *(percent(row[key]) for key in _NOISE)]
        for name, sky in skies.items()
        for row in sky["noise"]
    ]
    stars = [
        [name, magnitude, row["stars"], row["galaxies"], f"{row['auc']:.4f}"]
        for name, sky in skies.items()
        for magnitude, row in sky["stars"].items()
        if isinstance(row, dict)
    ]
    alarms = "; ".join(
        f"{name}: {percent(sky['false_alarms'])} of {sky['clean_sources']} sources without one"
        for name, sky in skies.items()
    )
    costs = "; ".join(
        f"{name}: {percent(sky['cpu_us_per_source']['share'])} of the "
        f"{sky['cpu_us_per_source']['model']:.0f} µs of the model"
        for name, sky in skies.items()
    )
    return f"""## Warnings: defects, noise, stars

`python benchmarks/defects.py --sky ... --out benchmarks/results/defects.json`. Rays have 30 \
times, hot pixels 300 times the noise of a pixel, in one band, within 0.5 arcsec of the source; a \
native pixel covers two by two pixels of the mosaic. A defect matters if it moves the redshift by \
more than half the 68% interval. Before: `photoz_ood` above 1, or flags 1 to 8.

{table(_PLANTED_HEADER, planted, "llrrrr")}

False alarms of flag 16: {alarms}. Cost of flags and star probability: {costs}.

Images with more noise, and fluxes with as much more:

{table(_NOISE_HEADER, noise, "lrrrr")}

`star_probability`:

{table(["sky", "F158", "stars", "galaxies", "AUC"], stars, "llrrr")}"""


_TOLD = (
    "of_these_told_by_ood_or_flags_before",
    "of_these_told_by_sharp_defect",
    "of_all_told_by_sharp_defect",
)
_PLANTED_HEADER = ["sky", "defect", "matter", "told before", "told by flag 16", "of all"]
_NOISE_HEADER = ["sky", "times the noise", "in 68% interval", "told before", "told by flag 32"]
_NOISE = ("in_68", "told_by_ood_or_flags_before", "told_by_other_noise")


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}%"


def throughput_section() -> str:
    """Goals for the speed and the measured values, each from one run of one benchmark."""
    rows: list[list[object]] = []

    def row(what: str, against: str, goal: str, measured: object, benchmark: str) -> None:
        value = f"{measured:.2f}" if isinstance(measured, float) else str(measured)
        rows.append([what, against, goal, value, f"bench_{benchmark}.py"])

    if inference := load("inference"):
        if use := inference.get("utilisation"):
            what = f"inference, disk to disk, {FIRST}"
            against = "the engine on images in memory"
            row(what + ", compiled", against, "0.90", use["compiled"]["utilisation"], "inference")
            row(what + ", eager", against, "0.90", use["eager"]["utilisation"], "inference")
        if "cold" in inference:
            what = "inference, the same compiled, store not in the system's memory"
            row(
                what,
                "the engine on images in memory",
                "",
                inference["cold"]["utilisation"],
                "inference",
            )
        if "reference" in inference:
            what = "inference, disk to disk, ConvNeXt-Tiny"
            value = inference["reference"]["times_pita_z"]
            row(what, "pita-z's scripts", "4.0", value, "inference")
        for name, threads in inference.get("forward", {}).items():
            if name.endswith("_threads"):
                what = f"forward pass, {FIRST}, {name[0]} thread{'s' * (name[0] != '1')}"
                for kind in ("_compiled", ""):
                    value = threads[f"times_eager_float32{kind}"]
                    label = what + (", compiled" if kind else ", eager")
                    row(label, "eager float32", "3.0", value, "inference")
        if "memory" in inference:
            peak = inference["memory"]["peak_mb"]
            sizes = " to ".join(f"{int(n):.0e}" for n in peak)
            row(
                f"peak memory of a worker, {sizes} sources",
                "the smallest",
                "1.05, 1500 MB",
                f"{inference['memory']['largest_over_smallest']:.3f}, {max(peak.values()):.0f} MB",
                "inference",
            )
        if "first" in inference:
            seconds = f"{inference['first']['median']:.1f} s"
            row("time to the first finished part", "", "5 s", seconds, "inference")
    if precision := load("precision"):
        for name in ("bfloat16", "bfloat16, compiled"):
            new = precision[name]
            changes = (new["nmad_change"], new["outlier_fraction_change"])
            row(
                f"redshifts in {name}: 99% shift, mean shift; change of NMAD, of outliers",
                "float32",
                "0.1 NMAD, 0.0005; 1%, 1%",
                f"{new['shift_99_in_nmad']:.3f} NMAD, {new['mean_shift']:+.5f}; "
                + ", ".join(f"{100 * change:+.2f}%" for change in changes),
                "precision",
            )
    if training := load("train_cpu"):
        row("training step, paper's PITA", "pita-z", "2.2", training["times_pita_z"], "train")
    if photometry := load("photometry"):
        for radius in (3, 8):
            value = photometry[f"r{radius}_one_core"]["times_sep"]
            row(f"sum_circles, r = {radius} px, one thread", "sep", "1.0", value, "photometry")
            for n, name in (("20 000", ""), ("100 000", "_tile")):
                value = photometry[f"r{radius}{name}_two_threads_times_one"]
                what = f"sum_circles, r = {radius} px, {n} sources, two threads"
                row(what, "one thread", "1.8", value, "photometry")
        value = photometry["five_radii_one_core"]["times_five_sep"]
        row("five radii in one pass", "five sep calls", "1.5", value, "photometry")
    if cutouts := load("cutouts"):
        for cores, label in (("one_core", "one core"), ("all_cores", "two cores against one")):
            for peer, name, goal in (
                ("cutout2d_wcs", "astropy Cutout2D with WCS", "20"),
                ("cutout2d", "astropy Cutout2D without WCS", "20"),
                ("astrocut", "astrocut", "20"),
                ("cutana", "Cutana", "5"),
            ):
                value = cutouts[f"four_bands_{cores}"][f"times_{peer}"]
                row(f"cutouts, 4 bands 64 px, {label}", name, goal, value, "cutouts")
    if extract := load("extract"):
        value = extract["times_cutana_and_sep"]
        row("mosaics to store, 20 000 sources", "Cutana and sep", "2", value, "extract")
        if "cores_at_work" in extract:
            what = f"mosaics to store: cores at work, of {extract['cores']}"
            row(what, "", "no idle core", extract["cores_at_work"], "extract")
        value = extract["times_cutana_alone"]
        row("the same", "Cutana without photometry", "", value, "extract")
    if scale := load("scale"):
        n = f"{scale['sources']:.0e} sources, {scale['tasks']} tasks"
        row(f"{n}: ms per shard, including writing", "", "5", scale["ms_a_shard"], "scale")
        peak = f"{scale['client_mb_peak']:.0f} MB"
        row("peak memory of client and scheduler", "", "1000 MB", peak, "scale")
        seconds = f"{scale['resume_seconds_to_first_new_part']:.0f} s"
        what = f"resuming with {scale['parts_resumed']} finished parts, until work begins"
        row(what, "", "60 s", seconds, "scale")
    notes = RESULTS / "throughput.md"
    return (
        "## Throughput\n\nTwo cores, no GPU; ratios are medians over rounds in which both sides "
        "ran in turn. `python benchmarks/bench_NAME.py --save`; machine, versions and rates are "
        "below.\n\n"
        + table(["what", "compared with", "goal", "measured", "benchmark"], rows, "llrrl")
        + ("\n\n" + notes.read_text().strip() if notes.exists() else "")
    )


def cost_table() -> str:
    """Hours, bytes and files for surveys of several sizes, from the measured rates."""
    use, scale = load("inference")["utilisation"], load("scale")
    rates = sorted(use["compiled"]["from_disk_per_s"])
    rate = rates[len(rates) // 2]
    stored, written = use["store_bytes_per_source"], use["catalog_bytes_per_source"]
    rows = []
    for n in (10**6, 10**8, 10**9):
        rows_per_part = max(2048, min(max(n // 512, 1024), 32768))
        rows.append(
            [
                f"{n:.0e}",
                f"{n / rate / 3600:.2g}",
                f"{n * stored / 1e12:,.2f} TB",
                f"{n / 2048 + SMALL_FILES * n / 8192:,.0f}",
                f"{n * written / 1e9:,.1f} GB",
                f"{n / rows_per_part:,.0f}",
            ]
        )
    header = ["sources", "hours on these 2 cores", "store", "its files", "catalogue", "parts"]
    return table(header, rows, "r" * 6) + (
        f"\n\nFrom benchmarks/results: {rate:,.0f} sources/s (inference.json), "
        f"{stored / 1e3:.1f} kB of store and {written:.0f} bytes of catalogue per source, tiles of "
        f"8192 sources with {SMALL_FILES} small files each, shards of 2048 in one "
        f"file each; {scale['ms_a_shard']:.1f} ms per part for scheduling and writing (scale.json)."
    )


def gpu_table() -> str:
    """Rates on a GPU: of the network alone, of reading, and from store to catalogue."""
    result = load("gpu")
    models = {name: one for name, one in result.items() if isinstance(one, dict) and "disk" in one}
    first = next(iter(models.values()))
    rates = {
        f"network alone, {kind}": [m["ceiling"][kind]["images_per_s"] for m in models.values()]
        for kind in first["ceiling"]
    }
    for threads in first["feed"]:
        n_threads = threads.removesuffix("_threads")
        what = f"reading and decoding, {n_threads} thread{'s' * (n_threads != '1')}"
        rates[what] = [m["feed"][threads] for m in models.values()]
    what = "store to catalogue, 1 worker, not compiled"
    rates[what] = [m["disk"]["from_disk_per_s"] for m in models.values()]
    header = ["per second", *(f"`{name}`" for name in models)]
    rows = [[what, *(f"{rate:,.0f}" for rate in row)] for what, row in rates.items()]
    return table(header, rows, "l" + "r" * len(models)) + (
        f"\n\n{result['gpu']}, {result['cores']} cores, torch {result['versions']['torch']} "
        f"(gpu.json); {result['sources']:,} sources of 64 px."
    )


def export_table() -> str:
    """Seconds and memory of the export of a large catalogue, by format."""
    result = load("export")
    rows = [
        [
            f"`{to}`",
            f"{one['seconds']:.0f}",
            f"{one['peak_pss_mb'] / 1024:.1f} GB",
            f"{one['written_gb']:.1f} GB",
        ]
        for to, one in result["formats"].items()
    ]
    hats = result["formats"]["hats"]
    header = [f"{result['sources']:.0e} sources to", "seconds", "peak memory", "on disk"]
    return table(header, rows, "lrrr") + (
        f"\n\nThe HATS catalogue has {hats['partitions']} partitions. LSDB finds the "
        f"{hats['cone_search_rows']} sources within 10' in {hats['cone_search_seconds']:.1f} s, "
        f"and one by its identifier in {hats['id_search_seconds']:.1f} s."
    )


def faults_section() -> str:
    """Random kills and damaged input: how many, and their outcomes."""
    results = {path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}
    lines = ["## Faults"]
    if chaos := results.get("chaos"):
        lines.append(
            f"`python tests/system/chaos/chaos.py --trials {chaos['trials']} "
            f"--seed {chaos['seed']} --save`: {chaos['trials']} runs of `photozhpc infer` with a "
            f"fault at a random moment, followed by the same command. Survived: "
            f"{chaos['survived']}; rows lost: {chaos['rows_lost']} (of {chaos['rows']} per run). "
            f"After each the catalogue is compared with the undisturbed one and verified, and its "
            f"folder is searched for left-over files."
        )
        header = ["fault", "exit code of the run with the fault: how often"]
        lines.append(table(header, _counts(chaos["exit_codes_by_fault"]), "ll"))
    if kills := results.get("kills"):
        lines.append(
            f"`python tests/system/chaos/kills.py --trials {kills['trials']} "
            f"--seed {kills['seed']} --save`: {kills['trials']} kills of a training on one rank "
            f"and on two, of calibrate, extract and export, followed by the same command until it "
            f"succeeds. Survived: {kills['survived']}. After each the files are compared with "
            f"those of undisturbed runs. Then orphaned processes, locks and temporary files are "
            f"searched for."
        )
        header = ["command", "fault, and exit code of that run: how often"]
        lines.append(table(header, _counts(kills["exit_codes_by_kind"]), "ll"))
    if fuzz := results.get("fuzz"):
        lines.append(
            f"`python tests/system/fuzz/long.py --cases {fuzz['cases']} --seed {fuzz['seed']} "
            f"--out benchmarks/results/fuzz.json`: {fuzz['cases']} damaged files, of every kind "
            f"that photozhpc reads. Failures (anything but a PhotozError, an unchanged result, or "
            f"the content of the damaged file): {fuzz['failures']}."
        )
        names = ("cases", "refused", "unchanged", "read as the file says", "failures")
        rows = [[target, *(n[name] for name in names)] for target, n in fuzz["targets"].items()]
        lines.append(table(["input", *names], rows, "l" + "r" * len(names)))
    return "\n\n".join(lines)


def _counts(counts: dict[str, dict[str, int]]) -> list[list[str]]:
    """A row per name, with the number of each outcome."""
    return [
        [name, ", ".join(f"{outcome}: {n}" for outcome, n in sorted(outcomes.items()))]
        for name, outcomes in counts.items()
    ]


def timing_section(path: Path) -> str:
    """The JSON of one benchmark."""
    result = json.loads(path.read_text())
    return "```json\n" + json.dumps(result, indent=1) + "\n```"


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
