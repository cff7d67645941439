"""Stop rules against their definitions in NumPy and against recorded decisions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity.files import golden

from dipddpm_jax.dip import stopping, study
from dipddpm_jax.dip.stopping import Evidence


def follow(rule, outputs, losses=None, held_out=None, sigma=0.0, anchor=None):
    """Decisions of a rule on recorded outputs, in one scan."""
    zeros = jnp.zeros(len(outputs))
    losses, held_out = (zeros if values is None else jnp.asarray(values, jnp.float32) for values in (losses, held_out))

    def update(state, row):
        output, loss, held = row
        return rule.update(state, Evidence(output, output, loss, held, jnp.float32(sigma)))

    start = rule.init(jnp.zeros_like(outputs[0]) if anchor is None else anchor)
    return jax.jit(lambda: jax.lax.scan(update, start, (jnp.asarray(outputs), losses, held_out)))()


def like_a_fit(steps, shape, seed=0):
    """Outputs that settle on a picture while their fluctuation first falls and then grows, near a measurement."""
    rng = np.random.default_rng(seed)
    picture = rng.uniform(size=shape)
    level = 0.02 + 0.08 * np.abs(np.linspace(-1, 1, steps))
    outputs = picture + level.reshape((-1,) + (1,) * len(shape)) * rng.normal(size=(steps, *shape))
    return outputs.astype(np.float32), (picture + 0.1 * rng.normal(size=shape)).astype(np.float32)


def variances(outputs, window):
    """The definition, in float64: mean over pixels of the variance over the last `window` outputs."""
    outputs = outputs.astype(np.float64)
    return np.array([outputs[i - window + 1 : i + 1].var(0).mean() for i in range(window - 1, len(outputs))])


@pytest.mark.parametrize("shape, steps, window", [((16, 16, 3), 330, 100), ((7, 5, 1), 60, 8), ((512, 512, 1), 24, 10)])
def test_moving_variance_is_the_definition(shape, steps, window):
    outputs, measurement = like_a_fit(steps, shape)
    _, decision = follow(stopping.windowed_variance(window, patience=10**6), outputs, anchor=measurement)
    ours, definition = np.asarray(decision.score), variances(outputs, window)
    assert np.all(np.isinf(ours[: window - 1]))
    np.testing.assert_allclose(ours[window - 1 :], definition, atol=1e-6, rtol=2e-5)


def test_moving_variance_does_not_drift():
    outputs, measurement = like_a_fit(40, (12, 12, 3))
    many = np.concatenate([outputs] * 200)  # the same forty pictures again and again: 8000 updates
    _, decision = follow(stopping.windowed_variance(40, patience=10**6), many, anchor=measurement)
    np.testing.assert_allclose(decision.score[39:], variances(outputs, 40)[0], rtol=1e-5)


def test_what_ends_before_its_window_is_full_keeps_the_last_output():
    outputs, measurement = like_a_fit(5, (8, 8, 1))
    assert follow(stopping.windowed_variance(20, 50), outputs, anchor=measurement)[1].keep.all()


def test_moving_variance_stops_after_its_patience_and_keeps_its_minimum():
    outputs, measurement = like_a_fit(300, (8, 8, 1))
    definition = variances(outputs, 20)
    _, decision = follow(stopping.windowed_variance(20, patience=50), outputs, anchor=measurement)
    best = 19 + int(np.argmin(definition))
    assert int(np.flatnonzero(decision.keep)[-1]) == best
    assert int(np.flatnonzero(decision.stop)[0]) == best + 50


def test_a_subset_of_pixels_estimates_the_variance_of_all():
    outputs, measurement = like_a_fit(60, (64, 64, 3))
    all_pixels, subset = (follow(stopping.windowed_variance(20, 10**6, pixels), outputs, anchor=measurement)
                          for pixels in (10**6, 2000))
    assert subset[0].ring.shape == (20, 2000)
    np.testing.assert_allclose(subset[1].score[19:], all_pixels[1].score[19:], rtol=0.15)


def test_exponential_variance_is_the_definition():
    outputs, measurement = like_a_fit(120, (6, 6, 3))
    _, decision = follow(stopping.exponential_variance(0.9, patience=10**6), outputs, anchor=measurement)
    weights = 0.9 ** np.arange(120) * 0.1  # variance = weighted mean square less the square of the weighted mean
    last = outputs.astype(np.float64)[::-1] - measurement
    mean = np.tensordot(weights, last, 1)
    definition = (np.tensordot(weights, last**2, 1) - mean**2).mean()  # what is left over weighs 0.9^120 on the anchor
    np.testing.assert_allclose(decision.score[-1], definition, rtol=1e-4)


def test_never_patience_and_discrepancy():
    outputs = np.zeros((30, 2, 2, 1), np.float32)
    falling = np.linspace(1, 0, 30)
    assert not follow(stopping.never(), outputs)[1].stop.any()
    flat = np.concatenate([falling[:10], np.full(20, falling[9])])
    assert np.flatnonzero(follow(stopping.patience(5, decay=0.0), outputs, flat)[1].stop)[0] == 9 + 5
    stop = follow(stopping.discrepancy(decay=0.0), outputs, falling, sigma=np.sqrt(0.5))[1].stop
    assert np.flatnonzero(stop)[0] == np.flatnonzero(falling <= 0.5)[0]


def test_held_out_keeps_the_lowest_smoothed_error():
    rng = np.random.default_rng(0)
    error = 0.2 + np.abs(np.linspace(-1, 1, 400)) + 0.05 * rng.normal(size=400)
    outputs = np.zeros((400, 2, 2, 1), np.float32)
    _, decision = follow(stopping.held_out(patience=100, decay=0.9), outputs, held_out=error)
    assert abs(int(np.flatnonzero(decision.keep)[-1]) - 210) < 30  # the smoothing lags by ten
    assert np.flatnonzero(decision.stop)[0] == np.flatnonzero(decision.keep[:320])[-1] + 100


def test_oracle_keeps_the_nearest_output():
    outputs, picture = like_a_fit(50, (8, 8, 3))
    _, decision = follow(study.oracle(jnp.asarray(picture)), outputs)
    assert np.flatnonzero(decision.keep)[-1] == np.argmin(((outputs - picture) ** 2).mean((1, 2, 3)))


def test_only_oracles_see_a_clean_picture():
    assert "reference" not in Evidence._fields
    clean = [name for module in (stopping, study) for name, rule in vars(module).items()
             if callable(rule) and "reference" in getattr(rule, "__annotations__", {})]
    assert clean == ["oracle", "oracle_cumulative"]


def test_cumulative_patience_as_recorded():
    file = golden("002_stop_rule")
    for k in range(sum(key.endswith("/psnr") for key in file)):
        scores = np.round(file[f"rule{k}/psnr"].astype(np.float64), 4)
        state = study.CumulativePatience(jnp.int32(0), jnp.float32(0), jnp.int32(0))
        stop = -1
        for index, psnr in enumerate(scores):
            state = study.cumulative_miss(state, jnp.float32(psnr))
            if state.misses >= file[f"rule{k}/patience"]:
                stop = index
                break
        assert stop == file[f"rule{k}/stop_index"]
        np.testing.assert_allclose(state.best, file[f"rule{k}/best"], atol=1e-4)


def test_rules_in_a_race_decide_as_they_do_alone():
    outputs, measurement = like_a_fit(200, (8, 8, 1))
    rules = {"wmv": stopping.windowed_variance(20, 30), "emv": stopping.exponential_variance(0.9, 30),
             "discrepancy": stopping.discrepancy()}
    (_, runners), decision = follow(study.race(rules), outputs, anchor=measurement)
    for name, rule in rules.items():
        _, alone = follow(rule, outputs, anchor=measurement)
        stop = int(np.flatnonzero(alone.stop)[0])
        assert int(runners[name].stopped_at) == stop
        assert int(runners[name].kept_at) == np.flatnonzero(alone.keep[: stop + 1])[-1]
        np.testing.assert_array_equal(runners[name].output, outputs[int(runners[name].kept_at)])
    assert np.flatnonzero(decision.stop)[0] == max(int(runner.stopped_at) for runner in runners.values())


