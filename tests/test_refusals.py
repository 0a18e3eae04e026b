"""Bad input: one line on standard error, exit status 2, nothing created."""

import importlib.util
import os
import typing
from pathlib import Path

import gymnasium as gym
import numpy as np
import psutil
import pytest

import sdsac_atari
import sdsac_classic

SCRIPTS = pytest.mark.parametrize("script", [sdsac_classic, sdsac_atari], ids=["classic", "atari"])
SOUND = "--total-timesteps 2000 --learning-starts 1000 --num-envs 2"
# What follows SOUND on the command line, and what the message has to say beyond the flag
REFUSED = [
    ("--total-timesteps 900", "to 897"),  # fewer than learning_starts
    ("--gamma 1.1", "from 0 to 1"),
    ("--target-entropy-scale 1.5", "from 0 to 1"),
    ("--tau 2", "at most 1"),
    ("--gradient-steps 1001", "to 1000"),
    ("--learning-starts 3", "num_envs * (n_step + 1)"),
    ("--learning-starts 1998", "to 1997"),  # the last step of both environments goes to 2000
    ("--update-frequency 999", "to 998, or there may be no update"),
    ("--target-network-frequency 2001", "to total_timesteps = 2000"),  # or targets would never move
    ("--eval-frequency 2001", "to total_timesteps = 2000"),
    ("--buffer-size 50", "at least"),  # smaller than the batch
    ("--batch-size 1000000", "for this batch"),
    ("--buffer-size 100000000000000", "GB are free"),
    ("--env-id NoSuchThing-v0", "NoSuchThing"),
    ("--resume nowhere", "nowhere/checkpoint.pt cannot be read"),
    ("--evaluate nowhere", "nowhere cannot be read (FileNotFoundError)"),
    ("--evaluate .", "agent.pt cannot be read"),
    ("--evaluate somewhere --resume somewhere", "not together"),
]
REFUSED_BY_ONE = [
    (sdsac_classic, "--env-id CarPole-v1", "CartPole"),
    (sdsac_classic, "--env-id Pendulum-v1", "discrete"),
    (sdsac_classic, "--env-id x:y:z", "too many values"),
    (sdsac_classic, "--env-id Images-v0", "images"),
    (sdsac_classic, "--env-id Sequences-v0", "do not flatten"),
    (sdsac_atari, "--env-id CartPole-v1", "not an Atari game"),
    (sdsac_atari, "--random-shift 84", "from 0 to 83"),
    (sdsac_atari, "--random-shift -1", "from 0 to 83"),
    (sdsac_atari, "--env-id Breakout-v4", "BreakoutNoFrameskip-v4"),
    (sdsac_atari, "--env-id Breakout-v0", "BreakoutNoFrameskip-v0"),
]
NUMBERS = ["nan", "inf", "-inf", "0", "-1", "1e300", str(10**30)]
ALLOWED = {("gamma", "0"), ("target_entropy_scale", "0"), ("beta", "0"), ("seed", "0")}
NUMERIC = [
    name
    for name, kind in typing.get_type_hints(sdsac_classic.Args).items()
    if {int, float} & {kind, *typing.get_args(kind)}
]


class Odd(gym.Env):
    action_space = gym.spaces.Discrete(2)

    def __init__(self, observation_space):
        self.observation_space = observation_space


for name, space in (
    ("Images-v0", gym.spaces.Box(0, 255, (8, 8, 3), np.uint8)),
    ("Sequences-v0", gym.spaces.Sequence(gym.spaces.Discrete(3))),
    ("Blind-v0", gym.spaces.Box(-1, 1, (4,), np.float32)),
):
    gym.register(name, entry_point=Odd, kwargs={"observation_space": space})


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert list(tmp_path.iterdir()) == []


def refused(script, line, capsys):
    """What the script says on standard error about a command line that it refuses."""
    with pytest.raises(SystemExit) as stop:
        script.main(line.split())
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


@pytest.mark.parametrize(
    ("script", "line", "says"),
    [(script, *row) for row in REFUSED for script in (sdsac_classic, sdsac_atari)] + REFUSED_BY_ONE,
    ids=lambda value: getattr(value, "__name__", value),
)
def test_lines_that_are_refused(script, line, says, capsys):
    message = refused(script, f"{SOUND} {line}", capsys)
    assert message.count("\n") == 1
    assert message.startswith("error: --")
    assert says in message


