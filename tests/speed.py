"""Speeds and figures side by side, in one run; prints a table and writes results/speed.json. `make speed`.

Every comparison is interleaved: each round times both sides, in alternating order, and the ratio is the median of the rounds' ratios,
so that it holds on a machine whose speed drifts. One thread, except for the demo and the doctor's 10,000 files, which use all cores.
`python tests/speed.py confusion mit` measures those parts alone and replaces their rows.
"""
import os
os.environ["OMP_NUM_THREADS"] = "1"
import contextlib, copy, dataclasses, json, statistics, subprocess, sys, tempfile, time
from pathlib import Path
import numpy as np
import torch
import torch.nn.functional as F

from kdda.bench.runs import load_results, table
from kdda.bench.scenarios import SCALES
from kdda.data.augment import normalize
from kdda.data.batches import Stream
from kdda.data.world import World
from kdda.learn.fit import Optim, fit
from kdda.learn.losses import cross_entropy
from kdda.learn.metrics import Confusion
from kdda.learn.selftrain import Supervised
from kdda.nets.segmenter import load_weights, segmenter

ROWS, PART = [], None

def row(name, ours, other, ratio, target, holds, unit):
    ROWS.append({"part": PART, "name": name, "ours": round(ours, 4), "other": None if other is None else round(other, 4), "ratio": None if ratio is None else round(ratio, 3),
                 "target": target, "holds": bool(holds), "unit": unit})
    print(f"{'holds' if holds else 'FALLS SHORT':12}{name}: {ours:.4g}" + (f" against {other:.4g}" if other is not None else "") + f" {unit}"
          + (f", ratio {ratio:.2f}" if ratio is not None else "") + f" (target {target})", flush=True)

def interleaved(a, b, rounds, warmup=2):
    "Median seconds of a and of b, and the median of the rounds' ratios b/a."
    times = []
    for i in range(rounds + warmup):
        t = [0.0, 0.0]
        for j in ((0, 1) if i % 2 else (1, 0)):
            start = time.perf_counter(); (a, b)[j](); t[j] = time.perf_counter() - start
        times.append(t)
    times = times[warmup:]
    return statistics.median(x for x, _ in times), statistics.median(y for _, y in times), statistics.median(y / x for x, y in times)

def world():
    w, times = World("city", n=400), []
    for i in range(400):
        start = time.perf_counter(); w.sample(i); times.append(1e3 * (time.perf_counter() - start))
    halves = [statistics.mean(times[:200]), statistics.mean(times[200:])]
    mean = statistics.mean(times)
    row("world, one 64x128 image", mean, None, None, "at most 4", max(halves) <= 4, f"ms (mean of 400; halves {halves[0]:.2f}, {halves[1]:.2f})")

