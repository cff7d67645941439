"""What every network recording has in common: weights, forwards, buffers, one training step."""
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from parity.files import Golden, recipe, torch_shapes

from dipddpm_jax import torch_weights

# Compiling is what these tests spend their time on.
compiled = partial(jax.jit, compiler_options={
    "xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True})
COUNTER = torch_weights.COUNTER


@lru_cache
def forward(network, train: bool):
    """(variables, x, t, labels, extra arguments) -> output, new running statistics."""
    def run(variables, x, t, labels, extra):
        return network.apply(variables, x, t, labels, train=train, mutable=["batch_stats"], **extra)

    return compiled(run)


@lru_cache
def train_step(network, rate: float):
    """One step of Adam from its start on the mean squared error: loss, output, statistics, gradients, parameters."""
    adam = optax.adam(rate)

    def run(variables, x, t, labels, target, extra):
        params, rest = variables["params"], {k: v for k, v in variables.items() if k != "params"}

        def loss(params):
            all_variables = {"params": params, **rest}
            y, new = network.apply(all_variables, x, t, labels, train=True, mutable=["batch_stats"], **extra)
            return jnp.mean(jnp.square(y - target)), (y, new)

        (value, (y, new)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        update, _ = adam.update(gradient, adam.init(params), params)
        return value, y, new, gradient, optax.apply_updates(params, update)

    return compiled(run)


def weights(g: Golden, network, *example) -> dict:
    """The recorded (or rebuilt) state as variables; checks that it comes back by export unchanged."""
    template = jax.eval_shape(lambda: network.init(jax.random.key(0), *example))
    state = g.under("sd/") or recipe(torch_shapes(template), g.config["recipe_seed"])
    for name in torch_shapes(template):  # system 003 stores the table that its blocks share once
        if name.endswith("sigma_schedule") and name not in state:
            state[name] = state["blocks.0.sigma_schedule"]
    variables = torch_weights.import_torch(state, template)
    back = torch_weights.export_torch(variables)
    g.equal("weights there and back", sorted(back), sorted(state))
    for name in (name for name in state if COUNTER not in name):
        g.equal("weights there and back", back[name], state[name], name)
    return variables


def in_float64(tree):
    """Under jax.enable_x64: every float as float64."""
    return jax.tree.map(lambda a: a.astype(jnp.float64) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)


def check_buffers(g: Golden, statistics, recorded: dict[str, np.ndarray], tolerance: float = 1e-5) -> None:
    """Running statistics by name; the counters, which nothing depends on, are not kept by us."""
    ours = torch_weights.export_torch(statistics)
    kept = [name for name in recorded if COUNTER not in name]
    g.equal("names of buffers", sorted(name for name in ours if COUNTER not in name), sorted(kept))
    for name in kept:
        g.close("running statistics", ours[name], recorded[name], tolerance, name)


def check_forwards(g: Golden, network, variables, inputs: tuple, extra: dict | None = None) -> None:
    """out/train with fwd_buffers, out/eval; networks without BatchNorm have one output."""
    x, t, labels = inputs
    for key, train in (("out/train", True), ("out/eval", False), ("out/y", True), ("out/eps", False)):
        if key in g:
            y, new = forward(network, train)(variables, x, t, labels, extra or {})
            if train and is_ill_conditioned(g):
                check_exact_output(g, network, variables, inputs, y, key)
            else:
                g.same_images("outputs", y, key)
            if key == "out/train":
                check_buffers(g, new, g.under("fwd_buffers/"))


def is_ill_conditioned(g: Golden) -> bool:
    """The F16 network at full width, which the README of the recordings says loses digits in training mode."""
    return "denoising" in g.name and "recipe_seed" in g.config


def check_exact_output(g: Golden, network, variables, inputs: tuple, single, key: str) -> None:
    """Our float64 output against the recorded float32 one: nearer than 1e-5, or than float32 comes here at all.

    The recording itself is 0.9e-5 from the exact output, which leaves nothing for a second float32 computation.
    """
    with jax.enable_x64(True):
        exact, _ = forward(network, True)(*in_float64((variables, *inputs)), {})
        floor = np.max(np.abs(single - exact)) / (1 + np.max(np.abs(exact)))
        g.same_images("outputs, float64 (ill-conditioned)", exact, key, max(1e-5, float(floor)))


def check_step(g: Golden, network, variables, inputs: tuple, target, extra: dict | None = None) -> None:
    """Loss, gradients, and the state after one step of Adam, or their summaries in files of full width."""
    step = train_step(network, g.config["lr"])
    if g.under("step/grad/"):
        loss, _, new, gradient, params = step(variables, *inputs, target, extra or {})
        gradient = torch_weights.export_torch({"params": gradient})
        check_gradients(g, gradient)
        with jax.enable_x64(True):
            exact = step(*in_float64((variables, *inputs, target, extra or {})))[3]
        check_rounding(g, gradient, torch_weights.export_torch({"params": exact}))
        check_after(g, torch_weights.export_torch({"params": params}), new)
        g.close("loss", loss, g["step/loss"])
    else:
        with jax.enable_x64(True):
            wide = in_float64((variables, *inputs, target, extra or {}))
            loss, _, new, gradient, _ = step(*wide)
            check_summaries(g, torch_weights.export_torch({"params": gradient}), torch_weights.export_torch(new))
            g.close("loss", loss, g["step/loss64"], 1e-6)
            g.close("loss", loss, g["step/loss"])


def check_gradients(g: Golden, ours: dict[str, np.ndarray]) -> None:
    """Norm-wise, for every tensor that is not rounding noise beside the largest; parameters without any must have 0."""
    recorded = g.under("step/grad/")
    largest = max(np.linalg.norm(v) for v in recorded.values())
    for name, theirs in recorded.items():
        size = np.linalg.norm(theirs)
        if size > 1e-5 * largest:
            g.judge("gradients, norm-wise", np.linalg.norm(ours[name] - theirs) / size, 5e-4, name)
        else:
            g.judge("gradients that vanish beside the largest", np.linalg.norm(ours[name]) / largest, 2e-5, name)
    for name in set(ours) - set(recorded):
        g.equal("gradients of unused parameters", np.max(np.abs(ours[name])), 0.0, name)


def check_rounding(g: Golden, ours: dict[str, np.ndarray], exact: dict[str, np.ndarray]) -> None:
    """Float32 against our float64, norm-wise: at most twice as far as PyTorch is, or 4e-7 of the largest gradient."""
    recorded = g.under("step/grad/")
    largest = max(np.linalg.norm(exact[name]) for name in recorded)
    for name, theirs in recorded.items():
        error, beside = (np.linalg.norm(np.float64(v) - exact[name]) / largest for v in (ours[name], theirs))
        g.judge("gradients, float32 against float64, of the largest", error, max(2 * beside, 4e-7), name, beside)


def check_after(g: Golden, params: dict[str, np.ndarray], statistics) -> None:
    """Adam moves an entry by the rate times the sign of its gradient: compared where that is known, in units of rate.

    Once from our gradient (entries above the tolerance of gradients), once from the recorded one (all above 1e-6).
    """
    recorded, gradients, before = g.under("after/"), g.under("step/grad/"), g.under("sd/")
    rate, zero = g.config["lr"], g.config.get("analytic_zero_grad", [])
    check_buffers(g, statistics, {n: v for n, v in recorded.items() if "running" in n or COUNTER in n})
    replayed = adam_step(before, gradients, rate)
    for name, theirs in recorded.items():
        if name not in gradients:
            if name in params or name not in torch_weights.export_torch(statistics):
                g.equal("parameters that must stay", before[name], theirs, name)
            continue
        grad, rounding = gradients[name], 2e-7 * np.abs(theirs)
        for quantity, ours, floor in (("Adam step from our gradient", params[name], 2e-3 * np.abs(grad).max()),
                                      ("Adam step from the recorded gradient", replayed[name], 0.0)):
            known = (np.abs(grad) > max(floor, 1e-6)) & (name not in zero)
            error = np.where(known, np.maximum(np.abs(ours - theirs) - rounding, 0), 0).max(initial=0) / rate
            g.judge(quantity, error, 1e-2 if floor else 1e-3, name)


def adam_step(params: dict[str, np.ndarray], gradients: dict[str, np.ndarray], rate: float) -> dict[str, np.ndarray]:
    """The first step of the optimizer that we train with, from given gradients."""
    flat = jnp.concatenate([gradients[name].ravel() for name in gradients])
    adam = optax.adam(rate)
    moves = np.split(np.asarray(adam.update(flat, adam.init(flat))[0]), np.cumsum([v.size for v in gradients.values()]))
    return {name: params[name] + move.reshape(params[name].shape) for name, move in zip(gradients, moves)}


def summary(values: np.ndarray) -> np.ndarray:
    """[l2, sum, first 4 entries (zeros where there are fewer)]."""
    flat = np.asarray(values, np.float64).ravel()
    return np.concatenate([[np.linalg.norm(flat), flat.sum()], np.pad(flat, (0, 4))[:4]])


def check_summaries(g: Golden, gradients: dict[str, np.ndarray], statistics: dict[str, np.ndarray]) -> None:
    """gradstat64 relative to the tensor's norm. gradstat is the same in float32, afterstat one noisy step of Adam."""
    tolerance = 2e-2 if is_ill_conditioned(g) else 1e-4
    recorded, single = g.under("gradstat64/"), g.under("gradstat/")
    largest = max(v[0] for v in recorded.values())
    if single:
        g.equal("names of gradients", sorted(recorded), sorted(single))
    for name, theirs in recorded.items():
        if theirs[0] > 1e-5 * largest:
            error = np.abs(summary(gradients[name])[: len(theirs)] - theirs).max() / theirs[0]
            g.judge("gradients in float64, summaries", error, tolerance, name)
        else:
            g.judge("gradients that vanish beside the largest", np.linalg.norm(gradients[name]) / largest, 2e-5, name)
    for name, theirs in g.under("afterstat/").items():
        if "running" in name:
            g.close("running statistics", summary(statistics[name]), theirs, 1e-5, name)
