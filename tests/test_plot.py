"""The figures of a benchmark: binning, intervals, unequal seeds, rliable's axes, and logs -> CSV -> figures."""

import numpy as np
import pandas as pd
import pytest
from torch.utils.tensorboard import SummaryWriter

from benchmark import plot


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    monkeypatch.setattr(plot, "RESAMPLES", 50)


def scores_of(cells):
    """{(env_id, variant, seed): score} as final_scores gives them."""
    return pd.Series(cells).rename_axis(["env_id", "variant", "seed"])


def write_run(root, env_id, variant, seed, returns, evaluation=None, finished=True):
    """A run of 1,000 steps as the scripts and the launcher leave it: an episode at the end of every 100 steps."""
    run = root / f"{env_id}__{variant}__{seed}" / "runs" / f"{env_id}__{variant}__{seed}__1700000000"
    with SummaryWriter(run) as writer:
        writer.add_text("hyperparameters", "|flag|value|\n|-|-|\n|eval_episodes|7|")
        for i, value in enumerate(returns):
            writer.add_scalar("charts/episodic_return", value, 100 * (i + 1))
            writer.add_scalar("diagnostics/q_predicted", 5, 100 * (i + 1))
            writer.add_scalar("diagnostics/q_monte_carlo", 3, 100 * (i + 1))
        if evaluation is not None:
            writer.add_scalar("eval/episodic_return", evaluation, 1000)
    if finished:
        (run / "agent.pt").touch()
    return run


def test_bins_by_hand():
    points = pd.DataFrame(
        [("episodic_return", step, value, 1) for step, value in ((1, 1.0), (250, 3.0), (251, 10.0), (1000, 4.0))]
        + [("eval_return", 300, 8.0, 5), ("eval_return", 310, 9.0, 5)],
        columns=["metric", "step", "value", "count"],
    )
    rows = plot.summarize(points, budget=1000, width=250)
    assert rows.to_numpy().tolist() == [
        ["episodic_return", 250, 2.0, 2],  # a bin includes its right edge
        ["episodic_return", 500, 10.0, 1],
        ["episodic_return", 1000, 4.0, 1],  # and no row for the empty one before
        ["eval_return", 300, 8.0, 5],  # evaluations are not binned
        ["eval_return", 310, 9.0, 5],
        ["last_20_episodes", 1000, 4.5, 4],
    ]


def test_last_20_episodes_are_the_last_20():
    points = pd.DataFrame({"metric": "episodic_return", "step": range(1, 31), "value": range(30), "count": 1})
    last = plot.summarize(points, budget=30, width=15, lasts=(20, 100)).iloc[-2:]
    assert last["metric"].tolist() == ["last_20_episodes", "last_100_episodes"]
    assert last[["value", "count"]].values.tolist() == [[np.mean(range(10, 30)), 20], [np.mean(range(30)), 30]]


def test_games_are_scored_by_the_last_100_in_training_where_all_runs_tell(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plot, "RESULTS", tmp_path / "results")
    for seed, variant in ((1, "ours"), (2, "ours"), (1, "peer")):
        write_run(tmp_path, "PongNoFrameskip-v4", variant, seed, [-21] * 80 + [seed] * 40, evaluation=21)
    plot.main(plot.Args("pong", runs=(tmp_path,), bins=5))
    assert "| PongNoFrameskip-v4 | **-12.0 ± 0.2** | -12.2 |" in capsys.readouterr().out
    data = pd.read_csv(plot.RESULTS / "pong.csv")
    scores, measures = plot.final_scores(data)
    assert (measures["PongNoFrameskip-v4"], scores["PongNoFrameskip-v4"]["ours"][1]) == ("last_100_episodes", -12.2)
    without = data.drop(data.index[(data["metric"] == "last_100_episodes") & (data["variant"] == "peer")])
    scores, measures = plot.final_scores(without)
    assert (measures["PongNoFrameskip-v4"], scores["PongNoFrameskip-v4"]["ours"][1]) == ("eval_return", 21)


def test_interval_is_that_of_the_mean(monkeypatch):
    monkeypatch.setattr(plot, "RESAMPLES", 2000)
    values = np.random.default_rng(1).normal(3, 2, size=(100, 5))
    low, high = plot.interval(values)
    assert low.shape == high.shape == (5,)
    half = 1.96 * values.std(0) / 10  # the normal approximation
    np.testing.assert_allclose(low, values.mean(0) - half, atol=0.03)
    np.testing.assert_allclose(high, values.mean(0) + half, atol=0.03)
    assert (plot.interval(np.full((4, 2), 7.0)) == 7).all()


