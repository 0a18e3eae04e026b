"""A run that is interrupted loses nothing that was checkpointed, and a classic one goes on bit for bit."""

import contextlib
import errno
import io
import itertools
import math
import multiprocessing
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import sdsac_atari
import sdsac_classic

ROOT = Path(__file__).parent.parent
CLASSIC = {"total_timesteps": 1500, "learning_starts": 200, "checkpoint_frequency": 250, "buffer_size": 600}
QUICK = CLASSIC | {"update_frequency": 10}  # where nothing has to happen while the run goes on
SHORT_ATARI = {"total_timesteps": 1000, "learning_starts": 100, "checkpoint_frequency": 200, "buffer_size": 400}
SHORT_ATARI |= {"env_id": "BreakoutNoFrameskip-v4", "num_envs": 2, "batch_size": 8, "update_frequency": 10}
SHORT_ATARI |= {"compile": False}
SHORT_GAMES = "ShortBreakoutNoFrameskip-v4"  # 200 frames, 50 agent steps
gym.register(
    SHORT_GAMES,
    entry_point="ale_py.env:AtariEnv",
    kwargs=gym.spec("BreakoutNoFrameskip-v4").kwargs | {"max_num_frames_per_episode": 200},
)
SCRIPTS = pytest.mark.parametrize("script", [sdsac_classic, sdsac_atari], ids=["classic", "atari"])


@pytest.fixture(autouse=True)
def in_a_directory_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


def start(script, stdout=subprocess.PIPE, **flags):
    command = [sys.executable, "-u", str(ROOT / f"{script}.py")]
    for name, value in flags.items():
        flag = name.replace("_", "-")
        command += [f"--no-{flag}"] if value is False else [f"--{flag}", str(value)]
    return subprocess.Popen(
        command,
        stdout=stdout,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # the tests may run under nohup
    )


def interrupt(process, number, delay):
    """Sends the signal `delay` seconds after the process's first checkpoint, or its second if it is a resumed run,
    which begins with one; the run's directory, status and output."""
    before = {path: path.stat().st_ino for path in Path("runs").glob("*/checkpoint.pt")}
    found, awaited = [], 2 if before else 1
    while awaited and process.poll() is None:
        now = {path: path.stat().st_ino for path in Path("runs").glob("*/checkpoint.pt")}
        changed = [path for path, inode in now.items() if before.get(path) != inode]
        found, awaited, before = changed or found, awaited - bool(changed), now
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert found, output
    return found[0].parent, process.returncode, output


def weights(run_dir):
    state = torch.load(run_dir / "agent.pt", weights_only=True)
    return [state["log_alpha"]] + [value for name in ("actor", "qf1", "qf2") for value in state[name].values()]


def curves(run_dir):
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0}).Reload()
    tags = set(events.Tags()["scalars"]) - {"charts/SPS"}
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def test_an_interrupted_classic_run_ends_as_an_uninterrupted_one_bit_for_bit():
    flags = CLASSIC | {"env_id": "Acrobot-v1", "num_envs": 2, "eval_frequency": 300, "eval_episodes": 3}
    flags |= {"total_timesteps": 1_250, "update_frequency": 4}
    whole = sdsac_classic.train(sdsac_classic.Args(**flags, exp_name="whole")).rename("whole")
    rng = random.Random(0)
    process = start("sdsac_classic", **flags, exp_name="whole")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        run_dir, status, output = interrupt(process, number, rng.uniform(0, 0.1))
        assert not (run_dir / "agent.pt").exists(), "the run was over before the signal came"
        assert status == 128 + number
        assert f"--resume {run_dir}" in output.splitlines()[-1]
        process = start("sdsac_classic", resume=run_dir)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "resumed at step" in output
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(run_dir), strict=True))
    assert curves(whole) == curves(run_dir)
    assert not list(run_dir.rglob("*.unfinished"))


class SlowFile(io.FileIO):
    """Writes in two halves with a pause between them."""

    def write(self, content):
        half = len(content) // 2
        super().write(content[:half])
        time.sleep(0.05)
        super().write(content[half:])


