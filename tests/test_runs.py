"Runs, their parameters, and the command line, from outside."
import json, os, subprocess, sys
from dataclasses import replace
from pathlib import Path
import numpy as np
import pytest
import torch
from PIL import Image
from kdda.bench.runs import Run, all_rows, at_root, compare_results, evaluate, execute, execute_all, export_results, label, last_line, ledger, on_unseen, show_curves, show_table, table
from kdda.data.datasets import DataError
from kdda.data.world import World
from kdda.cli import main
from kdda.learn.rows import SHARE, Between
from kdda.nets.segmenter import WeightsError, segmenter

ROOT = Path(__file__).parent.parent
SMALL = dict(scale="smoke", data_root=None)

def kdda(*args, cwd=ROOT, **env):
    env = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    return subprocess.run([str(Path(sys.executable).parent / "kdda"), *map(str, args)], cwd=cwd, env=env, capture_output=True, text=True, timeout=600)

def test_metrics_json_has_what_tables_need(tmp_path):
    m = execute(Run("dacs", out=tmp_path, **SMALL), progress=False)
    for key in ("schema", "status", "benchmark", "method", "scenario", "scale", "seed", "steps", "student", "scores", "scored_on", "wall_s", "versions"): assert key in m
    assert set(m["student"]) == {"name", "params", "macs"} and m["status"] == "finished"
    s = m["scores"]
    assert 0 <= s["miou"] <= 1 and 0 <= s["pixel_accuracy"] <= 1 and len(s["iou"]) == 19 and isinstance(s["absent"], list)
    assert len(s["images"]) == m["scored_on"]["images"] and all(0 <= v <= 1 for v in s["images"])
    assert sorted(p.name for p in Run("dacs", out=tmp_path, **SMALL).folder.iterdir() if p.is_file() and not p.name.startswith(".")) == [
        "env.json", "history.csv", "metrics.json", "params.yaml", "student.safetensors"]

def test_the_stored_student_scores_as_the_metrics_say(tmp_path):
    run = Run("source_only", out=tmp_path, **SMALL)
    m = execute(run, progress=False)
    again = evaluate(run.load_student(), run.data("test"), 2)
    assert again["miou"] == pytest.approx(m["scores"]["miou"], abs=1e-6) and again["iou"] == pytest.approx(m["scores"]["iou"], abs=1e-6, nan_ok=True)

@pytest.mark.parametrize("method", ["source_plain", "oracle", "daformer", "mic", "kd"])
def test_every_row_runs(method, tmp_path):
    assert execute(Run(method, out=tmp_path, **SMALL), progress=False)["method"] == method

def test_digest_covers_what_determines_the_result():
    ids = {Run(**{**SMALL, **c}).id for c in ({}, {"seed": 1}, {"steps": 7}, {"student": "mit_nano+segformer"}, {"method": "mic"})}
    assert len(ids) == 5
    other = Run(**SMALL); plain = other.id
    other.scale = replace(other.scale, ema_decay=0.5)
    assert other.id != plain
    assert Run(out="elsewhere", **SMALL).id == Run(benchmark="other", **SMALL).id

def test_a_scenario_without_its_data_is_refused_with_the_command(tmp_path):
    for scenario, name in (("camvid_day2dusk", "camvid"), ("gta2cityscapes", "gta5")):
        with pytest.raises(ValueError, match=f"data_scripts/{name}.py"): Run(scenario=scenario, scale="smoke", data_root=str(tmp_path))
    assert not list(tmp_path.iterdir())

def test_gta2cityscapes_runs_on_trees_the_world_writes(tmp_path):
    "The real loaders, resizing, crops and native-size scoring, end to end without a licensed pixel."
    World("game", n=6, size=(96, 176)).export("gta5", tmp_path / "gta5")
    for split, n in (("train", 4), ("val", 3)): World("city", n=n, size=(128, 256), split=split).export("cityscapes", tmp_path / "cityscapes", split=split)
    run = Run("dacs", scenario="gta2cityscapes", scale="smoke", data_root=str(tmp_path), out=tmp_path / "runs")
    m = execute(run, progress=False)
    assert m["scored_on"]["images"] == 3 and run.data("test").label(0).shape == (128, 256) and run.data("test").image(0).shape == (64, 128, 3)

