"""Sweeps on tiny runs: every cell once, whatever is killed in between."""

import argparse
import errno
import io
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import peers
import pytest
import run
import venvs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import sdsac_atari
import sdsac_classic

ROOT = Path(__file__).parent.parent

SWEEP = """
seeds = [1, 2]
[flags]
total-timesteps = 600
learning-starts = 100
buffer-size = 300
batch-size = 8
checkpoint-frequency = 200
[environments]
"CartPole-v1" = {}
[variants]
default = { script = "sdsac_classic.py" }
"""


@pytest.fixture
def sweep(tmp_path):
    """Starts the launcher on a sweep file, all else as it is given."""
    started = []

    def start(text, *flags):
        (tmp_path / "tiny.toml").write_text(text)
        command = [sys.executable, str(ROOT / "benchmark" / "run.py"), str(tmp_path / "tiny.toml"), *flags]
        process = subprocess.Popen(
            [*command, "--root", str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # the tests may run under nohup
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def finish(process):
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def agents(tmp_path):
    """cell: when its agent.pt was written."""
    return {path.parts[-4]: path.stat().st_mtime_ns for path in tmp_path.glob("tiny/*/runs/*/agent.pt")}


def wait_for(tmp_path, pattern):
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(pattern)):
        assert time.monotonic() < deadline, pattern
        time.sleep(0.01)


def worker(cell):
    """The process that runs in the cell's directory."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (path / "cwd").resolve() == cell:
                return int(path.name)
        except OSError:  # it has ended meanwhile
            continue
    return None


def test_a_cell_that_fails_is_reported_and_a_finished_one_not_run_again(sweep, tmp_path):
    text = SWEEP.replace("[1, 2]", "[1]") + 'broken = { script = "sdsac_classic.py", n-step = 0 }\n'
    left = tmp_path / "tiny" / "CartPole-v1__default__1" / "runs" / "CartPole-v1__default__1__1"
    left.mkdir(parents=True)  # as a run leaves it that was killed before its first checkpoint
    status, output = finish(sweep(text, "--workers", "2"))
    assert status == 1
    assert not left.exists()
    assert re.search(r"FAILED CartPole-v1__broken__1: exit status 2.*\n.*--n-step 0: must be", output)
    assert "1 of 2 cells done, 0 running, 1 failed" in output
    before = agents(tmp_path)
    assert set(before) == {"CartPole-v1__default__1"}
    status, output = finish(sweep(text, "--dry-run"))  # as after a job array, which nobody watches
    assert (status, output.splitlines()[-1]) == (1, "1 finished, 1 failed: 2 cells")
    assert "--n-step 0: must be" in output

    assert finish(sweep(text, "--variants", "default"))[0] == 0
    assert agents(tmp_path) == before
    text = text.replace("batch-size = 8", "batch-size = 9")
    status, output = finish(sweep(text, "--variants", "default"))
    assert status == 1
    assert "run with other flags" in output
    assert agents(tmp_path) == before


def test_on_a_full_disk_the_launcher_goes_on_to_the_end(tmp_path, monkeypatch, capsys):
    """One cell cannot be started, the failure of the other not be written down."""
    failing = ("-c", "print('no space left'); raise SystemExit(4)")
    cells = [run.Cell(tmp_path / name, None, sys.executable, failing, 100) for name in ("a", "b")]
    write = Path.write_text

    def write_text(path, text):
        if path.name == "failed.txt" or path == tmp_path / "a" / "command.txt":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, text)

    monkeypatch.setattr(Path, "write_text", write_text)
    monkeypatch.setattr(run.signal, "signal", lambda number, handler: None)
    launcher = run.Launcher(cells, 1, 1)
    launcher.run()
    assert launcher.failed == cells
    printed = capsys.readouterr().err
    assert "FAILED a: [Errno 28] No space left on device" in printed
    assert "FAILED b: exit status 4" in printed


LONG = SWEEP.replace("total-timesteps = 600", "total-timesteps = 2000").replace("[1, 2]", "[1]")


def test_killed_launcher_and_worker_lose_and_double_nothing(sweep, tmp_path):
    cell = tmp_path / "tiny" / "CartPole-v1__default__1"
    first = sweep(LONG)
    wait_for(tmp_path, "tiny/*/runs/*/checkpoint.pt")
    first.kill()
    orphan = worker(cell)
    assert orphan
    os.kill(orphan, signal.SIGSTOP)  # so that it does not finish before the second launcher looks

    second = sweep(LONG)
    limit = threading.Timer(120, second.kill)
    limit.start()
    while "still runs" not in (line := second.stdout.readline()):
        assert line, "the second launcher ended"
    limit.cancel()
    assert len(list(cell.glob("runs/*"))) == 1
    os.kill(orphan, signal.SIGKILL)
    assert finish(second)[0] == 0

    (run_dir,) = cell.glob("runs/*")
    log = (cell / "log.txt").read_text()
    assert "resumed at step" in log
    assert log.count("done: ") == 1
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0}).Reload()
    returns = [event.step for event in events.Scalars("charts/episodic_return")]
    lengths = [event.value for event in events.Scalars("charts/episodic_length")]
    assert returns == [sum(lengths[: k + 1]) for k in range(len(lengths))]  # every episode once


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_launcher_stops_the_scripts_at_a_checkpoint(number, sweep, tmp_path):
    process = sweep(LONG)
    wait_for(tmp_path, "tiny/*/runs/*/checkpoint.pt")
    process.send_signal(number)
    status, _ = finish(process)
    assert status == 128 + number
    assert f"{number.name}: stopped at step" in next(tmp_path.glob("tiny/*/log.txt")).read_text()
    _, output = finish(sweep(LONG, "--dry-run"))
    assert re.match(r"resumable +[1-9][\d,]* of +2,000 steps", output)
    if number == signal.SIGHUP:
        return  # the rest once is enough

    # A flag that the sweep has no more is one that --resume would take from the checkpoint
    (checkpoint,) = tmp_path.glob("tiny/*/runs/*/checkpoint.pt")
    before = checkpoint.read_bytes()
    status, output = finish(sweep(LONG.replace("batch-size = 8\n", "")))
    assert (status, "run with other flags" in output) == (1, True)
    assert checkpoint.read_bytes() == before


def test_a_replay_that_a_killed_launcher_left_is_deleted(sweep, tmp_path):
    """As where the script outlived its launcher and finished."""
    (tmp_path / "tiny.toml").write_text(SWEEP.replace("[1, 2]", "[1]"))
    (cell,) = run.read_sweep(run.Args(tmp_path / "tiny.toml", root=tmp_path))
    replay = cell.directory / "runs" / "CartPole-v1__default__1__1" / "replay"
    replay.mkdir(parents=True)
    (replay.parent / "agent.pt").touch()
    (cell.directory / "command.txt").write_text(cell.flags())
    status, output = finish(sweep(SWEEP.replace("[1, 2]", "[1]")))
    assert (status, "1 of 1 cells done" in output) == (0, True)
    assert [path.name for path in replay.parent.iterdir()] == ["agent.pt"]


class Requeued(Exception):
    pass


@pytest.mark.parametrize(("variant", "raised"), [("script", Requeued), ("peer", RuntimeError)])
def test_a_job_whose_time_is_up_is_requeued_only_if_it_can_go_on(variant, raised, tmp_path, monkeypatch):
    """submitit's handler, which requeues the job, stands for Slurm; its signal comes while the cell runs."""
    cell = run.Cell(tmp_path / "cell", None, sys.executable, ("-c", "import time; time.sleep(60)"), 100)
    run_dir = cell.directory / "runs" / "a"

    def requeue(number, frame):
        raise Requeued

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    signal.signal(signal.SIGUSR1, requeue)
    start, starts = cell.start, []

    def start_and_signal(self, lock, threads):
        process = start(lock, threads)
        if variant == "script":  # it would write its checkpoint upon the signal
            run_dir.mkdir(parents=True)
            (run_dir / "checkpoint.pt").touch()
        starts.append(process)
        os.kill(os.getpid(), signal.SIGUSR1)
        return process

    monkeypatch.setattr(run.Cell, "start", start_and_signal)
    job = pickle.loads(pickle.dumps(run.Job(threads=1, minutes=1)))
    try:
        with pytest.raises(raised):
            job(cell)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert [process.returncode for process in starts] == [-signal.SIGUSR1]


def test_virtual_environments_are_made_anew_for_other_pins(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(venvs.subprocess, "run", lambda command, check: commands.append(command))
    (tmp_path / "sb3").mkdir()
    for pins in (["a==1"], ["a==1"], ["a==2"]):
        monkeypatch.setitem(venvs.PINS, "sb3", pins)
        venvs.make_venv(tmp_path, "sb3")
    assert [command[-1] for command in commands if "install" in command] == ["a==1", "a==2"]


def test_time_left_where_a_cell_begins_afresh(monkeypatch):
    """A log said 40 of 100 steps and left no checkpoint. Afresh, its cell comes to 10, then to 20, in 5 seconds."""
    steps = iter([40, 10, 20])
    cell = SimpleNamespace(total_timesteps=100, steps=lambda: next(steps))
    launcher = run.Launcher([cell], 1, 1)
    launcher.bar = run.tqdm(initial=cell.steps(), total=100, bar_format=run.LINES, file=io.StringIO())
    monkeypatch.setattr(launcher.bar, "_time", lambda: launcher.bar.start_t + 5)
    launcher.describe()
    assert str(launcher.bar).endswith("10% of the steps, ? left\n")
    launcher.describe()
    assert str(launcher.bar).endswith("20% of the steps, 00:40 left\n")


def test_two_launchers_run_every_cell_once(sweep, tmp_path):
    both = [sweep(SWEEP), sweep(SWEEP)]
    assert [finish(process)[0] for process in both] == [0, 0]
    assert len(agents(tmp_path)) == 2
    assert all(log.read_text().count("done: ") == 1 for log in tmp_path.glob("tiny/*/log.txt"))
    assert len(list(tmp_path.glob("tiny/*/runs/*"))) == 2


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("classic", 7 * 6 * 5),
        ("ablation", 75),
        ("classic_fresh_seeds", 15),
        ("sensitivity", 48),
        ("tuning", 180),
        ("atari_study", 30),
        ("atari_n_step", 27),
        ("atari_over_estimation", 54),
        ("atari", 18),
        ("atari57", 285),
    ],
)
def test_cells_of_the_sweeps(name, count, sweep, tmp_path):
    text = (ROOT / "benchmark" / "sweeps" / f"{name}.toml").read_text()
    status, output = finish(sweep(text, "--dry-run"))
    assert (status, output.splitlines()[-1]) == (0, f"{count} to do: {count} cells")
    assert not (tmp_path / "tiny").exists()


