"DUDA. Oracles in NumPy, promises to the bit, memory, resuming, every row."
import copy, dataclasses, math
import numpy as np
import pytest
import torch
from killing import dying, resumes_to_the_bit, same
from kdda.bench.runs import Run, evaluate, execute
from kdda.data.batches import Stream
from kdda.data.labels import LabelSpace
from kdda.data.world import World
from kdda.learn.fit import Optim, fit, to_device
from kdda.learn.losses import kd_kl
from kdda.learn.selftrain import SelfTraining, Supervised, ema_update, most_likely
from kdda.nets.segmenter import segmenter
from kdda.papers import duda
from kdda.papers.duda import Agreement, FineTuning, PreAdaptation, TwoStudents, at_scale, class_weights, fuse, js_divergence, peak_saved_bytes

SIZE, SMALL, LARGE = (32, 64), "mobilenet_v2_050+lraspp", "mit_nano+daformer:16"
GAME, CITY = World("game", n=8, size=SIZE).render(), World("city", n=8, size=SIZE).render()

def net(name=LARGE, seed=0):
    torch.manual_seed(seed)
    return segmenter(name)

def streams(): return {"source": Stream(GAME, 2), "target": Stream(CITY, 2, role="target", labelled=False)}

def batch(seed=0):
    from types import SimpleNamespace
    return SimpleNamespace(step=0, generator=torch.Generator().manual_seed(seed), **{k: to_device(next(s), "cpu") for k, s in streams().items()})

def train(method, steps=3, **more): return fit(method, streams(), steps, progress=False, say=lambda s: None, **more)


@pytest.mark.parametrize("last", [False, True])
def test_the_most_likely_class_is_the_maximum_of_the_softmax(last):
    z = 5 * torch.randn(2, 19, 6, 7)
    z[0, :, 0, 0] = 1.0                                        # all alike: the first one
    p, c = most_likely(z.contiguous(memory_format=torch.channels_last) if last else z)
    top = z.softmax(1).max(1)
    assert torch.equal(c, top.indices) and c[0, 0, 0] == 0 and torch.allclose(p, top.values, rtol=1e-5) and p[0, 0, 0] == pytest.approx(1 / 19)

# 1, 7: the small branch leaves no trace, and sees the very same tensors

@pytest.mark.parametrize("switches", [{}, {"mic": 1.0, "mask_block": 8}, {"augment_source": True, "teacher_bn": "running", "bn_source": True}])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_large_branch_is_plain_self_training_to_the_bit(switches, accumulate):
    alone = SelfTraining(net(), **switches)
    train(alone, accumulate=accumulate, optim={"main": Optim(lr=3e-3)})
    ours = {**switches, **({"mic": {"large": 1.0, "small": 0.5}} if "mic" in switches else {})}
    pair = PreAdaptation(net(LARGE, 5), net(), **ours)   # dropout in both: the small one must not shift the large one's draws
    train(pair, accumulate=accumulate, optim={"main": Optim(lr=1e-2), "large": Optim(lr=3e-3)})
    same(pair.nets["large"], alone.student); same(pair.nets["teacher"], alone.nets["teacher"])
    assert not torch.equal(next(pair.student.parameters()), next(net(LARGE, 5).parameters()))

def test_the_large_branch_with_feature_distance_is_daformer_to_the_bit():
    fd = dict(things=[11, 12, 13])
    alone = SelfTraining(net(), fd=0.005, anchor=net(seed=3).backbone, **fd)
    train(alone)
    pair = PreAdaptation(net(SMALL, 1), net(), fd={"large": 0.005, "small": 0.01}, anchors={"large": net(seed=3).backbone, "small": net(SMALL, 4).backbone}, **fd)
    train(pair)
    same(pair.nets["large"], alone.student)
    same(pair.nets["large_anchor"], net(seed=3).backbone)
    with pytest.raises(ValueError, match="small.*anchors"): PreAdaptation(net(SMALL), net(), fd={"small": 0.01})