def test_real_frames(camvid_root, tmp_path):
    for scenario in ("camvid_day2dusk", "game2camvid"):
        m = execute(Run("dacs", scenario=scenario, scale="smoke", data_root=str(camvid_root), out=tmp_path), progress=False)
        assert len(m["scores"]["iou"]) == 11
    run = Run("dacs", scenario="camvid_day2dusk", scale="smoke", data_root=str(camvid_root))
    keys = {role: {run.data(role).key(i) for i in range(len(run.data(role)))} for role in ("source", "target", "test")}
    assert [len(keys[r]) for r in keys] == [305, 31, 31]
    assert not keys["target"] & keys["test"] and not keys["source"] & keys["test"]

def test_bad_job_counts_and_empty_lists_are_refused():
    with pytest.raises(ValueError, match="jobs = -1"): execute_all([dict(out="nowhere", **SMALL)], jobs=-1, progress=False)
    with pytest.raises(ValueError, match="nothing to run"): execute_all([])

def test_majority_guess_is_what_a_constant_prediction_scores(tmp_path):
    import torch
    class Constant(torch.nn.Module):
        def __init__(self, c): super().__init__(); self.c, self.p = c, torch.nn.Parameter(torch.zeros(1))
        def forward(self, x):
            out = torch.zeros(len(x), 19, *x.shape[-2:]); out[:, self.c] = 1
            return out
    data = World("city", n=3, size=(32, 64), split="test")
    guess = evaluate(Constant(0), data)["majority_guess"]
    scores = evaluate(Constant(data.space.index(guess["class"])), data)
    assert scores["pixel_accuracy"] == pytest.approx(guess["pixel_accuracy"]) and scores["miou"] == pytest.approx(guess["miou"])

def test_two_processes_make_one_run_and_what_it_needs(tmp_path):
    run = Run("adabn", out=tmp_path, nproc=2, **SMALL)
    assert execute(run, progress=False)["status"] == "finished"
    assert {r["method"]: r["state"] for r in ledger(tmp_path)} == {"source_only": "finished", "adabn": "finished"}
    assert json.loads((run.folder / "env.json").read_text())["processes"] == 2
    assert Run("adabn", out=tmp_path, **SMALL).metrics == run.metrics   # found, whoever asks
    assert not [f for f in tmp_path.rglob("*") if ".tmp" in f.name]

def test_a_failed_run_leaves_its_error_and_does_not_stop_the_rest(tmp_path):
    bad = Run("source_only", out=tmp_path, **SMALL)
    (bad.folder / "train" / "checkpoints" / "step_00000006").mkdir(parents=True)   # damaged: no manifest
    rows = execute_all([dict(method=m, out=tmp_path, **SMALL) for m in ("source_only", "oracle")], progress=False)
    assert rows[0] is None and rows[1]["method"] == "oracle"
    assert {r["method"]: r["state"] for r in ledger(tmp_path)} == {"source_only": "failed", "oracle": "finished"}
    assert "none of the 1 checkpoints is intact" in (bad.folder / "error.txt").read_text() and "none of the 1 checkpoints is intact" in last_line(bad)

def test_what_a_run_died_of_is_one_line_with_the_reason(tmp_path):
    torch.save(segmenter("resnet18+linear").backbone.state_dict(), tmp_path / "other.pth")
    with pytest.raises(WeightsError): execute(run := Run("source_only", out=tmp_path, weights=str(tmp_path / "other.pth"), **SMALL), progress=False)
    assert last_line(run).startswith("WeightsError: ") and "other.pth does not fit resnet10_nano" in last_line(run)
    run.folder.joinpath("error.txt").unlink()
    assert last_line(run) == "(empty)"

def test_a_test_frame_without_its_label_is_found_before_training(tmp_path):
    World("game", n=3, size=(64, 128)).export("gta5", tmp_path / "gta5")
    for split in ("train", "val"): World("city", n=3, size=(64, 128), split=split).export("cityscapes", tmp_path / "cityscapes", split=split)
    for f in (tmp_path / "cityscapes/gtFine/val").rglob("*.png"): f.write_bytes(b"")
    run = Run("source_only", "gta2cityscapes", "smoke", data_root=tmp_path, out=tmp_path / "runs")
    with pytest.raises(DataError, match="gtFine/val"): execute(run, progress=False)
    assert not list(run.folder.rglob("checkpoints"))

