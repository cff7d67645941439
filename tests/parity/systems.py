"""How to check each family of recordings. Sizes come from the files; nothing is known of them beforehand."""
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
from parity.files import Golden
from parity.networks import check_forwards, check_step, compiled, forward, in_float64, weights

from dipddpm_jax import dip, plots, torch_weights
from dipddpm_jax.data.pictures import square
from dipddpm_jax.diffusion import denoisers, samplers, schedules
from dipddpm_jax.diffusion.forward import add_noise, prediction_of
from dipddpm_jax.dip import study, variants
from dipddpm_jax.hybrids import filtered_start
from dipddpm_jax.hybrids.passes import repeated_passes
from dipddpm_jax.judging import metrics
from dipddpm_jax.networks import (
    AttentionUNet,
    ContextUnet,
    ConvStack,
    ResidualDenoiser,
    SkipNet,
    SmallUNet,
    TwoConvs,
    residual_denoiser,
)
from dipddpm_jax.networks.attention_unet import LinearAttention, ResConvBlock
from dipddpm_jax.networks.layers import sinusoid
from dipddpm_jax.networks.small_unet import Block, time_table

TRAJECTORY = 1e-4  # of ten steps; one step is held to the tolerance of a forward


# ---------------------------------------------------------------------------------------------- schedules, samplers
def schedule_of(betas: np.ndarray, last: float) -> schedules.NoiseSchedule:
    """Systems 000 and 001: the linear table with the recorded ends (`last` is the default of the system)."""
    if len(betas) == 1000 and np.isclose(betas[-1], last):
        return schedules.linear(1000, last_beta=last)
    return schedules.linear(len(betas), float(betas[0]), float(betas[-1]))


def context_schedule(table: np.ndarray, waves: bool) -> schedules.NoiseSchedule:
    """System 004: the table whose entries 0 .. T are these betas."""
    table = np.float64(table)
    if not waves:
        return schedules.linear_at_zero(len(table) - 1, table[0], table[-1])
    wave = np.cos(2 * np.pi * np.arange(len(table)) / 50)
    lowest = wave.argmin()
    low = (2 * table[lowest] - table[0] * (wave[lowest] + 1)) / (1 - wave[lowest])
    return schedules.waves_at_zero(len(table) - 1, low, table[0])


def check_table(g: Golden, prefix: str, schedule: schedules.NoiseSchedule) -> None:
    """All recorded tables of a schedule, by name. System 004 counts from a time 0 that has a beta of its own."""
    betas, bars = schedule.betas, schedule.alpha_bars[1:]
    if any(key.startswith(prefix + "alphabar_t") for key in g.arrays):
        first = 1 - bars[0] / (1 - betas[0])
        betas, bars = np.concatenate([[first], betas]), np.concatenate([[1 - first], bars])
    alphas = 1 - betas
    tables = {
        "betas": betas, "beta_t": betas, "sqrt_beta_t": np.sqrt(betas), "alpha": alphas, "alphas": alphas,
        "alpha_t": alphas, "oneover_sqrta": 1 / np.sqrt(alphas), "alpha_bar": bars, "alpha_bars": bars,
        "alphabar_t": bars, "sqrtab": np.sqrt(bars), "sqrtmab": np.sqrt(1 - bars),
        "mab_over_sqrtmab": betas / np.sqrt(1 - bars),
    }
    for name, theirs in g.under(prefix).items():
        g.close("schedule tables", tables[name], theirs, 2e-6, prefix + name)
        g.judge("schedule tables, relative", np.max(np.abs(tables[name] / theirs - 1)), 1e-3, prefix + name)


def loud(noise: jax.Array) -> jax.Array:
    """Zeros stand for "none is drawn": a sampler that adds noise there must be found out."""
    silent = jnp.all(noise == 0, axis=(-3, -2, -1), keepdims=True)
    return jnp.where(silent, 1e6, noise)


def noise_by_time(draws: jax.Array, grid: np.ndarray) -> samplers.NoiseAt:
    """draws[k] belongs to the k-th transition of the grid; none belongs to the last one where a row is missing."""
    levels = jnp.zeros((int(grid.max()) + 1, *draws.shape[1:]), draws.dtype)
    return samplers.recorded_noise(loud(levels.at[grid[1 : len(draws) + 1]].set(draws)))


def check_chain(g: Golden, key: str, sampler, schedule, apply, labels, grid: np.ndarray) -> jax.Array:
    """A short chain with our network and the recorded noise; also eps on the recorded x. Returns our whole path."""
    x, draws = g.images(f"{key}/x"), g.images(f"{key}/noise")

    def chain(start, draws, labels):
        denoise = denoisers.from_network(apply, schedule, "eps", labels)
        return sampler(denoise, schedule, start, grid, noise_by_time(draws, grid)).path

    path = compiled(chain)(x[0], draws, labels)
    g.close("trajectories", path, x[1:], TRAJECTORY, key)
    g.same_images("trajectories", x[0], f"{key}/x_T")
    eps = jnp.stack([compiled_apply(apply)(x[k], jnp.full(x.shape[1], t), labels) for k, t in enumerate(grid[:-1])])
    g.same_images("eps along a trajectory", eps, f"{key}/eps")
    return jnp.concatenate([x[:1], path])