@pytest.fixture
def forkserver(monkeypatch):
    """Processes that are forked from one which has imported all this already."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "torch._dynamo"])  # the first optimiser of a process imports it
    return context


def train_on_a_slow_disk(directory, flags):
    os.chdir(directory)
    sys.stdout = open(os.devnull, "w")
    path_open = Path.open
    Path.open = lambda path, mode="r", **rest: SlowFile(path, mode) if mode == "wb" else path_open(path, mode, **rest)
    torch.set_num_threads(1)
    sdsac_classic.main([f"--{name.replace('_', '-')}={value}" for name, value in flags.items()])


def unfinished_files():
    """The files that are being written, or were when a run was killed, as (path, time of the last change)."""
    found = set()
    for path in Path("runs").rglob("*.unfinished"):
        with contextlib.suppress(FileNotFoundError):  # it has been renamed meanwhile
            found.add((path, path.stat().st_mtime_ns))
    return found


@pytest.mark.parametrize(("env_id", "num_envs"), [("CartPole-v1", 1), ("FrozenLake-v1", 2)])
def test_nothing_is_lost_whenever_a_run_is_killed(env_id, num_envs, forkserver, tmp_path):
    """SIGKILL at random instants, over and over, many of them in the middle of a file."""
    flags = CLASSIC | {"env_id": env_id, "checkpoint_frequency": 50, "eval_frequency": 200, "eval_episodes": 2}
    flags |= {"num_envs": num_envs, "update_frequency": 8}
    whole = sdsac_classic.train(sdsac_classic.Args(**flags, exp_name="whole")).rename("whole")
    rng, kills, torn, step, longest, status = random.Random(1), 0, 0, 0, 0.6, None
    while status != 0:
        kept = list(Path("runs").glob("*/checkpoint.pt"))
        arguments = {"resume": kept[0].parent} if kept else {**flags, "exp_name": "whole"}
        events = len(list(Path("runs").glob("*/events*")))
        process = forkserver.Process(target=train_on_a_slow_disk, args=(tmp_path, arguments))
        process.start()
        early = rng.random() < 0.1  # killed before it begins to train
        while not early and process.is_alive() and len(list(Path("runs").glob("*/events*"))) == events:
            time.sleep(0.01)
        if rng.random() < 0.3:  # in the middle of the next file
            seen = unfinished_files()
            while process.is_alive() and unfinished_files() <= seen:
                time.sleep(0.001)
        else:
            process.join(rng.uniform(0, longest))
        kills += process.is_alive()
        process.kill()
        process.join()
        status = process.exitcode
        assert status in (0, -signal.SIGKILL)
        before = step
        for path in Path("runs").glob("*/checkpoint.pt"):
            state = torch.load(path, weights_only=True)
            step = state["loop"]["counts"][0]
            assert step >= before, "a checkpoint was lost"
            torn += any(path.parent.rglob("*.unfinished"))
            for segment in state["buffer"]["segments"]:
                with np.load(path.parent / "replay" / segment) as columns:
                    assert {len(columns[name]) for name in columns.files} == {len(columns["steps"])}
        longest *= 1 if step > before else 1.2  # on a slow machine
    assert kills >= 8
    assert torn >= 3
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(kept[0].parent), strict=True))
    assert curves(whole) == curves(kept[0].parent)
    assert not list(Path("runs").rglob("*.unfinished"))


@pytest.mark.parametrize(
    ("script", "where"),
    [(sdsac_classic, where) for where in ("update", "save_checkpoint", "evaluate")] + [(sdsac_atari, "evaluate")],
)
def test_a_signal_is_obeyed_wherever_it_comes(script, where, monkeypatch, capsys):
    """In an update and in a checkpoint the work is finished; an evaluation is made again by the resumed run."""
    flags = SHORT_ATARI | {"env_id": SHORT_GAMES, "total_timesteps": 700} if script is sdsac_atari else QUICK
    flags = flags | {"eval_frequency": 300, "eval_episodes": 2, "checkpoint_frequency": 150}
    whole = script.train(script.Args(**flags, exp_name="whole")).rename("whole")
    interrupted, calls, function = [], itertools.count(1), getattr(script, where)

    def interrupt_the_second(*rest):
        if next(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            interrupted.append(where)
        return function(*rest)

    with monkeypatch.context() as patch:
        patch.setattr(script, where, interrupt_the_second)
        with pytest.raises(SystemExit) as stop:
            script.train(script.Args(**flags, exp_name="whole"))
    assert interrupted == [where]
    assert stop.value.code == 128 + signal.SIGTERM
    (path,) = Path("runs").glob("*/checkpoint.pt")
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"--resume {path.parent}")
    script.main(["--resume", str(path.parent)])
    if script is sdsac_classic:
        assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(path.parent), strict=True))
        assert curves(whole) == curves(path.parent)
    else:
        evaluations = [[step for step, _ in curves(run)["eval/episodic_return"]] for run in (whole, path.parent)]
        assert [len(steps) for steps in evaluations] == [2, 2]


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="there are no pseudo-terminals")
def test_a_terminal_that_is_closed_leaves_a_checkpoint():
    """SIGHUP, and no terminal any more to say so on."""
    terminal, shown = os.openpty()
    flags = CLASSIC | {"total_timesteps": 10**6, "checkpoint_frequency": 600}
    process = start("sdsac_classic", stdout=shown, **flags)
    os.close(shown)
    os.set_blocking(terminal, False)
    try:
        while not list(Path("runs").glob("*/checkpoint.pt")):
            assert process.poll() is None
            with contextlib.suppress(OSError):
                os.read(terminal, 10_000)  # or the run might wait for someone to read
            time.sleep(0.01)
        time.sleep(0.2)
        os.close(terminal)
        process.send_signal(signal.SIGHUP)
        assert process.wait(60) == 128 + signal.SIGHUP
    finally:
        process.kill()
    (path,) = Path("runs").glob("*/checkpoint.pt")
    assert 600 < torch.load(path, weights_only=True)["loop"]["counts"][0] < 1200  # not one of the periodic ones


def wait_in_the_update(directory):
    os.chdir(directory)

    def wait(*rest):
        Path("updating").touch()
        for _ in range(6_000):  # in short sleeps: a signal that another thread is given does not end a long one
            if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
                Path("noted").touch()
            time.sleep(0.01)

    sdsac_classic.update = wait
    sdsac_classic.main(["--num-envs=1"])


@SCRIPTS
def test_what_nohup_ignores_stays_ignored(script):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with script.StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.received is None
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.received == signal.SIGTERM
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_sigint_ends_the_program_at_once(forkserver, tmp_path):
    process = forkserver.Process(target=wait_in_the_update, args=(tmp_path,))
    process.start()

    def wait_for(name):
        while not Path(name).exists():
            assert process.exitcode is None, name
            time.sleep(0.01)

    wait_for("updating")
    os.kill(process.pid, signal.SIGINT)
    wait_for("noted")  # two signals that come before the handler runs are one to it
    process.join(0.5)
    assert process.exitcode is None  # the update goes on
    os.kill(process.pid, signal.SIGINT)
    process.join(20)
    assert process.exitcode == -signal.SIGINT


def test_an_interrupted_atari_run_goes_on():
    process = start("sdsac_atari", **SHORT_ATARI)
    for number, delay in ((signal.SIGKILL, 0.1), (signal.SIGTERM, 0)):
        run_dir, status, output = interrupt(process, number, delay)
        assert status == (-number if number == signal.SIGKILL else 128 + number)
        stopped = torch.load(run_dir / "checkpoint.pt", weights_only=True)["loop"]["counts"][0]
        process = start("sdsac_atari", resume=run_dir)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert f"resumed at step {stopped:,}; the games that were under way are lost" in output
    finished = torch.load(run_dir / "checkpoint.pt", weights_only=True)["loop"]["counts"]
    assert finished[0] >= 1000
    assert finished[1] == (1000 - 100 - 1) // 10  # updates: none lost, none doubled
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
    stacks = buffer.gather(torch.from_numpy(buffer.stack_indices(np.array([4, 5]), np.array([0, 0]))))
    assert stacks[:, :, 0, 0].tolist() == [[1, 2, 3, 30], [0, 0, 0, 4]]


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    """What QUICK makes without interruption."""
    with contextlib.chdir(tmp_path_factory.mktemp("quick")):
        torch.set_num_threads(1)
        return sdsac_classic.train(sdsac_classic.Args(**QUICK)).resolve()


@pytest.mark.parametrize(
    ("script", "full"),
    [(sdsac_classic, full) for full in ("checkpoint.pt", "newest.npz", "agent.pt", "events")]
    + [(sdsac_atari, "newest.npz")],
)
def test_a_full_disk_stops_the_run_and_leaves_what_was_there(script, full, quick_run, monkeypatch, capsys):
    """From its second write on, a file no longer fits; when there is space again, the run goes on."""
    flags = SHORT_ATARI if script is sdsac_atari else QUICK
    path_open, flush, writes = Path.open, script.SummaryWriter.flush, itertools.count(1)
    no_space = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class FullDisk(io.FileIO):
        def write(self, content):
            super().write(content[: len(content) // 2])
            raise no_space

    def limited_open(path, mode="r", **rest):
        fails = path.name.endswith(f"{full}.unfinished") and (full == "agent.pt" or next(writes) >= 2)
        return FullDisk(path, mode) if fails else path_open(path, mode, **rest)

    def limited_flush(writer):
        if full == "events" and next(writes) >= 2:
            raise no_space
        flush(writer)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", limited_open)
        patch.setattr(script.SummaryWriter, "flush", limited_flush)
        with pytest.raises(SystemExit) as stop:
            script.train(script.Args(**flags))
    assert stop.value.code == 4
    (path,) = Path("runs").glob("*/checkpoint.pt")
    kept = torch.load(path, weights_only=True)["loop"]["counts"][0]
    message = capsys.readouterr().err
    last = f"the last good checkpoint, of step {kept:,}, is in {path.parent}"
    assert f"error: [Errno 28] No space left on device; {last}; to go on:" in message
    assert message.rstrip().endswith(f"--resume {path.parent}")
    assert not list(path.parent.rglob("*.unfinished"))
    assert not (path.parent / "agent.pt").exists()
    script.main(["--resume", str(path.parent)])
    if script is sdsac_classic:
        assert all(torch.equal(a, b) for a, b in zip(weights(quick_run), weights(path.parent), strict=True))
        assert curves(quick_run) == curves(path.parent)
    assert (path.parent / "agent.pt").exists()


@SCRIPTS
def test_a_run_that_is_made_longer_on_a_full_disk_keeps_its_agent(script, monkeypatch, capsys):
    """Where not even the file of TensorBoard's events can be begun."""
    run_dir = script.train(script.Args(**(SHORT_ATARI if script is sdsac_atari else QUICK) | {"total_timesteps": 300}))

    def no_space(*rest, **named):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(script.SummaryWriter, "__init__", no_space)
    with pytest.raises(SystemExit) as stop:
        script.main(["--resume", str(run_dir), "--total-timesteps", "400"])
    assert stop.value.code == 4
    assert "error: [Errno 28] No space left on device; the last good checkpoint" in capsys.readouterr().err
    assert (run_dir / "agent.pt").exists()