def test_a_run_that_is_not_finished_has_no_student():
    with pytest.raises(FileNotFoundError, match="student.safetensors: not there yet; `execute` this run first"): Run("dacs", out="/nowhere", **SMALL).load_student()

def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for layout in ("gta5", "cityscapes"): (tmp_path / "data" / layout).mkdir(parents=True)
    torch.save({}, tmp_path / "w.pth")
    run = Run("dacs", "gta2cityscapes", "smoke", data_root="~/data", weights="~/w.pth")
    assert run.data_root == str(tmp_path / "data") and run.weights == str(tmp_path / "w.pth")
    monkeypatch.setenv("KDDA_DATA", "~/data")
    assert Run("dacs", "gta2cityscapes", "smoke").data_root == str(tmp_path / "data")

def test_curves_are_called_what_sets_their_runs_apart(tmp_path):
    runs = [Run("dacs", out=tmp_path, **SMALL), Run("dacs", out=tmp_path, **{**SMALL, "student": "resnet10_nano+segformer:16"})]
    for r in runs: execute(r, progress=False, say=lambda s: None)
    assert [t.get_text() for t in show_curves(runs).axes[0].get_legend().get_texts()] == [label(r.metrics) for r in runs] and len({label(r.metrics) for r in runs}) == 2

def test_what_cannot_be_read_is_named_and_what_is_not_known_is_left_out(tmp_path):
    run = Run("source_only", out=tmp_path, **SMALL); execute(run, progress=False)
    strange = tmp_path / "laptop" / "gone" / "mine" / "seed0-00000000"
    strange.mkdir(parents=True)
    (strange / "params.yaml").write_text("{scale: laptop, scenario: gone, method: mine, seed: 0}")
    (strange / "metrics.json").write_text(json.dumps({"scores": {"miou": 0.5}}))
    assert len(ledger(tmp_path)) == 2 and export_results(tmp_path, tmp_path / "results") == []
    for name, text in (("metrics.json", '{"half": '), ("params.yaml", "")):
        (strange / name).write_text(text)
        with pytest.raises(ValueError, match=f"{name}: cannot be read .*Remove the folder"): ledger(tmp_path)
        (strange / name).write_text('{"scale": "laptop", "scenario": "gone", "method": "mine", "seed": 0, "scores": {"miou": 0.5}}')

def test_runs_from_weights_are_not_presented_as_others(tmp_path):
    run = Run("source_only", out=tmp_path, seed=3)
    plain = {**run.identity, "weights": None}
    for k, (folder, weights) in enumerate((("plain", None), ("pretrained", "0" * 64))):
        d = run.folder.parent / f"seed3-{k:08x}"; d.mkdir(parents=True)
        (d / "params.yaml").write_text(json.dumps({**plain, "weights": weights, "benchmark": "run"}))
        (d / "metrics.json").write_text(json.dumps(fake("source_only", 3, 0.5, params={**plain, "weights": weights}) | {"scenario": "game2city"}))
    written = export_results(tmp_path, tmp_path / "results")
    assert len(written) == 1 and json.loads(written[0].read_text())["params"]["weights"] is None

def fake(method, seed, miou, **more):
    return {"scenario": "s", "scale": "laptop", "steps": 5, "seed": seed, "method": method, "params": {"options": {}, "steps": 5, **more.pop("params", {})}, "scores": {"miou": miou}, "student": {"name": "n", "params": 10**6, "macs": 10**7}, "scored_on": {"images": 1, "data": "d"}, **more}

