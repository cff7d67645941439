"""Weights from and to PyTorch: the one naming rule, files, and everything that can be wrong with them."""
import pickle
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity.networks import compiled
from safetensors.numpy import save_file

from benchmarks.places import CHECKPOINT
from dipddpm_jax import torch_files, torch_weights
from dipddpm_jax.__main__ import main
from dipddpm_jax.commands.foreign_weights import load_model
from dipddpm_jax.commands.model import Model
from dipddpm_jax.config.diffusion import TrainConfig
from dipddpm_jax.config.saved import Facts
from dipddpm_jax.networks import AttentionUNet, ContextUnet, ConvStack, ResidualDenoiser, SkipNet, SmallUNet
from dipddpm_jax.types import UserError

NETWORKS = {
    "attention": (AttentionUNet(10, (8, 8, 8, 8), 16), (8, 8, 1)), "small": (SmallUNet(20, 8, (2, 3, 4)), (28, 28, 1)),
    "skip": (SkipNet(), (16, 16, 1)), "stack": (ConvStack((4, 5), 1), (8, 8, 1)),
    "residual": (ResidualDenoiser(1, 2), (8, 8, 1)), "context": (ContextUnet(3, 10, 8, 1), (28, 28, 1)),
}


def template(network, picture):
    x, t = jnp.zeros((1, *picture)), jnp.ones(1, jnp.int32)
    return jax.eval_shape(lambda: network.init(jax.random.key(0), x, t))


def random_variables(network, picture):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), template(network, picture))


@pytest.mark.parametrize("path, name", [
    ("params/conv_out/kernel", "conv_out.weight"),
    ("params/b_mid_0/conv1/kernel", "b_mid.0.conv1.weight"),
    ("params/te_out_2/bias", "te_out.2.bias"),
    ("params/1_1_7_1_0_2/scale", "1.1.7.1.0.2.weight"),
    ("batch_stats/up1/model_2/conv1_1/var", "up1.model.2.conv1.1.running_var"),
    ("buffers/time_embed/embedding", "time_embed.weight"),
    ("buffers/blocks_0/sigma_schedule", "blocks.0.sigma_schedule"),
    ("params/attention1/to_out_1/g", "attention1.to_out.1.g"),
    ("params/label_emb3/lemb/embedding", "label_emb3.lemb.weight"),
])
def test_the_rule(path, name):
    assert torch_weights.torch_name(tuple(path.split("/"))) == name


@pytest.mark.parametrize("name", NETWORKS)
def test_there_and_back(name):
    variables = random_variables(*NETWORKS[name])
    state = torch_weights.export_torch(variables)
    back = torch_weights.import_torch(state, template(*NETWORKS[name]))
    assert jax.tree.all(jax.tree.map(np.array_equal, back, variables))
    assert sum(k.endswith("running_mean") for k in state) == sum(k.endswith("num_batches_tracked") for k in state)


def test_two_leaves_of_one_name_are_refused():
    leaf = {"kernel": np.ones((1, 1))}
    with pytest.raises(ValueError, match="b.0.weight"):
        torch_weights.export_torch({"params": {"b_0": leaf, "b": {"0": leaf}}})


def test_everything_wrong_is_told_at_once():
    variables = random_variables(*NETWORKS["stack"])
    state = torch_weights.export_torch(variables)
    del state["conv1.bias"]
    state["conv2.weight"] = state["conv2.weight"][:, :1]
    state["conv9.weight"] = np.zeros((2, 2))
    with pytest.raises(UserError) as caught:
        torch_weights.import_torch(state, variables)
    for part in ("3 entries", "missing conv1.bias (4,)", "conv2.weight has shape (5, 1, 3, 3) instead of (5, 4, 3, 3)",
                 "extra conv9.weight (2, 2)"):
        assert part in str(caught.value)


@pytest.mark.parametrize("prefix", ["", "module.", "network.", "model.unet."])
def test_one_prefix_is_seen_through(prefix):
    network = NETWORKS["stack"]
    variables = random_variables(*network)
    state = {prefix + name: value for name, value in torch_weights.export_torch(variables).items()}
    if prefix:
        state |= {"betas": np.zeros(1000), "alpha_bars": np.zeros(1000)}  # a wrapper's own
    back = torch_weights.import_torch(state, template(*network))
    assert jax.tree.all(jax.tree.map(np.array_equal, back, variables))


def test_safetensors_without_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    state = torch_weights.export_torch(random_variables(*NETWORKS["skip"]))
    torch_files.write_state(state, tmp_path / "a.safetensors")
    back = torch_files.read_state(tmp_path / "a.safetensors")
    assert back.keys() == state.keys() and all(np.array_equal(back[k], state[k]) for k in state)
    (tmp_path / "b.pt").write_bytes(b"anything")
    with pytest.raises(UserError, match="pip install torch, or convert"):
        torch_files.read_state(tmp_path / "b.pt")


def test_bad_files_are_refused_in_words(tmp_path):
    pytest.importorskip("torch")
    save_file({"a": np.ones(3)}, tmp_path / "whole.safetensors")
    data = (tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[:-8])
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.pth").write_text("not weights")
    for name in ("missing.pt", "cut.safetensors", "empty.pt", "text.pth"):
        with pytest.raises(UserError, match=name):
            torch_files.read_state(tmp_path / name)
    with pytest.raises(UserError):
        torch_files.read_state(tmp_path)
    with pytest.raises(UserError, match="cannot write"):
        torch_files.write_state({}, tmp_path / "no" / "folder.safetensors")


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("evil-was-here"),)


