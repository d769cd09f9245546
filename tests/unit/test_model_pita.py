"""PITA's shapes, its key encoder and queue, checkpoints, and the inference engine."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from builders import models as tiny
from photozhpc.errors import CheckpointError, ConfigError
from photozhpc.model import PITA, PITAConfig, load_checkpoint, save_checkpoint
from photozhpc.model.augment import prepare
from photozhpc.model.density import FLOOR, LEVEL_Q, N_KNOTS, least_risk, pooled
from photozhpc.model.engine import Engine, usable
from photozhpc.model.pita import BRIGHTNESS_RADIUS_PIX, Fluxes, KeyEncoder
from photozhpc.model.pita_config import FluxesConfig
from photozhpc.survey import load_survey

SURVEY = load_survey("roman-sim")
TINY = replace(tiny.TINY, redshift_heads=2, redshift_sees_apertures=True)


POOLED = replace(
    TINY,
    encoder="resnet",
    encoder_widths=(4, 6),
    crop=17,
    redshift_sees_apertures=False,
    aperture_radii_pix=(),
    redshift_task="density",
    density_bins=20,
    point_estimate="least_risk",
    fluxes=FluxesConfig((0.2, 0.4), True, True, 2, (8,)),
)


def fluxes_of(n: int) -> Fluxes:
    return Fluxes(100 * torch.rand(n, 4, 3), torch.ones(n, 4, 3), torch.rand(n) / 10)


@pytest.fixture(scope="module")
def model() -> PITA:
    torch.manual_seed(0)
    return PITA(TINY).eval()


def test_the_defaults_are_the_papers_network() -> None:
    with torch.device("meta"):
        network = PITA(PITAConfig())
    assert network.encoder.head.fc.out_features == 1000
    assert network.encoder.stem[0].weight.shape == (96, 4, 4, 4)
    widths = [
        layer.out_features for layer in network.redshift_mlp[0] if hasattr(layer, "out_features")
    ]
    assert widths == [128, 128, 128, 128, 128, 64, 1]
    n_encoder = sum(p.numel() for p in network.encoder.parameters())
    assert n_encoder == 28_589_128 + 96 * 16  # torchvision's ConvNeXt-Tiny, with a fourth channel


def test_output_shapes_and_unit_projections(model: PITA) -> None:
    out = model(torch.randn(5, 4, 32, 32))
    assert [tuple(t.shape) for t in out] == [(5, 16), (5, 8), (5,), (5, 4), (5, 0, 1)]
    torch.testing.assert_close(out.projection_BP.norm(dim=1), torch.ones(5))
    assert (out.z_phot_B > -1).all()


def test_aperture_signal_is_signal_over_noise_in_a_circle(model: PITA) -> None:
    signal = torch.randn(3, 4, 32, 32) * 5
    out = model.aperture_signal(signal)
    y, x = np.mgrid[:32, :32] - 16
    for r, radius in enumerate(TINY.aperture_radii_pix):
        weight = np.clip(radius + 0.5 - np.hypot(y, x), 0, 1)
        expected = np.arcsinh(
            (signal.numpy() * weight).sum(axis=(2, 3)) / np.sqrt((weight**2).sum())
        )
        np.testing.assert_allclose(
            out.unflatten(1, (4, 2))[:, :, r], (expected - 4) / 2, rtol=1e-3, atol=1e-3
        )


@pytest.mark.parametrize("stretch", ["none", "asinh"])
def test_the_estimate_is_each_step_in_numpy(stretch: str) -> None:
    """Brightness in a circle -> level from the table -> quantile of the mean of the densities."""
    torch.manual_seed(3)
    network = PITA(replace(TINY, stretch=stretch, density_bins=30, density_z_max=3.0)).eval()
    uncertainty = network.uncertainty
    assert uncertainty is not None
    uncertainty.knot_G.copy_(torch.linspace(-1, 3, N_KNOTS))
    uncertainty.level_GQ.copy_(torch.rand(N_KNOTS, len(LEVEL_Q)).sort(dim=1).values)
    uncertainty.usual_distance.fill_(2.0)
    image = 3 * torch.randn(5, 4, 32, 32)
    with torch.inference_mode():
        z_phot, mean, mode, quantile, ood = network.estimate(image)
        latent, signal = network.features(image)
        inputs = network.redshift_input(latent, signal)
        densities = [head(inputs).softmax(dim=1).double().numpy() for head in uncertainty.heads]
        torch.testing.assert_close(z_phot, network(image).z_phot_B)
    y, x = np.mgrid[:32, :32] - 16
    weight = np.clip(BRIGHTNESS_RADIUS_PIX + 0.5 - np.hypot(y, x), 0, 1)
    last_band = image[:, -1].double().numpy()
    pixels = np.sinh(last_band) if stretch == "asinh" else last_band
    brightness = np.arcsinh((pixels * weight).sum(axis=(1, 2)) / np.sqrt((weight**2).sum()))
    edge = np.expm1(np.linspace(0, np.log1p(3.0), 31))
    for row in range(5):
        density = (1 - FLOOR) * np.mean([d[row] for d in densities], axis=0) + FLOOR / 30
        cdf, levels = np.concatenate([[0], np.cumsum(density)]), []
        for q in range(len(LEVEL_Q)):
            level = np.interp(
                brightness[row], uncertainty.knot_G.numpy(), uncertainty.level_GQ[:, q].numpy()
            )
            expected = np.expm1(np.interp(level, cdf, np.log1p(edge)))
            assert quantile[row, q].item() == pytest.approx(expected, rel=1e-3, abs=1e-4)
            levels.append(level)
        middle = np.expm1((np.arange(30) + 0.5) / 30 * np.log1p(3.0))
        mass = np.diff(np.interp(cdf, [0, *levels, 1], [0, *LEVEL_Q, 1]))
        assert mean[row].item() == pytest.approx(mass @ middle, rel=1e-3)
        best = np.argmax(density / (1 + middle))
        assert edge[best] - 0.1 < mode[row].item() < edge[best + 1] + 0.1
    np.testing.assert_allclose(ood, np.linalg.norm(latent, axis=1) / 2, rtol=1e-5)


def test_heads_that_see_fluxes_are_pooled_with_the_expert() -> None:
    torch.manual_seed(4)
    network = PITA(POOLED).eval()
    network.expert_share.fill_(0.3)
    network.uncertainty.level_GQ.copy_(torch.tensor(LEVEL_Q).expand(N_KNOTS, len(LEVEL_Q)))
    network.uncertainty.usual_distance.fill_(1.0)
    image, fluxes = torch.randn(5, 4, 17, 17), fluxes_of(5)
    with torch.inference_mode():
        found = network.estimate(image, fluxes)
        seen = network.flux_features(*fluxes)
        logit_BHK = network(image, seen).logit_BHK
        density = pooled(logit_BHK.softmax(dim=2).mean(dim=1), network.expert(*fluxes), 0.3)
        torch.testing.assert_close(found.z_phot_B, least_risk(density, 4.0))
        other = network.estimate(image, fluxes_of(5))
    assert logit_BHK.shape == (5, 2, 20)
    assert (found.z_phot_B != other.z_phot_B).all()
    assert (found.quantile_BQ.diff(dim=1) >= 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop": 3}, "crop must be at least 4"),
        ({"dropout": 1.0}, "dropout"),
        ({"encoder": "resnet50"}, "encoder must be resnet or a ConvNeXt"),
        ({"encoder": "convnext_atto"}, "crop must be at least 32"),
        ({"encoder_widths": ()}, "encoder_widths"),
        ({"point_estimate": "heads"}, "point_estimate 'median' or 'least_risk'"),
        ({"density_bins": 0}, "density_bins above 0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(POOLED, **change)
    with pytest.raises(ValueError, match="if and only if"):
        FluxesConfig((0.2,))


def test_the_queue_takes_keys_after_the_loss_and_forgets_the_oldest(model: PITA) -> None:
    keys = KeyEncoder(model, queue_len=6, momentum=0.9)
    first, second = torch.full((4, 8), 1.0), torch.full((4, 8), 2.0)
    before = keys.queue_KP.clone()
    keys.enqueue(first)
    assert torch.equal(keys.queue_KP[:4], first)
    assert torch.equal(keys.queue_KP[4:], before[4:])
    keys.enqueue(second)
    assert torch.equal(keys.queue_KP[[4, 5, 0, 1]], second)
    assert torch.equal(keys.queue_KP[2:4], first[:2])
    keys.enqueue(torch.arange(10.0)[:, None].expand(10, 8))  # more than the queue holds
    assert sorted(keys.queue_KP[:, 0].tolist()) == [4, 5, 6, 7, 8, 9]


def test_the_key_encoder_is_the_momentum_average(model: PITA) -> None:
    keys = KeyEncoder(model, queue_len=4, momentum=0.9)
    other = PITA(TINY)
    start = [p.clone() for p in keys.model.parameters()]
    keys.update(other)
    for p, s, o in zip(keys.model.parameters(), start, other.parameters(), strict=True):
        torch.testing.assert_close(p, 0.9 * s + 0.1 * o)
        assert not p.requires_grad


def test_a_checkpoint_gives_the_same_model_back(model: PITA, tmp_path) -> None:
    path = save_checkpoint(tmp_path / "m.safetensors", model, SURVEY, {"note": 1})
    loaded = load_checkpoint(path)
    image = torch.randn(2, 4, 32, 32)
    for a, b in zip(loaded.model(image), model(image), strict=True):
        assert torch.equal(a, b)
    assert (loaded.config, loaded.survey, loaded.training) == (TINY, SURVEY, {"note": 1})
    assert list(tmp_path.iterdir()) == [path]
    frozen = {name: p.requires_grad for name, p in model.named_parameters()}
    assert {name: p.requires_grad for name, p in loaded.model.named_parameters()} == frozen


def test_a_damaged_checkpoint_is_one_error(model: PITA, tmp_path) -> None:
    path = save_checkpoint(tmp_path / "m.safetensors", model, SURVEY)
    content = path.read_bytes()
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "none.safetensors")
    for damaged in (b"", content[:4], content[:100], content[:-10], b"\x80\x04" + content):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"m\.safetensors"):
            load_checkpoint(path)
    rng = np.random.default_rng(0)
    altered = [content.replace(b"convnext_atto", b"convnext_tiny", 1)]
    for _ in range(20):
        flipped = bytearray(content)
        flipped[rng.integers(8, len(content))] ^= 1 << int(rng.integers(8))
        altered.append(bytes(flipped))
    for damaged in altered:
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"m\.safetensors"):
            load_checkpoint(path)


def test_a_store_that_does_not_match_is_refused(model: PITA, tmp_path) -> None:
    checkpoint = load_checkpoint(save_checkpoint(tmp_path / "m.safetensors", model, SURVEY))
    checkpoint.check_store(SURVEY, 32)
    checkpoint.check_store(load_survey("roman-l3"), 64)  # the same bands on the same grid
    with pytest.raises(
        CheckpointError, match="bands F062 F087 F129 F158, but the store is of survey 'candels'"
    ):
        checkpoint.check_store(load_survey("candels"), 64)
    with pytest.raises(CheckpointError, match="--size 32"):
        checkpoint.check_store(SURVEY, 31)


def test_the_engine_is_prepare_then_the_model(model: PITA, tmp_path) -> None:
    checkpoint = load_checkpoint(save_checkpoint(tmp_path / "m.safetensors", model, SURVEY))
    rng = np.random.default_rng(0)
    cutout = rng.normal(size=(10, 4, 40, 40)).astype(np.float32)
    cutout[3] = np.nan
    cutout[4, 2] = np.nan
    cutout[5, :, :5] = np.nan
    ebv = rng.uniform(0, 0.1, 10)
    engine = Engine(checkpoint, batch_size=4, precision=torch.float32)
    found = engine.predict(cutout, ebv)
    image = prepare(
        torch.from_numpy(cutout),
        torch.from_numpy(ebv).float(),
        model.extinction_r_C,
        model.noise_C,
        32,
        "asinh",
    )
    expected = model(image).z_phot_B.detach().numpy()
    expected[3:5] = np.nan
    np.testing.assert_allclose(found.z_phot_N, expected, rtol=1e-4, atol=1e-5)
    assert found.quantile_NQ.shape == (10, len(LEVEL_Q))
    assert all(np.isnan(column).all() for column in found[1:])  # TINY has no density heads
    assert usable(cutout, 32).tolist() == [True] * 3 + [False] * 2 + [True] * 5
    with pytest.raises(ConfigError, match="no CUDA device"):
        Engine(checkpoint, "cuda")


@pytest.mark.parametrize(
    "wrong",
    [
        {"encoder": "resnet18"},
        {"encoder": "convnext_nope"},
        {"crop": 8},
        {"n_bands": 0},
        {"density_bins": 1},
        {"density_z_max": 0.0},
    ],
)
def test_a_network_that_cannot_be_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PITAConfig(**wrong)