def test_table_pairs_by_seed():
    rows = table([fake("source_only", 0, 0.40), fake("source_only", 1, 0.50), fake("dacs", 0, 0.46), fake("dacs", 1, 0.54)])
    dacs = next(r for r in rows if r["method"] == "dacs")
    assert dacs["gain"] == pytest.approx(5) and dacs["gain_std"] == pytest.approx(np.std([6, 4], ddof=1)) and dacs["miou"] == pytest.approx(50)
    with pytest.raises(ValueError, match="never mixes"): table([fake("dacs", 0, 0.1), fake("dacs", 0, 0.1, scenario="other")])
    with pytest.raises(ValueError, match="two runs of dacs with seed 0"): table([fake("dacs", 0, 0.1), fake("dacs", 0, 0.2)])
    assert np.isnan(table([fake("dacs", 0, None)])[0]["miou"])   # an all-void test set has no score
    with pytest.raises(ValueError, match="never mixes"): table([fake("dacs", 0, 0.1), fake("source_only", 0, 0.1, params={"steps": 6})])

def test_table_compares_a_row_with_its_fair_baseline():
    rows = {r["method"]: r for r in table([fake("duda_kd", 0, 0.50), fake("duda_kd", 1, 0.52), fake("duda", 0, 0.53), fake("duda", 1, 0.53)])}
    assert rows["duda"]["against"] == "duda_kd" and rows["duda"]["fair"] == pytest.approx(2) and rows["duda"]["fair_std"] == pytest.approx(np.std([3, 1], ddof=1))
    assert np.isnan(rows["duda_kd"]["fair"]) and rows["duda_kd"]["against"] == "daformer"   # not in this table
    assert "+2.0 (std 1.4) over duda_kd" in show_table([fake("duda_kd", 0, 0.50), fake("duda_kd", 1, 0.52), fake("duda", 0, 0.53), fake("duda", 1, 0.53)])

def test_the_fair_baseline_has_the_same_options():
    few = {"params": {"options": {"budget": 16}}}
    rows = {r["method"]: r for r in table([fake("sd", 0, 0.40), fake("sd", 0, 0.30, **few), fake("esd", 0, 0.33, **few), fake("esd", 0, 0.43, params={"options": {"mix": "balanced"}})], baseline="sd")}
    assert rows["esd (budget=16)"]["against"] == "sd (budget=16)" and rows["esd (budget=16)"]["fair"] == pytest.approx(3)
    assert rows["esd (mix=balanced)"]["against"] == "sd" and rows["esd (mix=balanced)"]["fair"] == pytest.approx(3)   # an option that sd has not

def test_the_fair_baseline_is_of_the_same_network():
    small = {"scenario": "game2city"}
    large = lambda: {"params": {"student": "resnet10_slim+segformer:96"}, **small}
    rows = {r["method"]: r for r in table([fake("adversarial", 0, 0.40, **small), fake("adversarial", 0, 0.45, **large()), fake("source_only", 0, 0.30, **small), fake("source_only", 0, 0.33, **large())])}
    assert rows["adversarial (resnet10_slim+segformer:96)"]["fair"] == pytest.approx(12) and rows["adversarial"]["fair"] == pytest.approx(10)

def test_the_fair_baseline_keeps_the_teacher_that_it_uses_too():
    other = lambda method, miou: fake(method, 0, miou, scenario="game2city", params={"teacher": "resnet10_slim+segformer:32"})
    rows = {r["method"]: r for r in table([other("duda", .53), other("duda_kd", .50), fake("daformer", 0, .45, scenario="game2city")])}
    assert rows["duda (resnet10_slim+segformer:32)"]["fair"] == pytest.approx(3) and rows["duda_kd (resnet10_slim+segformer:32)"]["fair"] == pytest.approx(5)

def test_an_option_that_means_something_else_in_the_fair_baseline_is_not_carried_over():
    rows = {r["method"]: r for r in table([fake("fewshot", 0, .40), fake("fewshot", 0, .30, params={"options": {"share": .25}}), fake("sd", 0, .43, params={"options": {"share": .25}})])}
    assert rows["sd (share=0.25)"]["against"] == "fewshot"     # there it is the share of steps left out

