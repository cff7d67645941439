"""The environment is user input: it works, or one line says what is wrong with it."""
import io
import os
import sys

import jax
import jax.numpy as jnp
import pytest

from dipddpm_jax import environment
from dipddpm_jax.commands.ends import guarded
from dipddpm_jax.errors import UserError


@pytest.mark.parametrize("given", ["", "--xla_dump_max_hlo_modules=1", "--xla_backend_extra_options=mine",
                                   "--xla_cpu_prefer_vector_width=256 --xla_dump_max_hlo_modules=1"])
def test_flags_of_a_cpu_leave_the_users_alone(given, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", given)
    environment.set_flags()
    names = [flag.split("=")[0] for flag in os.environ["XLA_FLAGS"].split()]
    assert os.environ["XLA_FLAGS"].startswith(given) and len(set(names)) == len(names)
    assert set(names) >= {f"--{name}" for name in environment.CPU_FLAGS if environment.knows_flag(name)}
    environment.set_flags()
    assert [flag.split("=")[0] for flag in os.environ["XLA_FLAGS"].split()] == names


def test_a_flag_is_known_when_xla_has_it():
    """XLA ends the process at an unknown flag. The second name is a field of its settings that is no flag."""
    assert environment.knows_flag("xla_dump_to") and environment.knows_flag("xla_backend_extra_options")
    assert not environment.knows_flag("xla_cpu_collective_call_warn_stuck_seconds")
    assert not environment.knows_flag("xla_flag_of_the_future")
    assert environment.knows_flag("xla_cpu_collective_call_terminate_timeout_seconds")  # of this jaxlib


def test_flags_that_xla_would_die_of_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/x --xla_nonsense=1")
    with pytest.raises(UserError, match="has no flag --xla_nonsense"):
        environment.set_flags()
    monkeypatch.setenv("XLA_FLAGS", str(tmp_path / "flags"))
    with pytest.raises(UserError, match="no file of that name can be read"):
        environment.set_flags()
    (tmp_path / "flags").write_text("--xla_dump_max_hlo_modules=1\n")
    environment.set_flags()
    assert os.environ["XLA_FLAGS"].startswith("--xla_dump_max_hlo_modules=1 --xla_")


def test_settings_that_change_numbers_are_set_back_and_said(capsys):
    """64-bit numbers, another generator of random ones, and what forbids our own programs."""
    given = {"jax_enable_x64": True, "jax_default_prng_impl": "rbg", "jax_numpy_dtype_promotion": "strict",
             "jax_threefry_partitionable": False, "jax_transfer_guard": "disallow"}
    before = {name: getattr(jax.config, name) for name in given}
    cache = jax.config.jax_compilation_cache_dir
    try:
        for name, value in given.items():
            jax.config.update(name, value)
        environment.settle()
        said = capsys.readouterr().err
        assert jnp.arange(3.0).dtype == jnp.float32 and str(jax.random.key(0).dtype) == "key<fry>"
        assert float(jnp.float32(1) + jnp.int32(1)) == 2
        assert said.count("\n") == len(given) and all(name.upper() in said for name in given)
        environment.settle()
        assert capsys.readouterr().err == ""
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        jax.config.update("jax_compilation_cache_dir", cache)


def test_a_cache_that_cannot_be_written_is_left_aside(tmp_path, monkeypatch, capsys):
    updates = {}
    monkeypatch.setattr(jax.config, "update", updates.__setitem__)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    environment.set_cache()
    assert "nothing can be written there" in capsys.readouterr().err
    assert updates["jax_compilation_cache_dir"].startswith(str(tmp_path / "cache"))
    updates.clear()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "mine"))
    environment.set_cache()
    assert updates == {} and (tmp_path / "mine").is_dir()


def test_without_a_home_there_is_a_cache_all_the_same(tmp_path, monkeypatch):
    for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pathlib.Path.home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    updates = {}
    monkeypatch.setattr(jax.config, "update", updates.__setitem__)
    environment.set_cache()
    assert updates["jax_compilation_cache_dir"].startswith(str(tmp_path))


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("Unable to initialize backend 'cuda': no\nlong\nstory"
                                                                  " (set JAX_PLATFORMS='' to)")])
def test_a_platform_that_is_not_there_is_one_line(error, monkeypatch):
    def fail():
        raise error

    monkeypatch.setattr(jax, "devices", fail)
    monkeypatch.setattr(type(jax.config), "jax_platforms", "cuda", raising=False)
    with pytest.raises(UserError) as refused:
        environment.check_platform()
    assert str(refused.value).startswith("JAX_PLATFORMS=cuda: ") and "\n" not in str(refused.value)
    assert "unset JAX_PLATFORMS, or set it to cpu" in str(refused.value)


@pytest.mark.parametrize("text", ["invalid truth value 'maybe' for environment 'JAX_ENABLE_X64'",
                                  'Invalid value "maybe" for JAX flag jax_enable_x64'])
def test_a_value_that_jax_does_not_know_is_one_line(text, monkeypatch, capsys):
    monkeypatch.setenv("JAX_ENABLE_X64", "maybe")
    with pytest.raises(SystemExit, match="2"), guarded():
        raise ValueError(text)
    assert capsys.readouterr().err == ("error: JAX_ENABLE_X64=maybe: JAX does not know this value; unset "
                                       "JAX_ENABLE_X64\n")
    with pytest.raises(ValueError, match="another"), guarded():
        raise ValueError("another")


def test_a_terminal_of_few_characters_gets_escapes(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    with guarded():
        print("écran \udcff")
    assert raw.getvalue() == b"\\xe9cran \\udcff\n"
