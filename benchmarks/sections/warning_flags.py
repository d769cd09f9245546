"""The section on what is told of defects, noise and stars."""

from sections.tables import load, percent, table

_TOLD = (
    "of_these_told_by_ood_or_flags_before",
    "of_these_told_by_sharp_defect",
    "of_all_told_by_sharp_defect",
)

_PLANTED_HEADER = ["sky", "defect", "matter", "told before", "told by flag 16", "of all"]

_NOISE_HEADER = ["sky", "times the noise", "in 68% interval", "told before", "told by flag 32"]

_NOISE = ("in_68", "told_by_ood_or_flags_before", "told_by_other_noise")


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