def test_a_baseline_is_found_by_its_method_alone_where_there_is_no_doubt():
    larger = lambda method, miou: fake(method, 0, miou, scenario="game2city", params={"student": "mit_b0+segformer"})
    rows = [larger("source_only", .3), larger("dacs", .4)]
    assert table(rows)[1]["gain"] == pytest.approx(10) and "gain: paired by seed, to source_only (mit_b0+segformer)" in show_table(rows)
    assert np.isnan(table([larger("dacs", .4), fake("dacs", 0, .3, scenario="game2city")], "source_only")[0]["gain"])      # none
    two = [larger("dacs", .4), larger("source_only", .3), fake("source_only", 0, .3, scenario="game2city", params={"student": "mit_b1+segformer"})]
    assert np.isnan(table(two)[0]["gain"])                                                                                  # or two

def test_a_table_tells_the_time_of_a_frame():
    rows = [fake(m, 0, .3, scenario="game2city", student={"name": n, "params": 10**6, "macs": 10**7}) for m, n in (("source_only", "resnet10_nano+segformer:48"), ("dacs", "resnet10_slim+segformer:96"))]
    plain, timed = show_table(rows).splitlines(), show_table(rows, timed=True).splitlines()
    assert timed[0].split() == ["method", "seeds", "params", "MACs", "ms", *plain[0].split()[4:]]
    small, large = (float(line.split()[4]) for line in timed[1:3])
    assert 0 < small < large and [line.split()[:4] + line.split()[5:] for line in timed[1:3]] == [line.split() for line in plain[1:3]]

def test_label_says_what_sets_a_run_apart():
    of = lambda method, **kw: label((r := Run(method, scale="smoke", **kw)).identity | {"params": r.identity})
    assert of("dacs") == "dacs" and of("adabn") == "adabn (source_only)"
    assert of("duda", options={"inconsistency": "jsd", "tau": 0.25}) == "duda (jsd, tau=0.25)"
    assert of("dacs", student="resnet10_slim+segformer:16") == "dacs (resnet10_slim+segformer:16)"

def test_every_row_names_a_fair_baseline_that_exists():
    for r in all_rows().values(): assert r.against.split()[0] in all_rows(), r.name

@pytest.mark.parametrize("name, option", [(name, o) for name, r in all_rows().items() for o in r.choices])
def test_an_option_that_has_choices_is_refused_before_anything_is_trained(name, option, tmp_path):
    with pytest.raises(ValueError, match=f"no {option} of {name} called 'nonsense'"): Run(name, scale="smoke", out=tmp_path, options={option: "nonsense"})
    assert all_rows()[name].options[option] in all_rows()[name].choices[option] and not list(tmp_path.iterdir())

@pytest.mark.parametrize("name, option", [(name, o) for name, r in all_rows().items() for o in r.limits])
def test_a_number_that_cannot_be_is_refused_before_anything_is_trained(name, option, tmp_path):
    kind, limits = all_rows()[name].limits[option]
    for bad, error in (("nonsense", TypeError), (1 if kind is bool else kind(limits.low - 1) - 1, TypeError if kind is bool else ValueError), (limits.high + 1 if limits.high < 2 else float("nan"), (TypeError, ValueError))):
        with pytest.raises(error, match=f"option {option} of {name} = "): Run(name, scale="smoke", out=tmp_path, options={option: bad})
    assert not list(tmp_path.iterdir())

def test_limits_of_options():
    limits = all_rows()["esd"].limits
    assert limits["share"] == (float, SHARE) and limits["draw"] == (int, Between(-1)) and limits["disturb"][0] is bool and "kind" not in limits
    for value in (0, 0.3, 1): Run("esd", "fewshot_city", "smoke", options={"share": value})
    with pytest.raises(ValueError, match="share of esd = 1.5; it must be from 0 to 1"): Run("esd", "fewshot_city", "smoke", options={"share": 1.5})
    with pytest.raises(TypeError, match="budget of esd = 'all'; it must be a whole number"): Run("esd", "fewshot_city", "smoke", options={"budget": "all"})

