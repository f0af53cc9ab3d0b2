"""Statistics that others publish give the distance that their samples give; nothing in a file runs; intervals."""

import pickle

import numpy as np
import pytest
import torch

from smalti.errors import ConfigError, InputError, IntegrityError
from smalti.metrics import (
    SMALTI_GENERATION,
    Moments,
    frechet_distance,
    frechet_interval,
    read_published_statistics,
    score_generated,
)
from smalti.metrics.pixel import to_uint8_pixels
from smalti.metrics.statistics import FeatureMoments
from tests.metrics.test_generation import OF_FRAMES


def vectors(n, dim, seed=0, shift=0.0):
    rng = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n, dim, dtype=torch.float64, generator=rng) @ torch.diag(torch.arange(1.0, dim + 1)).double()
        + shift
    )


def moments(x):
    found = Moments(x.shape[1])
    found.update(x)
    return found


def written(path, x):
    """The file that numpy's mean and covariance of the vectors make, as that project writes it."""
    mean, covariance = x.numpy().mean(0), np.cov(x.numpy(), rowvar=False)
    if path.suffix == ".npz":
        np.savez(path, arr_0=np.zeros((4, 8, 8, 3), np.uint8), mu=mean, sigma=covariance)
    else:
        path.write_bytes(pickle.dumps({"real_mean": mean, "real_cov": covariance}))
    return path


@pytest.mark.parametrize("suffix", [".npz", ".pkl"])
@pytest.mark.parametrize(("n", "dim"), [(50, 7), (9, 20)])
def test_a_file_gives_the_distance_that_its_samples_give(suffix, n, dim, tmp_path):
    a, b = vectors(n, dim), vectors(n + 3, dim, 1, 0.5)
    given = read_published_statistics(written(tmp_path / f"stats{suffix}", a), dim)
    found, wanted = frechet_distance(given, moments(b)), frechet_distance(moments(a), moments(b))
    assert found.distance == pytest.approx(wanted.distance, rel=1e-9)
    assert (found.n_a, found.n_b) == (0, n + 3)
    assert (found.warning is None) == (n + 3 > dim)
    with pytest.raises(ValueError, match="no count"):
        given.update(a)


