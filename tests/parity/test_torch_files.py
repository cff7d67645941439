"""Files of PyTorch weights: which of their tensors are the weights, half precision, damage, and exported models."""
import json
from collections import OrderedDict

import jax
import numpy as np
import pytest
from parity.test_torch_weights import NETWORKS, random_variables

from dipddpm_jax import torch_files, torch_weights
from dipddpm_jax.commands import export, model, sample
from dipddpm_jax.commands.cli import sample_main
from dipddpm_jax.commands.foreign_weights import load_model
from dipddpm_jax.commands.model import Model
from dipddpm_jax.config.diffusion import AttentionUNet, TrainConfig
from dipddpm_jax.config.saved import Facts
from dipddpm_jax.errors import UserError

torch = pytest.importorskip("torch")
TINY = TrainConfig(network=AttentionUNet((8, 8, 8, 8), 16), data="mnist")


def layers():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Conv2d(2, 1, 3))


STATE = layers().state_dict()


def optimiser():
    network = layers()
    adam = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 1, 8, 8)).sum().backward()
    adam.step()
    return adam.state_dict()  # holds tensors too, more of them than the network


@pytest.mark.parametrize("content", [
    {"model_state_dict": STATE, "loss": torch.tensor(0.5)},
    {"step": torch.tensor(7), "model": STATE, "betas": torch.linspace(0, 1, 10), "alphas": torch.ones(10)},
    {"epoch": 3, "optimizer_state_dict": optimiser(), "net": STATE},
    {"checkpoint": {"trainer": {"generator": STATE}, "loss": torch.ones(())}},
    {"state_dict": {f"model.{name}": value for name, value in STATE.items()}, "hyper_parameters": {"b": torch.ones(3)}},
    OrderedDict((f"module.{name}", value) for name, value in STATE.items()), STATE,
], ids=["loss", "step and betas", "optimiser", "deep", "Lightning", "DataParallel", "plain"])
def test_tensors_beside_the_weights_do_not_hide_them(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    found = torch_files.read_state(tmp_path / "a.pt")
    assert len(found) == len(STATE)
    for name, value in STATE.items():
        np.testing.assert_array_equal(next(v for k, v in found.items() if k.endswith(name)), value.numpy())


@pytest.fixture(scope="module")
def raw_and_average():
    """A network's weights and their moving average, as PyTorch names them."""
    variables = random_variables(torch_network(), (28, 28, 1))
    raw = {k: torch.from_numpy(v) for k, v in torch_weights.export_torch(variables).items()}
    return raw, {k: v + 1 if v.is_floating_point() else v for k, v in raw.items()}


def torch_network():
    from dipddpm_jax.networks import AttentionUNet

    return AttentionUNet(10, (8, 8, 8, 8), 16)


def first(model):
    return float(np.ravel(jax.tree.leaves(model.weights)[0])[0])


def test_of_raw_and_averaged_weights_the_averaged_ones_are_taken_and_said(tmp_path, capsys, raw_and_average):
    raw, average = raw_and_average
    torch.save({"model": raw, "ema": average, "step": torch.tensor(9)}, path := tmp_path / "a.pt")
    averaged = load_model(path, TINY)
    assert "a.pt: the weights under ema are taken; there are also model (--weights-key)" in capsys.readouterr().err
    chosen = load_model(path, TINY, "model")
    assert capsys.readouterr().err == ""
    assert first(averaged) == pytest.approx(first(chosen) + 1, abs=1e-5)
    with pytest.raises(UserError, match="no weights under 'emma'; there are ema, model"):
        load_model(path, TINY, "emma")


def test_an_average_beside_the_raw_weights_in_one_dictionary(tmp_path, capsys, raw_and_average):
    """As denoising_diffusion_pytorch saves its EMA: two copies under two prefixes."""
    raw, average = raw_and_average
    both = {f"online_model.{k}": v for k, v in raw.items()} | {f"ema_model.{k}": v for k, v in average.items()}
    torch.save({"ema": {"initted": torch.tensor(True), **both}}, path := tmp_path / "a.pt")
    averaged = load_model(path, TINY)
    assert "under ema.ema_model are taken; there are also ema.online_model" in capsys.readouterr().err
    assert first(averaged) == pytest.approx(first(load_model(path, TINY, "ema.online_model")) + 1, abs=1e-5)


def test_an_average_that_lacks_statistics_is_passed_over_and_said(tmp_path, capsys, raw_and_average):
    raw, average = raw_and_average
    shadow = {k: v for k, v in average.items() if "running" not in k and "tracked" not in k}
    assert len(shadow) < len(average)
    torch.save({"state_dict": raw, "ema": {"shadow": shadow, "decay": 0.99}}, path := tmp_path / "a.pt")
    taken = load_model(path, TINY)
    assert "under state_dict are taken; ema.shadow does not fit" in capsys.readouterr().err
    torch.save(raw, tmp_path / "raw.pt")
    assert first(taken) == first(load_model(tmp_path / "raw.pt", TINY))


def test_an_unknown_layout_is_answered_with_its_keys(tmp_path):
    torch.save({"epoch": 3, "weights": [torch.ones(2)], "info": {"name": "x"}}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"epoch \(int\), weights \(list of 1\), info \(dict of 1\)"):
        torch_files.read_state(tmp_path / "a.pt")
    torch.save([torch.ones(2)], tmp_path / "b.pt")
    with pytest.raises(UserError, match="it holds a list"):
        torch_files.read_state(tmp_path / "b.pt")


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "a.pth"])
def test_an_empty_or_cut_file_is_said_in_a_line(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=f"{name} is empty") as raised:
        torch_files.read_state(tmp_path / name)
    assert "\n" not in str(raised.value)
    eight = bytes(7)
    for content in (b"\1", b"\xff" * 8, b"\2" + eight + b"[]", b"\2" + eight + b"{", b"\x09" + eight + b'{"a": {}}',
                    b"PK\3\4 no archive"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name) as raised:
            torch_files.read_state(tmp_path / name)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float32, torch.float64,
                                   torch.int64, torch.bool])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_every_type_of_number_is_read_without_loss(tmp_path, suffix, dtype):
    from safetensors.torch import save_file

    values = torch.tensor([[0.0, 1.0, -2.5, 448.0]]).to(dtype)
    path = tmp_path / f"a.{suffix}"
    if suffix == "pt":
        torch.save({"a": values, "b": values[0, 0]}, path)
    else:
        save_file({"a": values, "b": values[0, 0].clone()}, path, metadata={"format": "pt", "step": "9"})
    found = torch_files.read_state(path)["a"]
    np.testing.assert_array_equal(found, values.to(torch.float64).numpy())
    assert found.dtype == (np.float32 if dtype.is_floating_point and dtype.itemsize < 4 else
                           torch.empty(0, dtype=dtype).numpy().dtype) and found.flags.writeable


