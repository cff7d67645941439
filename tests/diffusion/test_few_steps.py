"""Consistency distillation against data whose probability flow is known in closed form: one point, and Gaussians."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dipddpm_jax.diffusion import denoisers, few_steps, samplers, schedules, spacings
from dipddpm_jax.diffusion.few_steps import TEACHER, hops_of, make_few_step_loss

SCHEDULE = schedules.cosine(1000)
START = spacings.start_time(SCHEDULE)
MEAN, FLOAT32 = 0.3, jnp.dtype("float32")


def scales(t):
    return SCHEDULE.signal_scale(t).reshape(-1, 1, 1, 1), SCHEDULE.noise_scale(t).reshape(-1, 1, 1, 1)


def gaussian(x, t, std):
    """The believed clean picture of N(MEAN, std^2): D(x_t, t)."""
    a, s = scales(t)
    return MEAN + a * std**2 / (a**2 * std**2 + s**2) * (x - a * MEAN)


def flow(x, t, end, std):
    """Where the probability flow takes x_t at an earlier time: (x - a MEAN) / sqrt(a^2 std^2 + s^2) stays."""
    (a, s), (b, r) = scales(t), scales(end)
    return b * MEAN + (x - a * MEAN) * jnp.sqrt((b**2 * std**2 + r**2) / (a**2 * std**2 + s**2))


def jump(x, t, end, std):
    """(z_b - z_t) / (u_b - u_t), and its limit where the end is the clean picture."""
    (a, s), (b, r) = scales(t), scales(end)
    y, late = flow(x, t, end, std), end.reshape(-1, 1, 1, 1) == 0
    r = jnp.where(late, 1.0, r)
    return jnp.where(late, y, (y / r - x / s) / (b / r - a / s))


class Exact(nn.Module):
    """A network for v that knows the data: as a teacher (calls=0) their D, as a student its exact mean over a jump. Its
    one parameter moves what it says; labels, where it is asked without them, too."""

    std: float
    calls: int = 0

    @nn.compact
    def __call__(self, x, t, labels=None, train=False):
        off = self.param("off", nn.initializers.zeros, ())
        student = self.param("student", nn.initializers.zeros, ())
        a, s = scales(t)
        ends = jnp.asarray(schedules.strided_grid(START, max(self.calls, 1))[::-1])
        end = ends[jnp.clip(jnp.searchsorted(ends, t) - 1, 0, len(ends) - 2)]
        x0 = jnp.where(student == 1, jump(x, t, end, self.std), gaussian(x, t, self.std))
        if labels is not None:
            x0 = x0 + 0.1 * (labels >= 0).reshape(-1, 1, 1, 1)
        return (a * x - x0) / s + off


def loss_and_gradient(std, calls, hops, off=0.0, guidance=0.0, labels=None):
    network = Exact(std, calls)
    loss = make_few_step_loss(network, SCHEDULE, "v", hops_of(SCHEDULE, calls, hops), guidance, FLOAT32)
    teacher = {"params": {"off": jnp.float32(0), "student": jnp.float32(0)}}
    rng = np.random.default_rng(0)
    images = jnp.float32(MEAN + std * rng.normal(size=(256, 1, 1, 1)))
    t = jnp.asarray(rng.integers(1, 1001, 256), jnp.int32)
    eps = jnp.float32(rng.normal(size=images.shape))

    def of(params):
        return loss(params, {TEACHER: teacher}, images, labels, t, eps, jax.random.key(0), True)

    (value, collections), slope = jax.value_and_grad(of, has_aux=True)({"off": jnp.float32(off),
                                                                        "student": jnp.float32(1)})
    assert collections.keys() == {TEACHER}
    return float(value), float(slope["off"])


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_of_one_point_the_loss_is_zero_at_the_point_itself_and_nowhere_else(calls):
    """D is the point everywhere, and DDIM exact, however few the hops are; off moves v, and the loss is its size."""
    value, slope = loss_and_gradient(0.0, calls, 5)
    assert value < 1e-5 and abs(slope) < 2e-2  # float32, where the loss is quadratic within 1e-3
    value, slope = loss_and_gradient(0.0, calls, 5, off=0.3)
    assert slope > 0.9 and value > 0.05


@pytest.mark.parametrize("calls", [1, 2])
def test_of_gaussian_data_the_flow_itself_is_where_the_loss_falls_to_zero(calls):
    """What is left of the loss is the error of DDIM's hops, which falls faster than they shorten."""
    coarse, fine, finest = (loss_and_gradient(0.5, calls, hops)[0] for hops in (20, 40, 80))
    assert coarse < 0.01 and coarse / fine > 2.5 and fine / finest > 2.2
    assert loss_and_gradient(0.5, calls, 80, off=0.1)[0] > 5 * finest  # how far f moves along a hop, not f itself


def test_without_a_hop_between_the_loss_is_the_distance_from_the_teacher():
    """As many calls as hops: then f is the teacher's D, and its own later opinion counts for nothing."""
    hops = hops_of(SCHEDULE, 8, 8)
    np.testing.assert_array_equal(hops.share[1 : START + 1], 1.0)
    network = Exact(0.5)
    loss = make_few_step_loss(network, SCHEDULE, "v", hops, 0.0, FLOAT32)
    same = {"params": {"off": jnp.float32(0), "student": jnp.float32(0)}}
    args = (jnp.zeros((4, 2, 2, 1)), None, jnp.int32([1, 100, 500, 1000]), jnp.ones((4, 2, 2, 1)), jax.random.key(0))
    assert loss(same["params"], {TEACHER: same}, *args, False)[0] == 0
    other = {"off": jnp.float32(0.5), "student": jnp.float32(0)}
    np.testing.assert_allclose(loss(other, {TEACHER: same}, *args, False)[0], 0.5 - few_steps.ROUND, rtol=1e-4)