def confusion(n=19, rounds=15):
    from torchmetrics.classification import MulticlassJaccardIndex
    rng = np.random.default_rng(0)
    for kind, cell in (("noise", 1), ("32-pixel segments", 32)):
        small = (1024 // cell, 2048 // cell)
        blow = lambda a: np.kron(a, np.ones((cell, cell), np.uint8))
        label = blow(rng.integers(0, n, small).astype(np.uint8))
        pred = np.where(blow((rng.random(small) < 0.75).astype(np.uint8)), label, blow(rng.integers(0, n, small).astype(np.uint8))).astype(np.uint8)
        label[rng.random(label.shape) < 0.1] = 255
        p, y = torch.from_numpy(pred), torch.from_numpy(label)
        ours, other = Confusion(n), MulticlassJaccardIndex(num_classes=n, ignore_index=255, validate_args=False)
        a, b, ratio = interleaved(lambda: ours.update(p, y), lambda: other.update(p, y), rounds)
        count = np.bincount((label.astype(np.int64) * n + pred)[label != 255], minlength=n * n).reshape(n, n) * (rounds + 2)
        exact = bool((ours.counts.numpy() == count).all() and (ours.counts == other.confmat).all())
        row(f"confusion matrix, 1024x2048, 19 classes, 10 % void, {kind}, against torchmetrics (counts exactly equal: {exact})", 1e3 * a, 1e3 * b, ratio, "at least 8 times faster", exact and ratio >= 8, "ms")

def mit(rounds=7, size=(2, 3, 256, 512)):
    from transformers import SegformerConfig, SegformerForSemanticSegmentation
    torch.manual_seed(0)
    theirs = SegformerForSemanticSegmentation(SegformerConfig(num_labels=19, attn_implementation="sdpa"))  # defaults are B0
    ours = segmenter("mit_b0+segformer")
    load_weights(ours, theirs.state_dict())
    x, y = torch.randn(size), torch.randint(0, 19, (size[0], *size[2:]))
    upsampled = lambda x: F.interpolate(theirs(pixel_values=x).logits, x.shape[-2:], mode="bilinear", align_corners=False)
    with torch.no_grad(): error = (ours.eval()(x) - (theirs.eval(), upsampled(x))[1]).abs().max().item()
    ours.train(), theirs.train()
    def step(net, forward):
        net.zero_grad(set_to_none=True)
        F.cross_entropy(forward(x), y).backward()
    a, b, ratio = interleaved(lambda: step(ours, ours), lambda: step(theirs, upsampled), rounds)
    row(f"MiT-B0 + SegFormer head, forward + backward, 2x3x256x512, against transformers (same weights, logits differ by {error:.0e})", 1e3 * a, 1e3 * b, ratio,
        "at least 1.25 times faster", ratio >= 1.25 and error < 1e-4, "ms")

def overhead(steps=40, rounds=9):
    "A whole `fit` step, stream and checks included, against forward, backward and optimiser step on ready tensors."
    s = SCALES["laptop"]
    data = World("game", n=64, size=s.size).render()
    torch.manual_seed(0)
    net = segmenter(s.student).to(memory_format=torch.channels_last).train()
    raw = next(Stream(data, s.batch))
    x, y = normalize(raw["image"]).contiguous(memory_format=torch.channels_last), raw["label"]
    bare_net = copy.deepcopy(net)
    optimiser = Optim().build([bare_net])
    def bare():
        for _ in range(steps):
            optimiser.zero_grad(set_to_none=True)
            cross_entropy(bare_net(x), y, denominator="all").backward()
            optimiser.step()
    method, quiet = Supervised(net, augment=False), dict(progress=False)
    a, b, _ = r = interleaved(lambda: fit(method, {"source": Stream(data, s.batch)}, steps, **quiet), bare, rounds)
    ratio = 1 / r[2]
    row(f"fit, one step at laptop scale ({s.student}, batch {s.batch}), against the bare loop", 1e3 * a / steps, 1e3 * b / steps, ratio, "at most 1.10 times", ratio <= 1.10, "ms")

def allocator(steps=40, rounds=5):
    "Self-training steps with memory kept by the process and with glibc's ways, each in a process of its own."
    code = """
import sys, time, torch
from kdda.bench.scenarios import SCALES
from kdda.data.batches import Stream
from kdda.data.world import World
from kdda.learn import fit as learn
from kdda.learn.selftrain import SelfTraining
from kdda.nets.segmenter import segmenter
if sys.argv[1] == "glibc": learn.keep_freed_memory = lambda: None
torch.set_num_threads(1)
s, n = SCALES["laptop"], int(sys.argv[2])
source, target = (World(d, n=64, size=s.size).render() for d in ("game", "city"))
method = SelfTraining(segmenter(s.teacher), bn_source=False, photo=s.photo)
streams = {"source": Stream(source, s.batch), "target": Stream(target, s.batch, role="target", labelled=False)}
learn.fit(method, streams, 5, progress=False)
start = time.perf_counter(); learn.fit(method, streams, n, progress=False); print((time.perf_counter() - start) / n)
"""
    took = {"ours": [], "glibc": []}
    for i in range(rounds):
        for k in sorted(took, reverse=i % 2): took[k].append(float(subprocess.run([sys.executable, "-c", code, k, str(steps)], check=True, capture_output=True, text=True).stdout))
    a, b, ratio = statistics.median(took["ours"]), statistics.median(took["glibc"]), statistics.median(b / a for a, b in zip(took["ours"], took["glibc"]))
    row(f"one step of self-training at laptop scale ({SCALES['laptop'].teacher}), freed memory kept, against handed back", 1e3 * a, 1e3 * b, ratio, "faster", ratio > 1, "ms")

class Clock:
    "Seconds spent inside the functions it wraps; a call within a call counts once."
    def __init__(self): self.seconds, self.depth = 0.0, 0

    def wrap(self, f):
        def timed(*args, **kwargs):
            self.depth += 1; start = time.perf_counter()
            try: return f(*args, **kwargs)
            finally:
                self.depth -= 1
                if not self.depth: self.seconds += time.perf_counter() - start
        return timed

def papers(steps=40, large_steps=6):
    "A whole step of each paper's method, with streams, augmentation, mixing, pseudo-labels, moving averages and checks, against what of it is spent in network passes, losses, backwards and optimisers."
    overhead_of(SCALES["laptop"], "at laptop scale", steps)
    overhead_of(dataclasses.replace(SCALES["laptop"], student="mit_b0+segformer", teacher="mit_b2+segformer", size=(256, 512), batch=2), "of MiT-B0 beside MiT-B2, two crops of 256x512", large_steps)

def overhead_of(s, which, steps):
    from unittest import mock
    from kdda.papers import diga, duda
    torch.manual_seed(0)
    net = lambda name=s.student: segmenter(name).to(memory_format=torch.channels_last).train()
    source, target = (World(d, n=64, size=s.size).render() for d in ("game", "city"))
    with torch.no_grad(): width = net()(torch.zeros(2, 3, *s.size), ("fused",))[1]["fused"].shape[1]
    common, photo = dict(bn_source=False), dict(photo=s.photo)
    for name, module, method, labelled in (
        ("DiGA, warm-up with symmetric distillation", diga, diga.WarmUp(net(), ema_decay=s.ema_decay, **common), False),
        ("DiGA, the same with CrDoMix", diga, diga.WarmUp(net(), diga.TRANSLATORS["stats"], ema_decay=s.ema_decay, **common), False),
        ("DiGA, self-training on consensus labels", diga, diga.DiGA(net(), torch.randn(19, width), torch.ones(19), translator=diga.TRANSLATORS["stats"], ema_decay=s.ema_decay, **common), True),
        ("DUDA, pre-adaptation", duda, duda.PreAdaptation(net(), net(s.teacher), ema_decay=s.ema_decay, threshold=s.threshold, augment_source=True, **photo, **common), False),
        ("DUDA, fine-tuning", duda, duda.FineTuning(net(), [net(s.teacher)], threshold=s.threshold, augment_source=True, **photo, **common), False)):
        clock, streams = Clock(), {"source": Stream(source, s.batch), "target": Stream(target, s.batch, role="target", labelled=labelled)}
        for n in method.nets.values(): n.forward = clock.wrap(n.forward)
        with contextlib.ExitStack() as patched:
            for where, what in ((torch.Tensor, "backward"), (torch.optim.AdamW, "step"),
                                *((module, f) for f in ("cross_entropy", "ohem_cross_entropy", "symmetric_kd", "soft_cross_entropy", "kd_kl", "feature_distance") if hasattr(module, f))):
                patched.enter_context(mock.patch.object(where, what, clock.wrap(getattr(where, what))))
            fit(method, streams, max(2, steps // 8), progress=False, optim={"large": s.optim})
            clock.seconds, start = 0.0, time.perf_counter()
            fit(method, streams, steps, progress=False, optim={"large": s.optim})
            whole = time.perf_counter() - start
        ratio = whole / clock.seconds
        row(f"{name}: one step {which} against its bare forwards, losses and backwards", 1e3 * whole / steps, 1e3 * clock.seconds / steps, ratio, "at most 1.10 times", ratio <= 1.10, "ms")

def memory(steps=8, rounds=7, frames=64):
    "A step of DKD whose frozen teacher has seen every frame before, against the same step with the teacher asked each time."
    from kdda.nets.heads import AuxHead
    from kdda.papers.dkd import DKD
    s = SCALES["laptop"]
    source, target = (World(d, n=frames, size=s.size).render() for d in ("game", "city"))
    net = lambda name: segmenter(name).to(memory_format=torch.channels_last)
    def training(remembers):
        torch.manual_seed(0)
        large = net(s.teacher)
        method = DKD(net(s.student), large, AuxHead(large.backbone.channels, 19), bn_source=False, photo=s.photo, width=16, layers=4)
        if not remembers: method.memory = method.answer
        streams = {"source": Stream(source, s.batch, flip=False), "target": Stream(target, s.batch, role="target", labelled=False, flip=False)}
        return method, lambda: fit(method, streams, steps, progress=False)
    (method, remembered), (_, asked) = training(True), training(False)   # the first rounds, which are not counted, show the teacher every frame
    a, b, ratio = interleaved(remembered, asked, rounds)
    row(f"DKD, one step at laptop scale, teacher's answers remembered ({method.memory.bytes / len(method.memory.kept) / 1024:.0f} KiB a view), against asking it", 1e3 * a / steps, 1e3 * b / steps, ratio,
        "at least 1.2 times faster", ratio >= 1.2, "ms")

def labels(rounds=9):
    "Ids to train ids on a Cityscapes-size label, and the teacher's best class within each pixel's set."
    import stringzilla
    from kdda.data.labels import CITYSCAPES_19_TO_CAMVID_11, CITYSCAPES_IDS, label_map, look_up
    from kdda.papers.lsu import constrained_argmax
    rng = np.random.default_rng(0)
    segments = lambda n, size, cell=16: np.kron(rng.integers(0, n, (size[0] // cell, size[1] // cell)), np.ones((cell, cell))).astype(np.uint8)
    ids = segments(34, (1024, 2048))
    ours = lambda: look_up(CITYSCAPES_IDS, ids)
    a, b, ratio = interleaved(ours, ids.copy, 5 * rounds)
    row(f"ids to train ids, 1024x2048, against a copy in memory (StringZilla's kernels for {stringzilla.__capabilities__[-1]})", 1e3 * a, 1e3 * b, 1 / ratio, "at most 2 times", 1 / ratio <= 2, "ms")
    table = dict(enumerate(CITYSCAPES_IDS.tolist()))
    a, b, ratio = interleaved(ours, lambda: np.vectorize(table.get, otypes=[np.uint8])(ids), max(3, rounds // 3))
    row("ids to train ids, 1024x2048, against np.vectorize", 1e3 * a, 1e3 * b, ratio, "at least 20 times faster", ratio >= 20, "ms")
    for what, m in (("CamVid's 32 labels, 8 of them with a choice", label_map("lsu_cityscapes_camvid")), ("CamVid's 11, half of them with a choice", CITYSCAPES_19_TO_CAMVID_11.inverse()), ("every class everywhere", None)):
        sets = torch.ones(256, 20, dtype=torch.bool) if m is None else torch.from_numpy(m.sets())
        label, score = torch.from_numpy(segments(len(m.source) if m else 19, (512, 1024)))[None], torch.rand(1, 19, 512, 1024, generator=torch.Generator().manual_seed(0))
        a, b, ratio = interleaved(lambda: constrained_argmax(score, label, sets), lambda: score.argmax(1), rounds)
        row(f"best class within sets, 19 classes, 512x1024, {what}, against plain argmax", 1e3 * a, 1e3 * b, 1 / ratio, "at most 1.3 times", 1 / ratio <= 1.3, "ms")

def disk(rounds=7, frames=6):
    "A Cityscapes tree of full-size PNGs: batches of crops against a torchvision v2 pipeline, and the doctor against bare decoding; then the doctor on very many small files."
    from PIL import Image
    from torchvision import tv_tensors
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms import v2
    from kdda.data.datasets import Cityscapes, check
    from kdda.data.labels import CITYSCAPES_IDS
    with tempfile.TemporaryDirectory() as root:
        World("city", n=frames, size=(1024, 2048)).export("cityscapes", root)
        ds = Cityscapes(root, "train")
        files = [(str(ds.root / s.image), str(f)) for s, (f, _) in zip(ds.samples, ds.label_files)]
        table, transform = torch.from_numpy(CITYSCAPES_IDS.copy()), v2.Compose([v2.RandomCrop((512, 1024)), v2.RandomHorizontalFlip()])
        def theirs():
            pairs = [transform(tv_tensors.Image(decode_image(i, ImageReadMode.RGB)), tv_tensors.Mask(table[decode_image(l, ImageReadMode.UNCHANGED)[0].long()])) for i, l in files]
            return torch.stack([i for i, _ in pairs]), torch.stack([l for _, l in pairs])
        a, b, ratio = interleaved(lambda: Stream(ds, frames, crop=(512, 1024)).batch(0), theirs, rounds)
        row(f"decode to batch, {frames} Cityscapes-size PNGs with labels, crops of 512x1024, against torchvision v2 (images a second)", frames / a, frames / b, ratio, "at least equal", ratio >= 1, "1/s")
        def bare():
            for pair in files:
                for f in pair: np.array(Image.open(f))
        a, b, ratio = interleaved(lambda: check("cityscapes", root, workers=1, splits=["train"]), bare, rounds)
        row("layout doctor, Cityscapes-size frames a second on one core, against bare decoding of image and label", frames / a, frames / b, 1 / ratio, "at most 1.3 times its time", 1 / ratio <= 1.3, "1/s")
    with tempfile.TemporaryDirectory() as root:
        World("city", n=50, size=(64, 128)).export("cityscapes", root)
        for f in [f for f in Path(root).rglob("*.png") if not f.name.endswith("instanceIds.png")]:
            for k in range(1, 100): os.link(f, f.with_name(f"{k:02}{f.name}"))
        start = time.perf_counter()
        report = check("cityscapes", root)
        wall = time.perf_counter() - start
    row("layout doctor, 10,000 files (5,000 frames of 64x128 with their labels), all cores", wall, None, wall / 30, "at most 30 s", wall <= 30 and report.ok and report.frames == {"train": 5000}, "s")

def imports(rounds=7):
    run = lambda code: subprocess.run([sys.executable, "-c", code], check=True)
    a, b, r = interleaved(lambda: run("import kdda.bench.runs"), lambda: run("import torch, torchvision"), rounds, warmup=1)
    row("import kdda.bench.runs (and with it every room), against import torch, torchvision", a, b, 1 / r, "at most 1.2 times", 1 / r <= 1.2, "s")

def quickstart(name, limit, *parameters):
    "Wall time of a quickstart from nothing, in a fresh folder, on all cores."
    env = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        subprocess.run(["kdda", "bench", "quickstart", "-p", "out", out, *parameters], check=True, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wall = time.perf_counter() - start
    row(name, wall, None, wall / limit, f"at most {limit} s", wall <= limit, "s")

def longest():
    "Wall time of the row that takes longest, on all cores; the large network it starts from is a row of its own."
    code = """
import sys; from kdda.bench.runs import Run, execute
execute(Run("source_only", student=Run("duda_stage1").teacher_name, out=sys.argv[1]), progress=False)
print(execute(Run("duda_stage1", out=sys.argv[1]), progress=False)["wall_s"])
"""
    with tempfile.TemporaryDirectory() as out:
        ran = subprocess.run([sys.executable, "-c", code, out], check=True, capture_output=True, text=True, env={k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"})
    wall = float(ran.stdout.split()[-1])
    row("duda_stage1, the longest row of game2city at laptop scale, all cores", wall, None, wall / 600, "at most 600 s", wall <= 600, "s")

def demo(): quickstart("make demo, environment ready", 240)

def real():
    "The same on real frames."
    if not os.environ.get("KDDA_DATA"): return print("skipped     quickstart on CamVid: set KDDA_DATA to the folder that holds camvid/")
    for scenario in ("camvid_day2dusk", "game2camvid"): quickstart(f"quickstart on {scenario}", 600, "-p", "scenario", scenario)

def gains():
    "What the committed runs say."
    for scenario, least in (("game2city", 5), ("camvid_day2dusk", None), ("game2camvid", None)):
        found = load_results(scenario)
        if len({m["seed"] for m in found}) < 3: print(f"skipped     {scenario}: fewer than three seeds in results/"); continue
        rows = {r["method"]: r for r in table(found)}
        dacs, source, adabn, oracle = (rows[k]["miou"] for k in ("dacs", "source_only", "adabn (source_only)", "oracle"))
        guess = 100 * found[0]["scores"]["majority_guess"]["miou"]
        if least: row(f"{scenario}: dacs over source_only, equal steps and augmentation, 3 seeds (adabn {adabn:.1f}, oracle {oracle:.1f})", dacs, source, None, f"at least +{least}, oracle above 50", dacs - source >= least and oracle > 50, "mIoU")
        else: row(f"{scenario}: dacs over the majority-class guess, 3 seeds (source_only {source:.1f}, adabn {adabn:.1f}, oracle {oracle:.1f})", dacs, guess, dacs / guess, "clearly above: 3 times", dacs >= 3 * guess, "mIoU")

PARTS = {f.__name__: f for f in (imports, world, labels, disk, confusion, mit, overhead, allocator, papers, memory, gains, longest, demo, real)}

if __name__ == "__main__":
    torch.set_num_threads(1)
    file, wanted = Path("results/speed.json"), sys.argv[1:] or list(PARTS)
    kept = [r for r in (json.loads(file.read_text()) if file.exists() else []) if r["part"] not in wanted]  # a part measured alone replaces its own rows
    for PART in wanted:
        PARTS[PART]()
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(sorted(kept + ROWS, key=lambda r: list(PARTS).index(r["part"])), indent=1) + "\n")
    sys.exit(0 if all(r["holds"] for r in ROWS) else 1)