def test_score_matrices_are_runs_by_tasks():
    random, solved = plot.reference_returns("CartPole-v1")
    low, human = plot.reference_returns("PongNoFrameskip-v4")
    assert (solved, low, human) == (475, -20.7, 14.6)
    assert plot.reference_returns("ALE-Pong-v5") == (low, human)
    cells = {("CartPole-v1", "a", seed): random + (solved - random) * seed / 8 for seed in range(4)}
    cells |= {("PongNoFrameskip-v4", "a", seed): low + (human - low) * (seed + 4) / 8 for seed in range(4)}
    matrices, tasks, seeds = plot.score_matrices(scores_of(cells))
    assert (tasks, seeds) == (["CartPole-v1", "PongNoFrameskip-v4"], [0, 1, 2, 3])
    np.testing.assert_allclose(matrices["a"], np.array([[0, 4], [1, 5], [2, 6], [3, 7]]) / 8, atol=1e-12)
    points, _ = plot.estimate(matrices, lambda x: np.array([plot.rly_metrics.aggregate_iqm(x)]))
    assert points["a"] == pytest.approx((2 + 3 + 4 + 5) / 4 / 8)  # the middle half of 0/8 to 7/8


def test_runs_are_resampled_within_a_task():
    """Scores that depend on the task alone are the same however runs are drawn; tasks drawn for runs would vary."""
    matrices = {"a": np.tile([0.0, 0.25, 1.0], (4, 1)), "b": np.tile([0.5, 0.125, 0.5], (4, 1))}
    points, intervals = plot.estimate(matrices, lambda x: np.array([plot.rly_metrics.aggregate_iqm(x)]))
    assert points["a"] == pytest.approx((0 + 0.25 * 4 + 1) / 6)  # of 12 scores, all but the 3 lowest and 3 highest
    np.testing.assert_allclose(intervals["a"], points["a"][0])
    pairs = {"b": [matrices["a"], matrices["b"]]}
    points, _ = plot.estimate(pairs, lambda x, y: np.array([plot.rly_metrics.probability_of_improvement(x, y)]))
    assert points["b"] == pytest.approx(2 / 3)  # better in two tasks of three


def test_aggregates_take_the_seeds_and_tasks_that_all_variants_have():
    cells = {("CartPole-v1", "a", seed): 100 for seed in (1, 2, 3)} | {
        ("CartPole-v1", "b", seed): 200 for seed in (2, 3)
    }
    cells |= {("Acrobot-v1", "a", seed): -100 for seed in (1, 2, 3)}  # b has no runs there
    cells |= {("Unknown-v0", variant, seed): 1 for variant in "ab" for seed in (2, 3)}  # no reference returns
    matrices, tasks, seeds = plot.score_matrices(scores_of(cells))
    assert (tasks, seeds) == (["CartPole-v1"], [2, 3])
    assert {name: matrix.shape for name, matrix in matrices.items()} == {"a": (2, 1), "b": (2, 1)}
    assert plot.score_matrices(scores_of({("Unknown-v0", "a", 1): 1.0}))[1:] == ([], [])


