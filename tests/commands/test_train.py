"""Runs as a user makes them, in processes of their own: resuming, kills, signals, what is written."""
import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from benchmarks.places import REPO
from dipddpm_jax import cluster

TINY = ["--network.width", "8", "--network.multipliers", "1", "--network.attention-size", "0", "--batch-size", "8",
        "--image-size", "8", "--schedule.num-steps", "20", "--sampler.num-steps", "2", "--sample-every", "0",
        "--chunk", "4", "--optimizer.name", "adam"]  # Muon compiles for longer; test_training resumes it
# A few steps compile far longer than they compute.
ENV = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


def command(workdir, *args, steps=24):
    return [sys.executable, str(REPO / "train.py"), "unet", *TINY, "--steps", str(steps), "--workdir", str(workdir),
            *args]


def resume(workdir, *args):
    return [sys.executable, str(REPO / "train.py"), "--resume", "--workdir", str(workdir), *args]


def finish(args, code=0, **options):
    done = subprocess.run(args, capture_output=True, text=True, env=ENV, timeout=300, **options)
    assert done.returncode == code, done.stderr[-2000:]
    return done


def final_arrays(workdir):
    """Every array of the newest checkpoint, by name, read without a template and whatever devices it was saved on."""
    import orbax.checkpoint as ocp

    from dipddpm_jax import checkpoints

    step = checkpoints.latest_step(workdir / "checkpoints")
    found = {}
    for item in ("train", "weights"):
        folder = (workdir / "checkpoints" / str(step) / item).resolve()
        with ocp.PyTreeCheckpointer() as reader:
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
                                    dict(reader.metadata(folder).item_metadata.tree))
            tree = reader.restore(folder, restore_args=as_numpy)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            found[item + jax.tree_util.keystr(path)] = np.asarray(leaf)
    return step, found


def assert_same_ending(a, b):
    (step_a, arrays_a), (step_b, arrays_b) = final_arrays(a), final_arrays(b)
    assert step_a == step_b and arrays_a.keys() == arrays_b.keys() and len(arrays_a) > 20
    for name in arrays_a:
        np.testing.assert_array_equal(arrays_a[name], arrays_b[name], err_msg=name)