_APPLY: dict = {}


def compiled_apply(apply):
    """One program for each network, whoever asks."""
    return _APPLY.setdefault(apply, compiled(apply))


def check_single_steps(g: Golden, key: str, sampler, schedule, apply, labels, house_times: np.ndarray) -> None:
    """Rows of a long chain: eps of our network on the recorded x, and our update with the recorded eps and noise."""
    x, eps, noise, out = (g.images(f"{key}/{name}") for name in ("x_in", "eps", "noise", "x_out"))
    n = len(x)
    labels = None if labels is None else jnp.broadcast_to(labels, (n, *labels.shape[1:]))
    g.close("eps along a trajectory", compiled_apply(apply)(x, jnp.asarray(house_times, jnp.int32), labels), eps,
            1e-5, key)
    for k, t in enumerate(house_times):  # the whole rest of the chain, since its end decides which steps are quiet
        def recorded(x, t, eps=eps[k : k + 1]):
            return prediction_of(schedule, "eps", eps, x, t)

        rest, draw = np.arange(t, -1, -1), loud(noise[k : k + 1])
        path = sampler(recorded, schedule, x[k : k + 1], rest, lambda s, draw=draw: draw).path
        g.close("single steps of a long chain", path[0], out[k : k + 1], 2e-6, f"{key} time {t}")
    if f"{key}/x_T" in g:
        g.same_images("single steps of a long chain", x[:1], f"{key}/x_T")


def quiet_ancestral(*args) -> samplers.Sample:
    """System 000's `inverse`: no noise in the last two transitions."""
    return samplers.ancestral(*args, quiet_steps=2)


# ------------------------------------------------------------------------------------------------------- system 000
def unet000(g: Golden):
    """Network and inputs of a file of system 000."""
    state = g.under("sd/")
    classes = state["label_emb1.lemb.weight"].shape[0] if "label_emb1.lemb.weight" in state else 10
    conditional = "in/label" in g
    network = AttentionUNet(classes if conditional else None, tuple(g.config["ch"]), g.config["dim_emb"])
    return network, (g.ints("in/label") if conditional else None)


def check_000_unet(g: Golden) -> None:
    network, labels = unet000(g)
    x, t = g.images("in/x"), g.ints("in/t") + 1  # the house counts times from 1
    labels = None if labels is None else jnp.broadcast_to(labels, t.shape)
    variables = weights(g, network, x, t, labels)
    check_forwards(g, network, variables, (x, t, labels))
    t_train, eps = g.ints("in/t_train") + 1, g.images("in/eps")
    x_t = add_noise(schedules.linear(1000, last_beta=0.01), g.images("in/x0"), t_train, eps)
    g.same_images("forward process", x_t, "out/x_t")
    check_step(g, network, variables, (g.images("out/x_t"), t_train, labels), eps)


