"Every benchmark notebook runs through papermill as it is published, at scale smoke, and they all speak one language of parameters."
import json, os, re, resource, subprocess, sys
from pathlib import Path
import nbformat
import pytest
from kdda.bench.runs import ledger
from kdda.data.world import World

ROOT = Path(__file__).resolve().parents[1]
JOBS = {  # notebook: parameters, rows that must have been trained
    "quickstart": ({}, {"source_only", "dacs", "oracle", "adabn"}),
    "dkd": ({"method": "dkd_both"}, {"source_only", "adversarial", "dkd_both"}),
    "diga": ({"rows": ["diga_photo_ce"]}, {"source_only", "diga_photo_ce", "diga", "oracle"}),
    "duda": ({"method": "duda"}, {"source_only", "daformer", "duda_stage1", "duda", "oracle"}),
    "lsu": ({"method": "lsu"}, {"lsu_source", "lsu", "lsu_oracle"}),
    "spirit": ({"method": "esd"}, {"source_only", "fewshot", "esd"}),
    "report": ({"scenario": "camvid_day2dusk"}, set())}
COMMON = ("scenario", "scale", "method", "seeds", "steps", "student", "weights", "data_root", "out", "jobs", "nproc", "precision", "compile")   # of every job that trains, with one meaning

def parameters(name):  # -> {name: (type, default, what the comment says)}
    cell, = (c for c in nbformat.read(ROOT / f"nbs/benchmarks/{name}.ipynb", 4).cells if "parameters" in c.metadata.get("tags", []))
    found = [re.fullmatch(r"(\w+): (\w+) = (.*?)\s+# (.+)", line) for line in cell.source.splitlines()]
    assert all(found), f"{name}: a parameter without type, default or comment: {cell.source}"
    return {m[1]: m.groups()[1:] for m in found}

def cpu_seconds():
    "Of all processes that this one has started and seen end, theirs included."
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime

def test_every_notebook_is_listed_here():
    assert {f.stem for f in (ROOT / "nbs/benchmarks").glob("*.ipynb")} == set(JOBS)

@pytest.mark.parametrize("name", [n for n in JOBS if n != "report"])
def test_parameters_mean_the_same_everywhere(name):
    own, model = parameters(name), parameters("quickstart")
    assert set(COMMON) <= set(own)
    for p in COMMON:
        assert own[p][0] == model[p][0], p
        if p not in ("scenario", "method"): assert own[p][1] == model[p][1], p

@pytest.mark.parametrize("name", JOBS)
def test_papermill_runs_it(name, tmp_path):
    given, rows = JOBS[name]
    given = {**given, **({"scale": "smoke", "out": tmp_path / "runs", "jobs": 2} if rows else {"results": ROOT / "results"})}
    before = cpu_seconds()
    done = subprocess.run([sys.executable, "-m", "papermill", f"nbs/benchmarks/{name}.ipynb", str(tmp_path / "out.ipynb"), "-k", "python3", "-y", json.dumps(given, default=str)],
                          cwd=ROOT, capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert cpu_seconds() - before < 60, "more than a minute of one core"   # not by the clock: other tests run beside this one
    cells = json.loads((tmp_path / "out.ipynb").read_text())["cells"]
    printed = "".join("".join(o.get("text", "")) for c in cells for o in c.get("outputs", []))
    assert "mIoU in points on" in printed and "nan" not in printed.split("mIoU in points on")[0].split("seeds")[-1]
    assert rows <= {r["method"] for r in ledger(tmp_path / "runs") if r["state"] == "finished"}
    assert not any(r["state"] != "finished" for r in ledger(tmp_path / "runs"))

@pytest.mark.parametrize("name, given", [("diga", {"method": "diga_consensus", "rows": ["diga_skd"], "recipe": "cityscapes2darkzurich"}), ("duda", {"method": "duda_kd"}), ("dkd", {"method": "dkd_both"}), ("quickstart", {})])
def test_a_target_without_labels_has_no_oracle(name, given, tmp_path):
    for layout, domain, split, n in (("cityscapes", "city", "train", 4), ("cityscapes", "city", "val", 3), ("darkzurich", "night", "train", 3), ("darkzurich", "night", "val", 2)):
        World(domain, n=n, size=(96, 176), split=split).export(layout, tmp_path / layout, split=split)
    given = {**given, "scenario": "cityscapes2darkzurich", "data_root": str(tmp_path), "scale": "smoke", "out": str(tmp_path / "runs"), "jobs": 2}
    done = subprocess.run([sys.executable, "-m", "papermill", f"nbs/benchmarks/{name}.ipynb", str(tmp_path / "out.ipynb"), "-k", "python3", "-y", json.dumps(given)],
                          cwd=ROOT, capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    finished = [r["method"] for r in ledger(tmp_path / "runs") if r["state"] == "finished"]
    assert given.get("method", "dacs") in finished and "oracle" not in finished
