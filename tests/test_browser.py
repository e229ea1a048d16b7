"In Chromium: the site that `make docs` built, and JupyterLab training a network. `make browser`."
import functools, html.parser, http.server, json, os, re, shutil, socket, subprocess, sys, threading, time, urllib.request
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit
import pytest

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parent.parent
SITE = ROOT / "build" / "docs" / "html"
NOTEBOOK = ROOT / "nbs" / "00_tour.ipynb"

@pytest.fixture(scope="module")
def chromium():
    sync_api = pytest.importorskip("playwright.sync_api", reason="make browser installs playwright")
    with sync_api.sync_playwright() as p:
        installed = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        if not installed and not Path(p.chromium.executable_path).exists():
            pytest.fail("no Chromium: apt-get install chromium, or playwright install chromium")
        browser = p.chromium.launch(executable_path=installed, args=["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        yield browser
        browser.close()

class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_): pass

@pytest.fixture(scope="module")
def home():
    "Address of the site, served from this machine."
    assert (SITE / "index.html").is_file(), f"{SITE} is not there: make docs builds it"
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=SITE)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()

@pytest.fixture
def page(chromium, home):
    "A page that fails its test when something is logged as an error, is missing, or is asked of another machine."
    page, wrong = chromium.new_page(), []
    page.on("console", lambda m: wrong.append(f"{page.url}: {m.text}") if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: wrong.append(f"{page.url}: {e}"))
    page.on("request", lambda r: None if r.url.startswith((home, "data:")) else wrong.append(f"{page.url} asks for {r.url}"))
    page.on("response", lambda r: None if r.ok or r.status == 304 else wrong.append(f"{page.url}: {r.status} {r.url}"))
    yield page
    page.close()
    assert not wrong, "\n".join(wrong)

PAGES = sorted(p.relative_to(SITE).as_posix() for p in SITE.rglob("*.html") if "_static" not in p.parts and p.name != "search.html")

def pictures_of(name):
    "How many pictures the notebook behind a page shows."
    path = ROOT / "nbs" / Path(name).with_suffix(".ipynb")
    if not path.exists(): return 0
    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code" and "remove_cell" not in c["metadata"].get("tags", [])]
    return sum(any(k.startswith("image/") for k in o.get("data", {})) for c in cells if not re.search(r"^#\| ?hide", "".join(c["source"]), re.M) for o in c["outputs"])

@pytest.mark.parametrize("name", PAGES)
def test_page_loads_with_its_pictures_and_fits_a_phone(name, home, page):
    page.goto(home + name)
    assert page.locator("h1").first.inner_text().strip()
    page.evaluate("Promise.all([...document.images].map(i => { i.loading = 'eager'; return i.decode() }))")
    assert page.locator("article img").count() == pictures_of(name)
    if page.locator("div.math").count(): page.wait_for_selector("div.math mjx-container")
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390

def test_every_notebook_and_module_has_a_page():
    notebooks = [p.relative_to(ROOT / "nbs").with_suffix(".html").as_posix() for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts]
    modules = [f"api/{'.'.join(p.relative_to(ROOT).with_suffix('').parts)}.html" for p in (ROOT / "kdda").rglob("*.py") if not p.name.startswith("_")]
    assert not {*notebooks, *modules} - set(PAGES)

class Anchors(html.parser.HTMLParser):
    def __init__(self, path):
        super().__init__()
        self.links, self.ids = [], set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.links += [attrs[k] for k in ("href", "src") if attrs.get(k)]
        if "id" in attrs: self.ids.add(attrs["id"])

def test_no_link_is_broken():
    pages = {name: Anchors(SITE / name) for name in PAGES}
    broken, followed = [], 0
    for name, anchors in pages.items():
        for link in anchors.links:
            if urlsplit(link).scheme: continue
            url, fragment = urldefrag(urljoin(f"/{name}", link))
            target = unquote(urlsplit(url).path)[1:]
            followed += 1
            if not (SITE / target).is_file() or fragment and target in pages and fragment not in pages[target].ids: broken.append(f"{name}: {link}")
    assert not broken, "\n".join(broken)
    assert followed > 1000

