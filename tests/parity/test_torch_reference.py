"""The PyTorch reference against recordings of the original programs (tolerances: the README beside the recordings).

Every size comes from a recording's arrays and config, so another set of recordings passes unchanged.
The directory can be given in DIPDDPM_GOLDEN; a table of the worst errors is printed at the end.
"""

import functools
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402

from benchmarks.places import GOLDEN  # noqa: E402
from benchmarks.torch_reference import diffusion, skip_net, system000, system001, system002, system003, system004  # noqa: E402, E501

PLACES = [*reversed(GOLDEN)]
if "DIPDDPM_GOLDEN" in os.environ:
    PLACES = [Path(os.environ["DIPDDPM_GOLDEN"])]
FOLDER = next((place for place in PLACES if any(place.glob("*.npz"))), PLACES[-1])
FILES = sorted(path.stem for path in FOLDER.glob("*.npz"))
pytestmark = pytest.mark.skipif(not FILES, reason="no recordings: shared/golden is not beside the checkout")

Row = tuple[str, float, float]  # quantity, error, tolerance
Rows = Iterator[Row]
WORST: dict[tuple[str, str], tuple[float, float]] = {}


def loud_where_quiet(noise: torch.Tensor) -> torch.Tensor:
    """Zeros stand for "none is drawn": an update that adds noise there must not pass for one that does not."""
    return noise if noise.any() else torch.full_like(noise, 1e6)


class Recording:
    """One file: arrays as tensors, groups of arrays by prefix, the config."""

    def __init__(self, name: str):
        self.name = name
        with np.load(FOLDER / f"{name}.npz") as arrays:
            self.arrays = {key: arrays[key] for key in arrays.files if key != "config"}
            self.config = json.loads(str(arrays["config"]))

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def __getitem__(self, key: str) -> torch.Tensor:
        return torch.from_numpy(np.array(self.arrays[key]))

    def double(self, key: str) -> torch.Tensor:
        tensor = self[key]
        return tensor.double() if tensor.is_floating_point() else tensor

    def group(self, prefix: str) -> dict[str, torch.Tensor]:
        return {key[len(prefix) :]: self[key] for key in self.arrays if key.startswith(prefix)}

    def numbered(self, pattern: str) -> list[re.Match]:
        return [match for match in map(re.compile(pattern).fullmatch, self.arrays) if match]

    def rows(self, prefix: str, index: str) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
        """(time, arrays with a batch axis) for each recorded step of a long chain."""
        for k, t in enumerate(self[f"{prefix}/{index}"].tolist()):
            row = {name: self[f"{prefix}/{name}"][k][None] for name in ("x_in", "eps", "noise", "x_out")}
            yield t, row | {"noise": loud_where_quiet(row["noise"])}


recording = functools.cache(Recording)


def error(value, reference) -> float:
    """Largest difference over 1 + the largest reference value."""
    value, reference = torch.as_tensor(value).double(), torch.as_tensor(reference).double()
    assert value.shape == reference.shape, (value.shape, reference.shape)
    assert value.isfinite().all()
    return ((value - reference).abs().max() / (1 + reference.abs().max())).item()


def recipe(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Weights that need no storage: normal draws seeded by the parameter's name."""
    if name.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.int64)
    z = np.random.RandomState(zlib.crc32(f"{seed}/{name}".encode())).standard_normal(shape)
    leaf = name.rsplit(".", 1)[-1]
    if leaf in ("bias", "running_mean"):
        z = 0.1 * z
    elif leaf == "running_var":
        z = 1 + 0.5 * np.abs(z)
    elif len(shape) == 1 or leaf == "g" or name.endswith("ln.weight"):
        z = 1 + 0.1 * z
    else:
        z = z / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(z.astype(np.float32))


def load(rec: Recording, net: torch.nn.Module) -> None:
    """The recorded state, or the recipe's; every recorded name must exist."""
    state, stored = net.state_dict(), rec.group("sd/")
    trained = {name for name in state if not name.endswith(("sigma_schedule", "time_embed.weight"))}
    if not stored:
        stored = {name: recipe(name, tuple(state[name].shape), rec.config["recipe_seed"]) for name in trained}
    assert trained <= stored.keys() <= state.keys(), trained ^ stored.keys()
    net.load_state_dict(state | stored)


def compare_group(net_state: dict, reference: dict) -> float:
    return max(error(net_state[name].float(), tensor.float()) for name, tensor in reference.items())


Step = Callable[[torch.nn.Module, torch.optim.Optimizer, Callable[[str], torch.Tensor]], torch.Tensor]