def test_both_students_get_the_same_tensors():
    pair, seen = PreAdaptation(net(SMALL), net(), mic={"large": 1.0, "small": 1.0}, mask_block=8), {"large": [], "student": []}
    for name in seen: pair.nets[name].register_forward_pre_hook(lambda m, args, name=name: seen[name].append(args[0]))
    pair.train().step(batch(), lambda loss, name: loss.backward())
    assert len(seen["large"]) == len(seen["student"]) == 3
    assert all(a is b for a, b in zip(*seen.values()))

def test_one_backward_after_another_and_no_gradient_between_branches():
    pair, order = PreAdaptation(net(SMALL), net()), []
    has = lambda n: any(p.grad is not None for p in pair.nets[n].parameters())
    def backward(loss, name): loss.backward(); order.append((name, has("large"), has("student"), has("teacher")))
    pair.train().step(batch(), backward)
    assert [o[0] for o in order] == ["large_source", "large_mixed", "small_source", "small_mixed"]
    assert order[1][1:] == (True, False, False)
    large = [p.grad.clone() for p in pair.nets["large"].parameters() if p.grad is not None]
    assert order[3][1:] == (True, True, False) and len(large) > 0

def test_mic_for_the_small_branch_alone():
    pair = PreAdaptation(net(SMALL), net(), mic={"small": 1.0}, mask_block=8)
    names = []
    pair.train().step(batch(), lambda loss, name: (loss.backward(), names.append(name)))
    assert names == ["large_source", "large_mixed", "small_source", "small_mixed", "small_masked"]

def test_each_branch_weighs_the_masked_view_its_own_way():
    pair, b = PreAdaptation(net(SMALL), net(), mic={"large": 0.5, "small": 2.0}, mask_block=8), batch()
    weight = torch.rand(2, *SIZE)
    views = pair.views(b, torch.zeros(2, *SIZE, dtype=torch.uint8), weight)
    for branch, factor in (("large", 0.5), ("small", 2.0)):
        wanted = pair.wanted(branch, views)
        assert torch.equal(wanted[-1].weight, factor * weight) and wanted[-1].image is views[-1].image and wanted[:-1] == views[:-1]

def test_plain_target_view_shows_target_images_with_the_teachers_labels():
    pair = PreAdaptation(net(SMALL), net(), target_view="plain", photo=dict(p_jitter=0, p_blur=0)).train()
    b = batch()
    pseudo, weight = torch.zeros(2, *SIZE, dtype=torch.uint8), torch.ones(2, *SIZE)
    _, view = pair.views(b, pseudo, weight)
    assert view.name == "plain" and torch.allclose(view.image, b.target.image, atol=1e-5) and view.label is pseudo
    with pytest.raises(ValueError, match="target_view"): PreAdaptation(net(SMALL), net(), target_view="both")

# 6: the moving average

def test_teacher_follows_the_large_student_with_the_ramp():
    pair = PreAdaptation(net(SMALL), net(), ema_decay=0.9)
    start = [p.clone() for p in pair.nets["teacher"].parameters()]
    train(pair, 1)
    for p0, p, s in zip(start, pair.nets["teacher"].parameters(), pair.nets["large"].parameters()): assert torch.allclose(p, (p0 + s) / 2, atol=1e-7)   # t = 1: half and half
    by_hand = copy.deepcopy(pair.nets["teacher"])
    with torch.no_grad():
        for p in pair.nets["large"].parameters(): p.add_(1.0)
    pair.after_step(50)
    ema_update(by_hand, pair.nets["large"], 51, 0.9)
    same(by_hand, pair.nets["teacher"])

# memory

@pytest.mark.parametrize("large,small", [("resnet10_slim+lraspp:64", "resnet10_nano+segformer:48"), (LARGE, SMALL), ("mobilenet_v2_050+lraspp", "mit_nano+segformer:32"), (LARGE, LARGE)])
def test_separate_backwards_need_at_most_0_6_of_one_summed(large, small):
    pair = PreAdaptation(net(small), net(large), mic={"large": 1.0, "small": 1.0}, mask_block=8)
    before = copy.deepcopy(pair)
    apart, summed = (peak_saved_bytes(pair, lambda m, backward: m.step(batch(), backward), s) for s in (True, False))
    assert 0 < apart <= 0.6 * summed
    same(before, pair)