def test_logs_to_csv_to_figures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plot, "RESULTS", tmp_path / "results")
    root = tmp_path / "sweep"
    for env_id in ("CartPole-v1", "Acrobot-v1"):
        for seed in (1, 2):
            write_run(root, env_id, "ours", seed, [10 * seed] * 10, evaluation=20 * seed)
            write_run(root, env_id, "peer", seed, [5 * seed] * 10, evaluation=10 * seed)
    write_run(root, "CartPole-v1", "peer", 3, [1] * 5)  # no evaluation: the environment is scored by training episodes
    write_run(root, "CartPole-v1", "ours", 3, [100] * 5, finished=False)
    plot.main(plot.Args("sweep", runs=(root,), bins=5, variants=("peer", "ours")))
    printed = capsys.readouterr().out
    assert "CartPole-v1 ours, 2 seeds" in printed
    assert "CartPole-v1 peer, 3 seeds" in printed
    assert "Cells have different numbers of runs" in printed
    table = [line for line in printed.splitlines() if line.startswith("|")]
    assert table[0] == "| | peer | ours |"
    assert table[2] == "| Acrobot-v1 | 15.0 ± 5.0 | **30.0 ± 10.0** |"
    assert table[3].startswith("| CartPole-v1 | 5.33 ± ")
    assert table[3].endswith(" | **15.0 ± 5.0** |")

    figures = ["sweep.png", "sweep_aggregates.png", "sweep_bias.png", "sweep_profiles.png"]
    assert sorted(path.name for path in plot.RESULTS.glob("*.png")) == figures
    data = pd.read_csv(plot.RESULTS / "sweep.csv")
    assert list(data.columns) == plot.COLUMNS
    one = data[(data["env_id"] == "Acrobot-v1") & (data["variant"] == "ours") & (data["seed"] == 2)]
    binned = one[one["metric"] == "episodic_return"]
    assert binned[["step", "value", "count"]].values.tolist() == [[step, 20, 2] for step in (200, 400, 600, 800, 1000)]
    assert one[one["metric"] == "eval_return"][["step", "value", "count"]].values.tolist() == [[1000, 40, 7]]

    before = {path: path.read_bytes() for path in plot.RESULTS.iterdir()}
    plot.main(plot.Args("sweep", variants=("peer", "ours")))  # from the CSV alone
    assert {path: path.read_bytes() for path in plot.RESULTS.iterdir()} == before


def test_steps_to_the_threshold_by_hand():
    """Steps that not all runs were evaluated at do not count, a run that never gets there is infinitely late, and an
    environment in which a run has no evaluation, or that has no threshold, is left out."""
    runs = {("CartPole-v1", "a", 1): {5: 475, 10: 10, 20: 480}, ("CartPole-v1", "a", 2): {10: 475, 20: 0}}
    runs |= {("CartPole-v1", "a", 3): {10: 1, 20: 474.9}, ("CartPole-v1", "b", 1): {10: 0, 20: 1, 30: 500}}
    runs |= {("Blackjack-v1", "a", 1): {10: 1}, ("Acrobot-v1", "a", 1): {10: 0}, ("Acrobot-v1", "b", 1): {}}
    rows = [(*cell, "eval_return", step, value, 1) for cell, own in runs.items() for step, value in own.items()]
    rows += [(*cell, "last_20_episodes", 30, 0.0, 20) for cell in runs]
    steps = plot.steps_to_threshold(pd.DataFrame(rows, columns=plot.COLUMNS))
    assert list(steps["CartPole-v1"]["a"]) == [20, 10, np.inf]
    assert list(steps["CartPole-v1"]["b"]) == [np.inf]
    assert list(steps.index.unique("env_id")) == ["CartPole-v1"]
    table = plot.threshold_table(steps, ["b", "a", "c"]).splitlines()
    assert table[0] == "| | b | a | c |"
    assert table[2] == "| CartPole-v1 | not reached (0 of 1) | 20 (2 of 3) |  |"


def test_runs_join_those_of_a_csv(tmp_path, monkeypatch):
    """Cells from two CSVs and from logs; a log replaces the CSV's rows of its cell, the last CSV those of the first."""
    monkeypatch.setattr(plot, "RESULTS", tmp_path / "results")
    for number, cells in enumerate(({"a": 1, "b": 2}, {"b": 3, "c": 4}, {"c": 5, "d": 6})):
        for variant, value in cells.items():
            write_run(tmp_path / str(number), "CartPole-v1", variant, 1, [value] * 10)
        write_run(tmp_path / str(number), "Acrobot-v1", "b", 1, [number] * 10)
    for number in (0, 1):
        plot.main(plot.Args(str(number), runs=(tmp_path / str(number),), bins=5))
    sources = (plot.RESULTS / "0.csv", tmp_path / "2", plot.RESULTS / "1.csv")
    plot.main(plot.Args("all", runs=sources, bins=5, variants=("d", "a", "b", "c"), environments=("CartPole-v1",)))
    data = pd.read_csv(plot.RESULTS / "all.csv")
    assert set(data["env_id"]) == {"Acrobot-v1", "CartPole-v1"}  # what is not drawn is kept
    data = data[data["env_id"] == "CartPole-v1"]
    assert not data.duplicated(plot.COLUMNS[:5]).any()
    values = data[data["metric"] == "episodic_return"].groupby("variant")["value"]
    assert values.agg(["min", "max", "count"]).values.tolist() == [[1, 1, 5], [3, 3, 5], [5, 5, 5], [6, 6, 5]]
    plot.main(plot.Args("copy", runs=(plot.RESULTS / "all.csv",), bins=5))
    assert (plot.RESULTS / "copy.csv").read_bytes() == (plot.RESULTS / "all.csv").read_bytes()
    longer = write_run(tmp_path / "longer", "Acrobot-v1", "e", 1, [7] * 15)
    plot.main(plot.Args("longer", runs=(plot.RESULTS / "all.csv", longer), bins=4))  # the CSV's bins, and more of them
    data = pd.read_csv(plot.RESULTS / "longer.csv").query("env_id == 'Acrobot-v1' and metric == 'episodic_return'")
    assert data.groupby("variant")["step"].apply(list).to_dict() == {
        "b": [200, 400, 600, 800, 1000],
        "e": [200, 400, 600, 800, 1000, 1200, 1400, 1600],
    }
    plot.main(plot.Args("other", runs=(longer,), bins=7))
    with pytest.raises(SystemExit, match="rows of Acrobot-v1 have bins of different widths"):
        plot.main(plot.Args("both", runs=(plot.RESULTS / "all.csv", plot.RESULTS / "other.csv")))
    with pytest.raises(SystemExit, match="nothing: not there"):
        plot.main(plot.Args("other", runs=(plot.RESULTS / "all.csv", tmp_path / "nothing")))
    with pytest.raises(SystemExit, match="variant e: there are a, b, c, d"):
        plot.main(plot.Args("all", variants=("a", "e")))


