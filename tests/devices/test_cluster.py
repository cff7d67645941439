"""Several processes: what one does when another is lost, on a pair of sockets (whole runs: commands/test_train.py)."""
import os
import socket

import pytest

from dipddpm_jax import cluster
from dipddpm_jax.config import ranges
from dipddpm_jax.config.diffusion import RunOptions
from dipddpm_jax.errors import UserError


class Ended(Exception):
    """In place of the end of this process."""


@pytest.fixture
def pair(monkeypatch, tmp_path):
    """(links of this process, the connection as it holds it, the other's end of it); what it writes goes to a file."""
    def end(code):
        raise Ended(code)

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(cluster, "_write", lambda text: (tmp_path / "said").write_text(text))
    links = object.__new__(cluster.Links)
    links.again = "python train.py --resume"
    mine, other = socket.socketpair()
    links.sockets = [mine]
    yield links, mine, other
    mine.close()
    other.close()


def test_a_process_whose_connection_closes_without_a_good_bye_is_lost(pair, tmp_path):
    links, mine, other = pair
    other.sendall(cluster.ALIVE * 3)
    other.close()
    with pytest.raises(Ended, match=str(cluster.LOST)):
        links._listen(mine, 3)
    said = (tmp_path / "said").read_text().strip()
    assert said.startswith("process 3 of this run has ended") and said.endswith("Go on with: python train.py --resume")
    assert "\n" not in said


def test_a_process_that_is_silent_for_long_is_lost(pair):
    links, mine, other = pair
    mine.settimeout(0.05)
    with pytest.raises(Ended):
        links._listen(mine, 1)


def test_a_process_that_says_good_bye_is_not_lost(pair):
    links, mine, other = pair
    other.sendall(cluster.ALIVE + cluster.BYE + cluster.ALIVE)
    other.close()
    links._listen(mine, 1)


@pytest.mark.parametrize("error, code", [(UserError("a full disk"), 2), (RuntimeError("a fault"), 1)])
def test_an_error_in_one_process_ends_it_at_once(pair, monkeypatch, error, code):
    """Leaving by an exception it would wait at JAX's exit for the others, and they for it."""
    monkeypatch.setattr(cluster, "_links", pair[0])
    monkeypatch.setattr(cluster, "BEAT", 0)
    with pytest.raises(Ended, match=str(code)), cluster.together(KeyError):
        raise error


def test_what_all_raise_together_is_a_good_bye(pair, monkeypatch):
    links, _, other = pair
    monkeypatch.setattr(cluster, "_links", links)
    with pytest.raises(KeyError), cluster.together(KeyError):
        raise KeyError
    assert other.recv(1) == cluster.BYE
    monkeypatch.setattr(cluster, "_links", None)  # one process: nothing changes
    with pytest.raises(UserError, match="as ever"), cluster.together(KeyError):
        raise UserError("as ever")


@pytest.mark.parametrize("options, said", [
    ({"coordinator": "a:1"}, "--coordinator belongs to --distributed"),
    ({"num_processes": 2}, "--num-processes belongs to --distributed"),
    ({"process_id": 0}, "--process-id belongs to --distributed"),
    ({"distributed": True}, "--distributed needs --workdir"),
    ({"distributed": True, "workdir": ".", "num_processes": 2, "process_id": 2}, "--process-id must be 0 to N - 1"),
    ({"distributed": True, "workdir": ".", "num_processes": 0}, "--num-processes must be at least 1"),
    ({"distributed": True, "workdir": ".", "coordinator": "host"}, "--coordinator must be HOST:PORT"),
])
def test_options_of_several_processes_say_enough_or_nothing(tmp_path, options, said):
    options = {**options, **({"workdir": tmp_path} if "workdir" in options else {})}
    with pytest.raises(UserError, match=said):
        ranges.check_processes(RunOptions(**options))
