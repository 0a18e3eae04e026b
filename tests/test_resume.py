"""A run that is interrupted loses nothing that was checkpointed, and a classic one goes on bit for bit."""

import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import sdsac_atari
import sdsac_classic

ROOT = Path(__file__).parent.parent
CLASSIC = {"total_timesteps": 1500, "learning_starts": 200, "checkpoint_frequency": 250, "buffer_size": 600}
SCRIPTS = pytest.mark.parametrize("script", [sdsac_classic, sdsac_atari], ids=["classic", "atari"])


@pytest.fixture(autouse=True)
def in_a_directory_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


def start(script, **flags):
    command = [sys.executable, "-u", str(ROOT / f"{script}.py")]
    for name, value in flags.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run_until_finished(script, run_dir):
    process = start(script, resume=run_dir)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return output


def interrupt(process, number, delay):
    """Sends the signal `delay` seconds after a step behind a checkpoint; the run's directory, status and output."""
    output = ""
    for line in process.stdout:
        output += line
        found = list(Path("runs").glob("*/checkpoint.pt"))
        if found and line.startswith("step "):
            break
    time.sleep(delay)
    process.send_signal(number)
    rest, _ = process.communicate(timeout=60)
    assert found, output
    return found[0].parent, process.returncode, output + rest


def weights(run_dir):
    state = torch.load(run_dir / "agent.pt", weights_only=True)
    return [state["log_alpha"]] + [value for name in ("actor", "qf1", "qf2") for value in state[name].values()]


def curves(run_dir):
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0}).Reload()
    tags = set(events.Tags()["scalars"]) - {"charts/SPS"}
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


@pytest.mark.parametrize(
    ("env_id", "signals"),
    [
        ("CartPole-v1", [signal.SIGTERM, signal.SIGINT]),
        ("FrozenLake-v1", [signal.SIGKILL, signal.SIGKILL]),
        ("Acrobot-v1", [signal.SIGUSR1]),
    ],
)
def test_interrupted_classic_runs_end_as_uninterrupted_ones_bit_for_bit(env_id, signals):
    flags = CLASSIC | {"env_id": env_id, "num_envs": 2}
    whole = sdsac_classic.train(sdsac_classic.Args(**flags, exp_name="whole")).rename("whole")
    rng = random.Random(0)
    process = start("sdsac_classic", **flags, exp_name="whole")
    for number in signals:
        run_dir, status, output = interrupt(process, number, rng.uniform(0, 0.2))
        assert not (run_dir / "agent.pt").exists(), "the run was over before the signal came"
        if number == signal.SIGKILL:
            assert status == -signal.SIGKILL
        else:
            assert status == 128 + number
            assert f"--resume {run_dir}" in output.splitlines()[-1]
        process = start("sdsac_classic", resume=run_dir)
    time.sleep(rng.uniform(0, 6))  # whatever the instant, from the import on, nothing may be lost
    process.kill()
    process.communicate()
    output = run_until_finished("sdsac_classic", run_dir)
    assert "resumed at step" in output
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(run_dir), strict=True))
    assert curves(whole) == curves(run_dir)
    assert not list(run_dir.rglob("*.unfinished"))


def test_an_interrupted_atari_run_goes_on():
    flags = {"total_timesteps": 1000, "learning_starts": 100, "checkpoint_frequency": 200, "buffer_size": 400}
    flags |= {"env_id": "BreakoutNoFrameskip-v4", "num_envs": 2, "batch_size": 8, "update_frequency": 10}
    process = start("sdsac_atari", **flags)
    run_dir, status, output = interrupt(process, signal.SIGTERM, 0)
    assert status == 128 + signal.SIGTERM
    stopped = torch.load(run_dir / "checkpoint.pt", weights_only=True)
    output = run_until_finished("sdsac_atari", run_dir)
    assert f"resumed at step {stopped['loop']['counts'][0]:,}; the games that were under way are lost" in output
    finished = torch.load(run_dir / "checkpoint.pt", weights_only=True)
    assert finished["loop"]["counts"][0] >= 1000
    assert finished["loop"]["counts"][1] == (1000 - 100 - 1) // 10  # updates: none lost, none doubled
    for curve in curves(run_dir).values():
        steps = [step for step, _ in curve]
        assert steps == sorted(steps)