def check_gradients(rec: Recording, net: torch.nn.Module) -> Rows:
    """Norm-wise, for every tensor above 1e-5 of the file's largest gradient."""
    recorded = rec.group("step/grad/")
    norms = {name: gradient.norm() for name, gradient in recorded.items()}
    limit, zero = 1e-5 * max(norms.values()), rec.config.get("analytic_zero_grad", [])
    firm = [name for name in recorded if norms[name] > limit and name not in zero]
    gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    assert gradients.keys() == recorded.keys()
    errors = torch.stack([(gradients[name] - recorded[name]).norm() / norms[name] for name in firm])
    yield "gradients", errors.max().item(), 5e-4


def check_adam(rec: Recording, net: torch.nn.Module, step_state: dict) -> Rows:
    """`after/` from our own step, and from the recorded gradients; in units of the learning rate."""
    recorded, after, lr = rec.group("step/grad/"), rec.group("after/"), rec.config["lr"]
    zero, ours, rederived, share = set(rec.config.get("analytic_zero_grad", [])), [], [], []
    net.load_state_dict(step_state | {name: rec[f"sd/{name}"] for name in recorded})
    for name, p in net.named_parameters():
        p.grad = recorded.get(name)
    torch.optim.Adam(net.parameters(), lr=lr).step()
    second = net.state_dict()
    for name, gradient in recorded.items():
        mask = (gradient.abs() > 1e-6) & torch.tensor(name not in zero)
        share.append(mask.double().mean().item())
        if mask.any():
            # Where an element is far below its tensor's largest, rounding of the gradient decides the step.
            firm = mask & (gradient.abs() > 1e-3 * gradient.abs().max())
            ours.append(((step_state[name] - after[name]).abs()[firm].max() / lr).item())
            rederived.append(((second[name] - after[name]).abs()[mask].max() / lr).item())
    yield "Adam from the recorded gradient, in lr", max(rederived), 1e-3
    yield "Adam step, in lr", max(ours), 1e-2
    still = {name: after[name] for name in after.keys() - recorded.keys()}
    if still:
        yield "state without gradient after the step", compare_group(step_state, still), 1e-5


def check_step(rec: Recording, net: torch.nn.Module, step: Step) -> Rows:
    """One training step: loss, gradients, Adam; for recipe files only [l2, sum, first four], in float64."""
    load(rec, net)
    net.train()
    lr = rec.config["lr"]
    loss = step(net, torch.optim.Adam(net.parameters(), lr=lr), rec.__getitem__)
    yield "loss", error(loss, rec["step/loss"]), 1e-5
    if rec.group("step/grad/"):
        yield from check_gradients(rec, net)
        yield from check_adam(rec, net, {name: t.clone() for name, t in net.state_dict().items()})
        return
    load(rec, net)
    net.double()
    loss = step(net, torch.optim.Adam(net.parameters(), lr=lr), rec.double)
    yield "loss, float64", error(loss, rec["step/loss64"]), 1e-6
    worst, stats = 0.0, rec.group("gradstat64/")
    largest = max(stat[0] for stat in stats.values())
    for name, p in net.named_parameters():
        if name in stats and stats[name][0] > 1e-5 * largest:
            flat, stat = p.grad.flatten(), stats[name].double()
            ours = torch.stack([flat.norm(), flat.sum(), *F.pad(flat[:4], (0, max(0, 4 - flat.numel())))])
            scale = stat[0] * torch.tensor([1.0, flat.numel() ** 0.5, 1, 1, 1, 1])
            worst = max(worst, ((ours[: len(stat)] - stat) / scale[: len(stat)]).abs().max().item())
    yield "gradient summaries, float64", worst, 2e-2 if rec.name == "001_denoising_full_recipe" else 1e-4
    net.float()


def check_net(rec: Recording, net: torch.nn.Module, forward: Callable, step: Step | None) -> Rows:
    """Parameter count, recipe, forwards in both modes, BatchNorm buffers, one step."""
    if "params" in rec.config:
        yield "parameter count", abs(sum(p.numel() for p in net.parameters()) - rec.config["params"]), 0
    if rec.config.get("weights") == "recipe" and rec.group("sd/"):
        frozen = rec.config.get("frozen", [])
        stored = {name: tensor for name, tensor in rec.group("sd/").items() if name not in frozen}
        rebuilt = {name: recipe(name, tuple(t.shape), rec.config["recipe_seed"]) for name, t in stored.items()}
        yield "recipe", compare_group(rebuilt, stored), 1e-7
    with torch.no_grad():
        if "out/train" in rec:
            load(rec, net)
            full = rec.name == "001_denoising_full_recipe"  # 1.1e-5 on another processor than the recording's
            yield "forward, train", error(forward(net.train()), rec["out/train"]), 2e-5 if full else 1e-5
            yield "buffers", compare_group(net.state_dict(), rec.group("fwd_buffers/")), 1e-5
        load(rec, net)
        plain = next(key for key in ("out/eval", "out/eps", "out/y") if key in rec)
        yield "forward, eval", error(forward(net.eval()), rec[plain]), 1e-5
    if step is not None:
        yield from check_step(rec, net, step)