def test_saved_bytes_counts_shared_storage_once_and_sees_the_graph_freed():
    x = torch.ones(100, requires_grad=True)
    with duda.SavedBytes(torch.nn.Module()) as memory:
        y = x.exp()
        z = y.view(10, 10).exp(), (y * y).sum()       # y is saved by three operations: 400 bytes; z[0] 400 more
        assert memory.live == 800
        (z[0].sum() + z[1]).backward()
        del y, z
    assert memory.live == 0 and memory.peak == 800

# 2: class weights

def numpy_weights(I, tau, lo, hi, share=None):
    out, on = np.ones_like(I), np.isfinite(I)
    if not on.any(): return out
    e = np.exp(I[on] / tau)
    w = np.clip(on.sum() * e / e.sum(), lo, hi)
    out[on] = w / (w.mean() if share is None else (w * share[on]).sum() / share[on].sum())
    return out

@pytest.mark.parametrize("tau", [0.05, 0.5, math.inf])
@pytest.mark.parametrize("shares", [False, True])
def test_class_weights_equal_numpy(tau, shares):
    rng = np.random.default_rng(0)
    I, share = rng.random(19), rng.random(19)
    I[[3, 17]] = np.nan
    ours = class_weights(torch.tensor(I), tau, share=torch.tensor(share) if shares else None).numpy()
    np.testing.assert_allclose(ours, numpy_weights(I, tau, 0.3, 3.0, share if shares else None), rtol=1e-6)
    assert ours[3] == ours[17] == 1
    if not shares: assert np.delete(ours, [3, 17]).mean() == pytest.approx(1)
    if tau == math.inf: np.testing.assert_allclose(ours, 1, rtol=1e-12)

def test_equal_inconsistency_is_plain_distillation_and_nothing_seen_is_all_ones():
    torch.testing.assert_close(class_weights(torch.full((19,), 0.4)), torch.ones(19))
    w = class_weights(Agreement(19).inconsistency)
    assert torch.equal(w, torch.ones(19))

# 3: inconsistency

def numpy_statistics(logits, teacher, valid, kind):
    "Straight from the definitions, on one batch."
    e = np.exp(logits - logits.max(1, keepdims=True)); f = e / e.sum(1, keepdims=True)
    t, s, out = teacher.argmax(1), logits.argmax(1), []
    for c in range(logits.shape[1]):
        is_t, is_s = (t == c) & valid, (s == c) & valid
        if kind == "iou": a, b = (is_t & is_s).sum(), (is_t | is_s).sum(); out.append(1 - a / b if b else np.nan); continue
        if not is_t.any(): out.append(np.nan); continue
        if kind == "recall": out.append(1 - (is_t & is_s).sum() / is_t.sum())
        if kind == "prob": out.append(1 - f[:, c][is_t].mean())
        if kind == "jsd":
            p, q = teacher.transpose(0, 2, 3, 1)[is_t], f.transpose(0, 2, 3, 1)[is_t]
            kl = lambda x, y: np.where(x > 0, x * np.log2(np.where(x > 0, x, 1) / y), 0).sum(1)
            out.append((0.5 * kl(p, (p + q) / 2) + 0.5 * kl(q, (p + q) / 2)).mean())
    return np.array(out)

@pytest.mark.parametrize("kind", duda.INCONSISTENCIES)
def test_inconsistency_equals_numpy_and_does_not_depend_on_the_decay(kind):
    g = torch.Generator().manual_seed(0)
    logits, teacher = torch.randn(2, 7, 9, 11, generator=g) * 2, (torch.randn(2, 7, 9, 11, generator=g) * 2)
    teacher[:, 5] = -50; logits[:, 5] = -50                         # a class that neither mentions
    probabilities = teacher.softmax(1)
    valid = torch.rand(2, 9, 11, generator=g) > 0.3
    want = numpy_statistics(logits.numpy().astype(float), probabilities.numpy().astype(float), valid.numpy(), kind)
    for decay, times in ((0.99, 1), (0.5, 1), (0.9, 4)):
        a = Agreement(7, kind, decay)
        for _ in range(times): a.update(logits, teacher, valid)
        np.testing.assert_allclose(a.inconsistency.numpy(), want, atol=2e-5, equal_nan=True)
    assert np.isnan(want[5])