@SCRIPTS
def test_a_signal_that_also_ends_what_reads_the_progress_leaves_a_checkpoint(script, monkeypatch):
    """Ctrl-C in `python ... 2>&1 | tee log`."""
    shown, read, add, steps = script.tqdm.update, [True], script.ReplayBuffer.add, itertools.count(1)

    def end_both(*rest):
        add(*rest)
        if next(steps) == 140:
            read.clear()
            os.kill(os.getpid(), signal.SIGTERM)

    def show(bar, n):
        if not read:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        shown(bar, n)

    monkeypatch.setattr(script.ReplayBuffer, "add", end_both)
    monkeypatch.setattr(script.tqdm, "update", show)
    with pytest.raises(SystemExit) as stop:
        script.train(script.Args(**(SHORT_ATARI if script is sdsac_atari else QUICK) | {"checkpoint_frequency": 1000}))
    assert stop.value.code == 128 + signal.SIGTERM
    assert list(Path("runs").glob("*/checkpoint.pt"))


@SCRIPTS
@pytest.mark.parametrize(
    ("quantity", "damage"),
    [
        ("losses/qf1_values", lambda agent, batch: [*agent.qf1.head.parameters()][-1].data.fill_(math.nan)),
        ("losses/qf1_loss", lambda agent, batch: batch.rewards.fill_(math.nan)),
        ("losses/qf1_loss", lambda agent, batch: batch.rewards[3:4].fill_(math.inf)),
        ("losses/actor_loss", lambda agent, batch: batch.old_entropies[:1].fill_(math.nan)),
        ("losses/critic_grad_norm", lambda agent, batch: next(agent.qf2.parameters()).register_hook(lambda g: g / 0)),
        ("losses/alpha", lambda agent, batch: agent.log_alpha.data.fill_(1e3)),
    ],
    ids=["Q", "reward NaN", "reward infinite", "entropy", "gradient", "alpha"],
)
def test_what_is_not_finite_stops_the_run(script, quantity, damage, monkeypatch, capsys):
    flags = SHORT_ATARI if script is sdsac_atari else CLASSIC | {"num_envs": 4}
    update, calls = script.update, itertools.count(1)
    monkeypatch.setattr(script, "LOG_FREQUENCY", 100)

    def damaged(agent, batch, args, compute):
        if next(calls) == 41:
            damage(agent, batch)
        return update(agent, batch, args, compute)

    monkeypatch.setattr(script, "update", damaged)
    with pytest.raises(SystemExit) as stop:
        script.train(script.Args(**flags))
    assert stop.value.code == 3
    (path,) = Path("runs").glob("*/checkpoint.pt")
    state = torch.load(path, weights_only=True)
    message = capsys.readouterr().err
    last = f"the last good checkpoint, of step {state['loop']['counts'][0]:,}, is in {path.parent}"
    assert f"error: {quantity} was not finite at update 41; {last}" in message
    assert state["loop"]["counts"][1] <= 40
    for name in ("actor", "qf1", "qf2"):
        assert all(value.isfinite().all() for value in state["agent"][name].values())
    assert curves(path.parent)["losses/qf_loss"]


