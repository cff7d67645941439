"""config.json of runs of several kinds, told apart."""
import os

import pytest

from dipddpm_jax.config import saved
from dipddpm_jax.config.dip import DipConfig, StagedConfig, save_dip_config
from dipddpm_jax.config.presets import PRESETS
from dipddpm_jax.errors import UserError


def test_a_restoration_is_no_training_run(tmp_path):
    """`sample.py` says what it is, and passes over it when it looks for the newest run."""
    for i, (name, config) in enumerate((("run", None), ("dip", DipConfig()), ("staged", StagedConfig()))):
        path = tmp_path / name / "config.json"
        path.parent.mkdir()
        if config is None:
            saved.save(PRESETS["unet"][1], "unet", saved.Facts((8, 8, 1)), path)
        else:
            save_dip_config(config, path)
        os.utime(path, (i, i))
    for name, words in (("dip", "a restoration by a deep image prior"), ("staged", "a staged fit")):
        with pytest.raises(UserError, match=f"{name} holds {words}.*no model to draw from"):
            saved.load(tmp_path / name / "config.json")
    assert saved.newest_run(tmp_path) == tmp_path / "run"
    (tmp_path / "run" / "config.json").unlink()
    with pytest.raises(UserError, match="no run in"):
        saved.newest_run(tmp_path)
