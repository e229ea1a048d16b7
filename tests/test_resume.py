"A self-training run killed twenty times ends with the same bits as one that was left alone."
import multiprocessing as mp, os, random, signal, time
from pathlib import Path
import pytest
import torch
from kdda.data.batches import RareClass, Stream
from kdda.data.world import World
from kdda.learn import checkpoints
from kdda.learn.fit import Optim, Stage, fit, fit_stages
from kdda.learn.selftrain import SelfTraining, Supervised
from kdda.nets.segmenter import segmenter

STEPS, SIZE = 150, (32, 64)

def run(folder, tell=lambda line: None):
    "Self-training with everything that has state: EMA, rare-class sampling, masking, schedule, evaluation, two optimisers' worth of moments."
    torch.set_num_threads(1)
    class Told(SelfTraining):
        def after_step(self, t): super().after_step(t); tell(f"step {t}")
    Told.__name__ = "SelfTraining"
    save = getattr(checkpoints.save_file, "original", checkpoints.save_file)
    def slow_save(*a, **k): tell("writing"); time.sleep(0.003); save(*a, **k); tell("written"); time.sleep(0.003)
    slow_save.original, checkpoints.save_file = save, slow_save
    torch.manual_seed(0)
    source, target = World("game", n=16, size=SIZE), World("city", n=16, size=SIZE)
    streams = {"source": Stream(source, 2, role="source", sampler=RareClass(min_pixels=8, min_crop_pixels=4), crop=(24, 48), workers=1),
               "target": Stream(target, 2, role="target", labelled=False, crop=(24, 48))}
    method = Told(segmenter("mobilenet_v2_050+lraspp"), ema_decay=0.98, mic=1.0, mask_block=8)
    history = fit(method, streams, STEPS, folder=folder, optim={"main": Optim(lr=3e-3, warmup=0.1)}, checkpoint_every=7, log_every=3, clip=1.0, progress=False,
                  evaluate=lambda m: {"val/norm": float(sum(p.detach().abs().sum() for p in m.parameters()))}, evaluate_every=40, say=lambda s: None)
    return method, history

def child(folder, pipe): run(folder, pipe.send); pipe.send("done")

def final(folder):
    path = Path(folder) / "checkpoints" / f"step_{STEPS:08d}"
    return {f.name: f.read_bytes() for f in path.iterdir()} | {"history.csv": (Path(folder) / "history.csv").read_bytes()}

def test_killed_at_twenty_random_moments(tmp_path):
    draw, context = random.Random(0), mp.get_context("fork")
    moments = sorted(draw.sample(range(1, STEPS), 14))
    moments = sorted([(s, "step") for s in moments] + [(s, draw.choice(["writing", "written"])) for s in draw.sample(range(0, STEPS - 14), 6)])
    kills = {"step": 0, "writing": 0, "written": 0}
    for at, what in moments:
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=child, args=(tmp_path / "killed", there), daemon=True)
        process.start(); there.close()
        reached = -1
        try:
            while True:
                line = here.recv()
                if line.startswith("step"): reached = int(line[5:])
                assert line != "done", "finished before it could be killed"
                if reached >= at and (what == "step" or line == what): break
        except EOFError: pytest.fail("the child died by itself")
        time.sleep(draw.random() * (0.04 if what == "step" else 0.004))
        os.kill(process.pid, signal.SIGKILL); process.join()
        assert process.exitcode == -signal.SIGKILL
        kills[what] += 1
    assert sum(kills.values()) == 20 and min(kills.values()) > 0
    resumed, history = run(tmp_path / "killed")
    whole, expected = run(tmp_path / "whole")
    assert history == expected
    for (k, a), b in zip(whole.state_dict().items(), resumed.state_dict().values()): assert torch.equal(a, b), k
    assert final(tmp_path / "killed") == final(tmp_path / "whole")   # networks, EMA, optimiser, stream positions, history: to the byte

def test_the_second_of_two_runs_in_one_directory_refuses(tmp_path):
    context = mp.get_context("fork")
    here, there = context.Pipe(duplex=False)
    first = context.Process(target=child, args=(tmp_path, there), daemon=True)
    first.start()
    while not here.recv().startswith("step"): pass
    with pytest.raises(RuntimeError, match="another process is training"): run(tmp_path)
    first.kill(); first.join()
    with pytest.raises(ValueError, match="belongs to another run: steps was 150, is 3"):   # the lock went with its process; the checkpoint speaks
        for _ in range(100):
            if checkpoints.steps(tmp_path / "checkpoints"): break
            run(tmp_path)
        fit(SelfTraining(segmenter("mobilenet_v2_050+lraspp"), ema_decay=0.98, mic=1.0, mask_block=8), {}, 3, folder=tmp_path, clip=1.0,
            optim={"main": Optim(lr=3e-3, warmup=0.1)}, progress=False)

def test_stages_resume_in_the_stage_that_was_interrupted(tmp_path):
    world = World("game", n=8, size=SIZE)
    class Stop(Supervised):
        stop = None
        def after_step(self, t):
            if t == Stop.stop: raise KeyboardInterrupt
    Stop.__name__ = "Supervised"
    def stages(cls):
        torch.manual_seed(0)
        net = segmenter("mobilenet_v2_050+lraspp")
        return [Stage("one", lambda _: Supervised(net), {"source": Stream(world, 2)}, 6), Stage("two", lambda m: cls(m.student), {"source": Stream(world, 2, role="two")}, 6)]
    kw = dict(checkpoint_every=2, log_every=1, progress=False, say=lambda s: None)
    a, h = fit_stages(stages(Supervised), tmp_path / "whole", **kw)
    Stop.stop = 4
    with pytest.raises(KeyboardInterrupt): fit_stages(stages(Stop), tmp_path / "cut", **kw)
    b, g = fit_stages(stages(Supervised), tmp_path / "cut", **kw)
    assert g == h and [r["stage"] for r in g] == [0] * 6 + [1] * 6
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))