def chain_rows(rec: Recording, prefix: str, run: Callable, quantity: str) -> Rows:
    """A short chain replayed with the recorded noise: every x and eps."""
    seen = [], []

    def keep(k: int, x: torch.Tensor, eps: torch.Tensor) -> None:
        seen[0].append(x)
        seen[1].append(eps)

    run(rec[f"{prefix}/x_T"], keep)
    yield quantity, error(torch.stack(seen[0]), rec[f"{prefix}/x"][1:]), 1e-4
    if f"{prefix}/eps" in rec:
        yield f"{quantity}: eps", error(torch.stack(seen[1]), rec[f"{prefix}/eps"]), 1e-4


def long_chain_rows(rec: Recording, prefix: str, index: str, run: Callable, quantity: str) -> Rows:
    """Single steps of a full-length chain; run(x, t, noise, on_step)."""
    worst_x = worst_eps = 0.0
    for t, row in rec.rows(prefix, index):
        eps = []
        x = run(row["x_in"], t, lambda _, z=row["noise"]: z, lambda k, x, e, keep=eps: keep.append(e))
        worst_x, worst_eps = max(worst_x, error(x, row["x_out"])), max(worst_eps, error(eps[0], row["eps"]))
    yield quantity, worst_x, 1e-5
    yield f"{quantity}: eps", worst_eps, 1e-5


def noise_by_time(rec: Recording, prefix: str, index: str) -> Callable[[int], torch.Tensor]:
    times, draws = rec[f"{prefix}/{index}"].tolist(), rec[f"{prefix}/noise"]
    return {t: loud_where_quiet(noise) for t, noise in zip(times, draws, strict=False)}.__getitem__


# ---- system 000


def net000(rec: Recording) -> system000.UNet:
    label = rec.group("sd/").get("label_emb1.lemb.weight")
    classes = 0 if "in/label" not in rec else 10 if label is None else len(label)
    return system000.UNet(tuple(rec.config["ch"]), rec.config["dim_emb"], classes)


def check_000_unet(rec: Recording) -> Rows:
    tables = diffusion.linear_tables(1e-4, 0.01, rec.config.get("T", 1000))
    label = rec["in/label"] if "in/label" in rec else None
    x_t = diffusion.add_noise(tables, rec["in/x0"], rec["in/t_train"], rec["in/eps"])
    yield "x_t", error(x_t, rec["out/x_t"]), 1e-5

    def step(net, optimizer, get):
        return system000.train_step(net, optimizer, tables, get("in/x0"), label, get("in/t_train"), get("in/eps"))

    yield from check_net(rec, net000(rec), lambda net: net(rec["in/x"], rec["in/t"], label), step)


def check_000_parts(rec: Recording) -> Rows:
    state = rec.group("attn/sd/")
    attention = system000.LinearAttention(state["to_qkv.weight"].shape[1])
    attention.load_state_dict(state)
    yield "attention", error(attention(rec["attn/in/x"]).detach(), rec["attn/out/y"]), 1e-5
    for match in rec.numbered(r"sinemb/out_(\d+)"):
        yield "sinusoidal vectors", error(system000.sinusoidal(rec["sinemb/t"], int(match[1])), rec[match[0]]), 5e-5
    state = rec.group("res/sd/")
    block = system000.ResidualBlock(state["conv1.weight"].shape[1], state["conv1.weight"].shape[0])
    for mode in ("eval", "train"):
        block.load_state_dict(state)
        y = block.train(mode == "train")(rec["res/in/x"]).detach()
        yield f"residual block, {mode}", error(y, rec[f"res/out/{mode}"]), 1e-5


def check_000_samplers(rec: Recording) -> Rows:
    net, label = net000(rec), rec["in/label"]
    load(rec, net)
    net.eval()
    short = diffusion.tables_from(rec["sched/betas"])
    yield "tables", max(error(short.alphas, rec["sched/alpha"]), error(short.alpha_bars, rec["sched/alpha_bar"])), 1e-6
    grid, noise = rec["traj/t"].tolist(), noise_by_time(rec, "traj", "t")
    run = lambda x, keep: system000.sample(net, short, x, grid, label, noise, keep)  # noqa: E731
    yield from chain_rows(rec, "traj", run, "chain")
    ddim_grid = rec["trajddim/t"].tolist()
    run = lambda x, keep: system000.sample_ddim(net, short, x, ddim_grid, label, keep)  # noqa: E731
    yield from chain_rows(rec, "trajddim", run, "DDIM chain")
    full = diffusion.linear_tables(1e-4, 0.01, int(rec["trajreal/t"][0]) + 1)

    def one(x, t, noise, keep):
        return system000.sample(net, full, x, [t], label, noise, keep)

    def one_ddim(x, t, noise, keep):
        return system000.sample_ddim(net, full, x, [t], label, keep)

    for match in rec.numbered(r"(traj(?:real|\d+)(ddim)?)/t"):
        run, kind = (one_ddim, "DDIM chain") if match[2] else (one, "chain")
        yield from long_chain_rows(rec, match[1], "t", run, f"steps of the full {kind}")