def test_search_finds_a_symbol_and_a_phrase(home, page):
    page.goto(home)
    page.get_by_placeholder("Search").first.fill("symmetric_kd")
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-results li a")
    page.locator("#search-results li a", has_text="symmetric_kd").first.click()
    assert "/api/kdda.papers.diga.html" in page.url
    page.goto(home + "search.html?q=confusion+matrix")
    page.wait_for_selector("#search-results li a[href*='learn/21_metrics.html']")

def test_the_site_reads_from_disk_too(chromium):
    page = chromium.new_page()
    page.goto((SITE / "papers" / "31_diga.html").as_uri())
    page.wait_for_selector("div.math mjx-container")
    page.goto((SITE / "search.html").as_uri() + "?q=pseudo-labels")
    page.wait_for_selector("#search-results li a")
    page.close()

@pytest.fixture
def lab(tmp_path):
    "JupyterLab on a copy of the notebook that ends with the cell that trains; its bar drawn."
    notebook = json.loads(NOTEBOOK.read_text())
    last = next(i for i, c in enumerate(notebook["cells"]) if c["cell_type"] == "code" and "plot=True" in "".join(c["source"]))
    del notebook["cells"][last + 1:]
    for c in notebook["cells"]:
        c["source"] = "".join(c["source"]).replace(", progress=False", "")
        if "outputs" in c: c["outputs"] = []
    (tmp_path / "lab.ipynb").write_text(json.dumps(notebook))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    settings = {f"JUPYTER{k}": str(tmp_path / k.strip("_").lower()) for k in ("_CONFIG_DIR", "_DATA_DIR", "_RUNTIME_DIR", "LAB_SETTINGS_DIR", "LAB_WORKSPACES_DIR")}
    log = (tmp_path / "log").open("w")
    server = subprocess.Popen([sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--port-retries=0", "--IdentityProvider.token=lab",
                               "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"],
                              cwd=tmp_path, stdout=log, stderr=log, env={**os.environ, **settings, "OMP_NUM_THREADS": "1", "MPLBACKEND": "module://matplotlib_inline.backend_inline"})
    address = f"http://127.0.0.1:{port}/"
    for _ in range(600):
        try: urllib.request.urlopen(f"{address}api").close(); break
        except OSError: time.sleep(0.1)
        assert server.poll() is None, (tmp_path / "log").read_text()
    yield address
    server.terminate()
    server.wait(30)

ERRORS = ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']"
WATCH = """() => {
  window.bars = new Set(); window.plots = new Set();
  setInterval(() => {
    const outputs = [...document.querySelectorAll(".jp-CodeCell")].at(-1)?.querySelector(".jp-OutputArea");
    outputs?.querySelectorAll("progress").forEach(p => bars.add(p.value / p.max));
    outputs?.querySelectorAll("img").forEach(i => plots.add(i.src));
  }, 20);
}"""

def test_jupyterlab_trains_with_a_bar_and_a_live_plot(chromium, lab, tmp_path):
    page = chromium.new_page(viewport={"width": 1300, "height": 1000})
    page.goto(f"{lab}lab/tree/lab.ipynb?token=lab")
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=120_000)
    for _ in range(240):  # asked to run sooner, JupyterLab would ask which kernel
        with urllib.request.urlopen(f"{lab}api/kernels?token=lab") as f: kernels = json.load(f)
        if kernels and kernels[0]["connections"] and kernels[0]["execution_state"] == "idle": break
        page.wait_for_timeout(500)
    page.evaluate(WATCH)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    for _ in range(300):
        page.wait_for_timeout(1000)
        bars, plots, idle = page.evaluate("[[...bars], plots.size, !!document.querySelector('.jp-Notebook-ExecutionIndicator[data-status=idle]')]")
        if idle and (bars or page.locator(ERRORS).count()): break
    page.screenshot(path=tmp_path / "jupyterlab.png")
    assert len(bars) > 3 and bars == sorted(bars) and plots > 1, (bars, plots, tmp_path / "jupyterlab.png")
    assert page.locator(ERRORS).count() == 0
    page.close()
