"""The DIP fit: batches against single fits, frozen fits, resumption, the variants' equations, recorded rules."""
import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from parity.files import golden

from dipddpm_jax import dip
from dipddpm_jax.dip import Dip, DipProblem, stopping, study, variants
from dipddpm_jax.dip.problem import is_stuck
from dipddpm_jax.errors import UserError
from dipddpm_jax.inverse import noises, operators
from dipddpm_jax.networks import ConvStack, SkipNet
from dipddpm_jax.networks.deep_decoder import DeepDecoder

HOURGLASS = Dip(SkipNet(channels=3, down=(6,), up=(6,), skip=(2,)), optax.adam(0.01))
SMALL = Dip(ConvStack((6,)), optax.adam(0.01))  # quick to compile


def a_problem(seed=0, side=16, reference=True):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    clean = np.stack([x, y, 0.5 + 0.4 * np.sin(5 * x + seed)], -1).astype(np.float32)
    noisy = jnp.asarray(np.clip(clean + 0.1 * rng.normal(size=clean.shape), 0, 1), jnp.float32)
    code = jnp.asarray(0.1 * rng.uniform(size=(side, side, 4)), jnp.float32)
    return DipProblem(code, noisy, jnp.asarray(clean) if reference else None, sigma=jnp.float32(0.1))