@pytest.mark.parametrize("path", sorted((ROOT / "benchmark" / "sweeps").glob("*.toml")), ids=lambda path: path.stem)
def test_scripts_take_the_flags_of_the_sweeps(path, tmp_path):
    modules = {"sdsac_atari": sdsac_atari, "plain_filters": sdsac_atari, "sdsac_classic": sdsac_classic}
    cells = run.read_sweep(run.Args(path, root=tmp_path))
    commands = {cell.command for cell in cells if Path(cell.command[0]).stem in modules}
    assert commands
    for script, *flags in commands:
        module = modules[Path(script).stem]
        module.check_args(module.read_args(flags))


def play(env):
    """Random actions for ever, as a library's loop would take them."""
    while True:
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            env.reset()


def test_peers_spend_their_budget_to_the_step_and_are_evaluated(tmp_path, monkeypatch):
    assert set(run.PEER_VENVS) == set(peers.PEERS)
    monkeypatch.chdir(tmp_path)
    flags = {"env_id": "FrozenLake-v1", "exp_name": "peer", "seed": 1, "total_timesteps": 250}
    peer = peers.Run(argparse.Namespace(**flags, eval_frequency=100, eval_episodes=7, resume=None))
    peer.greedy = lambda observations: np.full(len(observations), 2)
    env = peer.make_env()
    env.action_space.seed(0)
    assert env.reset(seed=0)[0].shape == (16,)
    with pytest.raises(peers.BudgetSpent):
        play(env)
    assert peer.step == 250
    assert len(peer.evaluate()) == 7
    peer.finish(peers.torch.nn.Linear(1, 1))
    assert (peer.run_dir / "agent.pt").exists()
    events = EventAccumulator(str(peer.run_dir)).Reload()
    assert [event.step for event in events.Scalars("eval/episodic_return")] == [100, 200, 250]
    ends = [event.step for event in events.Scalars("charts/episodic_return")]
    assert ends == np.cumsum([event.value for event in events.Scalars("charts/episodic_length")]).tolist()