def check_000_parts(g: Golden) -> None:
    x = g.images("attn/in/x")
    variables = part(g, "attn/sd/", LinearAttention(), x)
    g.same_images("outputs", LinearAttention().apply(variables, x), "attn/out/y")
    for key in [key for key in g.arrays if key.startswith("sinemb/out_")]:
        dim = int(key.rsplit("_", 1)[1])
        ours = sinusoid(jnp.asarray(g["sinemb/t"]), dim, dim // 2 - 1)
        g.close("time embeddings (float32 angles)", ours, g[key], 2e-5)
    x = g.images("res/in/x")
    block = ResConvBlock(g["res/sd/conv1.weight"].shape[0])
    variables = part(g, "res/sd/", block, x, False)
    g.same_images("outputs", block.apply(variables, x, False), "res/out/eval")
    g.same_images("outputs", block.apply(variables, x, True, mutable=["batch_stats"])[0], "res/out/train")


def part(g: Golden, prefix: str, module, *example) -> dict:
    """Weights of a piece of a network."""
    template = jax.eval_shape(lambda: module.init(jax.random.key(0), *example))
    return torch_weights.import_torch(g.under(prefix), template)


def check_000_samplers(g: Golden) -> None:
    network, labels = unet000(g)
    x, t = g.images("traj/x")[0], g.ints("traj/t") + 1
    labels = jnp.broadcast_to(labels, x.shape[:1])
    variables = weights(g, network, x, t[: len(x)], labels)

    def apply(x, t, labels):
        return network.apply(variables, x, t, labels)

    short = schedules.from_betas(np.float64(g["sched/betas"]))
    check_table(g, "sched/", short)
    full = schedules.linear(1000, last_beta=0.01)

    def still_ddim(denoise, schedule, x, grid, noise):
        return samplers.ddim(denoise, schedule, x, grid, noise, eta=0.0)

    for suffix, sampler in (("", quiet_ancestral), ("ddim", still_ddim)):
        grid = np.concatenate([g[f"traj{suffix}/t"] + 1, [0]])
        check_chain(g, f"traj{suffix}", sampler, short, apply, labels, grid)
        for key in (f"trajreal{suffix}", f"traj500{suffix}"):
            check_single_steps(g, key, sampler, full, apply, labels[:1], g[f"{key}/t"] + 1)


# ------------------------------------------------------------------------------------------------------- system 001
def check_001_myblock(g: Golden) -> None:
    for name in sorted({key.split("/")[0] for key in g.arrays if key.startswith("block")}):
        x = g.images(f"{name}/in/x")
        block = Block(g[f"{name}/sd/conv1.weight"].shape[0], normalize=name == "block0")
        g.same_images("outputs", block.apply(part(g, f"{name}/sd/", block, x), x), f"{name}/out/y")
    for key in [key for key in g.arrays if key.startswith("out/sinusoidal_")]:
        rows, dim = map(int, key.split("_")[1:])
        g.close("time embeddings", time_table(rows, dim), g[key], 1e-6, key)


def check_001_myunet(g: Golden) -> None:
    c, state = g.config, g.under("sd/")
    widths = tuple(state[f"{block}.0.conv1.weight"].shape[0] for block in ("b1", "b2", "b3"))
    network = SmallUNet(c["n_steps"], c["time_emb_dim"], widths, state["conv_out.weight"].shape[0])
    x, t = g.images("in/x"), g.ints("in/t") + 1
    variables = weights(g, network, x, t)
    check_forwards(g, network, variables, (x, t, None))
    schedule = schedules.linear(c["n_steps"], c["min_beta"], c["max_beta"])
    check_table(g, "sched/", schedule)
    t_train, eps = g.ints("in/t_train") + 1, g.images("in/eta")
    x_t = add_noise(schedule, g.images("in/x0"), t_train, eps)
    g.same_images("forward process", x_t, "out/noisy")
    check_step(g, network, variables, (g.images("out/noisy"), t_train, None), eps)

    def apply(x, t, labels):
        return network.apply(variables, x, t)

    if "traj/t" in g:
        grid = np.concatenate([g["traj/t"] + 1, [0]])
        path = np.asarray(check_chain(g, "traj", samplers.ancestral, schedule, apply, None, grid))
        check_gif(g, path[1:], c["n_steps"])
    if "trajreal/t" in g:
        check_single_steps(g, "trajreal", samplers.ancestral, schedule, apply, None, g["trajreal/t"] + 1)


def check_gif(g: Golden, path: np.ndarray, table_steps: int) -> None:
    """Truncation to bytes turns rounding into one level."""
    kept, recorded = samplers.reference_frames(len(path), table_steps), g["gif/frames"]
    columns = path.shape[1] // int(np.sqrt(path.shape[1]))
    ours = [plots.tile(plots.stretched(path[k]), columns, gap=0)[..., 0] for k in kept]
    if len(ours) != len(recorded) or ours[0].shape != recorded[0].shape:
        g.failures.append(f"gif: {len(ours)} frames of {ours[0].shape} instead of {recorded.shape}")
    else:
        g.judge("GIF frames, levels of 255", np.max(np.abs(np.stack(ours).astype(int) - recorded)), 1)


def skip_net(g: Golden) -> SkipNet:
    """The options are in the configuration; widths that it does not tell stand in the state's names."""
    c, state = g.config, g.under("sd/")
    channels = next(g[key].shape[1] for key in ("out/train", "out/dip1", "loop/out") if key in g)
    act = {"LeakyReLU": "leaky_relu", "Swish": "swish", "ELU": "elu", "none": "none"}[c.get("act_fun", "LeakyReLU")]
    padding = {"zero": "zeros", "reflection": "reflect"}[c.get("pad", "reflection")]
    if "num_channels_down" in c:
        widths = (tuple(c[f"num_channels_{name}"]) for name in ("down", "up", "skip"))
    elif state:
        widths = skip_widths(state, 1 if padding == "reflect" else 0)
    else:  # the F16 recipe at its own width
        widths = (128,) * 5, (128,) * 5, (4,) * 5
    return SkipNet(
        channels, *widths, act=act, padding=padding, downsample=c.get("downsample_mode", "stride"),
        upsample=c.get("upsample_mode", "bilinear"), use_bias=c.get("need_bias", True),
        pointwise=c.get("need1x1_up", True), sigmoid=c.get("need_sigmoid", True))


def skip_widths(state: dict[str, np.ndarray], number: int) -> tuple[tuple[int, ...], ...]:
    """(down, up, skip) of each level, from the names of its convolutions."""
    path, levels = "", []
    while f"{path}3.{number}.weight" in state:
        side = state.get(f"{path}1.0.1.{number}.weight")
        deeper = f"{path}1." if side is None else f"{path}1.1."
        levels.append((state[f"{deeper}1.{number}.weight"].shape[0], state[f"{path}3.{number}.weight"].shape[0],
                       0 if side is None else side.shape[0]))
        path = f"{deeper}7."
    return tuple(zip(*levels))


def check_001_skip(g: Golden) -> None:
    network, x, target = skip_net(g), g.images("in/x"), g.images("in/target")
    variables = weights(g, network, x)
    check_forwards(g, network, variables, (x, None, None))
    check_step(g, network, variables, (x, None, None), target)


def check_001_dip_k_times(g: Golden) -> None:
    network, x = skip_net(g), g.images("in/x")
    variables = weights(g, network, x)
    most = max(int(key.split("/")[0].removeprefix("bufs")) for key in g.arrays if key.startswith("bufs"))
    passes, moving = compiled(lambda v, x: filtered_start.dip_passes(network, v, x, most))(variables, x)
    for k in range(1, most + 1):
        tolerance = 1e-5 * 3 ** (k - 1)  # each pass in training mode enlarges the error of the one before
        recorded = g[f"out/dip{k}_28"]
        g.same_images(f"DIP passes, after {k}", passes[k - 1], f"out/dip{k}", tolerance)
        small = filtered_start.resize(passes[k - 1], *recorded.shape[2:])
        g.same_images(f"DIP passes, after {k}", small, f"out/dip{k}_28", tolerance)
        ours = torch_weights.export_torch(jax.tree.map(lambda a, k=k: a[k - 1], moving))
        for name, theirs in g.under(f"bufs{k}/").items():
            g.close(f"DIP passes, after {k}", ours[name], theirs, tolerance, name)
    side = g["out/dip1_28"].shape[2]
    g.same_images("antialiased resize", filtered_start.resize(x[:, :28, :28], *g["out/up32"].shape[2:]), "out/up32")
    start = compiled(lambda v, x: filtered_start.filtered_noise(network, v, x, most, side))(variables, x)
    g.close("antialiased resize", start, filtered_start.resize(passes[-1], side, side), 1e-5, "filtered_noise")


def check_001_dip_loop(g: Golden) -> None:
    """The loop in float64, ours and theirs; the float32 recording is chaotic after its first two steps."""
    c, network = g.config, skip_net(g)
    with jax.enable_x64(True):
        code, target = g.images("in/net_input_saved"), g.images("in/img_noisy")
        variables = in_float64(weights(g, network, code))
        fit = dip.Dip(network, optax.adam(c["lr"]), code_rule=dip.fixed(c["reg_noise_std"]),
                      average_decay=c["exp_weight"])
        problem = dip.DipProblem(code[0], target)
        state = fit.start(problem, variables, jax.random.key(0))

        def step(state, draw):
            state, curves = fit.step(problem, state, draw[None])
            return state, (state.kept.output, state.average, curves["loss"])

        loop = compiled(lambda state, draws: jax.lax.scan(step, state, draws))
        state, (outputs, averages, losses) = loop(state, g.images("loop/noise"))
        for name, ours in (("out", outputs), ("out_avg", averages)):
            g.same_images("DIP loop in float64", ours, f"loop64/{name}", 1e-6)
            recorded = g.images(f"loop/{name}")[:2]
            g.close("DIP loop, first two steps in float32", ours[:2], recorded, TRAJECTORY, name)
        g.close("DIP loop in float64", losses, g["loop64/loss"], 1e-6, "loss")
        g.close("DIP loop, first two steps in float32", losses[:2], g["loop/loss"][:2], 1e-5, "loss")
        check_loop_end(g, state)
    check_loop_psnr(g)


def check_loop_end(g: Golden, state: dip.DipState) -> None:
    """after64/ without the biases whose gradient is zero but for rounding, and the running means that follow them.

    after/ is the end of the chaotic float32 loop: its names and shapes are all that can be compared.
    """
    moments = torch_weights.export_torch({"params": state.opt_state[0].nu})
    params = torch_weights.export_torch({"params": state.params, **state.statistics})
    largest = max(v.max() for v in moments.values())
    noisy = {name for name, v in moments.items() if v.max() < 1e-20 * largest}
    for name, theirs in g.under("after64/").items():
        *parents, number, leaf = name.split(".")
        before = ".".join([*parents, str(int(number) - 1)]) if number.isdigit() else ""
        follows = leaf == "running_mean" and any(n in noisy for n in (f"{before}.0.bias", f"{before}.1.bias"))
        if name not in noisy and not follows and "num_batches" not in name:
            g.close("DIP loop in float64, state after it", params[name], theirs, 1e-5, name)
    for name, theirs in g.under("after/").items():
        g.equal("names and shapes after the float32 loop", params[name].shape, theirs.shape, name)


def check_loop_psnr(g: Golden) -> None:
    """PSNR of the recorded float32 outputs: to the noisy picture, to the clean one, and of the average."""
    out, average = g.images("loop/out"), g.images("loop/out_avg")
    noisy, clean = (jnp.broadcast_to(g.images(key)[None], out.shape) for key in ("in/img_noisy", "in/img"))
    ours = jnp.stack([metrics.psnr(noisy, out), metrics.psnr(clean, out), metrics.psnr(clean, average)], 1)
    g.close("PSNR", ours, g["loop/psnr_noisy_gt_gtsm"])


# ------------------------------------------------------------------------------------------------------- system 002
def check_002_dip(g: Golden) -> None:
    _, *inner, last = g.config["channels"]
    network, x = ConvStack(tuple(inner), last), g.images("in/x")
    variables = weights(g, network, x)
    check_forwards(g, network, variables, (x, None, None))
    if "in/target" in g:
        check_step(g, network, variables, (x, None, None), g.images("in/target"))


def replay(psnr: np.ndarray, patience: int, ends: list[int]) -> tuple[np.ndarray, list[int | None], np.ndarray]:
    """System 002's rule on recorded scores, stage by stage: was each an improvement, where it stopped, best so far."""
    improved, stops, best, state = [], [], [], None
    for stage in np.split(psnr, ends):
        zero = jnp.int32(0)
        state = study.CumulativePatience(zero, jnp.float64(0) if state is None else state.best, zero)
        seen, all_best = jax.lax.scan(lambda s, p: (study.cumulative_miss(s, p),) * 2, state, jnp.asarray(stage))
        over = np.flatnonzero(np.asarray(all_best.misses) >= patience)
        stops.append(int(over[0]) if len(over) else None)
        improved.append(np.diff(np.asarray(all_best.misses), prepend=0) == 0)
        best.append(float(all_best.best[-1]))
        state = seen
    return np.concatenate(improved), stops, np.array(best)


def check_002_stop_rule(g: Golden) -> None:
    for rule in sorted({key.split("/")[0] for key in g.arrays}):
        psnr = np.round(np.float64(g[f"{rule}/psnr"]), 4)
        stop, flags = int(g[f"{rule}/stop_index"]), g[f"{rule}/improved"]
        with jax.enable_x64(True):
            improved, (ours,), _ = replay(psnr, int(g[f"{rule}/patience"]), [])
            _, _, best = replay(psnr[: len(flags)], 10**9, [])
        g.equal("stop rule", -1 if ours is None else ours, stop, rule)
        g.equal("stop rule", improved[: len(flags)], flags.astype(bool), rule)
        g.close("stop rule, best PSNR", best[0], g[f"{rule}/best"], 1e-6, rule)


def stage_lengths(g: Golden, stages: int) -> tuple[list[int], list[int | None]]:
    """Epochs that each stage ran, and the epoch at which it stopped early."""
    told = [re.search(r"epoch (\d+) in stage (\d+)", text) for text in g.config["stops"]]
    stops = {int(match[2]) - 1: int(match[1]) for match in told}
    planned = g.config["epochs_per_stage"]
    return [stops.get(k, planned - 1) + 1 for k in range(stages)], [stops.get(k) for k in range(stages)]


def check_002_staged(g: Golden) -> None:
    """The rule exactly, the first twenty epochs tightly, the rest loosely: Adam at this rate is chaotic."""
    noisy = [g[key] for key in sorted(key for key in g.arrays if re.fullmatch(r"in/noisy\d+", key))]
    lengths, stops = stage_lengths(g, len(noisy))
    planned, every = g.config["epochs_per_stage"], g.config.get("eval_every", 10)
    looks = [[e for e in range(n) if e % every == 0 or e == planned - 1] for n in lengths]
    psnr, ssim = np.float64(g["hist/psnr"]), g["hist/ssim"]
    ends = np.cumsum([len(stage) for stage in looks])
    g.equal("stages, number of evaluations", ends[-1], len(psnr))
    with jax.enable_x64(True):
        _, found, best = replay(psnr, g.config["patience"], list(ends[:-1]))
    g.equal("stages, where they stop", [None if k is None else looks[i][k] for i, k in enumerate(found)], stops)
    if "best_psnr" in g.config:
        g.close("stages, best PSNR", best[-1], g.config["best_psnr"], 1e-6)
    if "out/stage_psnr" in g:
        g.close("stages, best PSNR", best, g["out/stage_psnr"], 1e-6)
        g.close("stages, last SSIM", ssim[ends - 1], g["out/stage_ssim"], 1e-6)
    losses, scores = fit_stages(g, noisy, lengths)
    if "after/conv1.weight" in g:
        g.judge("stages, PSNR of the recorded end in dB", abs(psnr_of_end(g, noisy[-1]) - psnr[-1]), 1.5)
    seen = np.concatenate([np.add(stage, start) for stage, start in zip(looks, np.cumsum([0, *lengths]))])
    if "hist/loss" in g:
        g.close("stages, first 20 losses, relative", losses[:20] / g["hist/loss"][:20], np.ones(20), 1e-4)
    early = seen < 20
    g.close("stages, first scores", scores[seen[early]], np.stack([psnr, ssim], 1)[early], 1e-4)
    # Moved by 1e-7, every fourth fit ends 2 dB elsewhere (with lax.conv too): the recorded one must be like one of 5.
    rng = np.random.default_rng(0)
    moved = [[np.float32(x * (1 + 1e-7 * rng.standard_normal(x.shape))) for x in noisy] for _ in range(4)]
    fits = [scores, *(fit_stages(g, pictures, lengths)[1] for pictures in moved)]
    off = np.min([np.abs(fit[seen, 0] - psnr) for fit in fits], 0)
    g.judge("stages, PSNR of the rest in dB, nearest of five", off.max(), 3.0)
    g.judge("stages, PSNR at the end in dB, nearest of five", off[ends - 1].max(), 1.5)


def stack_of(g: Golden) -> ConvStack:
    """Widths from the names of the weights."""
    state = g.under("sd/")
    *inner, last = (state[f"conv{i}.weight"].shape[0] for i in range(1, len(state) // 2 + 1))
    return ConvStack(tuple(inner), last)


def psnr_of_end(g: Golden, noisy: np.ndarray) -> float:
    """What the recorded last weights make of the last stage's picture: all that a chaotic end can be compared by."""
    network, picture, clean = stack_of(g), jnp.asarray(noisy)[None], jnp.asarray(g["in/target"])[None]
    return float(metrics.psnr(clean, jnp.clip(network.apply(part(g, "after/", network, picture), picture), 0, 1))[0])


def fit_stages(g: Golden, noisy: list[np.ndarray], lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """System 002 as a DIP whose code is the noisy picture and whose measurement is the clean one."""
    target, network = jnp.asarray(g["in/target"]), stack_of(g)
    variables = weights(g, network, target[None])
    fit = dip.Dip(network, optax.adam(g.config["lr"]), code_rule=dip.fixed(jitter=0.0))
    clean = dip.DipProblem(target, target)

    def epoch(state, _):
        state, curves = fit.step(clean, state, jnp.zeros((1, *target.shape)))
        output = jnp.clip(state.kept.output, 0, 1)[None]
        return state, (curves["loss"], jnp.stack([metrics.psnr(target[None], output)[0],
                                                   metrics.ssim(target[None], output)[0]]))

    stage = compiled(lambda state: jax.lax.scan(epoch, state, length=max(lengths)))
    short = compiled(lambda state, n: jax.lax.fori_loop(0, n, lambda _, s: epoch(s, None)[0], state))
    fitted, losses, scores = fit.start(clean, variables, jax.random.key(0)), [], []
    for picture, length in zip(noisy, lengths):
        begin = fitted._replace(code=jnp.asarray(picture))
        fitted, (loss, score) = stage(begin)
        if length < max(lengths):
            fitted = short(begin, length)
        losses.append(loss[:length])
        scores.append(score[:length])
    return np.concatenate(losses), np.concatenate(scores)


# ------------------------------------------------------------------------------------------------------- system 003
def check_003_dip(g: Golden) -> None:
    x = g.images("in/x")
    network = TwoConvs(x.shape[-1])
    variables = weights(g, network, x)
    check_forwards(g, network, variables, (x, None, None))
    check_step(g, network, variables, (x, None, None), x)


def check_003_ddpm(g: Golden) -> None:
    c, x, noise = g.config, g.images("in/x"), g.images("in/noise")
    kind = next(kind for kind in ("linear", "exponential", "cosine") if kind[:3] == c["schedule"][:3])
    table = g["sd/blocks.0.sigma_schedule"]
    network = ResidualDenoiser(c["channels"], c["num_blocks"], kind, len(table))
    t = jnp.broadcast_to(g.ints("in/t") + 1, x.shape[:1])
    variables = weights(g, network, x, t)
    g.close("schedule tables", residual_denoiser.sigma_table(kind, len(table)), table, 1e-6)
    check_forwards(g, network, variables, (x, t, None), {"noise": noise})
    check_step(g, network, variables, (x, t, None), x, {"noise": noise})
    y, _ = forward(network, True)(variables, g.images("in/dip_x"), t, None, {"noise": noise})
    g.same_images("outputs", y, "out/y_of_dip")
    g.close("loss", jnp.mean(jnp.square(y - x)), g["out/loss_dip_stage"])
    path = g.images("traj/x")
    passes = compiled(lambda x, t, noise: repeated_passes(
        lambda x, t, noise: network.apply(variables, x, t, noise=noise), x, t, noise))
    g.close("trajectories", passes(path[0], g.ints("traj/t") + 1, g.images("traj/noise")), path[1:], TRAJECTORY)


# ------------------------------------------------------------------------------------------- system 004 and TeaPearce
def context_unet(g: Golden, steps: int, act: str = "gelu", state: dict | None = None) -> ContextUnet:
    """Widths from the weights or the configuration; TeaPearce's script feeds classes as -1."""
    state, c = state or g.under("sd/"), g.config
    if state:
        width, channels = state["init_conv.conv1.0.weight"].shape[:2]
        classes = state["contextembed1.model.0.weight"].shape[1]
    else:
        width, channels, classes = c["n_feat"], c["in_channels"], c["n_classes"]
    return ContextUnet(classes, steps, width, channels, act, -1.0 if g.name.startswith("tea") else 1.0)


def check_contextunet(g: Golden) -> None:
    steps, x = g.config["T"], g.images("in/x")
    network, t = context_unet(g, steps), g.ints("in/ts")
    t_forward = jnp.asarray(np.round(g["in/t_norm"] * steps), jnp.int32)
    g.close("forward process", t_forward / steps, g["in/t_norm"], 1e-6, "t / T")
    if "in/label" in g:
        labels = jnp.where(g["in/mask"] == 1, -1, g.ints("in/label"))  # mask 1 drops the class
    else:
        labels = jnp.asarray(g["in/c"])
    variables = weights(g, network, x, t, labels)
    check_forwards(g, network, variables, (x, t_forward, labels))
    if "out/context_vector" in g:
        context = network.apply(variables, labels, x, method="context")
        g.close("context", context, g["out/context_vector"], 0.0)
        for key, part, value in (("t", "timeembed1", (t_forward / steps)[:, None]), ("c", "contextembed2", context)):
            ours = network.apply(variables, value, method=lambda m, v, part=part: getattr(m, part)(v))
            g.close("outputs", ours[:, 0, 0], g[f"out/embedfc_{key}"])
    low, high = g.config["betas"]
    eps = g.images("in/noise")
    x_t = add_noise(schedules.linear_at_zero(steps, low, high), g.images("in/x0"), t, eps)
    g.same_images("forward process", x_t, "out/x_t")
    check_step(g, network, variables, (g.images("out/x_t"), t, labels), eps)


def check_contextunet_relu(g: Golden) -> None:
    source = g.beside(g.config["state"])
    steps, x, labels = source.config["T"], g.images("in/x"), jnp.asarray(g["in/c"])
    network = context_unet(g, steps, "relu", source.under("sd/"))
    t = jnp.asarray(np.round(g["in/t_norm"] * steps), jnp.int32)
    y, _ = forward(network, False)(weights(source, network, x, t, labels), x, t, labels, {})
    g.same_images("outputs", y, "out/eval_relu")


def bind(network, variables):
    """apply(x, t, labels) of a network in evaluation."""
    return lambda x, t, labels: network.apply(variables, x, t, labels)


def check_guided(g: Golden, apply, schedule, labels, rows: dict[float, np.ndarray], x_T, draws) -> None:
    """Chains of several weights in one program; `rows` are those of x (0: the start) that are recorded."""
    grid = np.arange(schedule.num_steps, -1, -1)

    def chain(weight, x, draws):
        denoise = denoisers.guided(apply, schedule, labels, weight)
        return samplers.ancestral(denoise, schedule, x, grid, noise_by_time(draws, grid)).path

    chain = compiled(chain)
    for weight, (steps, recorded) in rows.items():
        path = jnp.concatenate([x_T[None], chain(jnp.float32(weight), x_T, draws)])
        g.close("guided trajectories", path[np.array(steps)], recorded, TRAJECTORY, f"weight {weight}")


def check_004_sampler(g: Golden) -> None:
    labels, x_T, draws = jnp.asarray(g["in/c"]), g.images("traj/x_T"), g.images("traj/noise")
    schedule = context_schedule(g["sched/beta_t"], waves=False)
    check_table(g, "sched/", schedule)
    steps = schedule.num_steps
    network = context_unet(g, steps)
    apply = bind(network, weights(g, network, x_T, jnp.ones(len(x_T), jnp.int32), labels))
    grid = np.concatenate([g["traj/i"], [0]])
    check_chain(g, "traj", samplers.ancestral, schedule, apply, labels, grid)
    weight_of = {"trajcfg05": 0.5, "trajcfg2": 2.0}
    rows = {weight_of[key.split("/")[0]]: ([1, 2, steps], g.images(key)) for key in g.arrays if "trajcfg" in key}
    check_guided(g, apply, schedule, labels, rows, x_T, draws)


def check_teapearce_sampler(g: Golden) -> None:
    x_T, draws = g.images("traj/x_T"), g.images("traj/noise")
    schedule = context_schedule(np.float64(g["sched/sqrt_beta_t"]) ** 2, waves=False)
    check_table(g, "sched/", schedule)
    steps = schedule.num_steps
    network = context_unet(g, steps)
    labels = jnp.arange(len(x_T), dtype=jnp.int32) % network.num_classes
    apply = bind(network, weights(g, network, x_T, labels + 1, labels))
    g.equal("chains, times", g["traj/i"], np.arange(steps, 0, -1))
    t = np.arange(steps, 0, -1)
    stored = t[(t % 20 == 0) | (t == steps) | (t < 8)]  # the transitions that TeaPearce's animation keeps
    g.equal("frames", (len(stored), *np.moveaxis(x_T, -1, 1).shape), g["traj/store_shape"])
    rows = {}
    for key in [key for key in g.arrays if key.startswith("traj_w")]:
        x = g.images(key)  # either every x from the start on, or the first step and the last
        rows[float(key.split("/")[0][6:])] = (range(steps + 1) if len(x) == steps + 1 else [1, steps], x)
    check_guided(g, apply, schedule, labels, rows, x_T, draws)


def check_004_sampler_real(g: Golden) -> None:
    source, steps = g.beside(g.config["state"]), g.config["T"]
    labels, example = jnp.asarray(g["in/c"]), g.images("trajreal_linear/x_T")
    network = context_unet(g, steps, "gelu", source.under("sd/"))
    apply = bind(network, weights(source, network, example, jnp.ones(1, jnp.int32), labels))
    for key, schedule in (("trajreal_linear", schedules.linear_at_zero(steps)),
                          ("trajreal_cos", schedules.waves_at_zero(steps))):
        check_single_steps(g, key, samplers.ancestral, schedule, apply, labels, g[f"{key}/i"])


# ------------------------------------------------------------------------------------------------------------- rules
def check_schedules(g: Golden) -> None:
    for name in sorted({key.split("/")[0] for key in g.arrays} - {"003"}):
        system, kind = name.split("_")[:2]
        if system == "004":
            check_table(g, f"{name}/", context_schedule(g[f"{name}/beta_t"], waves=kind.startswith("cos")))
        else:
            check_table(g, f"{name}/", schedule_of(g[f"{name}/betas"], {"000": 0.01, "001": 0.02}[system]))
    for name, theirs in g.under("003/").items():
        kind = "cosine" if name.startswith("poly") else name  # the report prints one formula for both
        g.close("schedule tables", residual_denoiser.sigma_table(kind, len(theirs)), theirs, 1e-6, name)


def check_misc_rules(g: Golden) -> None:
    enlarged = square(g["in/u8"][..., None], g["out/u8_32"].shape[0])[..., 0]
    g.equal("bytes resized as PIL does", enlarged, g["out/u8_32"])

    def rule(state, psnr):
        count, last = state
        falls, accept = variants.backtrack(count, last, psnr, 5.0)
        new = count + ~falls, jnp.where(accept, psnr, last)
        return new, (count, falls, new[1])

    start = jnp.int32(0), jnp.float32(0)
    _, (count, falls, last) = jax.lax.scan(rule, start, jnp.asarray(g["backtrack/psnr_noisy"]))
    for name, ours in (("i_before", count), ("fell_back", falls), ("last_after", last)):
        g.equal("backtracking", np.asarray(ours).astype(g[f"backtrack/{name}"].dtype), g[f"backtrack/{name}"], name)
    for key in [key for key in g.arrays if key.startswith("gif/")]:
        table, steps = map(int, re.fullmatch(r"gif/idx_T(\d+)_steps(\d+)", key).groups())
        g.equal("frames", samplers.reference_frames(steps, table), g[key], key)
    a, b = jnp.asarray(g["metric/a"])[None], jnp.asarray(g["metric/b"])[None]
    wide = 2 * a - 1, 2 * b - 1
    ours = {
        "psnr1": metrics.psnr(a, b), "ssim1": metrics.ssim(a, b), "ssim_gray1": metrics.ssim(a[..., :1], b[..., :1]),
        "psnr_pm1_default": metrics.psnr(*wide, 2.0), "psnr_pm1_range1": metrics.psnr(*wide, 1.0),
        "psnr_pm1_range2": metrics.psnr(*wide, 2.0), "ssim_pm1_range2": metrics.ssim(*wide, 2.0),
        "ssim_pm1_range1": metrics.ssim(*wide, 1.0),
    }
    for name in (key.removeprefix("metric/") for key in g.arrays if key.startswith("metric/") and key[7:] not in "ab"):
        g.close("PSNR and SSIM", ours[name][0], g[f"metric/{name}"], 1e-5, name)


READERS = {
    r"000_(cond)?unet_\w+": check_000_unet, "000_parts": check_000_parts, "000_samplers": check_000_samplers,
    "001_myblock": check_001_myblock, r"001_myunet(_narrow)?": check_001_myunet,
    r"001_(skip|denoising)\w*": check_001_skip, "001_dip_k_times": check_001_dip_k_times,
    "001_dip_loop": check_001_dip_loop, r"002_dip\d+\w*": check_002_dip, "002_stop_rule": check_002_stop_rule,
    r"002_(staged_\w+|train_schedule)": check_002_staged, "003_dip": check_003_dip, r"003_ddpm_\w+": check_003_ddpm,
    r"004_contextunet_relu": check_contextunet_relu, r"(004|teapearce)_contextunet_(narrow|nf\d+)": check_contextunet,
    "004_sampler": check_004_sampler, "004_sampler_real": check_004_sampler_real,
    "teapearce_sampler": check_teapearce_sampler, "schedules": check_schedules, "misc_rules": check_misc_rules,
}


def check(g: Golden) -> None:
    """Everything in the file. Raises AssertionError with all that is wrong, unread entries included."""
    reader = next((reader for pattern, reader in READERS.items() if re.fullmatch(pattern, g.name)), None)
    assert reader, f"nobody knows how to check {g.name}"
    reader(g)
    g.failures += [f"{key} was never compared" for key in sorted(g.unread)]
    assert not g.failures, f"{len(g.failures)} failures in {g.name}:\n  " + "\n  ".join(g.failures[:40])