# ---- system 001


def check_001_myblock(rec: Recording) -> Rows:
    for match in rec.numbered(r"out/sinusoidal_(\d+)_(\d+)"):
        yield "time tables", error(system001.sinusoidal_table(int(match[1]), int(match[2])), rec[match[0]]), 1e-6
    for match in rec.numbered(r"(block(\d+))/in/x"):
        state = rec.group(f"{match[1]}/sd/")
        block = system001.Block(tuple(state["ln.weight"].shape), len(state["conv1.bias"]), normalize=match[2] == "0")
        block.load_state_dict(state)
        yield "block", error(block(rec[match[0]]).detach(), rec[f"{match[1]}/out/y"]), 1e-5


def check_001_myunet(rec: Recording) -> Rows:
    config, state = rec.config, rec.group("sd/")
    widths = tuple(len(state[f"b{i}.0.conv1.bias"]) for i in (1, 2, 3)) if state else (10, 20, 40)
    net = system001.UNet(config["n_steps"], config["time_emb_dim"], widths)
    tables = diffusion.linear_tables(config["min_beta"], config["max_beta"], config["n_steps"])
    x_t = diffusion.add_noise(tables, rec["in/x0"], rec["in/t_train"], rec["in/eta"])
    yield "x_t", error(x_t, rec["out/noisy"]), 1e-5
    if state:
        yield "time tables", error(net.time_embed.weight, state["time_embed.weight"]), 1e-6

    def step(net, optimizer, get):
        return system001.train_step(net, optimizer, tables, get("in/x0"), get("in/t_train"), get("in/eta"))

    yield from check_net(rec, net, lambda net: net(rec["in/x"], rec["in/t"]), step)
    load(rec, net)
    if "trajreal/t" in rec:

        def one(x, t, noise, keep):
            return system001.generate(net, tables, x, [t], noise, keep)

        yield from long_chain_rows(rec, "trajreal", "t", one, "steps of the full chain")
    if "traj/t" in rec:
        steps, noise = len(rec["traj/t"]), noise_by_time(rec, "traj", "t")
        run = lambda x, keep: system001.generate(net, tables, x, range(steps - 1, -1, -1), noise, keep)  # noqa: E731
        yield from chain_rows(rec, "traj", run, "chain")
        frames = system001.generate_frames(lambda keep: run(rec["traj/x_T"], keep), config["n_steps"], steps)
        levels = np.stack(frames)[..., 0].astype(int) - rec["gif/frames"].int().numpy()
        yield "GIF frames, grey levels", float(np.abs(levels).max()), 1


def skip001(rec: Recording) -> torch.nn.Module:
    """The skip net that a config describes, in words, as lists, or not at all (then system 001's)."""
    config, text = rec.config, rec.config.get("net", "")
    channels = {"inputs": 1, "outputs": 1} | skip_net.SYSTEM001
    if "num_channels_down" in config:
        channels |= {name: config[f"num_channels_{name}"] for name in ("down", "up", "skip")}
    elif text.startswith("skip("):
        channels |= {name: json.loads(re.search(rf"{name} (\[[^]]*\])", text)[1]) for name in ("down", "up", "skip")}
    elif text:
        found = re.search(r"reflection,(?:n33d=)?(\d+),(?:n33u=)?(\d+),(?:n11=)?(\d+),num_scales=(\d+)", text)
        down, up, skip, scales = map(int, found.groups())
        channels |= {"down": [down] * scales, "up": [up] * scales, "skip": [skip] * scales}
    if "in/target" in rec:
        channels |= {"inputs": rec["in/x"].shape[1], "outputs": rec["in/target"].shape[1]}
    renamed = {"act_fun": "act", "downsample_mode": "downsample", "upsample_mode": "upsample", "pad": "pad"}
    renamed |= {"need_bias": "bias", "need_sigmoid": "sigmoid", "need1x1_up": "one_by_one"}
    style = skip_net.Style(**{ours: config[theirs] for theirs, ours in renamed.items() if theirs in config})
    return skip_net.skip_net(**channels, style=style)


def check_001_skip(rec: Recording) -> Rows:
    def step(net, optimizer, get):
        return system002.train_step(net, optimizer, get("in/x"), get("in/target"))[0]

    yield from check_net(rec, skip001(rec), lambda net: net(rec["in/x"]), step)