def test_nothing_is_unpickled_blindly(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.pt", "raw.pt"):
        with pytest.raises(UserError, match="safely"):
            torch_files.read_state(tmp_path / name)
    assert not (tmp_path / "evil-was-here").exists()


@pytest.mark.parametrize("wrap", [
    lambda state: state, lambda state: {"state_dict": state, "epoch": 3}, lambda state: {"model": state, "loss": 0.5},
])
def test_training_checkpoints_are_unwrapped(tmp_path, wrap):
    torch = pytest.importorskip("torch")
    state = {"conv1.weight": torch.ones(2, 1, 3, 3), "half": torch.ones(2, dtype=torch.bfloat16)}
    torch.save(wrap(state), tmp_path / "a.pt")
    back = torch_files.read_state(tmp_path / "a.pt")
    assert back["conv1.weight"].shape == (2, 1, 3, 3) and back["half"].dtype == np.float32
    torch.save({"epoch": 3}, tmp_path / "b.pt")
    with pytest.raises(UserError, match="no state_dict"):
        torch_files.read_state(tmp_path / "b.pt")


@pytest.mark.skipif(not CHECKPOINT.is_file(), reason="the public checkpoint is not beside the checkout")
def test_a_public_checkpoint_knows_digits():
    """Weights that nobody here trained: their eps error on real digits must be small at every noise level."""
    pytest.importorskip("torch")
    from dipddpm_jax.data import load
    from dipddpm_jax.diffusion import forward, schedules

    network = SmallUNet()
    variables = torch_weights.import_torch(torch_files.read_state(CHECKPOINT), template(network, (28, 28, 1)))
    x0 = jnp.asarray(load("mnist5k", "test").images[:200:5] / np.float32(127.5) - 1)
    schedule = schedules.linear(1000)
    t = jnp.asarray(np.linspace(50, 1000, len(x0)), jnp.int32)
    eps = jax.random.normal(jax.random.key(0), x0.shape)
    error = jnp.mean((compiled(network.apply)(variables, forward.add_noise(schedule, x0, t, eps), t) - eps) ** 2)
    print(f"eps error of {CHECKPOINT.name} on {len(x0)} test digits: {error:.4f}")
    assert error < 0.05  # predicting 0 gives 1


def test_weights_trained_here_work_in_pytorch():
    """Train a little in JAX, export, load into the PyTorch reference, compare outputs; also after its own saving."""
    torch = pytest.importorskip("torch")
    import optax

    from benchmarks.torch_reference import skip_net
    from dipddpm_jax.dip.fit import Dip, DipProblem

    rng = np.random.default_rng(0)
    code, target = (jnp.asarray(rng.uniform(size=(16, 16, 1)), jnp.float32) for _ in range(2))
    network, problem = SkipNet(1, (4,), (3,), (2,)), DipProblem(code, target)
    fit = Dip(network, optax.adam(0.01))
    state, _ = compiled(lambda state: fit.advance(problem, state, 5))(fit.init(problem, jax.random.key(0)))
    variables = {"params": state.params, **state.statistics}
    theirs = skip_net.skip_net(1, 1, network.down, network.up, network.skip)
    exported = torch_weights.export_torch(variables)
    theirs.load_state_dict({name: torch.from_numpy(value) for name, value in exported.items()}, strict=True)
    ours = compiled(network.apply)(variables, code[None])[0, ..., 0]
    output = theirs.eval()(torch.from_numpy(np.array(code)).movedim(-1, 0)[None]).detach().numpy()[0, 0]
    np.testing.assert_allclose(ours, output, atol=1e-5)


def test_a_run_is_exported(tmp_path, monkeypatch, capsys):
    from dipddpm_jax.commands import model

    network = NETWORKS["stack"]
    variables = random_variables(*network)
    made = Model(TrainConfig(), Facts((8, 8, 1)), network[0], variables, 7)
    monkeypatch.setattr(model, "load_run", lambda workdir, step: made)
    main(["export", str(tmp_path), str(tmp_path / "a.safetensors")])
    assert "6 entries of step 7" in capsys.readouterr().out
    back = torch_weights.import_torch(torch_files.read_state(tmp_path / "a.safetensors"), template(*network))
    assert jax.tree.all(jax.tree.map(np.array_equal, back, variables))


@pytest.mark.parametrize("out, message", [("a.pt", "must end in .safetensors"), ("a.safetensors", "training run")])
def test_what_cannot_be_exported_is_told_in_one_line(tmp_path, capsys, out, message):
    with pytest.raises(SystemExit) as caught:
        main(["export", str(tmp_path), str(tmp_path / out)])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and message in error and error.count("\n") == 1


def test_a_model_from_foreign_weights_with_and_without_labels(tmp_path):
    """The preset says that there are labels; weights without a label embedding make a model without."""
    from dipddpm_jax.config.diffusion import AttentionUNet as Options

    config = TrainConfig(network=Options((8, 8, 8, 8), 16), data="mnist")
    for classes in (10, None):
        network = AttentionUNet(classes, (8, 8, 8, 8), 16)
        state = torch_weights.export_torch(random_variables(network, (28, 28, 1)))
        torch_files.write_state(state, tmp_path / "a.safetensors")
        model = load_model(tmp_path / "a.safetensors", config)
        assert model.network == network and len(model.facts.label_names) == (classes or 0)
    torch_files.write_state({"a": np.ones(2, np.float32)}, tmp_path / "b.safetensors")
    with pytest.raises(UserError, match="b.safetensors: these weights do not fit"):
        load_model(tmp_path / "b.safetensors", config)