def test_the_running_statistics_forget():
    a = Agreement(2, "recall", decay=0.5)
    agree, wrong = torch.tensor([[9., 0.]]).view(1, 2, 1, 1), torch.tensor([[0., 9.]]).view(1, 2, 1, 1)
    ok = torch.ones(1, 1, 1, dtype=torch.bool)
    a.update(agree, agree, ok); a.update(wrong, agree, ok)
    assert a.inconsistency[0] == pytest.approx(1 - 0.25 / 0.75)

def test_agreement_with_oneself_is_zero():
    logits = torch.randn(2, 19, 8, 8, generator=torch.Generator().manual_seed(1))
    for kind in ("iou", "recall", "jsd"):
        a = Agreement(19, kind); a.update(logits, logits, torch.ones(2, 8, 8, dtype=torch.bool))
        seen = a.inconsistency.isfinite()
        assert seen.any() and (a.inconsistency[seen].abs() < 1e-6).all()
    one = torch.eye(2).view(2, 2, 1, 1)
    assert torch.equal(js_divergence(one, one.flip(1)), torch.ones(2, 1, 1))   # nothing in common: one bit

def test_nothing_valid_and_an_all_margin_batch_are_not_nan():
    a = Agreement(19); a.update(torch.randn(1, 19, 4, 4), torch.randn(1, 19, 4, 4), torch.zeros(1, 4, 4, dtype=torch.bool))
    assert torch.equal(class_weights(a.inconsistency), torch.ones(19))
    tune = FineTuning(net(SMALL), [net()], margins=(SIZE[0], 0), every=1)
    history = train(tune, 1, log_every=1)
    assert history[0]["kd"] == 0 and torch.equal(tune.class_weight, torch.ones(19))

# 4, 5: fusion and distillation

def test_identical_teachers_are_one_teacher():
    z = torch.randn(2, 19, 4, 4)
    for how in ("mean", "confidence"): torch.testing.assert_close(fuse([z, z, z], how), z.softmax(1))
    with pytest.raises(ValueError, match="fusion"): fuse([z], "median")

def test_fusion_equals_numpy():
    zs = [torch.randn(1, 5, 3, 3, generator=torch.Generator().manual_seed(s)) * k for s, k in enumerate((1, 3, 10))]   # from one that is never sure to one that always is
    ps = [np.exp(z.numpy()) / np.exp(z.numpy()).sum(1, keepdims=True) for z in zs]
    np.testing.assert_allclose(fuse(zs).numpy(), sum(ps) / 3, atol=1e-6)
    q = [(p.max(1) >= 0.7).mean() + 1e-6 for p in ps]
    assert q[0] < q[1] < q[2]
    np.testing.assert_allclose(fuse(zs, "confidence", 0.7).numpy(), sum(a * p for a, p in zip(q, ps)) / sum(q), atol=1e-5)

def test_a_certain_teacher_gives_finite_losses_and_gradients():
    z = torch.tensor([[500., -500., 0.]]).view(1, 3, 1, 1)
    student = torch.zeros(1, 3, 1, 1, requires_grad=True)
    loss = kd_kl(student, fuse([z, z]).log())
    loss.backward()
    assert loss.item() == pytest.approx(math.log(3)) and student.grad.isfinite().all()
    assert kd_kl(z, fuse([z]).log()).item() == pytest.approx(0, abs=1e-6)