def stack(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def compiled(fit):
    return jax.jit(fit.advance, static_argnums=2)


@pytest.fixture(scope="module")
def fitted():
    """Three single fits of twenty steps: (problems, first states, last states, curves)."""
    problems = [a_problem(seed) for seed in range(3)]
    states = [HOURGLASS.init(problem, jax.random.key(seed)) for seed, problem in enumerate(problems)]
    advance = compiled(HOURGLASS)
    ends = [advance(problem, state, 20) for problem, state in zip(problems, states)]
    return problems, states, [end[0] for end in ends], [end[1] for end in ends]


def test_a_fit_denoises():
    problem = a_problem(side=32)
    fit = Dip(SkipNet(channels=3, down=(8, 8), up=(8, 8), skip=(2, 2)), optax.adam(0.01), average_decay=0.95)
    state, curves = compiled(fit)(problem, fit.init(problem, jax.random.key(0)), 400)
    noisy = noises.psnr_of(jnp.mean((problem.measurement - problem.reference) ** 2))
    assert curves["psnr_average"][-1] > noisy + 4 and curves["loss"][-1] < curves["loss"][0] / 4
    np.testing.assert_allclose(noises.psnr_of(jnp.mean((state.average - problem.reference) ** 2)),
                               curves["psnr_average"][-1], rtol=1e-5)


@pytest.mark.parametrize("batch", ["vmap", "advance_all"])
def test_fits_in_a_batch_equal_single_fits(fitted, batch):
    problems, states, ends, curves = fitted
    advance = jax.vmap(partial(HOURGLASS.advance, num_steps=20)) if batch == "vmap" else partial(
        dip.advance_all, HOURGLASS, num_steps=20)
    state, curve = jax.jit(advance)(stack(problems), stack(states))
    for i in range(3):
        np.testing.assert_allclose(state.average[i], ends[i].average, atol=1e-4)
        np.testing.assert_allclose(curve["loss"][i], curves[i]["loss"], atol=1e-4)


def test_chunks_add_up_bit_for_bit(fitted):
    problems, states, ends, _ = fitted
    advance = compiled(HOURGLASS)
    state = states[0]
    for _ in range(2):
        state, _ = advance(problems[0], state, 10)
    for one, other in zip(jax.tree.leaves(state._replace(key=None)), jax.tree.leaves(ends[0]._replace(key=None))):
        np.testing.assert_array_equal(one, other)


def test_nothing_is_transferred_within_a_chunk_and_it_is_compiled_once():
    problem = a_problem(5)
    fit = dataclasses.replace(SMALL, stopper=stopping.windowed_variance(5, 10),
                              optimizer=dip.backtracking(SMALL.optimizer))
    traces = []

    @partial(jax.jit, donate_argnums=1)
    def advance(problem, state):
        traces.append(1)
        return fit.advance(problem, state, 8)

    state = fit.init(problem, jax.random.key(0))
    advance = advance.lower(problem, state).compile()
    with jax.transfer_guard("disallow"):
        for _ in range(3):
            state, curves = advance(problem, state)
    assert state.step == 24 and len(traces) == 1


@pytest.mark.parametrize("batch", ["vmap", "advance_all"])
def test_a_stopped_fit_is_frozen_and_its_neighbour_is_not(batch):
    problems = stack([a_problem(0)._replace(sigma=jnp.float32(9.0)), a_problem(1)._replace(sigma=jnp.float32(0.0))])
    fit = dataclasses.replace(SMALL, stopper=stopping.discrepancy())
    states = stack([fit.init(jax.tree.map(lambda leaf, i=i: leaf[i], problems), jax.random.key(i)) for i in range(2)])
    advance = jax.vmap(partial(fit.advance, num_steps=6)) if batch == "vmap" else partial(
        dip.advance_all, fit, num_steps=6)
    advance = jax.jit(advance)
    first, curves = advance(problems, states)
    assert first.step.tolist() == [1, 6] and first.stopped.tolist() == [True, False]
    assert curves["active"].sum(1).tolist() == [1, 6] and first.kept.step.tolist() == [0, 5]
    second, curves = advance(problems, first)
    frozen = [jax.tree.map(lambda leaf: leaf[0], state._replace(key=None, stop_state=None))
              for state in (first, second)]
    jax.tree.map(np.testing.assert_array_equal, *frozen)
    assert second.step.tolist() == [1, 12] and not curves["active"][0].any()


def test_a_fit_returns_the_output_of_its_stop_not_the_last():
    problem = a_problem(2)
    fit = dataclasses.replace(SMALL, stopper=stopping.windowed_variance(5, 10**6))
    start = fit.init(problem, jax.random.key(3))
    state, curves = compiled(fit)(problem, start, 30)
    best = int(np.argmin(curves["score"]))
    assert state.kept.step == best
    again, _ = compiled(fit)(problem, start, best + 1)
    np.testing.assert_array_equal(state.kept.output, again.kept.output)
    np.testing.assert_array_equal(state.kept.average, again.average)


def test_missing_and_held_out_pixels_do_not_steer_the_fit():
    problem, key = a_problem(4), jax.random.key(0)
    known = operators.random_mask(jax.random.key(1), 16, 16, 0.7)
    held_out = operators.random_mask(jax.random.key(2), 16, 16, 0.2)
    problem = problem._replace(known=known, held_out=held_out)
    spoilt = problem._replace(measurement=jnp.where(known * (1 - held_out) > 0, problem.measurement, 7.0))
    start = SMALL.init(problem, key)
    one, curves = compiled(SMALL)(problem, start, 10)
    other, other_curves = compiled(SMALL)(spoilt, start, 10)
    np.testing.assert_array_equal(one.average, other.average)
    assert np.all(other_curves["held_out"] > 30) and np.all(curves["held_out"] < 1)
    errors = np.square(np.asarray(one.kept.average - problem.measurement))[np.asarray((known * held_out)[..., 0], bool)]
    np.testing.assert_allclose(curves["held_out"][-1], errors.mean(), rtol=1e-4)


@pytest.mark.parametrize("observe", [operators.downsample(32, 32, 4), operators.blur(32, 32, 1.5)])
def test_a_fit_observes_through_an_operator(observe):
    problem = a_problem(1, side=32)
    measured = problem._replace(measurement=observe(problem.reference))
    fit = dataclasses.replace(SMALL, observe=observe)
    state, curves = compiled(fit)(measured, fit.init(measured, jax.random.key(0)), 100)
    again = jnp.mean((observe(state.kept.output) - measured.measurement) ** 2)
    np.testing.assert_allclose(again, curves["loss"][-1], rtol=1e-3)
    assert curves["loss"][-1] < curves["loss"][0] / 3


def loss_of(fit, problem, state, jitter):
    """The fitted loss, as the gradient step sees it."""
    return fit._loss((state.params,), problem, state, jitter)[0]


def test_penalties_are_their_equations():
    problem = a_problem(0)._replace(code=a_problem(0).measurement)
    output = np.asarray(problem.measurement)
    rows, columns = np.abs(output[1:] - output[:-1]).mean(), np.abs(output[:, 1:] - output[:, :-1]).mean()
    given = dip.total_variation(0.3)(problem.measurement, problem)
    np.testing.assert_allclose(given, 0.3 * (rows + columns), rtol=1e-5)
    for sigma, weight in ((0.2, variants.TV_BY_NOISE * 0.2), (0.0, variants.TV_AT_LEAST)):
        found = dip.total_variation()(problem.measurement, problem._replace(sigma=jnp.float32(sigma)))
        np.testing.assert_allclose(found, weight * (rows + columns), rtol=1e-5)
    with pytest.raises(UserError, match="DipProblem.sigma, which is missing"):
        dip.total_variation()(problem.measurement, problem._replace(sigma=None))
    for penalty in (dip.total_variation(0.3), dip.autoencode(2.0)):
        fit = dataclasses.replace(SMALL, penalty=penalty, code_rule=dip.fixed(0.1, draws=3))
        state = fit.init(problem, jax.random.key(0))
        jitter = jax.random.normal(jax.random.key(1), (3, 16, 16, 3))
        outputs = [SMALL.network.apply({"params": state.params, **state.statistics}, problem.code[None] + 0.1 * jitter,
                                 train=True, mutable=["batch_stats"])[0]]
        mean = jnp.concatenate(outputs).mean(0)  # E over the draws of f(z + eta)
        expected = jnp.mean((mean - problem.measurement) ** 2) + penalty(mean, problem)
        np.testing.assert_allclose(loss_of(fit, problem, state, jitter), expected, rtol=1e-5)


def test_self_guided_learns_its_code_and_asedip_replaces_it():
    problem = a_problem(0)._replace(code=a_problem(0).measurement)
    guided = dataclasses.replace(SMALL, penalty=dip.autoencode(1.0), code_rule=dip.learned(optax.adam(0.01)))
    ends = [compiled(fit)(problem, fit.init(problem, jax.random.key(0)), 3)[0] for fit in (SMALL, guided)]
    np.testing.assert_array_equal(ends[0].code, problem.code)
    moved = np.abs(ends[1].code - problem.code)
    assert 0.005 < np.median(moved) < 0.031  # Adam: about 0.01 a step
    sequential = dataclasses.replace(SMALL, penalty=dip.autoencode(1.0), code_rule=dip.refreshed(2))
    start = sequential.init(problem, jax.random.key(0))
    after = [compiled(sequential)(problem, start, n)[0] for n in (1, 2, 3)]
    np.testing.assert_array_equal(after[0].code, problem.code)
    np.testing.assert_array_equal(after[1].code, after[1].kept.output)  # the code is the output of step 2 from then on
    np.testing.assert_array_equal(after[2].code, after[1].code)


def test_stuck_is_told_from_the_measurement_alone():
    problem, noise = a_problem(), 0.1 * jax.random.normal(jax.random.key(0), (16, 16, 3))
    constant = jnp.broadcast_to(problem.measurement.mean((0, 1), keepdims=True), noise.shape)
    assert is_stuck(problem, constant) and not is_stuck(problem, problem.reference)
    assert not is_stuck(problem._replace(measurement=constant + noise), constant)  # nothing but noise: rightly constant
    half = jnp.zeros((16, 16, 1)).at[:8].set(1)
    lively = jnp.where(half > 0, constant, problem.reference + 9 * noise)  # varies only where nothing is known
    assert is_stuck(problem._replace(known=half), lively) and not is_stuck(problem, lively)
    assert jax.jit(jax.vmap(is_stuck))(stack([problem, problem]), stack([constant, lively])).tolist() == [True, False]


def test_codes():
    noise = dip.noise_code(jax.random.key(0), 8, 6, 5)
    assert noise.shape == (8, 6, 5) and 0 <= noise.min() and noise.max() < 0.1
    coarse = dip.multiscale_code(jax.random.key(0), 16, 24)
    assert coarse.shape == (16, 24, 32) and 0 <= coarse.min() and coarse.max() < 1
    steps = np.abs(np.diff(coarse, axis=0)).mean((0, 1)).reshape(4, 8).mean(1)
    assert np.all(np.diff(steps) > 0) and steps[0] < steps[-1] / 3  # from smooth to rough
    grid = dip.meshgrid_code(3, 5)
    np.testing.assert_allclose(grid[:, :, 0], np.tile([0, 0.25, 0.5, 0.75, 1], (3, 1)))
    np.testing.assert_allclose(grid[:, :, 1], np.tile([[0], [0.5], [1]], (1, 5)))


def test_outputs_larger_than_the_picture_are_cropped():
    rng = np.random.default_rng(0)
    for network, code in ((SkipNet(channels=3, down=(4,), up=(4,), skip=(0,)), (13, 15, 4)),
                          (DeepDecoder((6,), 3), (8, 8, 6))):
        measurement = jnp.asarray(rng.uniform(size=(13, 15, 3)), jnp.float32)
        problem = DipProblem(jnp.asarray(rng.uniform(size=code), jnp.float32), measurement)
        fit = Dip(network, optax.adam(0.01), size=(13, 15))
        state, _ = compiled(fit)(problem, fit.init(problem, jax.random.key(0)), 2)
        assert state.kept.output.shape == (13, 15, 3)


def test_backtracking_as_recorded():
    file = golden("misc_rules")
    last = jnp.float32(0)
    for i, psnr, fell, after in zip(*(file[f"backtrack/{k}"] for k in ("i_before", "psnr_noisy", "fell_back",
                                                                        "last_after"))):
        falls, accept = variants.backtrack(jnp.int32(i), last, jnp.float32(psnr), 5.0)
        last = jnp.where(accept, psnr, last)
        assert bool(falls) == bool(fell) and float(last) == float(after)


def test_backtracking_restores_parameters_but_applies_the_gradient():
    fit = dataclasses.replace(SMALL, optimizer=dip.backtracking(optax.sgd(0.0)))
    problem = a_problem(0)
    state = fit.init(problem, jax.random.key(0))
    good = jax.tree.map(lambda p: p + 1, state.params)

    def after_a_psnr_of(psnr):
        opt_state = variants.Accepted(jnp.int32(7), jnp.float32(psnr), good), state.opt_state[1]
        return fit.step(problem, state._replace(opt_state=opt_state), jnp.zeros((1, *problem.code.shape)))[0]

    new = after_a_psnr_of(40.0)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), new.params, good)  # at a rate of 0 nothing else moves
    assert new.opt_state[0].count == 7 and new.opt_state[0].psnr == 40 and new.step == 1
    kept = after_a_psnr_of(0.0)
    jax.tree.map(np.testing.assert_array_equal, kept.params, state.params)
    jax.tree.map(np.testing.assert_array_equal, kept.opt_state[0].params, state.params)
    assert kept.opt_state[0].count == 8
    moved = dataclasses.replace(fit, optimizer=dip.backtracking(optax.sgd(1.0)))
    plain = dataclasses.replace(fit, optimizer=optax.sgd(1.0))
    jitter = jnp.zeros((1, *problem.code.shape))
    one, other = (f.step(problem, f.start(problem, {"params": state.params}, jax.random.key(0)), jitter)[0]
                  for f in (moved, plain))  # the first step is at a multiple of 100: it never falls back
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)