@pytest.mark.parametrize("suffix", [".npz", ".pkl"])
def test_it_stands_for_the_originals_of_a_tokenizer_and_for_the_real_set(suffix, tmp_path):
    clips = torch.rand(12, 3, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    as_set = [(f"{i:02}", clip[None]) for i, clip in enumerate(clips)]
    real, made = as_set[:6], as_set[6:]
    features = torch.cat([OF_FRAMES(to_uint8_pixels(clip, "round")) for _, clip in real]).double()
    given = read_published_statistics(written(tmp_path / f"stats{suffix}", features), 3)
    report = score_generated({"a": made}, given, SMALTI_GENERATION, OF_FRAMES)
    whole = score_generated({"a": made}, real, SMALTI_GENERATION, OF_FRAMES)
    found, wanted = report.sets[0].frechet, whole.sets[0].frechet
    assert found.distance == pytest.approx(wanted.distance, rel=1e-5)
    assert (found.originals, report.real, found.reference) == (0, 0, given.digest)
    assert report.sets[0].precision is None
    assert "statistics alone" in report.sets[0].absent["precision"]
    assert f"a file of statistics {given.digest[:8]}" in report.to_text()
    pair = FeatureMoments(OF_FRAMES, given)
    for key, clip in made:
        pair.add_original(key, torch.zeros(1, 3, 1, 32, 32, dtype=torch.uint8))  # not looked at
        pair.add_reconstruction(key, to_uint8_pixels(clip, "round"))
    assert pair.fewest == 6
    assert pair.distance().distance == pytest.approx(found.distance, rel=1e-5)


class Bomb:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return exec, ("import pathlib; pathlib.Path('exploded').touch()",)


def test_a_file_that_is_something_else_is_named_and_nothing_in_it_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = vectors(50, 7)
    with pytest.raises(InputError, match="no such file"):
        read_published_statistics(tmp_path / "gone.npz", 7)
    with pytest.raises(IntegrityError, match=r"stats\.npz: .*(the network has 9 features|larger)"):
        read_published_statistics(written(tmp_path / "stats.npz", good), 9)
    mean, covariance = np.zeros(3), np.eye(3)
    for name, save, said in (
        ("one.npz", lambda p: np.savez(p, mu=mean), "no array 'sigma'"),
        ("two.npz", lambda p: np.savez(p, mu=mean, sigma=covariance + np.triu(np.ones((3, 3)), 1)), "not symmetric"),
        ("nan.npz", lambda p: np.savez(p, mu=mean * np.nan, sigma=covariance), "finite numbers"),
        ("int.npz", lambda p: np.savez(p, mu=mean.astype(int), sigma=covariance), "finite numbers"),
        ("cut.npz", lambda p: p.write_bytes((tmp_path / "stats.npz").read_bytes()[:300]), "whole .npz"),
        ("bomb.npz", lambda p: np.savez(p, mu=mean, sigma=np.array([Bomb()], object)), "plain arrays"),
        ("bomb.pkl", lambda p: p.write_bytes(pickle.dumps({"real_mean": Bomb(), "real_cov": covariance})), "real_mean"),
        ("other.pkl", lambda p: p.write_bytes(pickle.dumps({"mean": mean})), "no table with real_mean and real_cov"),
    ):
        save(tmp_path / name)
        with pytest.raises(IntegrityError, match=said) as fault:
            read_published_statistics(tmp_path / name, 3)
        assert str(tmp_path / name) in str(fault.value)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(("n", "dim"), [(40, 6), (8, 30)])
def test_an_interval_holds_the_estimate_follows_its_seed_and_narrows_with_the_samples(n, dim):
    a, b = vectors(n, dim), vectors(n, dim, 1, 1.0)
    estimate = frechet_distance(moments(a), moments(b)).distance
    found = frechet_interval(a, b, 60, seed=3)
    assert found.low < estimate < found.high
    assert found == frechet_interval(a, b, 60, seed=3)
    assert found != frechet_interval(a, b, 60, seed=4)
    more = frechet_interval(vectors(16 * n, dim), vectors(16 * n, dim, 1, 1.0), 60)
    assert more.high - more.low < 0.5 * (found.high - found.low)
    wide = frechet_interval(a, b, 60, seed=3, share=0.99)
    assert wide.low <= found.low < found.high <= wide.high


def test_an_interval_covers_the_distances_of_other_samples_of_the_same_size():
    """Of 40 pairs of samples, the interval of one holds the mean distance of all in at least 85 %."""
    pairs = [(vectors(60, 3, 2 * i), vectors(60, 3, 2 * i + 1, 1.0)) for i in range(40)]
    mean = sum(frechet_distance(moments(a), moments(b)).distance for a, b in pairs) / len(pairs)
    inside = [low <= mean <= high for low, high, _ in (frechet_interval(a, b, 80) for a, b in pairs)]
    assert sum(inside) >= 34


def test_an_interval_is_in_the_report_and_needs_the_real_set(tmp_path):
    clips = torch.rand(20, 3, 1, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    as_set = [(f"{i:02}", clip[None]) for i, clip in enumerate(clips)]
    report = score_generated({"a": as_set[10:]}, as_set[:10], SMALTI_GENERATION, OF_FRAMES, bootstrap=25)
    found = report.sets[0].frechet
    assert found.resamples == 25
    assert found.interval[0] <= found.distance <= found.interval[1]
    assert "at 95 %, of 25 resamples" in report.to_text()
    assert type(report).parse({**report.plain()}) == report
    given = read_published_statistics(written(tmp_path / "s.npz", vectors(9, 3)), 3)
    with pytest.raises(ConfigError, match="needs the real set itself"):
        score_generated({"a": as_set[10:]}, given, SMALTI_GENERATION, OF_FRAMES, bootstrap=25)
