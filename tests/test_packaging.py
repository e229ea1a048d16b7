"Packaging files agree with each other, and the wheel works where only its runtime dependencies are."
import configparser, os, re, subprocess, sys
from importlib import metadata
from pathlib import Path
import pytest
import yaml
if sys.version_info >= (3, 11): import tomllib
else: tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NBDEV2 = configparser.ConfigParser()
NBDEV2.read(ROOT / "settings.ini")

def locked():
    "name -> [lines of the lock file that pin it]"
    out = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if m := re.match(r"([\w.\-]+)==(\S+)", line): out.setdefault(canonical(m[1]), []).append(m[2])
    return out

def canonical(name): return re.sub(r"[-_.]+", "-", name).lower()
def name_of(requirement): return canonical(re.match(r"[\w.\-]+", requirement)[0])

def test_settings_ini_and_pyproject_agree():
    live, static = NBDEV2["DEFAULT"], PROJECT["tool"]["nbdev"]
    for key, value in static.items(): assert live[key].lower() == str(value).lower(), key
    assert live["version"] == PROJECT["project"]["version"] and live["lib_name"] == PROJECT["project"]["name"]
    assert PROJECT["project"]["requires-python"] == f">={live['min_python']}"
    import kdda
    assert kdda.__version__ == PROJECT["project"]["version"]

def test_every_dependency_is_locked():
    have = locked()
    extras = PROJECT["project"]["optional-dependencies"]
    for requirement in [*PROJECT["project"]["dependencies"], *extras["bench"], *extras["dev"]]: assert name_of(requirement) in have, requirement

def test_exact_pins_of_pyproject_are_those_of_the_lock():
    have = locked()
    for requirement in PROJECT["project"]["optional-dependencies"]["dev"]:
        if m := re.fullmatch(r"([\w.\-]+)==(\S+)", requirement): assert have[canonical(m[1])] == [m[2]]

def test_environment_yml_installs_the_same_pins():
    env = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(d["pip"] for d in env["dependencies"] if isinstance(d, dict))
    assert pip == ["-r requirements.lock", "-e ."]
    python = next(d for d in env["dependencies"] if isinstance(d, str) and d.startswith("python="))
    assert tuple(map(int, python[7:].split("."))) >= tuple(map(int, NBDEV2["DEFAULT"]["min_python"].split(".")))
    assert not [d for d in env["dependencies"] if isinstance(d, str) and not d.startswith("python=") and d != "pip"]  # nothing beside the lock

def test_this_environment_is_the_locked_one():
    for name, versions in locked().items():
        try: assert metadata.version(name) in versions, name
        except metadata.PackageNotFoundError: pass  # for another platform or Python

def section(readme, scenario):
    "Lines of the README's tables of one scenario."
    tables = re.split(r"^(?=\*\*)", readme, flags=re.MULTILINE)
    return [line for table in tables if scenario in table.split("\n")[0] for line in table.split("\n")]

def test_readme_is_made_from_the_index_notebook_and_the_results():
    import json
    from kdda.bench.report import claims_table
    from kdda.bench.runs import load_results, table
    from kdda.bench.scenarios import SCENARIOS
    readme, index = (ROOT / "README.md").read_text(), json.loads((ROOT / "nbs" / "index.ipynb").read_text())
    for cell in index["cells"]:
        if cell["cell_type"] == "markdown": assert "".join(cell["source"]) in readme, "README.md is behind nbs/index.ipynb: make readme"
    for scenario in SCENARIOS:
        for r in table(found) if (found := load_results(scenario, results=ROOT / "results")) else []:
            lines = [line for line in section(readme, scenario) if line.startswith(f"| {r['method']} |")]
            assert any(f"| {r['seeds']} | {r['miou']:.1f} ± {r['std']:.1f} |" in line for line in lines), f"README.md is behind results/, {scenario}, {r['method']}: make readme"
            fair = f"{r['fair']:+.1f} ± {r['fair_std']:.1f} ({r['against']})" if r["fair"] == r["fair"] and r["against"] != r["method"] else ""
            for line in lines: assert line.count("|") != 7 or line.split("|")[-3].strip() == fair, f"README.md is behind results/, {scenario}, {r['method']}: make readme"
    assert claims_table(ROOT / "results", every=False) in readme, "README.md is behind the claims: make readme"

def test_rooms_import_only_from_rooms_before():
    order = {"data": 0, "nets": 1, "learn": 2, "papers": 3, "bench": 4, "deploy": 5}
    for file in (ROOT / "kdda").rglob("*.py"):
        room = file.relative_to(ROOT / "kdda").parts[0]
        if room not in order: continue
        for m in re.finditer(r"^from (\.+)(\w+)?", file.read_text(), re.M):
            if len(m[1]) == 2: assert order[m[2]] < order[room], f"{file.name} imports from {m[2]}"

def closure(names):
    "Names of the installed distributions that `names` need at run time."
    seen, todo = set(), [canonical(n) for n in names]
    while todo:
        n = todo.pop()
        if n in seen: continue
        try: requires = metadata.requires(n) or []
        except metadata.PackageNotFoundError: continue
        seen.add(n)
        todo += [name_of(r) for r in requires if "extra ==" not in r]
    return seen

IMPORTS = """
import importlib, pkgutil, sys
import kdda
for m in pkgutil.walk_packages(kdda.__path__, "kdda."): importlib.import_module(m.name)
assert "site-packages" in kdda.__file__, kdda.__file__
assert not {"papermill", "fastcore", "nbdev", "transformers", "onnx", "onnxruntime"} & set(sys.modules)
"""

def readme_code():
    "All modules imported, then every Python block of the README, as one script."
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert blocks and "fit(method, streams" in "".join(blocks)
    return "\n".join([IMPORTS, *blocks, "assert history[-1]['step'] == 4; print('trained', kdda.__version__)"])

def build_wheel(to):
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", str(to), str(ROOT)], check=True, capture_output=True)
    return next(to.glob("*.whl"))

def test_wheel_works_with_runtime_dependencies_only(tmp_path):
    "A new environment that sees kdda's wheel and the runtime dependencies, nothing else, outside the tree: every module, and the README's code."
    wheel = build_wheel(tmp_path / "dist")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    site = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    for name in closure(name_of(r) for r in PROJECT["project"]["dependencies"]):
        for file in metadata.files(name) or []:
            top = Path(file).parts[0]
            source = Path(metadata.distribution(name).locate_file(top))
            if top not in ("..", "__pycache__") and source.exists() and not (site / top).exists(): os.symlink(source, site / top)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)], check=True, capture_output=True)
    done = subprocess.run([str(tmp_path / "venv" / "bin" / "python"), "-c", readme_code()], cwd=tmp_path, capture_output=True, text=True, env={"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert "trained" in done.stdout

@pytest.mark.slow
def test_wheel_installs_into_an_empty_environment(tmp_path):
    "The same from the package index, dependencies and all."
    wheel = build_wheel(tmp_path / "dist")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    subprocess.run([str(tmp_path / "venv/bin/python"), "-m", "pip", "install", "--quiet", str(wheel)], check=True, cwd=tmp_path)
    done = subprocess.run([str(tmp_path / "venv/bin/python"), "-c", readme_code()], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert subprocess.run([str(tmp_path / "venv/bin/kdda"), "runs"], cwd=tmp_path).returncode == 0