def run_dip_loop(rec: Recording, net: torch.nn.Module, get: Callable, iterations: int) -> dict[str, torch.Tensor]:
    seen = {"out": [], "out_avg": [], "loss": []}

    def keep(i: int, step: skip_net.DipStep) -> None:
        for name, value in zip(seen, (step.out[0], step.average[0], step.loss), strict=True):
            seen[name].append(value.clone())

    config, noise = rec.config, get("loop/noise")
    skip_net.fit_dip(
        net,
        torch.optim.Adam(net.parameters(), lr=config["lr"]),
        get("in/img_noisy")[None],
        get("in/net_input_saved"),
        iterations,
        config["reg_noise_std"],
        config["exp_weight"],
        lambda i: noise[i].reshape(get("in/net_input_saved").shape),
        skip_net.Backtracking(),
        keep,
    )
    return {name: torch.stack(values) for name, values in seen.items()}


def check_001_dip_loop(rec: Recording) -> Rows:
    iterations = rec.config["iters"]
    net = skip001(rec)
    load(rec, net)
    seen = run_dip_loop(rec, net.double(), rec.double, iterations)
    for name, values in seen.items():
        reference = rec[f"loop64/{name}"]
        yield f"float64 loop, {name}", error(values.reshape(reference.shape), reference), 1e-5
    yield "float64 loop, final state", compare_group(net.state_dict(), rec.group("after64/")), 1e-5
    load(rec, net.float())
    seen = run_dip_loop(rec, net, rec.__getitem__, 2)
    for name, values in seen.items():
        reference = rec[f"loop/{name}"][:2]
        yield f"float32 loop, first two, {name}", error(values.reshape(reference.shape), reference), 1e-4
    pairs = [("in/img_noisy", "out"), ("in/img", "out"), ("in/img", "out_avg")]
    mse = [(seen[ours].reshape(2, -1) - rec[clean].reshape(1, -1)).pow(2).mean(1) for clean, ours in pairs]
    psnr = -10 * torch.stack(mse, 1).log10()
    yield "float32 loop, first two, PSNR", error(psnr, rec["loop/psnr_noisy_gt_gtsm"][:2]), 1e-4


def check_001_dip_k_times(rec: Recording) -> Rows:
    for match in rec.numbered(r"out/dip(\d+)"):
        k = int(match[1])
        net = skip001(rec)
        load(rec, net)
        y = system001.filter_noise(net.train(), rec["in/x"], k)
        yield "passes", error(y, rec[match[0]]), 5e-5
        yield "buffers", compare_group(net.state_dict(), rec.group(f"bufs{k}/")), 5e-5
        small = rec[f"out/dip{k}_28"]
        load(rec, net)
        yield "start noise", error(system001.start_noise(net, rec["in/x"], k, small.shape[-1]), small), 5e-5
    up = system001.resize(rec["in/x"][:, :, :28, :28], rec["out/up32"].shape[-1])
    yield "resize 28 to 32", error(up, rec["out/up32"]), 1e-5


def check_misc_rules(rec: Recording) -> Rows:
    u8 = rec["out/u8_32"].numpy()
    yield "PIL resize", float((system001.enlarge(rec["in/u8"].numpy(), len(u8)) != u8).sum()), 0
    for match in rec.numbered(r"gif/idx_T(\d+)_steps(\d+)"):
        ours = system001.gif_indices(int(match[1]), int(match[2]))
        yield "GIF indices", float(ours != rec[match[0]].tolist()), 0
    rule, trace = skip_net.Backtracking(), []
    for psnr in rec["backtrack/psnr_noisy"].tolist():
        trace.append((rule.counter, rule.update(psnr), rule.last_psnr))
    for ours, name in zip(zip(*trace, strict=True), ("i_before", "fell_back", "last_after"), strict=True):
        yield f"backtracking, {name}", error(torch.tensor(ours), rec[f"backtrack/{name}"]), 1e-6
    picture = rec["metric/b"].permute(2, 0, 1)[None]
    psnr, ssim = system002.scores(picture, rec["metric/a"].numpy())
    yield "PSNR", error(psnr, rec["metric/psnr1"]), 1e-6
    yield "SSIM", error(ssim, rec["metric/ssim1"]), 1e-5


# ---- system 002


def check_002_dip(rec: Recording) -> Rows:
    step = None
    if "in/target" in rec:

        def step(net, optimizer, get):
            return system002.train_step(net, optimizer, get("in/x"), get("in/target"))[0]

    yield from check_net(rec, system002.ConvStack(rec.config["channels"]), lambda net: net(rec["in/x"]), step)


def run_stages(rec: Recording) -> system002.History:
    weights = [tensor for name, tensor in rec.group("sd/").items() if name.endswith("weight")]
    net = system002.ConvStack([weights[0].shape[1], *(len(w) for w in weights)])
    load(rec, net)
    optimizer = torch.optim.Adam(net.parameters(), lr=rec.config["lr"])
    noisy = [rec[match[0]].numpy() for match in rec.numbered(r"in/noisy\d+")]
    epochs = [rec.config["epochs_per_stage"]] * len(noisy)
    every = rec.config.get("eval_every", 10)
    clean = rec["in/target"].numpy()
    return system002.fit_stages(net, optimizer, clean, noisy, epochs, rec.config["patience"], every)


