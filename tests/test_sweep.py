"Sweeps: the file, the loop, the engines, the prediction."
import json, os, signal, subprocess, sys, time
from pathlib import Path
import pytest
import yaml
from kdda.bench import sweep as s
from kdda.bench.runs import Run, all_rows, label, ledger
from kdda.cli import main
from kdda.data.datasets import Resized, Subset, Unlabelled
from kdda.data.world import World
from kdda.learn.fit import run_lock

ROOT = Path(__file__).parent.parent
SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))
REPORTED = ("laptop", "camvid")   # what is in results/; the others say what is not yet

def write(folder, blocks, **above):
    file = folder / "s.yaml"
    file.write_text(yaml.safe_dump({"scale": "smoke", "out": str(folder / "runs"), "blocks": blocks, **above}))
    return file

def kdda(*args, start=subprocess.run, **kw):
    return start([str(Path(sys.executable).parent / "kdda"), *map(str, args)], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, **kw)

# the file

def test_a_block_is_a_product_and_no_run_is_there_twice(tmp_path):
    jobs = s.read_sweep(write(tmp_path, [{"method": ["dacs", "mic"], "scenario": ["game2city", "city2dusk"]}, {"method": "mic", "seed": 1}], seed=[0, 1]))
    assert [(j.run.scenario.name, j.run.row.name, j.run.seed) for j in jobs] == [(c, m, n) for c in ("game2city", "city2dusk") for m in ("dacs", "mic") for n in (0, 1)]
    assert {j.run.steps for j in s.read_sweep(tmp_path / "s.yaml", steps=3)} == {3}   # of the command line

def test_everything_wrong_is_said_at_once_with_file_block_and_fix(tmp_path):
    file = write(tmp_path, [{"method": "dacz"}, {"method": "duda", "options": {"tua": 1}}, {"method": "dacs", "sead": 1}, {"method": "dacs", "seed": [0, "1"]}, {"scenario": "game2city"},
                            {"method": "dacs", "student": ["mit_b0+segformer", "mit_b1+segformer"]}, {"method": "dacs", "scenario": "camvid_day2dusk", "data_root": str(tmp_path)}, {"method": "dacs", "seed": []}])
    with pytest.raises(ValueError) as e: s.read_sweep(file)
    lines = str(e.value).splitlines()
    assert str(file) in lines[0] and len(lines) == 9
    for n, text in enumerate(("did you mean 'dacs'", "did you mean 'tau'", "sead: unknown key; did you mean 'seed'", "seed: '1' is str, not int", "method: missing",
                              "student: .* write another block", "python data_scripts/camvid.py", "seed: an empty list"), 1):
        assert lines[n].strip().startswith(f"block {n}: ")
        with pytest.raises(AssertionError, match=text): raise AssertionError(lines[n])
    assert not (tmp_path / "runs").exists()

@pytest.mark.parametrize("text, why", [("", "needs a list `blocks`"), ("blocks: []", "needs a list `blocks`"), ("blocks: [dacs]", "needs a list `blocks`"), ("blocks: [", "s.yaml: .*line 1"),
                                       ("blocks:\n- method: dacs\n  seed: 0\n  method: mic\n", "line 4: the key 'method' is there twice")])
def test_what_is_no_sweep_file_is_refused(text, why, tmp_path):
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(ValueError, match=why): s.read_sweep(tmp_path / "s.yaml")

def test_two_runs_that_a_table_cannot_tell_apart_are_refused(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"weights")
    with pytest.raises(ValueError, match="block 2: dacs, seed 0: is there already with other weights"): s.read_sweep(write(tmp_path, [{"method": "dacs"}, {"method": "dacs", "weights": str(tmp_path / "w.pth")}]))
    assert len(s.read_sweep(write(tmp_path, [{"method": "kd"}, {"method": "kd", "teacher": "resnet10_nano+segformer:48"}]))) == 2   # the name says it

