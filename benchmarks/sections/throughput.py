"""Sections on speed, memory, files and faults."""

import json
from pathlib import Path

from photozhpc.store.schema import COLUMNS
from sections.accuracy import FIRST
from sections.tables import RESULTS, load, table

# Of a tile, beside its shards: two for each column, the metadata of cutouts and tile, the manifest.
SMALL_FILES = 2 * len(COLUMNS) + 3


def _counts(counts: dict[str, dict[str, int]]) -> list[list[str]]:
    """A row per name, with the number of each outcome."""
    return [
        [name, ", ".join(f"{outcome}: {n}" for outcome, n in sorted(outcomes.items()))]
        for name, outcomes in counts.items()
    ]


def throughput_section() -> str:
    """Goals for the speed and the measured values, each from one run of one benchmark."""
    rows: list[list[object]] = []

    def row(what: str, against: str, goal: str, measured: object, benchmark: str) -> None:
        value = f"{measured:.2f}" if isinstance(measured, float) else str(measured)
        rows.append([what, against, goal, value, f"bench_{benchmark}.py"])

    if inference := load("inference"):
        if use := inference.get("utilisation"):
            what = "inference, disk to disk, bundled model"
            against = "the engine on images in memory"
            row(what + ", compiled", against, "0.90", use["compiled"]["utilisation"], "inference")
            row(what + ", eager", against, "0.90", use["eager"]["utilisation"], "inference")
        if "cold" in inference:
            what = f"inference, compiled, {FIRST}, store not in the system's memory"
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
                f"peak memory of a worker, {FIRST}, {sizes} sources",
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


def timing_section(path: Path) -> str:
    """The JSON of one benchmark."""
    result = json.loads(path.read_text())
    return "```json\n" + json.dumps(result, indent=1) + "\n```"