def test_peers_go_on_from_their_last_checkpoint(tmp_path, monkeypatch):
    """Stopped by a signal at step 130, then killed at 230, which loses the steps since the checkpoint of step 200."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(peers, "CHECKPOINT_FREQUENCY", 100)
    handlers = {}
    monkeypatch.setattr(peers.signal, "signal", handlers.__setitem__)
    flags = {"env_id": "FrozenLake-v1", "exp_name": "peer", "seed": 1, "total_timesteps": 300}

    def begin(resume):
        peer = peers.Run(argparse.Namespace(**flags, eval_frequency=100, eval_episodes=2, resume=resume))
        peer.greedy = lambda observations: np.full(len(observations), 2)
        if resume:
            assert (peer.state_dir() / "state").read_text() == str(peer.step)
        peer.save_with(lambda directory: (directory / "state").write_text(str(peer.step)))
        env = peer.make_env()
        env.reset(seed=peer.step)
        env.action_space.seed(peer.step)
        return peer, env

    def step_to(step, peer, env):
        while peer.step < step:
            _, _, terminated, truncated, _ = env.step(env.action_space.sample())
            if terminated or truncated:
                env.reset()

    peer, env = begin(None)
    step_to(129, peer, env)
    handlers[signal.SIGTERM](signal.SIGTERM, None)
    assert handlers[signal.SIGINT] == signal.SIG_DFL
    with pytest.raises(peers.Stopped):
        play(env)
    peer.writer.close()
    assert [path.name for path in peer.state_dir().parent.iterdir()] == ["130"]
    (run_dir,) = Path("runs").iterdir()

    peer, env = begin(run_dir)
    assert peer.step == 130
    step_to(230, peer, env)
    peer.writer.close()  # what was logged by then is on the disk

    peer, env = begin(run_dir)
    assert peer.step == 200
    with pytest.raises(peers.BudgetSpent):
        play(env)
    peer.writer.close()
    assert [path.name for path in peer.state_dir().parent.iterdir()] == ["200"]
    events = EventAccumulator(str(run_dir)).Reload()
    assert [event.step for event in events.Scalars("eval/episodic_return")] == [100, 200, 300]
    ends = [event.step for event in events.Scalars("charts/episodic_return")]
    assert ends == sorted(set(ends))
    assert max(ends) > 250


def test_peers_are_evaluated_as_the_script_evaluates(tmp_path, monkeypatch):
    """Other starts, other quotas or another limit: the same policy gets the same returns."""
    monkeypatch.chdir(tmp_path)
    flags = {"env_id": "CartPole-v1", "exp_name": "peer", "seed": 3, "total_timesteps": 600}
    peer = peers.Run(argparse.Namespace(**flags, eval_frequency=None, eval_episodes=13, resume=None))
    args = sdsac_classic.Args(seed=3)
    peers.torch.manual_seed(0)
    agent = sdsac_classic.make_agent(args, (4,), 2, "cpu")
    peer.greedy = lambda observations: agent.actor(peers.torch.as_tensor(observations)).argmax(1).numpy()
    returns = peer.evaluate()
    assert len(set(returns)) > 1
    assert returns.tolist() == sdsac_classic.evaluate(agent.actor, args, 13, greedy=True, seed=3).tolist()


def test_peers_are_scored_by_whole_games_of_atari_whatever_their_wrappers_make_of_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = {"env_id": "BreakoutNoFrameskip-v4", "exp_name": "peer", "seed": 1, "total_timesteps": 600}
    peer = peers.Run(argparse.Namespace(**flags, eval_frequency=None, eval_episodes=3, resume=None))
    rng = np.random.default_rng(0)
    peer.greedy = lambda observations: rng.integers(4, size=len(observations))

    def wrap(env):  # as a library would: frames skipped, an episode per life, half the score
        env = gym.wrappers.AtariPreprocessing(env, noop_max=0, terminal_on_life_loss=True)
        return gym.wrappers.TransformReward(env, lambda reward: reward / 2)

    env = peer.make_env(wrap)
    env.reset(seed=0)
    env.action_space.seed(0)
    games, score, lives = [], 0.0, 0
    with suppress(peers.BudgetSpent):
        while True:
            _, reward, terminated, _, _ = env.step(env.action_space.sample())
            score, lives = score + 2 * reward, lives + terminated
            if env.unwrapped.ale.game_over():
                games, score = [*games, (peer.step, score)], 0.0
                env.reset()
    peer.writer.flush()
    events = EventAccumulator(str(peer.run_dir)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("charts/episodic_return")] == games
    lengths = [event.value for event in events.Scalars("charts/episodic_length")]
    assert np.cumsum(lengths).tolist() == [step for step, _ in games]
    assert max(score for _, score in games) > 0
    assert lives >= 5 * len(games) >= 10
    [evaluation] = events.Scalars("eval/episodic_return")
    assert (evaluation.step, 0 < evaluation.value < 10) == (600, True)


def test_filters_and_what_is_refused(sweep):
    text = (ROOT / "benchmark" / "sweeps" / "classic.toml").read_text()
    flags = ["--environments", "Taxi-v4", "CartPole-v1", "--variants", "sb3-dqn", "--seeds", "22"]
    _, output = finish(sweep(text, *flags, "--dry-run"))
    assert re.findall(r"\S+__\S+", output) == ["Taxi-v4__sb3-dqn__22", "CartPole-v1__sb3-dqn__22"]
    for flags in (["--seeds", "99"], ["--variants", "defualt"]):
        status, output = finish(sweep(text, *flags))
        assert (status, output.count("\n")) == (2, 1)
        assert " ".join(flags) in output
    status, output = finish(sweep(text.replace('peer = "sb3-dqn"', 'peer = "sb3-dqm"')))
    assert (status, "needs total-timesteps" in output) == (2, True)
