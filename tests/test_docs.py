"The pages of the site as docs/pages.py writes them. tests/test_browser.py looks at what Sphinx makes of them."
import ast, importlib.util, json, posixpath, re
from pathlib import Path
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = [p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts]
DIRECTIVE = re.compile(r"^#\|.*\n?", re.M)

def load():
    spec = importlib.util.spec_from_file_location("pages", ROOT / "docs" / "pages.py")
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module

def code_cells(path): return ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
def doc_of(path): return path.relative_to(ROOT / "nbs").with_suffix(".md").as_posix()

@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("pages")
    load().main(out)
    return {p.relative_to(out).as_posix(): p.read_text() for p in out.rglob("*.md")}

def test_every_notebook_has_a_page_in_reading_order(site):
    listed = [f"{e}.md" for block in re.findall(r"```{toctree}.*?\n\n(.*?)\n```", site["index.md"], re.S) for e in block.split()]
    assert listed[:2] == ["notebooks.md", "api/index.md"] and sorted([*listed[2:], "index.md"]) == sorted(map(doc_of, NOTEBOOKS))
    numbered = [e for e in listed if re.search(r"/?\d\d_", e)]
    assert numbered == sorted(numbered, key=lambda e: int(Path(e).stem[:2])) and listed[2:2 + len(numbered)] == numbered

def test_no_block_of_a_page_is_empty(site):
    for name, page in site.items(): assert not re.search(r"^(`{3,})\{(?:raw|code-block)\}[^\n]*\n(?::[^\n]*\n)*\s*\1$", page, re.M), name

def test_directives_and_hidden_cells_are_left_out(site):
    hidden = 0
    for path in NOTEBOOKS:
        page = site[doc_of(path)]
        assert "\n#|" not in page, path
        for source in code_cells(path):
            code = DIRECTIVE.sub("", source).strip()
            if re.search(r"^#\| ?hide", source, re.M):
                hidden += 1
                assert code not in page, path
            elif "export" in source: assert code in page, path
    assert hidden

def test_every_exported_name_is_on_its_modules_page(site):
    for path in NOTEBOOKS:
        if not (exp := re.search(r"#\| default_exp (\S+)", "\n".join(code_cells(path)))): continue
        source = (ROOT / "kdda" / (exp[1].replace(".", "/") + ".py")).read_text()
        public = next(ast.literal_eval(s.value) for s in ast.parse(source).body if isinstance(s, ast.Assign) and s.targets[0].id == "__all__")
        page = site[f"api/kdda.{exp[1]}.md"]
        assert not [n for n in public if not re.search(rf"^\W*((class|def) )?{n}\b|, {n}\b", page, re.M)], path

def test_a_class_is_shown_with_the_methods_that_later_cells_gave_it(site):
    page = site["api/kdda.data.labels.md"]
    assert "    def then(self" in page and "_then" not in page       # LabelMap.then = _then
    assert "    @property\n    def translator(self" in site["api/kdda.papers.diga.md"]

def test_links_lead_to_pages_and_cells_that_exist(site):
    found = 0
    for name, text in site.items():
        for url, anchor in re.findall(r"\]\(<?([^()<>\s]+?\.md)(?:#([^)>]+))?>?\)", text):
            target = site[posixpath.normpath(posixpath.join(posixpath.dirname(name), url)) if url[0] != "/" else url[1:]]
            assert not anchor or f"({anchor})=" in target or f"## `{anchor}`" in target, (name, url, anchor)
            found += 1
    assert found > 500

def test_a_notebook_without_a_summary_is_named(tmp_path, monkeypatch):
    pages = load()
    monkeypatch.setattr(pages, "NBS", tmp_path)
    (tmp_path / "x.ipynb").write_text(json.dumps({"cells": [{"cell_type": "markdown", "source": "# Only a title"}]}))
    with pytest.raises(SystemExit, match=r"x\.ipynb: the first cell"): pages.Notebook(tmp_path / "x.ipynb")

def test_the_docs_extra_is_pinned_beside_the_main_lock():
    name = lambda requirement: re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")
    main, docs = ({name(line) for line in (ROOT / f).read_text().split("\n") if line} for f in ("requirements.lock", "requirements-docs.lock"))
    extra = ast.literal_eval(re.search(r"^docs = (\[.*\])", (ROOT / "pyproject.toml").read_text(), re.M)[1])
    assert {name(r) for r in extra} <= main | docs and not main & docs
