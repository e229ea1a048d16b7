"The loop: several processes, bf16, faults in data and losses, overhead."
import math, platform, subprocess, sys, textwrap
import numpy as np
import pytest
import torch
from kdda.data.batches import Stream
from kdda.data.world import World
from kdda.learn.fit import NonFinite, Optim, fit, param_groups
from kdda.learn.selftrain import AdaBN, PlainKD, SelfTraining, Supervised, batch_norms
from kdda.nets.segmenter import segmenter

SMALL = (32, 64)
def net(seed=0): torch.manual_seed(seed); return segmenter("mobilenet_v2_050+lraspp")
def world(domain="game", n=8): return World(domain, n=n, size=SMALL).render()
def source(**k): return Stream(world(), 2, **k)
def target(**k): return Stream(world("city"), 2, role="target", labelled=False, **k)

class Void:
    "A dataset whose labels are all void, or lack a class."
    def __init__(self, keep=lambda label: label * 0 + 255): self.w, self.keep, self.name = world(), keep, "void"; self.space = self.w.space
    def __len__(self): return len(self.w)
    def key(self, i): return f"void/{i}"
    def image(self, i): return self.w.image(i)
    def label(self, i): return self.keep(self.w.label(i)).astype(np.uint8)

@pytest.mark.parametrize("data", [Void(), Void(lambda l: np.where(l == 0, 255, l))], ids=["all void", "no road"])
def test_void_labels_and_absent_classes_are_no_accident(data):
    m = SelfTraining(net(), mic=1.0, mask_block=8)
    h = fit(m, {"source": Stream(data, 2), "target": target()}, 3, log_every=1, progress=False)
    assert all(math.isfinite(v) for r in h for v in r.values())
    assert all(p.isfinite().all() for p in m.parameters())

def test_nan_names_step_term_and_images():
    class Bad(Supervised):
        def step(self, batch, backward):
            terms = super().step(batch, backward)
            if batch.step == 1: backward(self.student(batch.source.image).mean() * float("nan"), "kd")
            return terms | ({"extra": torch.tensor(float("inf"))} if batch.step == 2 else {})
    with pytest.raises(NonFinite, match=r"step 1: 'kd' is nan.*game/train/\d+"): fit(Bad(net()), {"source": source()}, 3, progress=False)
    class Logged(Supervised):
        def step(self, batch, backward): return super().step(batch, backward) | {"extra": torch.tensor(float("inf"))}
    with pytest.raises(NonFinite, match=r"step 0: term 'extra' is inf"): fit(Logged(net()), {"source": source()}, 3, progress=False)

def test_nan_keeps_the_last_good_checkpoint(tmp_path):
    from kdda.learn import checkpoints
    class Bad(Supervised):
        def after_step(self, t):
            if t == 5: next(self.parameters()).data.fill_(float("inf"))
    with pytest.raises(NonFinite): fit(Bad(net()), {"source": source()}, 10, folder=tmp_path, checkpoint_every=2, progress=False)
    assert checkpoints.steps(tmp_path / "checkpoints") == [2, 4]
    assert not checkpoints.nonfinite(checkpoints.load_latest(tmp_path / "checkpoints")[1]["method"])

def test_a_broken_image_stops_the_run_with_its_name():
    class Broken(Void):
        def image(self, i): raise OSError("image file is truncated")
    with pytest.raises(ValueError, match="void/.*truncated"): fit(Supervised(net()), {"source": Stream(Broken(), 2)}, 2, progress=False)

def test_a_stream_or_label_that_a_method_misses_is_named():
    with pytest.raises(AttributeError, match="asks for 'target', and the batch has step, generator, source: give `fit` a stream of that name"): fit(SelfTraining(net()), {"source": source()}, 1, progress=False)
    with pytest.raises(AttributeError, match="asks for 'label', and the batch has image, keys: its stream is not a labelled one"): fit(Supervised(net()), {"source": source(labelled=False)}, 1, progress=False)

def test_unknown_optimiser_and_precision_are_refused():
    class Two(Supervised):
        def groups(self): return {"main": [self.student], "critic": [torch.nn.Linear(1, 1)]}
    with pytest.raises(ValueError, match="critic"): fit(Two(net()), {"source": source()}, 1, progress=False)
    with pytest.raises(ValueError, match="precision"): fit(Supervised(net()), {"source": source()}, 1, precision="fp16", progress=False)

def test_overfits_one_batch():
    w = world(n=2)
    h = fit(Supervised(net(), augment=False), {"source": Stream(w, 2, flip=False)}, 80, optim={"main": Optim(lr=1e-2)}, progress=False, log_every=10)
    losses = [v for _, v in h.column("ce_source")]
    assert losses[-1] < 0.25 * losses[0]