def test_edges_of_bins_that_were_rounded_differently():
    """Rows whose edges are a step apart belong to the same bin, and get the same edge."""
    edges = {1: [round(k * 203_000 / 13) for k in range(1, 17)], 2: [round(k * 218_615 / 14) for k in range(3, 17)]}
    assert set(edges[1]) < set(edges[1] + edges[2])  # 62,462 and 62,461, for one
    earlier = {}
    for seed, steps in edges.items():
        rows = [("CartPole-v1", "a", seed, "episodic_return", step, seed, 1) for step in steps]
        rows.append(("CartPole-v1", "a", seed, "last_20_episodes", 62_461, seed, 20))
        earlier["CartPole-v1", "a", seed] = pd.DataFrame(rows, columns=plot.COLUMNS)
    data = plot.tidy({}, earlier, bins=5)
    assert set(data.loc[data["metric"] == "last_20_episodes", "step"]) == {62_461}  # an episode's own, not an edge
    returns = data[data["metric"] == "episodic_return"].groupby("step")["seed"].apply(list)
    assert returns.tolist() == [[1]] * 2 + [[1, 2]] * 14
    assert np.abs(returns.index - np.array(edges[1])).max() <= 1


def test_bins_of_which_some_are_twice_as_wide_are_refused():
    """All edges of the wide bins are edges of the narrow ones; only within a cell is there a gap of two."""

    def rows_of(variant, width):
        rows = [("CartPole-v1", variant, 1, "alpha", step, 0.1, 1) for step in range(2 * width, 1_001, width)]
        rows.append(("CartPole-v1", variant, 1, "episodic_return", 1_000, 9, 1))
        return {("CartPole-v1", variant, 1): pd.DataFrame(rows, columns=plot.COLUMNS)}

    assert len(plot.tidy({}, rows_of("a", 100) | rows_of("b", 100), bins=5)) == 20
    with pytest.raises(SystemExit, match="bins of different widths"):
        plot.tidy({}, rows_of("a", 100) | rows_of("b", 200), bins=5)


def test_evaluations_of_several_environments_make_a_curve(tmp_path, monkeypatch):
    """They come a few steps after those that they are due at, more or fewer by seed."""
    monkeypatch.setattr(plot, "RESULTS", tmp_path / "results")
    for seed in (1, 2):
        run = write_run(tmp_path, "CartPole-v1", "ours", seed, [1] * 10)
        with SummaryWriter(run) as writer:
            writer.add_text("hyperparameters", "|flag|value|\n|-|-|\n|eval_frequency|300|\n|eval_episodes|7|")
            for step in (300, 600, 900):
                writer.add_scalar("eval/episodic_return", step, step + seed)
    plot.main(plot.Args("late", runs=(tmp_path,), bins=5))
    evaluations = pd.read_csv(plot.RESULTS / "late.csv").query("metric == 'eval_return'")
    assert evaluations.groupby("seed")["step"].apply(list).tolist() == [[300, 600, 900]] * 2
    assert set(evaluations["count"]) == {7}
    assert (plot.RESULTS / "late_evaluations.png").exists()