def assert_same_folder(a, b):
    """The same files, checkpoints and pictures, and equal rows but for the speed."""
    for names in (lambda run: sorted(path.name for path in run.iterdir()),
                  lambda run: sorted(path.name for path in (run / "checkpoints").iterdir())):
        assert names(a) == names(b)
    for name in ("config.json", "samples.png", "loss.png", ".owner"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    rows = [[json.loads(line) | {"images_per_s": 0} for line in (run / "metrics.jsonl").read_text().splitlines()]
            for run in (a, b)]
    assert rows[0] == rows[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupts."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    done = finish(command(workdir, "--save-every", "4"))
    assert f"python sample.py {workdir}" in done.stdout
    return workdir


def steps_logged(workdir):
    path = workdir / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def test_a_run_leaves_what_the_readme_promises(whole):
    promised = {"config.json", "metrics.jsonl", "samples.png", "loss.png", "checkpoints"}
    assert promised <= {p.name for p in whole.iterdir()}
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if "loss" in r] == [4, 8, 12, 16, 20, 24]
    kept = sorted(int(p.name) for p in (whole / "checkpoints").iterdir())
    best = min((r["held_out_loss"], r["step"]) for r in rows if "held_out_loss" in r)[1]
    assert kept == sorted({best, 20, 24}), "the latest two and the best are kept"


def folders(workdir):
    """(complete checkpoints, some checkpoint being written)."""
    path = workdir / "checkpoints"
    names = [p.name for p in path.iterdir()] if path.is_dir() else []
    return {int(n) for n in names if n.isdigit()}, any("tmp" in n for n in names)


def test_killed_in_mid_step_and_in_mid_save_it_ends_bitwise_equal(whole, tmp_path):
    """SIGKILL while a checkpoint is being written, and while none is, each time after a first one is complete."""
    workdir = tmp_path / "killed"
    args, kills = command(workdir, "--save-every", "4"), {"save": 0, "step": 0}
    for moment in ("step", "save", "save", "step"):
        process = subprocess.Popen(args, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        at_start, lines = folders(workdir)[0], len(steps_logged(workdir))
        while process.poll() is None:
            complete, writing = folders(workdir)
            ready = writing if moment == "save" else not writing and len(steps_logged(workdir)) > lines
            if complete - at_start and ready:
                process.send_signal(signal.SIGKILL)
                kills[moment] += 1
                break
            time.sleep(0.0005)
        process.wait()
        args = resume(workdir, "--save-every", "4")
    assert min(kills.values()) >= 1, f"the process ended before it could be killed: {kills}"
    finish(args)
    assert_same_ending(whole, workdir)
    assert_same_folder(whole, workdir)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_cleanly(whole, tmp_path, number):
    workdir = tmp_path / "stopped"
    process = subprocess.Popen(command(workdir, "--save-every", "1000"), env=ENV, stderr=subprocess.PIPE, text=True)
    while not steps_logged(workdir) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    if process.returncode == 0:
        pytest.skip("the run ended before the signal came")
    assert process.returncode == 128 + number and "Traceback" not in errors
    assert f"--resume --workdir {workdir}" in errors
    finish(resume(workdir, "--save-every", "1000"))
    assert_same_ending(whole, workdir)


def test_a_budget_of_time_stops_and_resumes(whole, tmp_path):
    workdir = tmp_path / "budget"
    done = finish(command(workdir, "--save-every", "1000", "--budget", "0.00001"))
    assert "budget" in done.stderr
    finish(resume(workdir))
    assert_same_ending(whole, workdir)


def test_resuming_a_longer_run(whole, tmp_path):
    """Half of it, then the rest, is the same as all of it (the learning rate must not depend on the length)."""
    workdir = tmp_path / "longer"
    constant = ["--optimizer.decay", "constant"]
    finish(command(workdir, *constant, steps=8))
    finish(resume(workdir, "--steps", "12"))
    finish(command(tmp_path / "at_once", *constant, steps=12))
    assert_same_ending(workdir, tmp_path / "at_once")


def two_processes(workdir, steps):
    """A run of two processes over loopback, just started."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    args = ["--save-every", "4", "--distributed", "--coordinator", f"127.0.0.1:{port}", "--num-processes", "2"]
    return [subprocess.Popen(command(workdir, *args, "--process-id", str(i), steps=steps), env=ENV, text=True,
                             stderr=subprocess.PIPE) for i in range(2)]


def test_when_one_process_is_killed_the_other_ends_and_says_how_to_go_on(tmp_path):
    """Without a watch it would wait in a sum over devices, until XLA ends it with a stack trace of C++."""
    workdir = tmp_path / "two"
    processes = two_processes(workdir, steps=100_000)
    try:
        while not steps_logged(workdir) and processes[0].poll() is processes[1].poll() is None:
            time.sleep(0.05)
        processes[1].kill()
        _, errors = processes[0].communicate(timeout=60)
    finally:
        for process in processes:
            process.kill()
    line = errors.strip().splitlines()[-1]
    assert line.startswith("process 1 of this run has ended") and f"--resume --workdir {workdir}" in line
    assert processes[0].returncode == cluster.LOST and "Traceback" not in errors and "stack trace" not in errors


def test_two_processes_train_together_and_one_resumes(tmp_path):
    """jax.distributed over loopback: both hold the whole run's state; a single process goes on with it."""
    workdir = tmp_path / "two"
    processes = two_processes(workdir, steps=8)
    try:
        for process in processes:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors[-2000:]
    finally:
        for process in processes:  # the other one would wait for ever for a process that failed
            process.kill()
    finish(command(tmp_path / "one", "--save-every", "4", steps=8))
    (step, two), (_, one) = final_arrays(workdir), final_arrays(tmp_path / "one")
    assert step == 8
    for name in one:
        np.testing.assert_allclose(two[name], one[name], atol=1e-4, err_msg=name)  # Adam turns rounding into steps
    finish(resume(workdir, "--steps", "12"))
    assert final_arrays(workdir)[0] == 12