@pytest.mark.parametrize("inconsistency", [*duda.INCONSISTENCIES, "none"])
def test_frozen_teachers_stay_frozen(inconsistency):
    teachers = [net("resnet10_nano+segformer:16", 7), net(seed=8)]
    tune = FineTuning(net(SMALL), teachers, scales=(2, 1), inconsistency=inconsistency, every=2, decay=0.5)
    before = copy.deepcopy(tune)
    train(tune, 4)
    for k in range(2): same(before.nets[f"teacher{k}"], tune.nets[f"teacher{k}"])
    assert not any(p.requires_grad or p.grad is not None for k in range(2) for p in tune.nets[f"teacher{k}"].parameters())
    assert not torch.equal(before.student.head.classifier.weight if hasattr(before.student.head, "classifier") else next(before.student.parameters()),
                           tune.student.head.classifier.weight if hasattr(tune.student.head, "classifier") else next(tune.student.parameters()))
    assert torch.equal(tune.class_weight, torch.ones(19)) == (inconsistency == "none")

def test_weights_of_one_are_plain_distillation_to_the_bit():
    results = []
    for options in (dict(inconsistency="none"), dict(inconsistency="iou", tau=math.inf, every=2), dict(inconsistency="iou", every=10)):
        torch.manual_seed(0)
        results.append(FineTuning(net(SMALL), [net(seed=8)], **options))
        train(results[-1], 4)
    for (k, a), b in zip(results[0].student.state_dict().items(), results[2].student.state_dict().values()):
        if not k.endswith("num_batches_tracked"): assert torch.equal(a, b), k   # the comparing pass itself leaves no trace, but in batch-norm's idle counter
    for a, b in zip(results[0].student.parameters(), results[1].student.parameters()): torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)

def test_the_class_weights_reach_exactly_the_target_terms():
    "One step's three losses against NumPy-like recomputation with a weight on one class."
    def losses(weight):
        tune = FineTuning(net("resnet10_nano+segformer:16"), [net("resnet10_nano+segformer:16", 8)], inconsistency="none", threshold=0.0).train()
        tune.class_weight.copy_(weight)
        out = tune.step(batch(), lambda loss, name: None)
        return {k: v.item() for k, v in out.items()}
    one, two = losses(torch.ones(19)), losses(torch.full((19,), 2.0))
    assert two["kd"] == pytest.approx(2 * one["kd"], rel=1e-5) and two["ce_source"] == one["ce_source"]
    none = losses(torch.zeros(19))     # what is left of the mixed term are the pasted source pixels
    assert none["kd"] == 0 and 0 < none["ce_mixed"] < one["ce_mixed"] and two["ce_mixed"] - one["ce_mixed"] == pytest.approx(one["ce_mixed"] - none["ce_mixed"], rel=1e-4)

def test_the_mixed_term_trusts_labels_as_far_as_teachers_are_sure(monkeypatch):
    "The weight handed to the mix: share of sure pixels, times class weight, none in the margins."
    seen, mixed = [], duda.dacs_mix
    monkeypatch.setattr(duda, "dacs_mix", lambda *args, **more: (seen.append(args[3:5]), mixed(*args, **more))[1])
    tune = FineTuning(net(SMALL), [net(seed=8)], inconsistency="none", margins=(2, 5)).train()
    tune.class_weight.copy_(torch.linspace(0.5, 1.5, 19))
    tune.threshold = most_likely(tune.nets["teacher0"](batch().target.image))[0].median()
    q = tune.step(batch(), lambda loss, name: None)["q"]
    (hard, weight), = seen
    inside = torch.ones(SIZE); inside[:2] = 0; inside[-5:] = 0
    assert 0 < q < 1 and torch.allclose(weight, q * inside * tune.class_weight[hard.long()])

def test_a_glance_leaves_no_trace():
    student, x = net("resnet10_nano+segformer:16").train(), batch().target.image
    before = {k: v.clone() for k, v in student.state_dict().items() if "num_batches" not in k}
    a, b = duda.glance(student, x), duda.glance(student, x)
    assert torch.equal(a, b) and all(torch.equal(v, student.state_dict()[k]) for k, v in before.items())   # no dropout, no statistics
    assert all(m.training for m in student.modules())