MASK = jnp.ones((16, 16, 1))


@pytest.mark.parametrize("rule, wanting, says", [
    (stopping.held_out(), {}, "held_out"),
    (stopping.held_out(), {"known": MASK.at[0].set(0), "held_out": (0 * MASK).at[0].set(1)}, "no pixel that is known"),
    (stopping.discrepancy(), {"sigma": None}, "sigma"),
    (study.race({"a": stopping.never(), "b": stopping.held_out()}), {}, "held_out"),
    (stopping.never(), {"known": 0 * MASK}, "nothing to fit"),
    (stopping.held_out(), {"held_out": MASK}, "nothing to fit"),
])
def test_a_fit_whose_rule_has_nothing_to_judge_by_is_not_started(rule, wanting, says):
    fit = dataclasses.replace(SMALL, stopper=rule)
    with pytest.raises(UserError, match=says):
        fit.init(a_problem()._replace(**wanting), jax.random.key(0))


def test_an_oracle_needs_the_clean_picture():
    with pytest.raises(UserError, match="reference"):
        dataclasses.replace(SMALL, oracle=study.oracle).init(a_problem(reference=False), jax.random.key(0))


def test_where_nothing_is_held_out_the_latest_output_is_kept():
    """Masks that are traced cannot be looked into: a rule then waits for ever, and chooses nothing."""
    fit = dataclasses.replace(SMALL, stopper=stopping.held_out(2))
    problem = a_problem()._replace(held_out=0 * MASK)
    start = dataclasses.replace(SMALL, stopper=stopping.never()).init(problem, jax.random.key(0))
    begin = jax.jit(lambda problem: fit.start(problem, {"params": start.params}, jax.random.key(0)))(problem)
    end, _ = compiled(fit)(problem, begin, 6)
    assert not end.stopped and end.kept.step == 5


def test_how_a_batch_is_computed_is_decided_when_it_is_lowered():
    problems = stack([a_problem(0), a_problem(1)])
    states = stack([SMALL.init(a_problem(i), jax.random.key(i)) for i in range(2)])
    traced = jax.jit(partial(dip.advance_all, SMALL, num_steps=3)).trace(problems, states)
    loops = {platform: traced.lower(lowering_platforms=(platform,)).as_text().count("stablehlo.case")
             for platform in ("cpu", "cuda", "tpu")}
    assert loops["cpu"] > loops["cuda"] == loops["tpu"]  # only on a CPU does a fit that has stopped cost nothing
