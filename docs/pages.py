"Writes the site's pages as Markdown: one for each executed notebook, one for each module. Nothing is run or imported. `python docs/pages.py FOLDER`"
import ast, base64, json, re, sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
NBS = ROOT / "nbs"

def reading_order():
    "Notebooks as the index's map has them: its folders in turn; in a folder by number, else as mentioned."
    text = (NBS / "index.ipynb").read_text()
    place = lambda s: text.find(s) if s in text else len(text)
    def key(p):
        folder = p.parent.relative_to(NBS).as_posix()
        return folder != ".", place(f"`{folder}/"), folder, not p.stem[0].isdigit(), 0 if p.stem[0].isdigit() else place(f"`{p.stem}`"), p.stem
    found = [p for p in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts and p != NBS / "index.ipynb"]
    return sorted(found, key=key)

class Notebook:
    def __init__(self, path):
        self.cells = json.loads(path.read_text())["cells"]
        self.path, self.doc = path, path.relative_to(NBS).with_suffix("").as_posix()
        head = re.match(r"# (.+)\n+> (.+)", "".join(self.cells[0]["source"]))
        if not head: sys.exit(f"{path}: the first cell does not begin with a '# title' and, below it, a '> summary' of one line")
        self.title, self.about = head.groups()
        code = "\n".join("".join(c["source"]) for c in self.cells if c["cell_type"] == "code")
        exp = re.search(r"#\| default_exp (\S+)", code)
        self.module = exp and f"kdda.{exp[1]}"

    def page(self, links, out):
        "The notebook without directives and hidden cells; pictures become files beside the page."
        parts = []
        for i, cell in enumerate(self.cells):
            tags, source = cell["metadata"].get("tags", []), "".join(cell["source"])
            if "remove_cell" in tags or re.search(r"^#\| ?hide\b", source, re.M): continue
            if cell["cell_type"] == "markdown":
                parts.append(links.into(source, self))
                continue
            if cell["cell_type"] != "code": continue
            code = re.sub(r"^#\|.*\n?", "", source, flags=re.M).strip()
            language, code = ("sh", code[4:].strip()) if code.startswith("%%sh") else ("python", code)
            if code and "remove_input" not in tags: parts.append(f"(cell-{cell['id']})=\n" + fence(code, language))
            parts += [self.output(o, out / f"{self.doc}_{i}_{n}") for n, o in enumerate(cell["outputs"])]
        made = f"{{.source}}\nNotebook `nbs/{self.doc}.ipynb`" + (f", module [`{self.module}`](/api/{self.module}.md)" if self.module else "")
        parts[0] = re.sub(r"^> .+$", lambda m: f"{m[0]}\n\n{made}", parts[0], count=1, flags=re.M)
        return "\n\n".join(filter(None, parts)) + "\n"

    def output(self, output, stem):
        if output["output_type"] == "stream": return fence("".join(output["text"]).rstrip(), "output")
        data = {k: "".join(v) for k, v in output.get("data", {}).items()}
        for kind in ("image/png", "image/jpeg"):
            if kind in data:
                file = stem.with_suffix("." + kind[6:])
                file.write_bytes(base64.b64decode(data[kind]))
                return f"![what the cell above shows]({file.name})"
        if "text/html" in data: return "" if "<progress" in data["text/html"] or not data["text/html"].strip() else fence(data["text/html"], "{raw} html")
        if "text/markdown" in data: return data["text/markdown"]
        return fence(data.get("text/plain", ""), "output")

def fence(text, kind):
    if kind == "output": kind, text = "{code-block} text", f":class: output\n\n{text}"
    return f"`````{kind}\n{text}\n`````"

class Module:
    "Public names of a module in the order of its source, which is parsed, with the notebook cells they come from."
    def __init__(self, notebook):
        self.notebook, self.name = notebook, notebook.module
        text = (ROOT / (self.name.replace(".", "/") + ".py")).read_text()
        self.lines, tree = text.splitlines(), ast.parse(text)
        bind = {n: s for s in tree.body for n in names_of(s)}
        public = ast.literal_eval(bind.pop("__all__").value)
        self.attached = {}  # class -> {name: function}: methods that a later cell gave it
        for s in tree.body:
            if isinstance(s, ast.Assign) and isinstance(s.targets[0], (ast.Tuple, ast.Attribute)):
                targets, values = (getattr(x, "elts", [x]) for x in (s.targets[0], s.value))
                for t, v in zip(targets, values):
                    if isinstance(t, ast.Attribute): self.attached.setdefault(t.value.id, {})[t.attr] = v
        self.parameters = {a.arg for a in ast.walk(tree) if isinstance(a, ast.arg)}
        self.functions = {s.name: s for s in tree.body if isinstance(s, ast.FunctionDef)}
        self.symbols = {}   # statement -> names
        for s in tree.body:
            if shown := [n for n in names_of(s) if n in public and bind[n] is s]: self.symbols[s] = shown

    def heading(self, names): return ", ".join(names) if len(names) < 4 else f"{names[0]} ... {names[-1]}"

    def page(self, links):
        parts = [f"# {self.name}", f"> {self.notebook.about}", f"{{.source}}\nMade by the notebook [{self.notebook.title}](/{self.notebook.doc}.md)"]
        for s, names in self.symbols.items():
            cell = next(m[1] for l in reversed(self.lines[:s.lineno]) if (m := re.match(r"# %% .*#(\w+)$", l)))
            about = ast.get_docstring(s) if isinstance(s, (ast.FunctionDef, ast.ClassDef)) else None
            parts += [f"## `{self.heading(names)}`", f"{{.source .aside}}\n[in the notebook](/{self.notebook.doc}.md#cell-{cell})",
                      *([links.into(about, self.notebook)] if about else []), fence(self.code(s), "python")]
        return "\n\n".join(parts) + "\n"

    def code(self, s):
        "A function's signature, a class without the bodies of its methods, the first lines of a constant; comments as they stand."
        if isinstance(s, ast.FunctionDef): return self.signature(s)
        if not isinstance(s, ast.ClassDef):
            text = self.lines[s.lineno - 1:s.end_lineno]
            return "\n".join(text if len(text) < 13 else [*text[:12], "    ..."])
        parts = [self.signature(s)]
        methods = {m.name: m for m in s.body if isinstance(m, ast.FunctionDef)}
        for m in s.body:
            if isinstance(m, (ast.Assign, ast.AnnAssign)) and not names_of(m)[0].startswith("_"): parts.append("\n".join(self.lines[m.lineno - 1:m.end_lineno]))
        for name, m in methods.items():
            if public_method(name): parts.append("\n" + self.method(m))
        for name, f in self.attached.get(s.name, {}).items():
            prop, f = ("@property\n", f.args[0]) if isinstance(f, ast.Call) else ("", f)
            if f.id in self.functions: parts.append("\n" + re.sub(r"^(?=.)", "    ", prop + self.method(self.functions[f.id]).replace(f"def {f.id}(", f"def {name}(", 1), flags=re.M))
        return "\n".join(parts)

    def method(self, m):
        doc = m.body[0]
        text = self.signature(m)
        if ast.get_docstring(m): text += "\n" + "\n".join(self.lines[doc.lineno - 1:doc.end_lineno])
        return text

    def signature(self, s):
        "Decorators and header, as written."
        first, start = s.body[0], min([s.lineno, *(d.lineno for d in s.decorator_list)])
        stop = min([first.lineno, *(d.lineno for d in getattr(first, "decorator_list", []))])
        text = self.lines[start - 1:stop]
        text[-1] = text[-1].encode()[:first.col_offset].decode().rstrip()
        while not text[-1].strip() or text[-1].lstrip().startswith("#"): text.pop()
        return "\n".join(text)