@pytest.mark.parametrize("bad,match", [(dict(inconsistency="dice"), "dice"), (dict(balance="image"), "balance"), (dict(compare="never"), "compare"), (dict(target_loss="mse"), "target_loss"), (dict(scales=(1, 2)), "2 scales")])
def test_unknown_choices_are_refused(bad, match):
    with pytest.raises(ValueError, match=match): FineTuning(net(SMALL), [net()], **bad)

@pytest.mark.parametrize("options", [dict(target_loss="ce"), dict(compare="disturbed"), dict(balance="pixel", inconsistency="prob"), dict(temperature=2.0, weights=(1.0, 0.5, 0.0))])
def test_every_switch_trains(options):
    history = train(FineTuning(net(SMALL), [net()], every=1, **options), 2, log_every=1)
    assert all(math.isfinite(v) for r in history for v in r.values())

# heterogeneous pairs, resolution

@pytest.mark.parametrize("large,small", [("mit_nano+daformer:16", "resnet10_nano+lraspp"), ("mit_nano+segformer:16", "mobilenet_v2_050+lraspp"),
                                         ("resnet10_nano+lraspp", "mit_nano+segformer:16"), ("mobilenet_v2_050+lraspp", "mit_nano+segformer:16")])
def test_heterogeneous_pairs(large, small):
    pair = PreAdaptation(net(small), net(large), scale=2)
    train(pair, 2)
    train(FineTuning(pair.student, [pair.nets["teacher"]], scales=(2,)), 2)

def test_a_network_at_twice_the_resolution_sees_twice_the_pixels():
    seen = []
    n = net("resnet10_nano+segformer:16").eval()
    n.register_forward_pre_hook(lambda m, args: seen.append(tuple(args[0].shape[-2:])))
    x = torch.randn(1, 3, *SIZE)
    logits, taps = at_scale(n, x, 2, ("stage1",))
    assert seen == [(64, 128)] and logits.shape[-2:] == SIZE and torch.equal(at_scale(n, x, 1), n(x))

# 8: kill and resume

@pytest.mark.parametrize("stage", ["warm", "pre", "fine"])
def test_resume_is_bitwise(stage, tmp_path):
    make = {"warm": lambda: TwoStudents(net(SMALL), net()), "pre": lambda: PreAdaptation(net(SMALL, 1), net(), mic={"large": 1.0, "small": 1.0}, mask_block=8),
            "fine": lambda: FineTuning(net(SMALL), [net(seed=3), net("resnet10_nano+segformer:16")], inconsistency="jsd", every=2, decay=0.8)}[stage]
    optim = {"main": Optim(lr=3e-3, warmup=2), "large": Optim(lr=1e-3)}
    def go(folder, kill):
        m = dying(make(), 4) if kill else make()
        return m, train(m, 7, folder=folder, checkpoint_every=2, log_every=1, optim=optim)
    resumes_to_the_bit(go, tmp_path)              # both optimisers and the statistics too

# rows

@pytest.mark.parametrize("method,options", [("duda_stage1", {"mic": 1.0}), ("duda_kd", {}), *(("duda", {"inconsistency": k}) for k in duda.INCONSISTENCIES),
                                            ("duda", {"scale": 2, "balance": "pixel"}), ("duda_two_teachers", {"of": "dacs", "second_scale": 2}), ("duda_fixed", {"of": "dacs"})])
def test_every_row_runs(method, options, tmp_path):
    run = Run(method, scale="smoke", options=options, out=tmp_path)
    m = execute(run, progress=False, say=lambda s: None)
    assert m["method"] == method and m["student"]["name"] == run.student_name
    needs = [(n["method"], n["student"]) for n in m["needs"]]
    others = [(v, run.teacher_name) for k, v in options.items() if k == "of"]
    if method == "duda_stage1": others = [("source_only", run.teacher_name)]   # where the large network starts
    if method in ("duda_stage1", "duda_fixed"): assert needs == others and m["steps"] == run.steps
    else: assert needs == [("duda_stage1", run.student_name)] + others and m["steps"] + m["needs"][0]["steps"] == run.steps   # the budget is the small student's

