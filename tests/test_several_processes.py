"One run on several processes: the same numbers as one process at the same global batch; rank 0 writes; a killed rank is no loss."
import os, signal, subprocess, sys, textwrap, time
from pathlib import Path
import pytest
import torch
from kdda.bench.runs import Local, Run, execute_all, ledger
from kdda.learn.fit import History

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}

# Draws differ between processes as between seeds; here they are replaced by something that depends on the images alone, and dropout is off. Batch-norm is as in every run.
TRAIN = """
    import sys, torch
    torch.set_num_threads(1)
    import kdda.learn.selftrain as selftrain, kdda.papers.diga as diga, kdda.papers.dkd as dkd, kdda.papers.duda as duda, kdda.papers.lsu as lsu, kdda.papers.spirit as spirit
    from kdda.data.batches import RareClass, Stream
    from kdda.data.labels import CITYSCAPES_19, LabelMap
    from kdda.data.world import World
    from kdda.learn.fit import Optim, fit, init_distributed
    from kdda.nets.segmenter import segmenter
    from safetensors.torch import save_file
    odd = lambda label, generator, **classes: label % 2 == 1
    still = lambda x, generator, *a, **k: x
    for m in (selftrain, duda, diga, lsu, spirit):
        for name, f in (("photometric", still), ("class_mask", odd), ("half_of_the_values", odd), ("domain_random", lambda x, generator, beta, **k: (1 - beta) * x + beta * x.flip(3)),
                        ("block_mask", lambda shape, block, ratio, generator, device: torch.arange(shape[-1]).div(8).int().remainder(2).bool().expand(shape[0], *shape[-2:]))):
            if hasattr(m, name): setattr(m, name, f)
    rank, world = init_distributed()
    from kdda.nets.heads import AuxHead
    def net(seed, name="resnet10_nano+segformer:16"):
        torch.manual_seed(10 * rank + seed)   # rank 0's weights must win
        n = segmenter(name)
        for d in n.modules():
            if isinstance(d, (torch.nn.Dropout, torch.nn.Dropout2d)): d.p = 0.0
        n.head.classifier.weight.data.mul_(30)   # sure enough for a confidence weight between 0 and 1
        return n
    def distilled():
        student, teacher = net(0), net(1)
        method = dkd.DKD(student, teacher, AuxHead(teacher.backbone.channels, 19), width=8, layers=3)
        for d in method.modules():
            if isinstance(d, (torch.nn.Dropout, torch.nn.Dropout2d)): d.p = 0.0
        return method, dict(source=source(), target=target(labelled=False))
    game, city = (World(d, n=16, size=(32, 64)).render() for d in ("game", "city"))
    source = lambda **k: Stream(game, 4, rank=rank, world=world, **k)
    target = lambda **k: Stream(city, 4, role="target", rank=rank, world=world, **k)
    rare = RareClass(min_pixels=8, min_crop_pixels=4)
    centroids = torch.randn(19, 16, generator=torch.Generator().manual_seed(0)), torch.ones(19)
    jobs = {
        "supervised": lambda: (selftrain.Supervised(net(0)), dict(source=source())),
        "statistics": lambda: (selftrain.AdaBN(net(0)), dict(target=target(labelled=False))),
        "self-training": lambda: (selftrain.SelfTraining(net(0), ema_decay=0.9, threshold=0.15, mic=1.0), dict(source=source(sampler=rare, crop=(24, 48)), target=target(labelled=False, crop=(24, 48)))),
        "duda": lambda: (duda.FineTuning(net(0), [net(1), net(2)], fusion="confidence", threshold=0.064, inconsistency="jsd", decay=0.5, every=2), dict(source=source(), target=target(labelled=False))),
        "pre-adaptation": lambda: (duda.PreAdaptation(net(0), net(1), ema_decay=0.9, threshold=0.15), dict(source=source(), target=target(labelled=False))),
        "dkd": distilled,
        "sets": lambda: (lsu.SetLearning(net(0), LabelMap.identity(CITYSCAPES_19)), dict(mixture=source())),
        "imitation": lambda: (spirit.Imitation(net(0), net(1)), dict(pool=target(labelled=False))),
        "transfer": lambda: (spirit.Transfer(net(0, "resnet10_nano+deeplabv3:16")), dict(target=target())),
        "diga": lambda: (diga.DiGA(net(0), *centroids, momentum=0.2, ema_decay=0.9), dict(source=source(), target=target())),
    }
    sgd = Optim("sgd", lr=0.002, schedule="constant")
    for name, make in jobs.items():
        m, streams = make()
        h = fit(m, streams, 4, folder=f"{sys.argv[1]}/{name}", optim={"main": sgd, "large": sgd, "judge": sgd, "front": sgd}, clip=1.0, accumulate=2 if name == "supervised" else 1, log_every=1, progress=False)
        save_file({k: v.contiguous().clone() for k, v in m.state_dict().items()}, f"{sys.argv[1]}/{name}-{rank}.safetensors")
"""
NAMES = ("supervised", "statistics", "self-training", "duda", "pre-adaptation", "dkd", "sets", "imitation", "transfer", "diga")

