"""Recordings of the PyTorch originals, replayed: `pytest tests/test_torch_parity.py --golden DIR`.

Every .npz of DIR is one test; all that it holds must be compared. Without --golden the committed selection is replayed,
and the whole set beside the checkout if it is there. The run ends with a table of the worst errors.
"""
import numpy as np
import pytest
from parity.files import Account, Golden
from parity.systems import check


def test_recording(golden_file, account):
    check(Golden(golden_file, account))


def planted(tmp_path, golden_file, change) -> Golden:
    with np.load(golden_file) as file:
        arrays = dict(file)
    change(arrays)
    copy = tmp_path / golden_file.name
    np.savez(copy, **arrays)
    return Golden(copy, Account())


@pytest.mark.parametrize("change, message", [
    (lambda a: a.update({"out/y": a["out/y"] + np.float32(3e-5 * (1 + np.abs(a["out/y"]).max()))}), "outputs"),
    (lambda a: a.update({"sd/net.0.bias": a["sd/net.0.bias"] * np.float32(1.001)}), "outputs"),
    (lambda a: a.update({"step/grad/net.0.bias": a["step/grad/net.0.bias"] * np.float32(1.001)}), "gradients"),
    (lambda a: a.update({"after/net.2.weight": a["after/net.2.weight"] - np.float32(2e-5)}), "Adam"),
    (lambda a: a.update({"out/more": np.zeros(3)}), "never compared"),
])
def test_a_wrong_recording_fails(tmp_path, golden_dir, change, message):
    with pytest.raises(AssertionError, match=message):
        check(planted(tmp_path, golden_dir / "003_dip.npz", change))


def test_an_unknown_recording_fails(tmp_path, golden_dir):
    recording = planted(tmp_path, golden_dir / "003_dip.npz", lambda arrays: None)
    recording.name = "005_unheard_of"
    with pytest.raises(AssertionError, match="nobody knows"):
        check(recording)