@pytest.mark.parametrize("file", SWEEPS, ids=lambda f: f.stem)
def test_committed_sweeps_can_run_and_hold_every_paper(file, tmp_path):
    (tmp_path / "camvid").mkdir()
    jobs = s.read_sweep(file, data_root=str(tmp_path))
    assert {len([j for j in jobs if (j.kind, j.name) == k]) for k in {(j.kind, j.name) for j in jobs}} <= {3, 5}
    for paper in ("dkd", "diga", "duda", "lsu", "esd") if file.stem in REPORTED else (): assert any(j.run.row.name.startswith(paper) for j in jobs), paper

def test_results_are_the_runs_of_the_committed_sweeps(tmp_path):
    (tmp_path / "camvid").mkdir()
    made = {(*j.kind, j.name, j.run.seed): file.stem in REPORTED for file in SWEEPS for j in s.read_sweep(file, data_root=str(tmp_path))}
    committed = {(m["scenario"], m["scale"], m["params"]["steps"], label(m), m["seed"]) for f in (ROOT / "results").glob("*/*/*/seed*.json") for m in [json.loads(f.read_text())]}
    reported = {run for run, there in made.items() if there}
    assert committed and committed == reported, f"no sweep makes {sorted(committed - reported)}; not committed {sorted(reported - committed)}"

# the loop, with an engine that only pretends

class Pretend:
    "Runs end as `plan` says: True finishes, False fails; what was not planned finishes."
    def __init__(self, plan={}, room=1): self.plan, self.most, self.working, self.started, self.stopped = {k: list(v) for k, v in plan.items()}, room, {}, [], False
    @property
    def room(self): return self.most - len(self.working)
    def start(self, run, request): self.working[run] = request; self.started.append(run.row.name); assert len(self.working) <= self.most
    def stop(self): self.stopped = True
    def ended(self):
        run = next(iter(self.working)); self.working.pop(run)
        good = (self.plan.get(run.row.name) or [True]).pop(0)
        run.folder.mkdir(parents=True, exist_ok=True)
        if isinstance(good, BaseException): raise good
        if good: (run.folder / "metrics.json").write_text(json.dumps({"method": run.row.name, "scenario": run.scenario.name, "scale": run.scale.name, "seed": run.seed, "params": run.identity,
                                                                      "student": {"name": "n", "params": 10**6, "macs": 10**7}, "scores": {"miou": 0.5}, "wall_s": 1, "scored_on": {"images": 1, "data": "d"}}))
        else: (run.folder / "run.log").write_text("Traceback\nValueError: no good\n")
        return [(run, 0 if good else 1)]

ROWS = [{"method": ["source_only", "dacs", "mic"]}]

def test_a_failed_run_is_tried_once_more_and_stops_nobody(tmp_path, capsys):
    file = write(tmp_path, ROWS)
    engine = Pretend({"source_only": [False, True], "dacs": [False, False, True]})
    failed = s.sweep(jobs := s.read_sweep(file), engine, every=0)
    assert [j.name for j in failed] == ["dacs"] and sorted(engine.started) == ["dacs", "dacs", "mic", "source_only", "source_only"] and engine.stopped
    out = capsys.readouterr().out
    assert "dacs, game2city, seed 0: failed, see " in out and "ValueError: no good" in out and "source_only, game2city, seed 0: failed, will be tried again" in out
    assert "failed" in s.grid(jobs) and "50.0" in s.grid(jobs) and "source_only" in s.show_sweep(jobs)
    engine = Pretend()
    assert s.sweep(s.read_sweep(file), engine, every=0) == [] and engine.started == ["dacs"]   # what is done is skipped

def test_an_interrupt_stops_the_engine_and_loses_nothing(tmp_path):
    engine = Pretend({"dacs": [KeyboardInterrupt()]})
    with pytest.raises(KeyboardInterrupt): s.sweep(s.read_sweep(write(tmp_path, ROWS)), engine, every=0, progress=False)
    assert engine.stopped and engine.started == ["source_only", "dacs"]
    engine = Pretend(room=2)
    assert s.sweep(s.read_sweep(tmp_path / "s.yaml"), engine, every=0, progress=False) == [] and engine.started == ["dacs", "mic"]

