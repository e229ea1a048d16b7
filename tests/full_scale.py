"""What the published recipes take on this machine: memory, steps a second, hours. `make full-scale`; with a CUDA device, or patience.

The world writes itself to disk in the layout, label encoding and frame size of each real dataset; then every paper's main row is probed
at scale `paper` as `kdda plan` does it: a few steps of each stage, through the real loaders, and of what it needs from other rows.
Scoring, and labelling before the first step, are left out.
Prints a table and writes results/full_scale.json. `python tests/full_scale.py DKD` probes that one alone and replaces its row.
"""
import argparse, json, os, platform, tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
import torch

from kdda.bench.scenarios import SCENARIOS
from kdda.bench.sweep import plan, times
from kdda.data.datasets import layouts
from kdda.data.world import World
from kdda.papers import diga, dkd, duda

SIZES = {"gta5": (1052, 1914), "cityscapes": (1024, 2048), "kitti": (375, 1242), "a2d2": (1208, 1920), "apolloscape": (1080, 1440), "bdd100k": (720, 1280), "camvid32": (720, 960), "coco": (480, 640),
         "goose": (1024, 2048), "idd": (1080, 1920), "nuimages": (900, 1600), "waymo": (1280, 1920), "mapillary": (1536, 2048), "wilddash2": (1080, 1920)}

def row(method, scenario, recipe=None, **more):
    recipe = dict(recipe or {})
    options = {**recipe.pop("options", {}), **{k: recipe.pop(k) for k in ("teacher_steps",) if k in recipe}}
    return dict(method=method, scenario=scenario, scale="paper", options=options, **recipe, **more)

PUBLISHED = {
    "DAFormer": row("daformer", "gta2cityscapes", student="mit_b5+daformer"),
    "DKD": row("dkd_sequential", "gta2cityscapes", dkd.RECIPES["gta2cityscapes"], student="drn_d_22+linear", teacher="drn_d_38+linear"),
    "DiGA": row("diga", "gta2cityscapes", diga.RECIPES["gta2cityscapes"]),
    "DUDA": row("duda", "gta2cityscapes", duda.RECIPES["gta2cityscapes"]),
    "LSU": row("lsu", "urban_cityscapes"),
    "Spirit": row("esd", "fewshot_cityscapes"),
}

def write(layout, split, root, shrink, frames=8):
    height, width = SIZES[layout]
    size = min(height, 1024) // shrink, width // shrink       # the world draws 1024 rows at most
    World("game" if layout == "gta5" else "city", n=frames, size=size, split=split).export(layout, Path(root) / layout, split=split)

def probe(name, request, root):  # -> dict for results/full_scale.json
    found = plan({**request, "data_root": root})
    if "why" in found: return {"paper": name, "request": request, "why": found["why"]}
    stages = [dict(row=r, network=net, stage=stage, steps=steps, seconds=seconds) for r, net, stage, steps, seconds, _ in times(found, out=root) if steps]
    return {"paper": name, "request": request, "device": found["device"], "memory": found["memory"], "torch": torch.__version__, "python": platform.python_version(), "stages": stages}

def show(found):  # -> text
    if "why" in found: return f"{found['paper']}: {found['why']}"
    lines = [f"{found['paper']}, {found['request']['scenario']}, {found['request'].get('precision', 'fp32')}: {sum(s['seconds'] for s in found['stages']) / 3600:.1f} h, {found['memory'] / 2**30:.1f} GB, {found['device']}"]
    return "\n".join(lines + [f"  {s['row']:16} {s['network']:28} {s['stage']:10} {s['steps']:7} steps  {s['steps'] / s['seconds']:7.2f} a second" for s in found["stages"]])

if __name__ == "__main__":
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("paper", nargs="*", help=f"one or more of {', '.join(PUBLISHED)}; none: all")
    parse.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parse.add_argument("--scale", default="paper", help="smoke: only to see whether this program works")
    parse.add_argument("--out", default="results/full_scale.json")
    args = parse.parse_args()
    if wrong := set(args.paper) - set(PUBLISHED): parse.error(f"no paper {', '.join(sorted(wrong))}; choose from {', '.join(PUBLISHED)}")
    wanted, file = args.paper or list(PUBLISHED), Path(args.out)
    done = json.loads(file.read_text()) if file.exists() else []
    needed = sorted({layout for name in wanted for layout in SCENARIOS[PUBLISHED[name]["scenario"]].needs})
    with tempfile.TemporaryDirectory() as root:
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(write, *zip(*[(layout, split, root, 1 if args.scale == "paper" else 8) for layout in needed for split in ("train", "val") if split in layouts()[layout].splits])))
        for name in wanted:
            request = PUBLISHED[name] | ({"precision": "bf16"} if args.precision == "bf16" else {})
            found = probe(name, request if args.scale == "paper" else {k: v for k, v in request.items() if k in ("method", "scenario")} | {"scale": args.scale}, root)
            print(show(found), flush=True)
            key = lambda f: (list(PUBLISHED).index(f["paper"]), f["request"].get("precision", "fp32"))
            done = sorted([f for f in done if key(f) != key(found)] + [found], key=key)
            if args.scale == "paper": file.write_text(json.dumps(done, indent=1) + "\n")