class NotFinite(gym.Env):
    """After 500 steps its rewards or observations are NaN."""

    observation_space, action_space = gym.spaces.Box(-1, 1, (2,), np.float32), gym.spaces.Discrete(2)

    def __init__(self, what):
        self.what, self.steps = what, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        value = {
            what: math.nan if what == self.what and self.steps == 500 else 0.5 for what in ("reward", "observation")
        }
        return np.full(2, value["observation"], np.float32), value["reward"], self.steps % 10 == 0, False, {}


@pytest.mark.parametrize("what", ["reward", "observation"])
def test_what_an_environment_returns_must_be_finite(what, capsys):
    """Or the replay buffer of the checkpoint would be poisoned before any update meets it."""
    gym.register(f"NotFinite{what}-v0", entry_point=NotFinite, kwargs={"what": what})
    with pytest.raises(SystemExit) as stop:
        sdsac_classic.train(sdsac_classic.Args(**CLASSIC | {"env_id": f"NotFinite{what}-v0"}))
    assert stop.value.code == 3
    assert (
        "of the environment was not finite at step 499; the last good checkpoint, of step 250"
        in capsys.readouterr().err
    )


@SCRIPTS
def test_other_errors_than_those_of_a_disk_are_not_called_so(script, monkeypatch):
    def fail(*rest):
        raise ConnectionResetError("the environment's server is gone")

    monkeypatch.setattr(script, "update", fail)
    with pytest.raises(ConnectionResetError):
        script.train(script.Args(**SHORT_ATARI if script is sdsac_atari else CLASSIC))