def test_runs_are_compared_with_committed_ones_and_exported(tmp_path, capsys):
    results = Path(__file__).parents[1] / "results"
    for seed, change in ((0, 0.0), (1, 0.01)):
        m = json.loads((results / f"laptop/game2city/dacs/seed{seed}.json").read_text())
        m["scores"]["miou"] += change
        folder = tmp_path / "runs/laptop/game2city/dacs" / m["run_id"]; folder.mkdir(parents=True)
        (folder / "params.yaml").write_text(json.dumps(m["params"])); (folder / "metrics.json").write_text(json.dumps(m))
    first, second = compare_results(tmp_path / "runs", results)
    assert first["row"] == "dacs" and first["same"] and first["here"] == first["committed"] and not second["same"] and second["here"] - second["committed"] == pytest.approx(1)
    assert main(["runs", "--out", str(tmp_path / "runs"), "--compare", str(results)]) == 0
    assert "2 runs, 1 the same to the last digit; differences: mean +0.50, standard deviation 0.50, largest 1.0 points" in capsys.readouterr().out
    assert main(["runs", "--out", str(tmp_path / "runs"), "--export", str(tmp_path / "again")]) == 0
    assert all(r["same"] for r in compare_results(tmp_path / "runs", tmp_path / "again"))
    assert main(["runs", "--out", str(tmp_path / "none"), "--compare", str(results)]) == 2 and "no finished run below" in capsys.readouterr().err

def test_a_benchmark_opened_in_its_folder_works_at_the_root(tmp_path, monkeypatch):
    folder = tmp_path / "nbs/benchmarks"; folder.mkdir(parents=True)
    monkeypatch.chdir(folder); at_root()
    assert Path.cwd() == folder                       # no checkout
    (tmp_path / "settings.ini").touch(); at_root()
    assert Path.cwd() == tmp_path
    at_root()
    assert Path.cwd() == tmp_path

def test_unseen_domains_are_scored_and_no_stream_sees_them(tmp_path):
    run = Run("source_only", out=tmp_path, **SMALL)
    m = execute(run, progress=False)
    assert list(m["unseen"]) == list(run.scenario.unseen) and all(0 <= v <= 1 for v in m["unseen"].values())
    assert set(run._data) == {"source", "val", "test"}
    assert on_unseen(m)["scores"]["miou"] == pytest.approx(np.mean(list(m["unseen"].values())))

def test_the_curve_has_scores_that_need_no_labels(tmp_path):
    c = execute(Run("dacs", out=tmp_path, **SMALL), progress=False)["curve"]
    assert set(c) == {"step", "miou", "pixel_accuracy", "entropy", "mutual_information", "agreement"} and len({len(v) for v in c.values()}) == 1
    assert all(0 <= v <= 1 for k, column in c.items() if k != "step" for v in column if v is not None)
    assert None in c["agreement"] and c["agreement"][-1] is not None   # while it warms up it has no teacher
    assert "agreement" not in execute(Run("source_only", out=tmp_path, **SMALL), progress=False)["curve"]

def test_a_scenario_may_need_a_folder_that_kdda_does_not_describe(tmp_path, monkeypatch):
    from kdda.bench import scenarios
    monkeypatch.setattr(scenarios, "SCENARIOS", dict(scenarios.SCENARIOS))
    scenarios.scenario("elsewhere", "mine", needs=("my_frames",))(lambda role, scale, root: None)
    with pytest.raises(ValueError, match="my_frames: no such folder; scenario elsewhere needs it; .*for you to put there"): scenarios.SCENARIOS["elsewhere"].check(tmp_path)
    with pytest.raises(ValueError, match="there is a scenario 'game2city' already"): scenarios.scenario("game2city", "mine")(lambda role, scale, root: None)

def test_committed_results_are_sound():
    files = list((ROOT / "results").glob("*/*/*/seed*.json"))
    for f in files:
        m = json.loads(f.read_text())
        scale, scenario, row = f.relative_to(ROOT / "results").parts[:3]
        assert (m["status"], m["scale"], m["scenario"], f"seed{m['seed']}") == ("finished", scale, scenario, f.stem)
        assert row.split("-")[0] == m["method"] and 0 < m["scores"]["miou"] < 1
        classes = [v for v in m["scores"]["iou"].values() if v is not None]
        assert m["scores"]["miou"] == pytest.approx(np.mean(classes), abs=1e-6)

# the command line