@SCRIPTS
def test_buffer_comes_back_and_its_old_segments_are_not_written_again(script, monkeypatch, tmp_path):
    monkeypatch.setattr(script.ReplayBuffer, "SEGMENT", 12)
    shape = (4, 2, 2) if script is sdsac_atari else (3,)
    rng, num_envs = np.random.default_rng(5), 2

    def fill(buffer, count):
        for _ in range(count):
            observations = rng.integers(256, size=(num_envs, *shape)).astype(np.uint8)
            terminated, truncated, resets = rng.random((3, num_envs)) < 0.2
            buffer.add(
                observations, rng.integers(5, size=2), rng.random(2), terminated, truncated, rng.random(2), resets
            )

    buffer = script.ReplayBuffer(60, num_envs, shape, 3, 0.9, seed=1)
    written = {}
    for _ in range(20):  # the ring of 30 rows, in segments of 6, is overwritten several times
        fill(buffer, int(rng.integers(1, 15)))
        state = buffer.save(tmp_path / "replay")
        script.keep_only(tmp_path / "replay", state["segments"])
        now = {path.name: path.stat().st_ino for path in (tmp_path / "replay").iterdir()}
        assert set(now) == set(state["segments"])
        assert sum("newest" in name for name in now) == 1
        for name in set(now) & set(written):
            assert now[name] == written[name]
        written = now
        other = script.ReplayBuffer(60, num_envs, shape, 3, 0.9, seed=2)
        (tmp_path / "replay" / "9999-9999.npz.unfinished").touch()  # as a kill in the middle of a save leaves it
        other.load(tmp_path / "replay", state)
        oldest = max(0, buffer.steps - buffer.rows)
        for name in buffer.COLUMNS:
            rows = torch.arange(oldest, buffer.steps) % buffer.rows
            assert torch.equal(buffer.column(name)[rows], other.column(name)[rows]), name
        for ours, theirs in zip(buffer.sample(50), other.sample(50), strict=True):
            assert torch.equal(ours, theirs)


def test_atari_games_that_are_not_resumed_end_as_truncated():
    """No chain goes across the cut, and the last chain bootstraps from the last observation."""
    buffer = sdsac_atari.ReplayBuffer(20, 1, (4, 2, 2), 3, 0.5)
    no = np.array([False])
    frames = np.arange(40, dtype=np.uint8)[:, None, None, None, None] * np.ones((1, 1, 4, 2, 2), np.uint8)
    for step in range(4):
        buffer.add(frames[step], np.array([0]), np.array([1.0]), no, no, np.array([0.5]), no)
    buffer.cut(frames[30])
    for step in range(4, 8):
        buffer.add(frames[step], np.array([0]), np.array([1.0]), no, no, np.array([0.5]), no)
    _, lengths, terminated, valid = buffer.chains(np.arange(9), np.zeros(9, int))
    assert valid.tolist() == [True] * 4 + [False] + [True] + [False] * 3
    assert lengths[:4].tolist() == [3, 3, 2, 1]
    assert not terminated.any()
    assert buffer.stacks(np.array([4]), np.array([0]))[0, :, 0, 0].tolist() == [1, 2, 3, 30]
    assert buffer.stacks(np.array([5]), np.array([0]))[0, :, 0, 0].tolist() == [0, 0, 0, 4]


@SCRIPTS
def test_a_failing_write_leaves_what_was_there(script, tmp_path):
    path = tmp_path / "file"
    script.write_file(path, lambda file: file.write(b"whole"))

    def fail(file):
        file.write(b"torn")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        script.write_file(path, fail)
    assert path.read_bytes() == b"whole"


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("short"))
    run_dir = sdsac_classic.train(
        sdsac_classic.Args(total_timesteps=300, learning_starts=100, buffer_size=200)
    ).resolve()
    os.chdir(before)
    return run_dir


def refused(capsys, **flags):
    with pytest.raises(SystemExit) as stop:
        sdsac_classic.train(sdsac_classic.Args(**flags))
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: --")
    assert message.count("\n") == 1
    return message


def test_a_finished_run_can_be_made_longer(short_run):
    run_dir = sdsac_classic.train(sdsac_classic.Args(resume=short_run, total_timesteps=400))
    assert run_dir == short_run
    assert sdsac_classic.load_agent(run_dir / "agent.pt", "cpu")[1].total_timesteps == 400


def test_flags_that_contradict_the_run_are_refused(short_run, capsys):
    assert "--gamma 0.5" in refused(capsys, resume=short_run, gamma=0.5)
    assert "--env-id Acrobot-v1" in refused(capsys, resume=short_run, env_id="Acrobot-v1")
    assert "--total-timesteps 200" in refused(capsys, resume=short_run, total_timesteps=200)


def test_a_directory_without_a_sound_checkpoint_is_refused(tmp_path, capsys):
    assert "--resume" in refused(capsys, resume=tmp_path / "nowhere")
    (tmp_path / "checkpoint.pt").write_bytes(b"not a checkpoint")
    assert "--resume" in refused(capsys, resume=tmp_path)


def test_a_pickle_that_would_run_code_is_refused(tmp_path, capsys):
    class Harmful:
        def __reduce__(self):
            return Path.touch, (tmp_path / "was here",)

    with (tmp_path / "checkpoint.pt").open("wb") as file:
        torch.save({"args": Harmful()}, file, pickle_module=pickle)
    refused(capsys, resume=tmp_path)
    with pytest.raises(pickle.UnpicklingError):
        sdsac_classic.load_agent(tmp_path / "checkpoint.pt", "cpu")
    assert not (tmp_path / "was here").exists()