def test_without_a_terminal_progress_comes_in_plain_lines(monkeypatch, capsys):
    monkeypatch.setitem(sdsac_classic.LINES, "mininterval", 0.05)
    sdsac_classic.train(sdsac_classic.Args(**CLASSIC | {"total_timesteps": 600}))
    lines = [line.strip() for line in capsys.readouterr().err.splitlines() if line.strip()]
    pattern = r"step \d+ of 600, +\S+ steps/s, \S+ left(, mean_return=\S+)?"
    assert len(lines) >= 4
    assert [line for line in lines if not re.fullmatch(pattern, line)] == []


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    with contextlib.chdir(tmp_path_factory.mktemp("short")):
        flags = {"total_timesteps": 300, "learning_starts": 100, "buffer_size": 200}
        return sdsac_classic.train(sdsac_classic.Args(**flags)).resolve()


def refused(capsys, **flags):
    with pytest.raises(SystemExit) as stop:
        sdsac_classic.main([f"--{name.replace('_', '-')}={value}" for name, value in flags.items()])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: --")
    assert message.count("\n") == 1
    return message


def test_a_finished_run_can_be_made_longer(short_run):
    sdsac_classic.main(["--resume", str(short_run), "--total-timesteps", "400"])
    assert sdsac_classic.load_agent(short_run / "agent.pt", "cpu")[1].total_timesteps == 400