def test_bench_runs_the_quickstart_and_refuses_bad_parameters_first(tmp_path):
    for args, text in ((["-p", "sclae", "smoke"], "did you mean 'scale'"), (["-p", "seeds", "three"], "parameter seeds: 'three' is not list, such as [0]"), (["-p", "seeds", "[0,"], "parameter seeds: '[0,' is not list"), (["-p", "scale", "smokey", "-p", "out", tmp_path], "did you mean 'smoke'")):
        done = kdda("bench", "quickstart", *args)
        assert done.returncode == 2 and text in done.stderr + done.stdout, done.stderr
    assert not list(tmp_path.rglob("checkpoints"))
    done = kdda("bench", "quickstart", "-p", "scale", "smoke", "-p", "out", tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "source_only" in done.stdout and "adabn (dacs)" in done.stdout and "oracle" in done.stdout
    page = next(tmp_path.glob("*.html"))
    assert page.stat().st_size > 50_000 and page.with_suffix(".ipynb").is_file()
    listed = kdda("runs", "--out", tmp_path)
    assert listed.stdout.count("finished") == 5
    again = kdda("bench", "quickstart", "-p", "scale", "smoke", "-p", "out", tmp_path)
    assert again.returncode == 0 and "source_only" in again.stdout

def test_plain_papermill_refuses_unknown_parameters_too(tmp_path):
    bad = subprocess.run([sys.executable, "-m", "papermill", "nbs/benchmarks/quickstart.ipynb", str(tmp_path / "out.ipynb"), "-k", "python3", "-p", "sclae", "smoke", "-p", "out", str(tmp_path / "runs")],
                         cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert bad.returncode != 0 and "unknown parameter 'sclae'" in bad.stderr and not (tmp_path / "runs").exists()

def test_check_lists_all_faults_and_fails(tmp_path):
    World("city", n=3, size=(64, 128)).export("cityscapes", tmp_path, split="train")
    World("city", n=2, size=(64, 128), split="val").export("cityscapes", tmp_path, split="val")
    good = kdda("check", "cityscapes", tmp_path)
    images, labels = sorted(tmp_path.glob("leftImg8bit/train/*/*.png")), sorted(tmp_path.glob("gtFine/train/*/*_labelIds.png"))
    images[0].write_bytes(b"")
    Image.fromarray(np.full((64, 128), 77, np.uint8)).save(labels[1])
    bad = kdda("check", "cityscapes", tmp_path)
    assert bad.returncode == 1 and images[0].name in bad.stdout and labels[1].name in bad.stdout and "77" in bad.stdout
    assert good.returncode == 0, good.stdout
    assert kdda("check", "cityscopes", tmp_path).returncode == 2

def test_bench_says_what_a_notebook_takes(tmp_path):
    done = kdda("bench", "spirit", "--list")
    assert done.returncode == 0 and len(done.stdout.splitlines()) > 10 and 'budget          int    64' in done.stdout and "labelled frames; 0: all" in done.stdout

def test_plan_without_an_answer_fails_and_says_why(tmp_path):
    done = kdda("plan", "dacs", "-p", "scenario", "gta2cityscapes", "-p", "data_root", tmp_path)
    assert done.returncode == 1 and f"{tmp_path}/gta5" in done.stdout
    bad = kdda("plan", "dacs", "-p", "steps", "[1")
    assert bad.returncode == 2 and "parameter steps: '[1' is not YAML" in bad.stderr and "<unicode string>" not in bad.stderr

def test_modules_of_yours_that_are_not_there_are_named(tmp_path):
    done = kdda("plan", "dacs", cwd=tmp_path, KDDA_IMPORT="nothere")
    assert done.returncode == 2 and f"KDDA_IMPORT=nothere: no module 'nothere' in {tmp_path} or among the installed ones" in done.stderr
    (tmp_path / "mine.py").write_text("import nothere_either")
    done = kdda("plan", "dacs", cwd=tmp_path, KDDA_IMPORT="mine")
    assert done.returncode == 2 and "No module named 'nothere_either'" in done.stderr

def test_help_and_unknown_benchmark():
    assert "bench" in kdda("--help").stdout
    done = kdda("bench", "nothing")
    assert done.returncode == 2 and "quickstart" in done.stderr and "Traceback" not in done.stderr