def test_the_teachers_guidance_is_taught():
    """Labels add 0.1 to the clean picture; guided by 1, 0.2 of one point: a student that says 0.1 is off by 0.1."""
    hops = hops_of(SCHEDULE, 4, 4)
    loss = make_few_step_loss(Exact(0.0), SCHEDULE, "v", hops, 1.0, FLOAT32)
    same = {"params": {"off": jnp.float32(0), "student": jnp.float32(0)}}
    t = jnp.full(3, 900, jnp.int32)
    args = jnp.full((3, 2, 2, 1), MEAN), jnp.arange(3, dtype=jnp.int32), t, jnp.ones((3, 2, 2, 1)), jax.random.key(0)
    value = loss(same["params"], {TEACHER: same}, *args, False)[0]
    np.testing.assert_allclose(value, 0.1 / SCHEDULE.noise_scale(t[0]) - few_steps.ROUND, atol=1e-4)
    unknown = args[0], jnp.full(3, -1, jnp.int32), *args[2:]
    assert loss(same["params"], {TEACHER: same}, *unknown, False)[0] < 1e-6


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_hops_stay_within_their_jump_and_share_it_by_signal_to_noise(calls):
    hops, ends = hops_of(SCHEDULE, calls, 25), spacings.even_time(SCHEDULE, calls)[::-1]
    for t in (1, 7, 40, 41, 333, 500, 700, START):
        end, s = max(e for e in ends if e < t), hops.earlier[t]
        assert end <= s < t and (s == end or t - s == -(-START // 25))
        if s == end:
            assert hops.share[t] == 1
            continue
        u = 1 / spacings.sigmas(SCHEDULE)[[t, s]]
        wanted = 0 if end == 0 else (u[1] - u[0]) / (1 / spacings.sigmas(SCHEDULE)[end] - u[0])
        np.testing.assert_allclose(hops.share[t], wanted, rtol=1e-9)


@pytest.mark.parametrize("calls, hops", [(0, 5), (6, 5), (1, 1001)])
def test_calls_and_hops_that_do_not_fit_are_refused(calls, hops):
    with pytest.raises(ValueError, match="each must be at most the next"):
        hops_of(SCHEDULE, calls, hops)


@pytest.mark.parametrize("calls", [1, 2, 4])
def test_ddim_follows_the_flow_exactly_in_as_many_calls(calls):
    """What the loss asks for is what the sampler needs: at its zero, `calls` steps of DDIM are the whole flow."""
    std, x = 0.5, jnp.linspace(-2, 2, 9).reshape(-1, 1, 1, 1)
    grid = spacings.even_time(SCHEDULE, calls)
    ends = dict(zip(grid[:-1].tolist(), grid[1:].tolist()))

    def denoise(x, t):
        a, s = SCHEDULE.signal_scale(t), SCHEDULE.noise_scale(t)
        end = jnp.asarray([ends.get(i, 0) for i in range(1001)], jnp.int32)[t]
        x0 = jump(x, jnp.full(9, t), jnp.full(9, end), std)
        return few_steps.prediction_of(SCHEDULE, "x0", x0, x, t)._replace(eps=(x - a * x0) / s)

    found = samplers.ddim(denoise, SCHEDULE, x, grid, jnp.zeros_like).x
    wanted = flow(x, jnp.full(9, START), jnp.zeros(9, jnp.int32), std)
    np.testing.assert_allclose(found, wanted, atol=2e-4)


def test_consistency_sampling_of_a_picture_does_not_depend_on_its_batch():
    keys = jax.random.split(jax.random.key(0), 8)
    denoise, grid = denoisers.gaussian_data(SCHEDULE, MEAN, 0.5), spacings.even_time(SCHEDULE, 3)

    def sample(keys):
        noise = samplers.gaussian_noise(keys, (4, 4, 1))
        return samplers.consistency(denoise, SCHEDULE, noise(jnp.int32(1000)), grid, noise)

    whole = sample(keys)
    np.testing.assert_allclose(whole.x, jnp.concatenate([sample(keys[:3]).x, sample(keys[3:]).x]), atol=1e-6)
    np.testing.assert_array_equal(whole.path[-1], whole.x)


def test_consistency_sampling_is_f_and_then_f_of_fresh_noise():
    std, grid = 0.5, spacings.even_time(SCHEDULE, 2)
    noise = samplers.gaussian_noise(jax.random.split(jax.random.key(1), 4000), (1, 1, 1))
    x = noise(jnp.int32(1000))

    def denoise(x, t):
        x0 = flow(x, jnp.full(len(x), t), jnp.zeros(len(x), jnp.int32), std)
        return few_steps.prediction_of(SCHEDULE, "x0", x0, x, t)

    first = denoise(x, jnp.int32(grid[0])).x0
    np.testing.assert_allclose(samplers.consistency(denoise, SCHEDULE, x, grid[[0, 2]], noise).x, first, atol=1e-6)
    a, s = SCHEDULE.signal_scale(jnp.asarray(grid[1])), SCHEDULE.noise_scale(jnp.asarray(grid[1]))
    second = denoise(a * first + s * noise(jnp.int32(grid[1])), jnp.int32(grid[1])).x0
    found = samplers.consistency(denoise, SCHEDULE, x, grid, noise).x
    np.testing.assert_allclose(found, second, atol=1e-5)
    assert abs(found.mean() - MEAN) < 0.03 and abs(found.std() - std) < 0.03  # distributed as the data
    assert abs(jnp.corrcoef(first.ravel(), found.ravel())[0, 1]) < 0.9  # and not the first again
