"""How well galaxies of a sky can be told apart: redshifts from fluxes without noise, and structure.

    python benchmarks/sky_limits.py [--sky sky/realistic ...] [--galaxies 20000]

An ExtraTrees regression learns the redshift from noise-free magnitudes (a magnitude and colours),
with and without the true structure (radius, bulge share, axis ratio, numbers of clumps and arms).
The last line is JSON.
"""

import numpy as np
from side_by_side import about, finish, parser
from sklearn.ensemble import ExtraTreesRegressor

from photozhpc.metrics import point_metrics
from photozhpc.sky import load_sky_config
from photozhpc.sky.population import Population, SkyPhysics
from photozhpc.survey import ab_magnitude, load_survey


def features(sources: Population, noise_mag: float, structure: bool) -> np.ndarray:
    """Return magnitude and colours, with Gaussian noise; and structure if asked for."""
    magnitude_NC = ab_magnitude(np.maximum(sources.flux_njy_NC, 1e-6))
    magnitude_NC = magnitude_NC + noise_mag * np.random.default_rng(1).standard_normal(
        magnitude_NC.shape
    )
    columns = [magnitude_NC[:, -1:], magnitude_NC[:, :-1] - magnitude_NC[:, 1:]]
    if structure:
        share_NC = sources.bulge_njy_NC / sources.flux_njy_NC
        columns.append(
            np.column_stack(
                [
                    np.log(sources.half_light_arcsec_N),
                    share_NC[:, -1],
                    sources.disk_axis_ratio_N,
                    sources.structure.clumps.count_N,
                    sources.structure.clumps.share_NC[:, 0],
                    sources.structure.arms_N,
                ]
            )
        )
    return np.concatenate(columns, axis=1)


def main() -> None:
    options = parser(__doc__, rounds=None)
    options.add_argument("--sky", nargs="+", default=["sky/simple", "sky/realistic"])
    options.add_argument("--galaxies", type=int, default=20000)
    given = options.parse_args()
    survey = load_survey("roman-sim")
    results = about("sky_limits", "numpy scikit-learn galsim")
    for name in given.sky:
        config = load_sky_config(name)
        physics = SkyPhysics(survey.band_names, config)
        rng = np.random.default_rng(0)
        sources = physics.with_structure(rng, physics.draw(rng, given.galaxies / 40.0))
        listed = ab_magnitude(sources.reference_njy_N) < config.catalogue_limit_ab
        sources = sources.take(np.flatnonzero(~sources.is_star_N & listed))
        sources = sources.take(rng.permutation(len(sources))[: given.galaxies])
        half = len(sources) // 2
        for noise_mag in (0.0, 0.03):
            for structure in (False, True):
                x = features(sources, noise_mag, structure)
                forest = ExtraTreesRegressor(100, min_samples_leaf=2, random_state=0)
                forest.fit(x[:half], np.log1p(sources.z_N[:half]))
                z_N = np.expm1(forest.predict(x[half:]))
                found = point_metrics(sources.z_N[half:], z_N)
                key = f"{name} noise {noise_mag:g} mag{' and structure' if structure else ''}"
                results[key] = {
                    "nmad": found.nmad,
                    "outliers": found.outlier_fraction,
                    "galaxies": half,
                }
                print(f"{key:50s} NMAD {found.nmad:.4f}  outliers {found.outlier_fraction:.1%}")
    finish(results, given.save)


if __name__ == "__main__":
    main()