@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    (folder / "train.py").write_text(textwrap.dedent(TRAIN))
    for name, how in (("one", []), ("two", TORCHRUN)):
        (folder / name).mkdir()
        done = subprocess.run([sys.executable, *how, str(folder / "train.py"), str(folder / name)], env=ENV, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
    return folder

@pytest.mark.parametrize("name", NAMES)
def test_two_processes_make_what_one_makes(name, trained):
    "Networks, EMA teachers, batch-norm statistics, centroids, class weights: within 1e-4 after four steps, and equal between the two."
    from safetensors.torch import load_file
    one, two, other = (load_file(trained / f"{f}.safetensors") for f in (f"one/{name}-0", f"two/{name}-0", f"two/{name}-1"))
    assert one.keys() == two.keys()
    for k, v in one.items():
        assert torch.equal(two[k], other[k]), k
        assert torch.allclose(v.double(), two[k].double(), rtol=1e-4, atol=1e-4), (k, (v.double() - two[k].double()).abs().max())
    if name == "diga": assert not torch.equal(one["centroids"], one["first_centroids"])
    if name == "duda": assert one["class_weight"].std() > 0 and one["agreement.confusion"].sum() > 0

@pytest.mark.parametrize("name", NAMES)
def test_losses_agree_and_rank_0_alone_writes(name, trained):
    one, two = (History.from_csv(trained / n / name / "history.csv") for n in ("one", "two"))
    assert len(one) == len(two) == 4
    for a, b in zip(one, two):
        own = {"explained"}                        # a share of variance, of each process's own images
        assert {k: v for k, v in a.items() if k not in own} == pytest.approx({k: v for k, v in b.items() if k not in own}, rel=1e-3, abs=1e-5)
    if "q" in one[0]: assert any(0 < row["q"] < 1 for row in one)
    assert sorted(p.name for p in (trained / "two" / name / "checkpoints").iterdir()) == ["step_00000004"]

def run_of(out, **more): return dict(method="dacs", scale="smoke", out=str(out), **more)

def test_too_many_processes_are_refused():
    with pytest.raises(ValueError, match="nproc = 3: a batch of 2 images"): Run(**run_of("runs", nproc=3))
    with pytest.raises(ValueError, match="nproc = 0"): Run(**run_of("runs", nproc=0))

def test_devices_and_cores_are_shared_out(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(subprocess, "Popen", lambda command, env, **k: (command, env))
    engine = Local(nproc=2)
    runs = [Run(**run_of(tmp_path, seed=s, nproc=2)) for s in (0, 1)]
    for r in runs: engine.start(r, r.request)
    assert engine.jobs == 2 and engine.room == 0 and [engine.working[r][1][1]["CUDA_VISIBLE_DEVICES"] for r in runs] == ["0,1", "2,3"]
    assert engine.working[runs[0]][1][0][1:6] == TORCHRUN[:5] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")             # what somebody has given to this process, and no other
    engine = Local()
    for r in runs: engine.start(r, r.request)
    assert [engine.working[r][1][1]["CUDA_VISIBLE_DEVICES"] for r in runs] == ["5", "7"]
    with pytest.raises(ValueError, match="nproc = 3: there are 2 CUDA devices"): Local(nproc=3)

def ranks(pid):  # of a torchrun -> process ids of its ranks
    return [int(p) for p in subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()]

@pytest.mark.slow
def test_a_killed_rank_ends_the_run_which_then_goes_on(tmp_path):
    whole, cut = (run_of(tmp_path / name, nproc=2, steps=30) for name in ("whole", "cut"))
    engine, run = Local(1, nproc=2), Run(**cut)
    engine.start(run, run.request)
    torchrun = engine.working[run][1]
    while not list(run.folder.glob("adapt/checkpoints/step_*")): time.sleep(0.02); assert torchrun.poll() is None
    os.kill(ranks(torchrun.pid)[1], signal.SIGKILL)
    while not (ended := engine.ended()): time.sleep(0.05)
    assert ended[0][1] != 0 and run.metrics is None
    a, b = execute_all([cut, whole], jobs=1, progress=False)
    assert a["resumed"] and not b["resumed"] and a["scores"] == b["scores"]
    same = lambda name: [(Path(r["folder"]) / "student.safetensors").read_bytes() for r in ledger(tmp_path / name)]
    assert same("cut") == same("whole")

LATE = """
    import sys, time, torch
    from kdda.data.world import World
    from kdda.learn import pseudo_labels
    from kdda.learn.fit import init_distributed
    from kdda.nets.segmenter import segmenter
    rank, _ = init_distributed()
    looked = pseudo_labels._thresholds
    def late(*args): time.sleep(rank); return looked(*args)
    pseudo_labels._thresholds = late          # rank 0 would have written before rank 1 has seen what is missing
    torch.manual_seed(0)
    pseudo_labels.write_pseudo_labels(segmenter("resnet10_nano+segformer:16"), World("city", n=12, size=(32, 64)).render(), sys.argv[1], (1.0,), batch=2)
"""

def test_a_late_process_leaves_no_frame_without_labels(tmp_path):
    (tmp_path / "late.py").write_text(textwrap.dedent(LATE))
    done = subprocess.run([sys.executable, *TORCHRUN, str(tmp_path / "late.py"), str(tmp_path / "labels")], capture_output=True, text=True, timeout=300, env=ENV)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(list((tmp_path / "labels").glob("[0-9]*.png"))) == 12