def replay_stops(rec: Recording) -> tuple[list[tuple[int, int]], int, float]:
    """(epoch, stage) of each stop, evaluations used, best PSNR: the rule run on the recorded scores."""
    scores, epochs = rec["hist/psnr"].double().tolist(), rec.config["epochs_per_stage"]
    every = rec.config.get("eval_every", 10)
    evaluated = [e for e in range(epochs) if e % every == 0 or e == epochs - 1]
    rule, used, stops = system002.StopRule(rec.config["patience"]), 0, []
    for stage in range(len(rec.numbered(r"in/noisy\d+"))):
        rule.start_stage()
        for epoch in evaluated:
            used += 1
            if rule.update(scores[used - 1]):
                stops.append((epoch, stage + 1))
                break
    return stops, used, rule.best


def check_002_staged(rec: Recording) -> Rows:
    stops, used, best = replay_stops(rec)
    wanted = [tuple(map(int, re.findall(r"\d+", text))) for text in rec.config["stops"]]
    yield "stops, rule replayed on recorded PSNR", float(stops != wanted or used != len(rec["hist/psnr"])), 0
    yield "best PSNR, replayed", abs(best - rec.config["best_psnr"]), 1e-5
    history = run_stages(rec)
    losses, recorded = torch.tensor(history.loss[:20]), rec["hist/loss"][:20]
    yield "first 20 losses, relative", ((losses - recorded).abs() / recorded).max().item(), 1e-4
    yield "first 2 PSNR, dB", (torch.tensor(history.psnr[:2]) - rec["hist/psnr"][:2]).abs().max().item(), 1e-3
    yield "first 2 SSIM", (torch.tensor(history.ssim[:2]) - rec["hist/ssim"][:2]).abs().max().item(), 1e-4
    yield "best PSNR of our own run, dB", abs(history.stage_psnr[-1] - best), 2.0


def check_002_train_schedule(rec: Recording) -> Rows:
    stops, _, _ = replay_stops(rec)
    yield "stops, rule replayed on recorded PSNR", float(len(stops) != len(rec.config["stops"])), 0
    history = run_stages(rec)
    for ours, name in ((history.stage_psnr, "stage_psnr"), (history.stage_ssim, "stage_ssim")):
        yield f"{name}, own run", error(torch.tensor(ours), rec[f"out/{name}"]), 1e-2
    yield "first 2 PSNR, dB", (torch.tensor(history.psnr[:2]) - rec["hist/psnr"][:2]).abs().max().item(), 1e-3


def check_002_stop_rule(rec: Recording) -> Rows:
    for match in rec.numbered(r"(rule\d+)/psnr"):
        rule, improved, stop = system002.StopRule(int(rec[f"{match[1]}/patience"])), [], -1
        for i, psnr in enumerate(np.round(rec[match[0]].double().numpy(), 4).tolist()):
            before = rule.best
            stopped = rule.update(psnr)
            improved.append(int(rule.best != before))
            if stopped:
                stop = i
                break
        same = stop == int(rec[f"{match[1]}/stop_index"]) and improved == rec[f"{match[1]}/improved"].tolist()
        yield "stop index and improvements", float(not same), 0
        yield "best", error(rule.best, rec[f"{match[1]}/best"]), 1e-6


# ---- system 003


def check_003_dip(rec: Recording) -> Rows:
    def step(net, optimizer, get):
        return system003.train_dip_step(net, optimizer, get("in/x"))

    yield from check_net(rec, system003.DIP(rec["in/x"].shape[1]), lambda net: net(rec["in/x"]), step)


def check_003_ddpm(rec: Recording) -> Rows:
    sigmas, noise, t = rec["sd/blocks.0.sigma_schedule"], rec["in/noise"], int(rec["in/t"])
    name = {"exp": "exponential", "cos": "cosine", "polynomial": "cosine"}.get(
        rec.config["schedule"], rec.config["schedule"]
    )
    yield "sigma table", error(system003.sigma_table(name, len(sigmas)), sigmas), 1e-6
    net = system003.DDPM(sigmas, rec["in/x"].shape[1], rec.config["num_blocks"])

    def step(net, optimizer, get):
        draws = get("in/noise")
        return system003.train_step(net, optimizer, get("in/x"), get("in/x"), t, draws.__getitem__)

    yield from check_net(rec, net, lambda net: net(rec["in/x"], t, noise.__getitem__), step)
    load(rec, net)
    y = net(rec["in/dip_x"], t, noise.__getitem__).detach()
    yield "forward of the DIP output", error(y, rec["out/y_of_dip"]), 1e-5
    yield "loss of the DIP stage", error(F.mse_loss(y, rec["in/x"]), rec["out/loss_dip_stage"]), 1e-5
    times, draws, seen = rec["traj/t"].tolist(), rec["traj/noise"], []
    keep = lambda k, x: seen.append(x)  # noqa: E731
    system003.denoise_image(net, rec["traj/x"][0], len(times), times, lambda k, block: draws[k, block], keep)
    yield "passes", error(torch.stack(seen), rec["traj/x"][1:]), 1e-4