def public_method(name): return name in ("__init__", "__call__", "__getitem__", "__len__", "__or__") or not name.startswith("_")

def names_of(s):
    "What a statement of a module or class binds."
    if isinstance(s, (ast.FunctionDef, ast.ClassDef)): return [s.name]
    targets = s.targets if isinstance(s, ast.Assign) else [s.target] if isinstance(s, ast.AnnAssign) else []
    return [e.id for t in targets for e in getattr(t, "elts", [t]) if isinstance(e, ast.Name)]

class Links:
    "Names in backticks -> pages: notebooks by path or number, modules, and what this notebook or one before it exports, where no parameter is called so."
    def __init__(self, notebooks, modules):
        self.pages = {k: f"/{n.doc}.md" for n in notebooks for k in (n.doc, n.path.stem) if n.path.stem[0].isdigit() or k == n.doc}
        self.pages |= {m.name: f"/api/{m.name}.md" for m in modules}
        self.symbols, self.parameters = {}, set().union(*(m.parameters for m in modules))
        for m in modules:
            for names in m.symbols.values():
                for n in names: self.symbols.setdefault(n, []).append((m, f"/api/{m.name}.md#{m.heading(names)}"))

    def of(self, text, here):
        if text in self.pages: return self.pages[text]
        name = text.removesuffix("()")
        for m, url in self.symbols.get(name, []):
            if m.notebook is here or m.notebook.place < here.place and len(self.symbols[name]) == 1 and (name != text or name not in self.parameters): return url

    def into(self, markdown, here):
        def link(m):
            url = self.of(m[1], here)
            return f"[`{m[1]}`](<{url}>)" if url else m[0]
        markdown = re.sub(r"\]\((\.\./)+README\.md\)", "](/index.md)", markdown.replace(".ipynb)", ".md)"))  # the README is made from the index
        parts = re.split(r"(^```.*?^```$|^#[^\n]*)", markdown, flags=re.M | re.S)
        return "".join(p if n % 2 else re.sub(r"(?<![\[`])`([^`\n]+)`(?![\]`])", link, p) for n, p in enumerate(parts))

def tree(entries, caption=""):
    return "\n".join(["```{toctree}", ":hidden:", *([f":caption: {caption}"] if caption else []), "", *entries, "```"])

def main(out):
    index, notebooks = Notebook(NBS / "index.ipynb"), [Notebook(p) for p in reading_order()]
    for place, n in enumerate([*notebooks, index]): n.place = place
    modules = [Module(n) for n in notebooks if n.module]
    links = Links(notebooks, modules)
    rooms = {}
    for n in notebooks: rooms.setdefault(Path(n.doc).parent.name.capitalize() or "Start", []).append(n)

    def write(name, text):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text)

    for n in (*notebooks, index):
        (out / n.doc).parent.mkdir(parents=True, exist_ok=True)
        page = n.page(links, out)
        if n is index: page += "\n".join([tree(["notebooks", "api/index"]), *(tree([n.doc for n in ns], room) for room, ns in rooms.items())])
        write(f"{n.doc}.md", page)
    for m in modules: write(f"api/{m.name}.md", m.page(links))
    write("api/index.md", "# API\n\n" + "\n".join(f"- [`{m.name}`]({m.name}.md): {m.notebook.about}" for m in modules) + "\n\n" + tree([m.name for m in modules]) + "\n")
    write("notebooks.md", "# Notebooks\n\n" + "\n\n".join(f"## {room}\n\n" + "\n".join(f"- [{n.title}]({n.doc}.md): {n.about}" for n in ns) for room, ns in rooms.items()) + "\n")

if __name__ == "__main__": main(Path(sys.argv[1]))