def test_curves_without_a_step_that_all_seeds_have(tmp_path, monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(plot, "save", lambda figure, path: drawn.append(figure))
    rows = [("E-v0", "a", 1, 10, 1.0), ("E-v0", "a", 2, 20, 3.0)]
    series = pd.DataFrame(rows, columns=["env_id", "variant", "seed", "step", "value"])
    plot.draw_curves(series, plot.style_variants(["a"]), "return", tmp_path / "f.png", {}, "", "means over bins of")
    assert "every seed has 0 of 2 points" in capsys.readouterr().out
    assert "bins of 10" in drawn[0].axes[0].get_xlabel()


def test_what_is_left_out_or_replaced_by_less_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plot, "RESULTS", tmp_path / "results")
    plot.main(plot.Args("long", runs=(write_run(tmp_path / "long", "CartPole-v1", "ours", 1, [1] * 10),), bins=5))
    begun = write_run(tmp_path / "begun", "CartPole-v1", "ours", 1, [1] * 4, finished=False)
    empty = write_run(tmp_path / "begun", "CartPole-v1", "ours", 2, [], finished=False)
    other = begun.rename(begun.with_name("other"))
    write_run(tmp_path / "begun", "CartPole-v1", "ours", 1, [1] * 4, finished=False)
    capsys.readouterr()
    sources = (plot.RESULTS / "long.csv", tmp_path / "begun")
    plot.main(plot.Args("both", runs=sources, partial=True))
    printed = capsys.readouterr().out
    assert f"{begun}, of 400 steps, takes the place of a CSV's rows, of 1,000\n" in printed
    assert f"{empty}: no episode has ended in it" in printed
    assert f"{other}: not named" in printed
    with pytest.raises(SystemExit, match="no episode has ended"):
        plot.main(plot.Args("none", runs=(empty,), partial=True))


def test_run_directories_partial_runs_and_nothing_to_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plot, "RESULTS", tmp_path / "results")
    unfinished = write_run(tmp_path, "CartPole-v1", "ours", 3, [1] * 5, finished=False)
    with pytest.raises(SystemExit, match="no finished runs"):
        plot.main(plot.Args("one", runs=(unfinished,)))
    finished = write_run(tmp_path, "CartPole-v1", "ours", 4, [1] * 10)
    assert list(plot.find_runs((unfinished, finished), partial=False).values()) == [finished]
    plot.main(plot.Args("one", runs=(unfinished, finished), bins=5, partial=True))
    assert "every seed has 3 of 5 points" in capsys.readouterr().out
    assert (plot.RESULTS / "one.png").exists()


def test_of_two_runs_of_a_cell_the_finished_one_is_read(tmp_path):
    run = write_run(tmp_path, "CartPole-v1", "ours", 1, [1])
    later = run.with_name(run.name.replace("1700000000", "1800000000"))
    with SummaryWriter(later) as writer:
        writer.add_scalar("charts/episodic_return", 1, 1)
    assert plot.find_runs((tmp_path,), partial=True) == {("CartPole-v1", "ours", 1): run}
    (later / "agent.pt").touch()
    assert plot.find_runs((tmp_path,), partial=False) == {("CartPole-v1", "ours", 1): later}


def test_a_seed_that_lacks_a_bin_takes_it_from_the_mean_and_a_single_seed_has_no_interval(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plot, "save", lambda figure, path: drawn.append(figure))
    rows = [("E-v0", "a", 1, 10, 1.0), ("E-v0", "a", 1, 20, 2.0), ("E-v0", "a", 2, 10, 3.0), ("E-v0", "b", 1, 10, 5.0)]
    series = pd.DataFrame(rows, columns=["env_id", "variant", "seed", "step", "value"])
    styles, path = plot.style_variants(["a", "b"]), tmp_path / "f.png"
    plot.draw_curves(series, styles, "return", path, {"E-v0": 4}, "threshold", "means over bins of")
    (axis,) = drawn[0].axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
    assert (lines["a"], lines["b"]) == ([[10, 2]], [[10, 5]])
    thin = [line.get_xydata().tolist() for line in axis.lines if line.get_label().startswith("_")]
    assert thin == [[[10, 1], [20, 2]], [[10, 3]]]  # the seeds of a, as far as each goes
    equally_long = series[series["step"] == 10]
    plot.draw_curves(equally_long, styles, "return", path, {}, "threshold", "means over bins of")
    assert [line.get_label() for line in drawn[1].axes[0].lines] == ["a", "b"]
    assert [y for _, y in lines["threshold"]] == [4, 4]
    assert len(axis.collections) == 1  # the interval of a
    assert axis.get_title() == "E-v0, 2 seeds (1, 2; b: 1)"
    assert "bins of 10" in axis.get_xlabel()