def test_the_table_in_a_terminal_fits_into_it(tmp_path, monkeypatch, capsys):
    jobs = s.read_sweep(write(tmp_path, [{"method": sorted(set(all_rows()) - {"lsu", "kd"}), "seed": [0, 1]}]))
    screen = s._Screen()
    screen.tty = True
    monkeypatch.setattr(os, "get_terminal_size", lambda *a: os.terminal_size((50, 12)))
    for j in jobs[:7]: j.state = "running"
    screen.draw(s.grid(jobs), "summary")
    drawn = capsys.readouterr().out
    assert drawn.count("\n") == screen.lines <= 10 and max(map(len, drawn.splitlines())) < 50 and drawn.splitlines()[-1] == "summary" and "%" in drawn
    screen.say("event")
    assert capsys.readouterr().out.startswith("\x1b[5F\x1b[J") and screen.lines == 0

# from outside

def test_the_command_runs_what_is_not_finished_and_its_exit_code_tells(tmp_path, capsys):
    file = write(tmp_path, [{"method": ["source_plain", "source_only"]}], steps=3)
    bad = Run("source_plain", scale="smoke", steps=3, out=tmp_path / "runs").folder
    (bad / "train" / "checkpoints" / "step_00000003").mkdir(parents=True)   # damaged: no manifest
    first = kdda("sweep", file, capture_output=True)
    assert first.returncode == 1, first.stderr
    assert {r["method"]: r["state"] for r in ledger(tmp_path / "runs")} == {"source_plain": "failed", "source_only": "finished"}
    assert (bad / "run.log").read_text().count("none of the 1 checkpoints is intact") == 2 and f"failed    source_plain, game2city, seed 0: {bad}" in first.stdout
    assert "Traceback" not in first.stderr + first.stdout
    (bad / "train" / "checkpoints" / "step_00000003").rmdir()
    assert main(["sweep", str(file), "--dry-run"]) == 0 and "1 of 2 runs to do" in capsys.readouterr().out
    assert main(["sweep", str(file), "--jobs", "2"]) == 0
    assert "1 of 2 runs are finished already" in (out := capsys.readouterr().out) and "source_plain" in out
    assert main(["sweep", str(file), "-p", "scale", "smokey"]) == 2 and "did you mean 'smoke'" in capsys.readouterr().err
    assert main(["sweep", str(file), "-e", "gpu", "1"]) == 2 and "engine local" in (err := capsys.readouterr().err) and "gpu" in err

def test_ended_from_outside_it_ends_its_runs(tmp_path):
    file = write(tmp_path, [{"method": "source_only"}], steps=100_000)
    folder = s.read_sweep(file)[0].run.folder
    process = kdda("sweep", file, start=subprocess.Popen, stderr=subprocess.PIPE)
    while not (folder / "params.yaml").is_file() and process.poll() is None: time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert "the same command goes on" in process.communicate(timeout=60)[1] and process.returncode == 130
    with run_lock(folder): pass   # nobody holds it

def test_missing_engines_say_what_to_install(monkeypatch):
    for name, module, extra in (("ray", "ray", "sweep"), ("slurm", "submitit", "slurm")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ImportError, match=rf"pip install 'kdda\[{extra}\]'"): s.ENGINES[name]()

@pytest.mark.slow
@pytest.mark.parametrize("name, module", [("ray", "ray"), ("slurm", "submitit")])
def test_engines_for_real(name, module, tmp_path, monkeypatch):
    "A run that fails twice, two that do not, one of which waits for the other's network."
    pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    jobs = s.read_sweep(write(tmp_path, [{"method": ["source_plain", "source_only", "adabn"]}], steps=3, out="runs"))   # a path that means something only here
    (jobs[0].run.folder / "train" / "checkpoints" / "step_00000003").mkdir(parents=True)
    make = {"ray": lambda: s.Ray(cpus=1), "slurm": lambda: s.Slurm(cluster="local", folder=tmp_path / "submitit", timeout_min=5)}[name]
    assert s.sweep(jobs, make()) == [jobs[0]] and jobs[0].tries == 2 and all(j.run.metrics for j in jobs[1:])
    assert (jobs[0].run.folder / "run.log").read_text().count("none of the 1 checkpoints is intact") == 2
    (jobs[0].run.folder / "train" / "checkpoints" / "step_00000003").rmdir()
    assert s.sweep(s.read_sweep(tmp_path / "s.yaml"), make()) == []