def test_a_resumed_atari_run_goes_on_with_its_random_numbers(monkeypatch):
    """Classic runs would not end bit for bit the same without."""
    run_dir = sdsac_atari.train(sdsac_atari.Args(**SHORT_ATARI | {"total_timesteps": 300}))
    saved = torch.load(run_dir / "checkpoint.pt", weights_only=True)

    def compare(run_dir, agent_state, agent, buffer, loop):
        assert buffer.rng.bit_generator.state == saved["buffer"]["rng"]
        assert loop["probe"][0] == saved["loop"]["probe"][0]
        assert loop["warm_up_rng"] == saved["loop"]["warm_up_rng"]
        assert torch.equal(loop["generator"], saved["loop"]["generator"])
        raise KeyboardInterrupt

    monkeypatch.setattr(sdsac_atari, "save_checkpoint", compare)
    with pytest.raises(KeyboardInterrupt):
        sdsac_atari.main(["--resume", str(run_dir), "--total-timesteps", "400"])


def die_in_the_first_update(name, directory, arguments):
    os.chdir(directory)
    script = sys.modules[name]
    script.Updater.__call__ = lambda self: os._exit(9)  # what follows SIGKILL: nothing
    script.main(arguments)


@SCRIPTS
def test_a_run_that_is_made_longer_and_killed_at_once_stays_longer(script, forkserver, tmp_path):
    flags = (SHORT_ATARI if script is sdsac_atari else CLASSIC) | {"total_timesteps": 300}
    run_dir = script.train(script.Args(**flags))
    longer = flags["total_timesteps"] + 100
    arguments = ["--resume", str(run_dir), "--total-timesteps", str(longer)]
    process = forkserver.Process(target=die_in_the_first_update, args=(script.__name__, tmp_path, arguments))
    process.start()
    process.join(60)
    assert process.exitcode == 9
    assert not (run_dir / "agent.pt").exists()
    script.main(["--resume", str(run_dir)])
    assert script.load_agent(run_dir / "agent.pt", "cpu")[1].total_timesteps == longer