def test_stage_1_is_made_once_and_a_row_out_of_steps_is_refused(tmp_path):
    rows = [execute(Run(m, scale="smoke", out=tmp_path), progress=False, say=lambda s: None) for m in ("duda", "duda_kd")]
    assert rows[0]["needs"] == rows[1]["needs"] and len(list((tmp_path / "smoke" / "game2city" / "duda_stage1").iterdir())) == 1
    first = Run("duda_stage1", scale="smoke", steps=3, out=tmp_path)
    assert first.id == rows[0]["needs"][0]["run_id"]
    large = first.load_net("pre_adapt", "teacher", first.teacher_name)
    assert large.state_dict().keys() == segmenter(first.teacher_name).state_dict().keys()
    with pytest.raises(FileNotFoundError, match="pre_adopt.*pre_adapt"): first.stage_state("pre_adopt")
    with pytest.raises(ValueError, match="share = 0.5 of 1 steps leaves"): execute(Run("duda", scale="smoke", steps=1, out=tmp_path), progress=False)

def test_a_row_that_hides_its_large_network_is_refused():
    with pytest.raises(TypeError, match="without saying so"): Run("dacs", scale="smoke").teacher_name
    a, b = (Run("dacs", scale="smoke", teacher=t) for t in ("resnet10_nano+segformer:16", "resnet10_slim+segformer:16"))
    c, d = (Run("duda", scale="smoke", teacher=t) for t in ("resnet10_nano+segformer:16", "resnet10_slim+segformer:16"))
    assert a.id == b.id and c.id != d.id

def test_feature_distance_where_both_start_from_weights(tmp_path):
    for name in ("mit_nano", "resnet10_slim"): torch.save(net(f"{name}+segformer:16").backbone.state_dict(), tmp_path / f"{name}.pt")
    run = Run("duda_stage1", scale="smoke", student="mit_nano+segformer:16", teacher="resnet10_slim+lraspp:64", weights=tmp_path / "mit_nano.pt", teacher_weights=tmp_path / "resnet10_slim.pt", out=tmp_path)
    execute(run, progress=False)
    state = run.stage_state("pre_adapt")
    assert any(k.startswith("nets.large_anchor.") for k in state) and any(k.startswith("nets.small_anchor.") for k in state)

def test_the_target_stream_of_every_stage_has_no_labels():
    for method in ("duda", "duda_two_teachers", "duda_fixed"):
        for stage in Run(method, scale="smoke").row.stages(Run(method, scale="smoke")):
            if "target" in stage.streams: assert "label" not in next(stage.streams["target"])

def test_gain_by_third_leaves_out_absent_classes():
    assert duda.gain_by_third(dict(a=0.1, b=None, c=0.5, d=0.9), dict(a=0, b=None, c=0, d=0), dict(a=0.3, b=0.1, c=0.2, d=0.1)) == pytest.approx([30, 20, 10])

def test_the_paper_recipe_runs_on_trees_the_world_writes(tmp_path):
    "GTA5 -> Cityscapes through the real loaders, crops and margins, all stages, a teacher from another run."
    World("game", n=4, size=(96, 176)).export("gta5", tmp_path / "gta5")
    for split in ("train", "val"): World("city", n=2, size=(128, 256), split=split).export("cityscapes", tmp_path / "cityscapes", split=split)
    run = Run("duda_two_teachers", scenario="gta2cityscapes", scale="smoke", data_root=str(tmp_path), options={"of": "daformer"}, out=tmp_path / "runs")
    assert execute(run, progress=False, say=lambda s: None)["scored_on"]["images"] == 2

# 9: on coloured shapes it adapts, in the order the method promises