def test_many_misfits_are_counted_in_a_line(tmp_path):
    """They were 114 entries on one line."""
    state = torch_weights.export_torch(random_variables(*NETWORKS["context"]))
    torch_files.write_state(state, tmp_path / "a.safetensors")
    with pytest.raises(UserError) as raised:
        load_model(tmp_path / "a.safetensors", TINY)
    line = str(raised.value)
    assert len(line) < 600 and "\n" not in line
    for part in ("the network has ", " missing (", " extra ("):
        assert part in line


@pytest.mark.parametrize("widths, labels", [((8, 8, 8, 8), ("a", "b", "c")), ((16, 8, 8, 16), ())])
def test_an_exported_model_says_what_it_is(tmp_path, monkeypatch, widths, labels):
    """Another width, size and labels than any preset's: no --preset is needed, for Python and for sample.py."""
    config = TrainConfig(network=AttentionUNet(widths, 16), data="folder:pictures", target="x0", pixel_mean=0.25)
    facts = Facts((24, 24, 3), labels, count=77, checksum=5)
    network = model.builders.make_network(config.network, facts, config.schedule.num_steps)
    variables = random_variables(network, (24, 24, 3))
    made = Model(config, facts, network, variables, 7)
    monkeypatch.setattr(model, "load_run", lambda workdir, step: made)
    path = tmp_path / "out.safetensors"
    export.export(export.Export(tmp_path, path))
    back = load_model(path)
    assert (back.config, back.facts, back.network) == (config, facts, network)
    assert jax.tree.all(jax.tree.map(np.array_equal, back.weights, variables))
    drawn = []
    monkeypatch.setattr(sample, "draw_to_disk", lambda *given: drawn.append(given[2:4]))
    sample_main(["--torch-weights", str(path), "--out", str(tmp_path / "new")])
    assert drawn == [(config, facts)]


def test_weights_that_say_nothing_need_a_preset(tmp_path, capsys):
    path = tmp_path / "a.safetensors"
    torch_files.write_state({"a": np.ones(2, np.float32)}, path)
    for file, line in ((path, "needs --preset NAME"), (tmp_path / "absent.safetensors", "no such file of weights")):
        with pytest.raises(SystemExit):
            sample_main(["--torch-weights", str(file)])
        assert line in capsys.readouterr().err
    with pytest.raises(SystemExit):
        sample_main(["--weights-key", "ema"])
    assert "belong to --torch-weights" in capsys.readouterr().err
    torch_files.write_state({"a": np.ones(2, np.float32)}, path, {"dipddpm_jax": json.dumps({"config": {"color": 1}})})
    with pytest.raises(UserError, match="a.safetensors.*color"):
        load_model(path)