def test_target_labels_are_never_opened():
    class Secret(Void):
        def label(self, i): raise AssertionError("a target label was opened")
    stream = Stream(Secret(), 2, role="target", labelled=False)
    fit(SelfTraining(net(), mic=1.0, mask_block=8), {"source": source(), "target": stream}, 2, progress=False)
    assert not hasattr(stream.dataset, "label")

def test_frozen_teacher_stays_bit_for_bit():
    teacher = net(1)
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    fit(PlainKD(net(), teacher), {"source": source(), "target": target()}, 3, progress=False)
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())

def test_adabn_changes_statistics_only():
    n = net()
    weights = [p.clone() for p in n.parameters()]
    fit(AdaBN(n), {"target": target()}, 3, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(weights, n.parameters()))
    assert all(m.num_batches_tracked == 3 for m in batch_norms(n))

def test_same_seed_same_bits_other_seed_other_bits():
    def bits(seed):
        m = SelfTraining(net())
        fit(m, {"source": source(seed=seed), "target": target(seed=seed)}, 3, seed=seed, progress=False)
        return torch.cat([p.detach().flatten() for p in m.parameters()])
    assert torch.equal(bits(0), bits(0)) and not torch.equal(bits(0), bits(1))

def test_param_groups_cover_every_parameter_once():
    n = segmenter("mit_nano+segformer")
    groups = param_groups(n, head_lr=10, norm_decay=False)
    ids = [id(p) for g in groups for p in g["params"]]
    assert sorted(ids) == sorted(id(p) for p in n.parameters())
    assert {g.get("lr_scale", 1) for g in groups} == {1, 10} and {g.get("weight_decay") for g in groups} == {None, 0.0}

def test_bf16_on_the_cpu_trains():
    h = fit(Supervised(net()), {"source": source()}, 6, precision="bf16", log_every=1, progress=False)
    assert all(math.isfinite(v) for r in h for v in r.values())

DDP = """
    import sys, torch
    torch.set_num_threads(1)
    from kdda.data.batches import Stream
    from kdda.data.world import World
    from kdda.learn.fit import Optim, fit, init_distributed
    from kdda.learn.selftrain import Supervised, batch_norms
    from kdda.nets.segmenter import segmenter
    rank, world = init_distributed()
    class Still(Supervised):   # batch-norm from running statistics: per-process batch statistics would differ by construction
        def train(self, mode=True):
            super().train(mode)
            for m in batch_norms(self): m.eval()
            return self
    torch.manual_seed(rank)    # rank 0's weights must win
    m = Still(segmenter("mobilenet_v2_050+lraspp"), augment=False)
    for d in m.modules():
        if isinstance(d, (torch.nn.Dropout, torch.nn.Dropout2d)): d.p = 0.0
    w = World("game", n=8, size=(32, 64)).render()
    fit(m, {"source": Stream(w, 4, rank=rank, world=world)}, 4, folder=sys.argv[1], optim={"main": Optim("sgd", lr=0.05, schedule="constant")}, clip=1.0, progress=False)
    torch.save([p.detach() for p in m.parameters()], f"{sys.argv[1]}/rank{rank}.pt")
"""

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

@gpu
@pytest.mark.gpu
def test_cuda_bf16_channels_last_trains_and_resumes(tmp_path):
    def run(steps_before_stop=None):
        class Stop(SelfTraining):
            def after_step(self, t):
                super().after_step(t)
                if t == steps_before_stop: raise KeyboardInterrupt
        Stop.__name__ = "SelfTraining"
        m = Stop(net(), mic=1.0, mask_block=8)
        try: return m, fit(m, {"source": source(), "target": target()}, 8, folder=tmp_path, precision="bf16", checkpoint_every=3, log_every=1, progress=False)
        except KeyboardInterrupt: return None
    assert run(4) is None
    m, h = run()
    assert len(h) == 8 and next(m.parameters()).is_cuda and all(math.isfinite(v) for r in h for v in r.values())

@gpu
@pytest.mark.gpu
def test_nccl_runs_under_torchrun(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(DDP))
    n = torch.cuda.device_count()
    if n < 2: pytest.skip("NCCL between processes needs two CUDA devices")
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script), str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]

@pytest.mark.slow
def test_compiled_networks_learn_the_same():
    losses = []
    for compile in (False, True):
        torch.manual_seed(0)
        h = fit(Supervised(net()), {"source": source()}, 3, compile=compile, log_every=1, progress=False, optim={"main": Optim("sgd", lr=0.01)})   # AdamW's first steps are signs of gradients, and show every rounding
        losses.append([r["ce_source"] for r in h])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)

@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")
def test_freed_memory_is_kept():
    code = """
import resource, sys, torch
from kdda.learn.fit import keep_freed_memory
if sys.argv[1] == "keep": assert keep_freed_memory()
torch.ones(10**7)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10): torch.ones(10**7)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = {k: int(subprocess.run([sys.executable, "-c", code, k], check=True, capture_output=True, text=True).stdout) for k in ("keep", "as it is")}
    assert faults["keep"] < faults["as it is"] / 2