# ---- system 004 and TeaPearce


def net004(rec: Recording, act: Callable = torch.nn.GELU) -> system004.ContextUnet:
    """Sizes from the stored state, or from the config where the state is the recipe's."""
    state, config = rec.group("sd/"), rec.config
    if state:
        f, channels = state["init_conv.conv1.0.weight"].shape[:2]
        classes, kernel = state["contextembed1.model.0.weight"].shape[1], state["up0.0.weight"].shape[-1]
    else:
        f, channels, classes = config["n_feat"], config["in_channels"], config["n_classes"]
        quarter = rec["in/x"].shape[-1] // 4
        kernel = quarter // (quarter // 7)
    net = system004.ContextUnet(channels, f, classes, kernel, act)
    load(rec, net)
    return net.eval()


def check_contextunet(rec: Recording) -> Rows:
    steps, net = rec.config["T"], net004(rec)
    tables = system004.linear_tables(*rec.config["betas"], steps)
    yield "x_t", error(diffusion.add_noise(tables, rec["in/x0"], rec["in/ts"], rec["in/noise"]), rec["out/x_t"]), 1e-5
    if "in/label" in rec:
        context = system004.drop_context(rec["in/label"], rec["in/mask"], rec["out/context_vector"].shape[1])
        yield "context vector", error(context, rec["out/context_vector"]), 0
        time, embedded = net.timeembed1(rec["in/t_norm"]), net.contextembed2(context)
        yield "time embedding", error(time.flatten(1).detach(), rec["out/embedfc_t"]), 1e-5
        yield "context embedding", error(embedded.flatten(1).detach(), rec["out/embedfc_c"]), 1e-5
    else:
        context = rec["in/c"]

    def step(net, optimizer, get):
        given = context.to(get("in/x0").dtype)
        return system004.train_step(net, optimizer, tables, get("in/x0"), given, get("in/ts"), get("in/noise"))

    yield from check_net(rec, net, lambda net: net(rec["in/x"], context, rec["in/t_norm"]), step)


def check_004_relu(rec: Recording) -> Rows:
    net = net004(recording(rec.config["state"]), torch.nn.ReLU)
    y = net(rec["in/x"], rec["in/c"], rec["in/t_norm"]).detach()
    yield "forward, eval", error(y, rec["out/eval_relu"]), 1e-5


def sampler_tables(rec: Recording) -> diffusion.Tables:
    """Linear betas whose ends are read off the recorded table, at five digits."""
    low, high = (float(f"{sigma**2:.5g}") for sigma in rec["sched/sqrt_beta_t"][[0, -1]].double().tolist())
    return system004.linear_tables(low, high, rec.config["T"])


def check_004_sampler(rec: Recording) -> Rows:
    net, tables, context = net004(rec), sampler_tables(rec), rec["in/c"]
    noise = noise_by_time(rec, "traj", "i")
    yield "tables", error(tables.alpha_bars, rec["sched/alphabar_t"]), 1e-6
    run = lambda x, keep: system004.sample(net, tables, x, context, None, noise, keep)  # noqa: E731
    yield from chain_rows(rec, "traj", run, "chain")
    for match in rec.numbered(r"(trajcfg\d+)/x"):
        seen, weight = [], float(re.search(r"w=([\d.]*\d)", rec.config[match[1]])[1])
        keep = lambda k, x, eps, seen=seen: seen.append(x)  # noqa: E731
        system004.sample_guided(net, tables, rec["traj/x_T"], context, weight, None, noise, keep)
        ours = torch.stack([seen[0], seen[1], seen[-1]])
        yield "guided chain", error(ours, rec[match[0]]), 1e-4


def check_004_sampler_real(rec: Recording) -> Rows:
    net, context = net004(recording(rec.config["state"])), rec["in/c"]
    for kind, tables_of in (("linear", system004.linear_tables), ("cos", system004.cosine_tables)):
        tables = tables_of(*rec.config.get("betas", (1e-4, 0.02)), rec.config["T"])

        def one(x, i, noise, keep, tables=tables):
            return system004.sample(net, tables, x, context, [i], noise, keep)

        yield from long_chain_rows(rec, f"trajreal_{kind}", "i", one, f"steps of the full chain, {kind}")