def test_evaluations_are_drawn_where_they_make_a_curve(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plot, "save", lambda figure, path: drawn.append((path.name, figure)))
    rows = [("Long-v0", "eval_return", step, step) for step in (5, 10, 15)]
    rows += [("Short-v0", "eval_return", step, step) for step in (5, 10)]
    rows += [(env_id, "episodic_return", step, 1) for env_id in ("Long-v0", "Short-v0") for step in (5, 10, 15)]
    data = pd.DataFrame(rows, columns=["env_id", "metric", "step", "value"]).assign(variant="a", seed=1)
    plot.draw(data, "sweep", ["a"])
    assert [name for name, _ in drawn] == ["sweep.png", "sweep_evaluations.png"]
    (axis,) = drawn[1][1].axes
    assert axis.get_title() == "Long-v0, a, seed 1"
    assert axis.lines[0].get_xydata().tolist() == [[5, 5], [10, 10], [15, 15]]
    assert axis.get_xlabel() == "agent steps (points: evaluations every 5)"


def test_single_seeds_give_aggregates_without_interval(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plot, "save", lambda figure, path: drawn.append(figure))
    plot.draw_aggregates({"a": np.ones((1, 1)), "b": np.zeros((1, 1))}, plot.style_variants(["a", "b"]), "", tmp_path)
    iqm, gap, improvement = drawn[0].axes
    assert [line.get_xdata().tolist() for line in iqm.lines] == [[1], [0]]
    assert [line.get_xdata().tolist() for line in gap.lines] == [[0], [1]]
    assert improvement.lines[0].get_xdata().tolist() == [1]  # a is better than b


def test_atari_scores_name_the_57_games():
    ale_py = pytest.importorskip("ale_py")
    games = pd.read_csv(plot.ATARI_SCORES, comment="#", index_col="game")
    assert len(games) == 57
    roms = {rom.replace("_", "") for rom in ale_py.roms.get_all_rom_ids()}
    assert {game.lower() for game in games.index} <= roms
    assert not games.isna().any(axis=None)


def test_captions_say_where_runs_are_not_equally_long():
    rows = [("default", 1, 9_600), ("default", 2, 10_000)]
    data = pd.DataFrame(rows, columns=["variant", "seed", "step"]).assign(metric="last_20_episodes")
    assert plot.steps_of(data) == "10,000 steps"
    beyond = pd.DataFrame([("default", 1, 10_900, "alpha")], columns=data.columns)
    assert plot.steps_of(pd.concat([data, beyond])) == "10,000 steps"  # the last bin is not that of the runs' end
    data.loc[0, "step"] = 6_100
    assert plot.steps_of(data) == "6,100 to 10,000 steps"


def test_captions_say_where_a_run_has_fewer_than_100_games():
    data = pd.DataFrame({"metric": "last_100_episodes", "count": [100, 48]})
    assert plot.measure_of(data, "last_100_episodes").endswith("(of all where a run has fewer: 48 or more)")
    assert plot.measure_of(data[:1], "last_100_episodes") == plot.MEASURES["last_100_episodes"]
    assert plot.measure_of(data, "eval_return") == plot.MEASURES["eval_return"]


def test_captions_name_single_seeds_that_differ():
    def seeds_of(**seeds):
        rows = [{"variant": variant, "seed": seed} for variant, own in seeds.items() for seed in own]
        return plot.seeds_of(pd.DataFrame(rows))

    assert seeds_of(a=[1], b=[1]) == "seed 1"
    assert seeds_of(a=[23], b=[1]) == "a: seed 23, b: seed 1"
    assert seeds_of(a=[1, 2], b=[1, 2], c=[1]) == "2 seeds (1, 2; c: 1)"
    assert seeds_of(a=[23, 21, 22], b=[21, 22, 23]) == "3 seeds (21 to 23)"
    assert seeds_of(a=[1, 2], b=[1, 3]) == "2 seeds"