class Unrepeatable(gym.Env):
    """Draws from the module's generator, which no seed of Gymnasium's reaches."""

    observation_space = gym.spaces.Box(0, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.array([random.random(), 0], np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.array([random.random(), self.steps / 100], np.float32), 1.0, self.steps == 100, False, {}


gym.register("Unrepeatable-v0", entry_point=Unrepeatable)


def test_episodes_that_do_not_repeat_are_cut_off_where_the_run_is_resumed(monkeypatch, capsys):
    """Or the buffer would hold a step from where the checkpoint was to where the new episode is."""
    flags = CLASSIC | {"env_id": "Unrepeatable-v0", "num_envs": 2, "total_timesteps": 531}
    run_dir = sdsac_classic.train(sdsac_classic.Args(**flags))
    assert "cut off" not in capsys.readouterr().out
    buffers, cut = [], sdsac_classic.ReplayBuffer.cut
    monkeypatch.setattr(sdsac_classic.ReplayBuffer, "cut", lambda self, x: (buffers.append(self), cut(self, x)))
    sdsac_classic.main(["--resume", str(run_dir), "--total-timesteps", "700"])
    assert "does not repeat its unfinished episodes: they are cut off" in capsys.readouterr().out
    (buffer,) = buffers
    newest = np.arange(buffer.steps - buffer.rows, buffer.steps) % buffer.rows  # oldest first
    ages = buffer.column("observations")[newest, :, 1].numpy() * 100
    goes_on = ~(buffer.column("ended") | buffer.column("resets"))[newest].numpy()
    assert goes_on.sum() > 200
    for env in range(2):  # a row that goes on is followed by its episode's next step, of either part of the run
        (rows,) = np.nonzero(goes_on[:-1, env])
        assert ages[rows + 1, env] == pytest.approx(ages[rows, env] + 1, abs=1e-3)
    (cuts,) = np.nonzero((buffer.column("ended") & ~buffer.column("terminated"))[newest].all(1).numpy())
    assert len(cuts) == 1


class EndsSooner(Unrepeatable):
    """Ends after `length` steps, which another run of the program can change, and does not go on after that."""

    length = 20

    def step(self, action):
        assert self.steps < self.length
        observation, reward, _, truncated, info = super().step(action)
        return observation, reward, self.steps == self.length, truncated, info


gym.register("EndsSooner-v0", entry_point=EndsSooner)


def test_an_episode_that_ends_sooner_when_it_is_played_again_is_not_stepped_on(monkeypatch):
    envs = sdsac_classic.make_envs(sdsac_classic.Args(env_id="EndsSooner-v0"), 1)
    observations, _ = envs.reset(seed=[1])
    tracker, zero = sdsac_classic.EpisodeTracker(envs, [1]), np.zeros(1, int)
    for _ in range(10):
        observations, rewards, terminated, truncated, _ = envs.step(zero)
        tracker.step(zero, rewards, terminated | truncated, zero.astype(bool))
    monkeypatch.setattr(EndsSooner, "length", 5)
    assert not tracker.restore(tracker.episodes, observations, zero.astype(bool))


def test_flags_that_contradict_the_run_are_refused(short_run, capsys):
    assert "--gamma 0.5" in refused(capsys, resume=short_run, gamma=0.5)
    assert "--buffer-size 100000" in refused(capsys, resume=short_run, buffer_size=100_000)  # given, though the default
    assert "--gamma 0.5" in refused(capsys, evaluate=short_run, gamma=0.5)
    assert "--env-id Acrobot-v1" in refused(capsys, resume=short_run, env_id="Acrobot-v1")
    assert "--total-timesteps 200" in refused(capsys, resume=short_run, total_timesteps=200)


def test_a_directory_without_a_sound_checkpoint_is_refused(tmp_path, capsys):
    assert "--resume" in refused(capsys, resume=tmp_path / "nowhere")
    (tmp_path / "checkpoint.pt").write_bytes(b"not a checkpoint")
    assert "--resume" in refused(capsys, resume=tmp_path)


def test_a_damaged_replay_is_refused(short_run, tmp_path, capsys):
    run_dir = Path(shutil.copytree(short_run, tmp_path / "copy"))
    (segment,) = (run_dir / "replay").iterdir()
    content = segment.read_bytes()
    for damage in (lambda: segment.write_bytes(content[: len(content) // 2]), segment.unlink):
        damage()
        (run_dir / "replay" / "another").touch()
        assert "its checkpoint cannot be read" in refused(capsys, resume=run_dir)
        assert (run_dir / "replay" / "another").exists()


def test_weights_of_other_networks_are_refused(short_run, tmp_path, capsys):
    run_dir = Path(shutil.copytree(short_run, tmp_path / "copy"))
    for name in ("agent.pt", "checkpoint.pt"):
        state = torch.load(run_dir / name, weights_only=True)
        for owner in (state, state.get("agent", state)):
            owner["qf1"] = {f"old.{key}": value for key, value in owner["qf1"].items()}
        torch.save(state, run_dir / name)
    assert "SoftQNetwork" in refused(capsys, resume=run_dir)
    assert "SoftQNetwork" in refused(capsys, evaluate=run_dir)


def test_files_that_are_not_whole_are_refused(short_run, tmp_path, capsys):
    run_dir = Path(shutil.copytree(short_run, tmp_path / "copy"))
    state = torch.load(run_dir / "agent.pt", weights_only=True)
    torch.save({key: value for key, value in state.items() if key != "actor"}, run_dir / "agent.pt")
    assert "cannot be loaded (KeyError: 'actor')" in refused(capsys, evaluate=run_dir)
    torch.save(state | {"args": state["args"] | {"gamma": "abc"}}, run_dir / "agent.pt")
    assert "cannot be read (TypeError)" in refused(capsys, evaluate=run_dir)
    state = torch.load(run_dir / "checkpoint.pt", weights_only=True)
    del state["loop"]["probe"]  # as it was in another version
    torch.save(state, run_dir / "checkpoint.pt")
    assert "its checkpoint cannot be read (KeyError: 'probe')" in refused(capsys, resume=run_dir)


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