@SCRIPTS
@pytest.mark.parametrize(
    ("name", "number"), [(name, number) for name in NUMERIC for number in NUMBERS if (name, number) not in ALLOWED]
)
def test_numbers_that_no_run_can_be_made_with(script, name, number, capsys):
    """tyro refuses what does not parse as the flag's type, in a box of its own; all else gets one line."""
    flag = f"--{name.replace('_', '-')}"
    message = refused(script, f"{SOUND} {flag} {number}", capsys)
    kind = typing.get_type_hints(script.Args)[name]
    if float not in {kind, *typing.get_args(kind)} and number not in ("0", "-1", str(10**30)):
        assert "Value error" in message
        assert flag in message
    else:
        assert message.startswith("error: --")
        assert message.count("\n") == 1


def test_all_numeric_flags_are_covered():
    assert {"total_timesteps", "gamma", "eval_frequency", "max_grad_norm"} <= set(NUMERIC)
    assert len(NUMERIC) == 22


@SCRIPTS
@pytest.mark.parametrize(("flag", "package"), [("--track", "wandb"), ("--capture-video", "moviepy")])
def test_optional_packages_that_are_missing(script, flag, package, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert f"pip install {package}" in refused(script, flag, capsys)


def test_films_of_an_environment_that_does_not_draw(monkeypatch, capsys):
    monkeypatch.setattr(sdsac_classic, "FILM_PACKAGES", {})
    message = refused(sdsac_classic, f"{SOUND} --env-id Blind-v0 --capture-video", capsys)
    assert message == "error: --capture-video: Blind-v0 draws no pictures\n"


@SCRIPTS
def test_a_buffer_that_is_larger_than_the_free_memory(script, monkeypatch, capsys):
    free = 2_000_000
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": free}))
    shape = (4, 84, 84) if script is sdsac_atari else (4,)
    message = refused(script, "--buffer-size 250000", capsys)
    assert message.count("\n") == 1
    needed, fits = script.ReplayBuffer.nbytes(250_000, shape), int(message.split("; ")[1].split()[0])
    assert f"takes {needed / 1e9:.2f} GB of memory, 0.00 GB are free" in message
    assert 0.8 * free < script.ReplayBuffer.nbytes(fits, shape) <= 0.9 * free


@SCRIPTS
@pytest.mark.parametrize("version", [1, 2])
def test_the_limits_of_containers_and_cluster_jobs_count(script, version, monkeypatch):
    """Any of the control groups that the process is in can have a limit; version 2 writes `max` where there is none.
    What its processes have taken is not free any more, but for the cache.
    """
    files = {
        1: {
            "/proc/self/cgroup": "5:cpu,cpuacct:/user\n4:memory:/slurm/job_7/step_0\n0::/",
            "/sys/fs/cgroup/memory/slurm/job_7/step_0/memory.limit_in_bytes": "9223372036854771712\n",
            "/sys/fs/cgroup/memory/slurm/job_7/memory.limit_in_bytes": "3000000\n",
            "/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
        2: {
            "/proc/self/cgroup": "0::/system.slice/job_7\n",
            "/sys/fs/cgroup/system.slice/job_7/memory.max": "max\n",
            "/sys/fs/cgroup/system.slice/memory.max": "3000000\n",
        },
    }[version]
    for path in [path for path in files if "memory." in path]:
        folder, _ = path.rsplit("/", 1)
        files[f"{folder}/memory.{'usage_in_bytes' if version == 1 else 'current'}"] = "1200000\n"
        cache = "inactive_file 50000\ntotal_inactive_file 200000" if version == 1 else "inactive_file 200000"
        files[f"{folder}/memory.stat"] = f"anon 900000\n{cache}\nactive_file 100000\n"
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 5_000_000}))
    monkeypatch.setattr(Path, "exists", lambda path: str(path) in files)
    monkeypatch.setattr(Path, "read_text", lambda path: files[str(path)])
    assert script.available_memory() == 2_000_000


@SCRIPTS
def test_a_directory_that_runs_cannot_be_written_to(script, capsys):
    Path("runs").touch()  # for root, no directory is unwritable
    message = refused(script, SOUND, capsys)
    assert message.startswith("error: runs/")
    assert "cannot be created here (Not a directory)" in message
    assert message.count("\n") == 1
    os.remove("runs")