def check_teapearce_sampler(rec: Recording) -> Rows:
    net, tables, x_T = net004(rec), sampler_tables(rec), rec["traj/x_T"]
    noise, classes = noise_by_time(rec, "traj", "i"), net.contextembed1.model[0].in_features
    context = system004.drop_context(torch.arange(len(x_T)) % classes, torch.zeros(len(x_T)), classes)
    for match in rec.numbered(r"traj_w([\d.]+)/x"):
        seen = [x_T]
        keep = lambda k, x, eps, seen=seen: seen.append(x)  # noqa: E731
        system004.sample_guided(net, tables, x_T, context, float(match[1]), None, noise, keep)
        ours = torch.stack(seen if len(rec[match[0]]) == len(seen) else [seen[1], seen[-1]])
        yield "guided chain", error(ours, rec[match[0]]), 1e-4
    frames = len(system004.stored_frames(rec.config["T"]))
    yield "stored frames", abs(frames - int(rec["traj/store_shape"][0])), 0


# ---- tables


def tables_for(rec: Recording, name: str) -> dict[str, torch.Tensor]:
    """Our own tables under the recorded names; the ends of the betas are read off, at six digits, where not default."""
    system, kind = name.split("_", 1)
    ends = rec[f"{name.replace('cos', 'linear')}/{'beta_t' if system == '004' else 'betas'}"]
    low, high = (float(f"{end:.6g}") for end in (ends[0], ends[-1]))
    if system != "004":
        betas, alphas, alpha_bars = diffusion.linear_tables(low, high, len(ends))
        plural = "s" if system == "001" else ""
        return {"betas": betas, f"alpha{plural}": alphas, f"alpha_bar{plural}": alpha_bars}
    t = (system004.cosine_tables if kind.startswith("cos") else system004.linear_tables)(low, high, len(ends) - 1)
    sigma = (1 - t.alpha_bars).sqrt()
    return {
        "beta_t": t.betas,
        "alpha_t": t.alphas,
        "oneover_sqrta": 1 / t.alphas.sqrt(),
        "sqrt_beta_t": t.betas.sqrt(),
        "alphabar_t": t.alpha_bars,
        "sqrtab": t.alpha_bars.sqrt(),
        "sqrtmab": sigma,
        "mab_over_sqrtmab": (1 - t.alphas) / sigma,
    }


def check_schedules(rec: Recording) -> Rows:
    names = {key.rsplit("/", 1)[0] for key in rec.arrays} - {"003"}
    for name in sorted(names):
        ours = tables_for(rec, name)
        for key, reference in rec.group(f"{name}/").items():
            yield f"system {name[:3]}", error(ours[key], reference), 1e-6
    for key, reference in rec.group("003/").items():
        name = "cosine" if key.startswith("polynomial") else key
        yield "system 003", error(system003.sigma_table(name, len(reference)), reference), 1e-6


CHECKS: dict[str, Callable[[Recording], Rows]] = {
    r"000_(cond)?unet_.*": check_000_unet,
    r"000_parts": check_000_parts,
    r"000_samplers": check_000_samplers,
    r"001_myblock": check_001_myblock,
    r"001_myunet.*": check_001_myunet,
    r"001_(skip|denoising).*": check_001_skip,
    r"001_dip_loop": check_001_dip_loop,
    r"001_dip_k_times": check_001_dip_k_times,
    r"misc_rules": check_misc_rules,
    r"002_dip.*": check_002_dip,
    r"002_staged_.*": check_002_staged,
    r"002_train_schedule": check_002_train_schedule,
    r"002_stop_rule": check_002_stop_rule,
    r"003_dip": check_003_dip,
    r"003_ddpm_.*": check_003_ddpm,
    r"(004|teapearce)_contextunet_n.*": check_contextunet,
    r"004_contextunet_relu": check_004_relu,
    r"004_sampler": check_004_sampler,
    r"004_sampler_real": check_004_sampler_real,
    r"teapearce_sampler": check_teapearce_sampler,
    r"schedules": check_schedules,
}


@pytest.mark.parametrize("name", FILES)
def test_reproduces_recording(name):
    check = next((check for pattern, check in CHECKS.items() if re.fullmatch(pattern, name)), None)
    assert check is not None, f"no check for {name}"
    bad = []
    for quantity, worst, tolerance in check(recording(name)):
        row = (check.__name__.removeprefix("check_"), quantity)
        WORST[row] = max(WORST.get(row, (0.0, tolerance)), (float(worst), tolerance))
        if not worst <= tolerance:
            bad.append(f"{quantity}: {worst:.3g} > {tolerance:.3g}")
    assert not bad, "; ".join(bad)


def test_table_of_errors(capsys):
    with capsys.disabled():
        print(f"\n{'family':<20} {'quantity':<42} {'worst error':>12} {'tolerance':>10}")
        for (family, quantity), (worst, tolerance) in sorted(WORST.items()):
            print(f"{family:<20} {quantity:<42} {worst:12.2g} {tolerance:10.2g}")