@pytest.mark.slow
@pytest.mark.parametrize("name, module", [("ray", "ray"), ("slurm", "submitit")])
def test_engines_end_their_runs_at_an_interrupt(name, module, tmp_path):
    pytest.importorskip(module)
    file = write(tmp_path, [{"method": "source_only"}], steps=100_000)
    folder = s.read_sweep(file)[0].run.folder
    process = kdda("sweep", file, "--engine", name, *(["-e", "cluster", "local", "-e", "folder", tmp_path / "submitit"] if name == "slurm" else []), start=subprocess.Popen, stderr=subprocess.PIPE)
    while not (folder / "params.yaml").is_file() and process.poll() is None: time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert "the same command goes on" in process.communicate(timeout=120)[1] and process.returncode == 130
    for _ in range(100):
        try:
            with run_lock(folder): break
        except RuntimeError: time.sleep(0.2)
    else: pytest.fail("somebody still trains there")

@pytest.mark.slow
def test_a_job_out_of_time_is_queued_again_and_goes_on(tmp_path):
    pytest.importorskip("submitit")
    engine = s.Slurm(cluster="local", folder=tmp_path / "submitit", timeout_min=5)
    job, = s.read_sweep(write(tmp_path, [{"method": "source_only"}], steps=400))
    engine.start(job.run, job.request)
    handle, = engine.working.values()
    checkpoints = job.run.folder / "train" / "checkpoints"
    while not list(checkpoints.glob("step_*")): time.sleep(0.05); assert engine.ended() == []
    task = subprocess.run(["pgrep", "-P", str(handle._process.pid)], capture_output=True, text=True).stdout
    os.kill(int(task), signal.SIGUSR2)   # as SLURM does before the time is up
    while not (ended := engine.ended()): time.sleep(0.2)
    assert ended == [(job.run, 0)] and job.run.metrics["resumed"] and "resuming" in (job.run.folder / "run.log").read_text()

# the prediction

def test_a_probe_measures_the_row_and_what_it_stands_on(tmp_path):
    found = s.probe(dict(method="kd", scale="smoke"))
    run, teacher = Run("kd", scale="smoke", out=tmp_path), Run("daformer", scale="smoke", student="resnet10_slim+lraspp:64", out=tmp_path)
    assert [Path(tmp_path / p["folder"]) for p in found["parts"]] == [teacher.folder, run.folder]   # the very runs that will be made
    assert [(name, steps) for p in found["parts"] for name, steps, _ in p["stages"]] == [("warm_up", 3), ("adapt", 3), ("distil", 6)]
    assert all(t > 0 for p in found["parts"] for _, _, t in p["stages"]) and found["memory"] > 2**27
    todo = lambda: s.show_plan(found, tmp_path).splitlines()
    assert not any(line.endswith("finished") for line in todo()) and "CPU thread" in todo()[-1] or "CUDA" in todo()[-1]
    teacher.folder.mkdir(parents=True); (teacher.folder / "metrics.json").write_text("{}")
    assert [line.endswith("finished") for line in todo()] == [False, True, True, True, False, False, False]

def test_labelling_is_predicted_for_all_frames(tmp_path):
    found = s.probe(dict(method="lsu", scenario="urban_world", scale="smoke"))
    assert [p["labelling"] > 0 for p in found["parts"]] == [False, True]
    assert [r[2] for r in s.times(found, tmp_path)] == ["train", "scoring", "labelling", "train", "scoring"]
    few = Subset(World("city", n=8, size=(32, 64)), range(4))
    few.whole = 400
    for frames, times in ((few, 100), (Resized(Unlabelled(few), (16, 32)), 100), (World("city", n=4, size=(32, 64)), 1)):
        run = s.Probe("lsu", scenario="urban_world", scale="smoke", out=tmp_path)
        run.pass_over(frames, lambda: time.sleep(0.02))
        assert 1 <= run.labelling / (0.02 * times) < 3

