"""What a restoration may be asked for: refused are numbers out of range, options that do nothing, changes to a run."""
import dataclasses
from pathlib import Path

import pytest

from dipddpm_jax.commands import cli, cli_fits
from dipddpm_jax.config import dip_ranges
from dipddpm_jax.config.dip import DipConfig, StagedConfig, load_dip_config, save_dip_config
from dipddpm_jax.config.dip_ranges import check_dip, check_resumed, check_staged, refuse_idle
from dipddpm_jax.errors import UserError

NUMBERS = [field.name for field in dataclasses.fields(DipConfig) if "float" in str(field.type)]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_numbers_that_are_not_finite_or_absurd_are_refused_everywhere(value):
    assert {"sigma", "peak", "keep", "blur", "weight", "jitter", "learning_rate", "fall_back"} <= set(NUMBERS)
    for name in NUMBERS:
        with pytest.raises(UserError, match=f"--{name.replace('_', '-')} must lie between"):
            check_dip(DipConfig(**{name: value}))
    for name, given in (("sigma", value), ("learning_rate", value), ("levels", (0.1, value))):
        with pytest.raises(UserError, match=f"--{name.replace('_', '-')} must"):
            check_staged(StagedConfig(**{name: given}))


@pytest.mark.parametrize("changes, option", [
    ({"weight": 0.1, "task": "deblur"}, "--weight"),
    ({"factor": 4}, "--factor"),
    ({"task": "deblur", "factor": 2}, "--factor"), ({"task": "superres", "blur": 2.0}, "--blur"),
    ({"keep": 0.3}, "--keep"), ({"task": "inpaint", "mask": Path("m.png"), "keep": 0.3}, "--keep"),
    ({"variant": "aseqdip", "jitter": 0.1}, "--jitter"), ({"variant": "self-guided", "code": "noise"}, "--code"),
    ({"window": 50}, "--window"), ({"stop": "discrepancy", "patience": 9}, "--patience"),
    ({"stop": "never", "patience": 9}, "--patience"), ({"stop": "oracle", "patience": 9}, "--patience")], ids=str)
@pytest.mark.parametrize("style", ["{}", "{}=1"])
def test_an_option_that_does_nothing_is_refused_when_typed(changes, option, style):
    config = DipConfig(**changes)
    argv = [style.format(option)]
    with pytest.raises(UserError, match=f"{option} does nothing here: "):
        refuse_idle(config, argv)
    with pytest.raises(UserError, match=option):
        refuse_idle(config, [argv[0].replace("-", "_").replace("__", "--", 1)])
    refuse_idle(config, ["--image", "camera", "--seed", "1"])  # and no word of defaults that nobody typed


def test_a_weight_waits_for_the_size_of_the_picture():
    """A small picture is cross-fitted with total variation, which it weighs; for others a run refuses it."""
    refuse_idle(DipConfig(weight=0.1), ["--weight", "0.1"])
    with pytest.raises(UserError, match="--weight does nothing here"):
        refuse_idle(DipConfig(weight=0.1), ["--weight", "0.1", "--variant", "plain"])


def test_options_that_do_something_are_not_refused():
    every = [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(DipConfig)]
    used = {"--factor": {"task": "superres"}, "--blur": {"task": "deblur"}, "--keep": {"task": "inpaint"},
            "--weight": {"variant": "tv"}, "--window": {"stop": "wmv"}}
    for option in every:
        refuse_idle(DipConfig(**used.get(option, {})), [option])
    refuse_idle(StagedConfig(stop="oracle"), ["--patience", "5"])
    with pytest.raises(UserError, match="--patience does nothing"):
        refuse_idle(StagedConfig(), ["--patience", "5"])


def test_the_command_line_refuses_them_before_anything_is_read(capsys, tmp_path):
    for args in (["dip", "--image", "nowhere.png", "--blur", "3"], ["staged", "--image", "x.png", "--patience", "3"],
                 ["dip", "--image", "nowhere.png", "--size", "64", "--crop", "64"]):
        with pytest.raises(SystemExit) as stopped:
            cli.train_main(args)
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and ("does nothing" in error or "one of the two" in error), error


def test_a_resumed_run_may_be_longer_and_nothing_else():
    old = DipConfig(image="a.png", num_steps=100)
    check_resumed(old, dataclasses.replace(old, num_steps=200), Path("run"))
    for changes, words in (({"seed": 3}, r"--seed \(0 before, 3 now\)"), ({"image": "b.png"}, "--image"),
                           ({"network": "conv", "num_steps": 200}, "--network"), ({"stop": "wmv"}, "--stop")):
        with pytest.raises(UserError, match=f"cannot change the run in run: {words}"):
            check_resumed(old, dataclasses.replace(old, **changes), Path("run"))
    falling = dataclasses.replace(old, decay="cosine")
    with pytest.raises(UserError, match="--num-steps .*learning rate falls"):
        check_resumed(falling, dataclasses.replace(falling, num_steps=200), Path("run"))
    with pytest.raises(UserError, match="--learning-rate"):
        check_resumed(StagedConfig(), StagedConfig(learning_rate=0.1), Path("run"))


def test_what_is_typed_beside_resume_is_laid_over_the_saved_configuration(tmp_path):
    save_dip_config(DipConfig(image="a.png", num_steps=100, seed=7), tmp_path / "config.json")
    args = ["--resume", "--workdir", str(tmp_path)]
    command = cli_fits._parse_restoration([*args, "--num-steps", "200"], cli_fits.DipCommand(), "", "dip")
    assert command.config == DipConfig(image="a.png", num_steps=200, seed=7) and command.run.resume
    with pytest.raises(UserError, match="--task"):
        cli_fits._parse_restoration([*args, "--task", "deblur"], cli_fits.DipCommand(), "", "dip")
    with pytest.raises(UserError, match="not the configuration of a staged fit"):
        cli_fits._parse_restoration(args, cli_fits.StagedCommand(), "", "staged")
    with pytest.raises(UserError, match="needs --workdir"):
        cli_fits._parse_restoration(["--resume"], cli_fits.DipCommand(), "", "dip")


@pytest.mark.parametrize("name, value, words", [
    ("network", "skip-ligth", "unknown network 'skip-ligth': did you mean skip-light"),
    ("stop", "sometime", "unknown stop 'sometime': known are held-out"),
    ("num_steps", "7", "--num-steps must be a whole number"),
    ("sigma", [25], "--sigma must lie")])
def test_a_wrong_value_is_named(monkeypatch, tmp_path, name, value, words):
    """From Python or in a config.json, where no parser looks."""
    config = DipConfig()
    object.__setattr__(config, name, value)  # in tests, types are checked when a dataclass is made
    with pytest.raises(UserError, match=words):
        check_dip(config)
    monkeypatch.setattr(dip_ranges, "load_dip_config", lambda path, kind: (config, {}))
    with pytest.raises(UserError, match=f"config.json: {words}"):
        dip_ranges.checked_dip_config(tmp_path / "config.json")


def test_configurations_of_before_are_read(tmp_path):
    """Without the fields and the checksums that were added, and with defaults that do nothing."""
    (tmp_path / "config.json").write_text(
        '{"dip": {"image": "a.png", "clean": null, "task": "denoise", "sigma": null, "peak": null, "mask": null, '
        '"keep": 0.5, "factor": 4, "blur": 1.6, "size": 64, "network": "conv", "seed": 0, "tile": 768}}')
    wanted = DipConfig(image="a.png", size=64, network="conv", hold_out="pixels")  # the only way that there was
    assert load_dip_config(tmp_path / "config.json") == (wanted, {})