class Shapes:
    "Discs and squares on grey ground; the target is darker, bluer and noisier."
    space = LabelSpace("shapes", ("ground", "disc", "square"), ((90, 90, 90), (190, 80, 80), (80, 170, 80)))
    def __init__(self, domain, n=64, seed=0):
        self.name, self.frames = f"shapes {domain} {seed}", [self.make(domain, np.random.default_rng([seed, i, domain == "target"])) for i in range(n)]
    def __len__(self): return len(self.frames)
    def key(self, i): return f"{self.name}/{i}"
    def image(self, i): return self.frames[i][0]
    def label(self, i): return self.frames[i][1]

    def make(self, domain, g):
        (y, x), label = np.mgrid[:32, :64], np.zeros((32, 64), np.uint8)
        for _ in range(g.integers(3, 6)):
            kind, r, dy, dx = g.integers(1, 3), g.integers(4, 9), abs(y - g.integers(32)), abs(x - g.integers(64))
            label[dy**2 + dx**2 <= r**2 if kind == 1 else np.maximum(dy, dx) <= 0.85 * r] = kind
        color = np.array(self.space.colors)[label] + g.normal(0, 18, 3)
        if domain == "target": color = color * (0.75, 0.6, 0.8) + (0, 10, 45)
        return (color + g.normal(0, 12 if domain == "source" else 22, color.shape)).clip(0, 255).astype(np.uint8), label

@pytest.mark.slow
def test_on_shapes_each_part_gives_what_it_promises():
    "Pre-adaptation beside a large network beats the source alone, the whole beats self-training of the small network, the weights raise the worst class. Mean of two seeds."
    source, target, test = Shapes("source"), Shapes("target"), Shapes("target", 48, seed=1)
    adapt = dict(ema_decay=0.97, threshold=0.9, augment_source=True, bn_source=False)
    tune = dict(every=10, threshold=0.9, augment_source=True, bn_source=False)
    scores = {}
    for seed in (0, 1):
        def small(): torch.manual_seed(10 * seed); return segmenter("resnet10_nano+segformer:16", 3)
        def large(): torch.manual_seed(10 * seed + 1); return segmenter("resnet10_slim+segformer:48", 3)
        def run(make, role, steps, *nets, **options):
            method = make(*nets, photo=dict(jitter=0.3, p_gray=0.1), **options)
            data = {"source": Stream(source, 8, seed=seed, role=f"source, {role}"), "target": Stream(target, 8, seed=seed, role=f"target, {role}", labelled=False)}
            return fit(method, data, steps, progress=False, say=lambda s: None, optim={k: Optim(lr=1e-2, warmup=0.05) for k in make.optim}) and method
        warm, teacher = run(Supervised, "warm-up", 120, small()).student, run(Supervised, "large", 240, large()).student
        pre = run(PreAdaptation, "adapting", 360, copy.deepcopy(warm), teacher, **adapt)
        tuned = {k: run(FineTuning, "fine-tuning", 200, copy.deepcopy(pre.student), [pre.nets["teacher"]], inconsistency=k, **tune).student for k in ("none", "iou")}
        nets = {"source": run(Supervised, "source", 480, small()).student, "self": run(SelfTraining, "adapting", 360, copy.deepcopy(warm), **adapt).student,
                "stage 1": pre.student, "teacher": pre.nets["teacher"], **tuned}
        for name, n in nets.items(): scores.setdefault(name, []).append(evaluate(n, test, 12, full=False))
    miou = {k: 100 * np.mean([s["miou"] for s in v]) for k, v in scores.items()}
    worst = {k: 100 * np.mean([min(s["iou"].values()) for s in v]) for k, v in scores.items()}
    assert miou["source"] + 5 < miou["stage 1"] < miou["teacher"] and miou["self"] + 5 < min(miou["none"], miou["iou"]), miou
    assert worst["none"] + 3 < worst["iou"], worst

def test_a_warm_up_from_another_row_has_its_steps_where_the_scale_has_no_warm_up(tmp_path):
    run = Run("skd_duda_stage1", scale="smoke", out=tmp_path)
    run.scale = dataclasses.replace(run.scale, warm_share=0.0)   # as at paper scale
    stage, = run.row.stages(run, **run.options)
    method = stage.method(None)
    assert stage.steps == run.steps - run.steps // 3
    assert [(n["method"], n["steps"]) for n in run.used] == [("diga_skd", run.steps // 3)]   # and the large network starts as it is
    warmed = run.finished("diga_skd", steps=run.steps // 3).state_dict()
    assert all(torch.equal(v, warmed[k]) for k, v in method.student.state_dict().items())