@pytest.mark.parametrize("request_, why", [({"foo": 1}, "foo: unknown key. There are: scenario, method"), ({"scenario": ["game2city"]}, "scenario: a list; a plan is of one row"), ({"options": [1]}, "options: .* is list, not dict")])
def test_a_plan_of_what_is_no_run_is_refused(request_, why):
    with pytest.raises(ValueError, match=why): s.plan({"method": "dacs", **request_})

def test_a_recipe_that_cannot_be_tried_is_explained(tmp_path):
    for request, why in ((dict(scenario="gta2cityscapes", data_root=str(tmp_path)), "data_scripts/gta5.py"), (dict(weights=str(tmp_path / "w.pth")), "the probe failed")):
        (tmp_path / "w.pth").write_bytes(b"not weights")
        assert why in s.show_plan(s.plan({"method": "duda", "scale": "smoke", **request}))

def test_rows_and_scenarios_of_ones_own_reach_other_processes(tmp_path):
    (tmp_path / "mine.py").write_text("""
from kdda.bench.scenarios import scenario, world_data
from kdda.data.catalogue import add
from kdda.data.datasets import Bytes, Layout, Tree
from kdda.data.labels import Taxonomy
from kdda.learn.fit import Stage
from kdda.learn.rows import row
from kdda.learn.selftrain import Supervised
@scenario("city2fog", "the city -> the city in fog")
def city2fog(role, scale, root): return world_data("city" if role == "source" else "fog", role, scale)
@row("my_row", "cross-entropy on source, mine")
def my_row(task): return [Stage("train", lambda _: Supervised(task.net()), {"source": task.stream("source")}, task.steps)]
add(Layout("mine", Tree("images/{split}/{stem}.png", {"masks/{split}/{stem}.png": Bytes()}), Taxonomy("mine", (dict(name="thing", id=1, color=(9, 9, 9)),)),
           spaces={"mine_1": "id"}, splits={"train": None}, size=None, licence="mine", address="our camera"))
""")
    (tmp_path / "grid.yaml").write_text("about: mine\nscale: smoke\nblocks:\n  - {scenario: city2fog, method: my_row}\n")
    command = str(Path(sys.executable).parent / "kdda")
    call = lambda *args, **env: subprocess.run([command, *map(str, args)], cwd=tmp_path, capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1", **env})
    assert "no method called 'my_row'" in (bad := call("sweep", "grid.yaml")).stderr and bad.returncode == 2
    good = call("sweep", "grid.yaml", "-p", "out", tmp_path / "runs", KDDA_IMPORT="mine")
    assert good.returncode == 0, good.stderr[-2000:]
    assert len(list((tmp_path / "runs/smoke/city2fog/my_row").glob("seed0-*/metrics.json"))) == 1
    looked = call("check", "mine", tmp_path / "nowhere", KDDA_IMPORT="mine")
    assert "it comes from our camera" in looked.stdout + looked.stderr and "data_scripts" not in looked.stdout

def test_a_sweep_passes_precision_and_compile_on(tmp_path):
    job, = s.read_sweep(write(tmp_path, [{"scenario": "game2city", "method": "dacs", "precision": "bf16", "compile": True}]))
    assert job.run.scale.precision == "bf16" and job.run.compile is True
    for block, text in (({"compile": 1}, "compile: 1 is int, not bool"), ({"seed": True}, "seed: True is bool, not int"), ({"precision": "fp16"}, "no precision called 'fp16'")):
        with pytest.raises(ValueError, match=text): s.read_sweep(write(tmp_path, [{"scenario": "game2city", "method": "dacs", **block}]))
