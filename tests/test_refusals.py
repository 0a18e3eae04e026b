"""Bad input: one line on standard error, exit status 2, nothing created."""

import importlib.util

import pytest

import sdsac_atari
import sdsac_classic

INF, NAN = float("inf"), float("nan")
# flag, value, and what the message has to say beyond the flag and the value
REFUSED = [
    ("total_timesteps", 0, "at least 1"),
    ("total_timesteps", 900, "to 899"),  # fewer than learning_starts
    ("num_envs", 0, "at least 1"),
    ("num_envs", -1, "at least 1"),
    ("n_step", 0, "at least 1"),
    ("batch_size", 0, "at least 1"),
    ("gradient_steps", 0, "at least 1"),
    ("target_network_frequency", 0, "at least 1"),
    ("gamma", NAN, "from 0 to 1"),
    ("gamma", 1.1, "from 0 to 1"),
    ("target_entropy_scale", -0.1, "from 0 to 1"),
    ("tau", 0.0, "above 0"),
    ("tau", NAN, "above 0"),
    ("policy_lr", -1e-3, "positive"),
    ("q_lr", INF, "finite"),
    ("alpha", 0.0, "positive"),
    ("clip_range", NAN, "positive"),
    ("beta", -0.5, "at least 0"),
    ("beta", NAN, "at least 0"),
    ("max_grad_norm", 0.0, "positive"),
    ("seed", -1, "from 0"),
    ("learning_starts", 3, "num_envs * (n_step + 1)"),
    ("learning_starts", 2_000, "to 1999"),  # as many as the total
    ("update_frequency", 0, "from 1"),
    ("update_frequency", 1_500, "no update"),
    ("buffer_size", 50, "at least"),  # smaller than the batch
]


@pytest.mark.parametrize("script", [sdsac_classic, sdsac_atari], ids=["classic", "atari"])
@pytest.mark.parametrize(("name", "value", "says"), REFUSED)
def test_values_that_no_run_can_be_made_with(script, name, value, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sound = {"total_timesteps": 2_000, "learning_starts": 1_000, "num_envs": 2}
    with pytest.raises(SystemExit) as stop:
        script.train(script.Args(**sound | {name: value}))
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: --")
    assert says in lines[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("env_id", "says"), [("CarPole-v1", "CartPole"), ("Pendulum-v1", "discrete"), ("NoSuchThing-v0", "NoSuchThing")]
)
def test_environments_that_the_classic_script_cannot_learn(env_id, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        sdsac_classic.train(sdsac_classic.Args(env_id=env_id))
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: --env-id {env_id}: ")
    assert says in message
    assert message.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", [sdsac_classic, sdsac_atari], ids=["classic", "atari"])
def test_tracking_without_weights_and_biases(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        script.train(script.Args(track=True))
    assert stop.value.code == 2
    assert "pip install wandb" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
