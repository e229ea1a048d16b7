"DKD. Oracles in NumPy, laws of the losses, promises to the bit, DRN, resuming, every row."
import copy, math
from types import SimpleNamespace
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from killing import dying, dying_in, resumes_to_the_bit, same
from kdda.bench.runs import Run, execute
from kdda.data.batches import Stream
from kdda.data.world import World
from kdda.learn.adversarial import LEVELS, Adversarial, discriminator, two_levels
from kdda.learn.dense_kd import Adapter
from kdda.learn.fit import Optim, fit, fit_stages, to_device
from kdda.learn.losses import cross_entropy, feature_mse, kd_kl
from kdda.nets.backbones import build_backbone
from kdda.nets.heads import AuxHead
from kdda.nets.segmenter import WeightsError, count_macs, load_weights, segmenter
from kdda.papers import dkd
from kdda.papers.dkd import DKD, KL_FORMS, RELEASED, hard_label, label_loss, log_prob_mse, log_rows, released_kl, teacher_kl, unit_mse

SIZE, SMALL, LARGE = (32, 64), "resnet10_nano+segformer:16", "resnet10_slim+lraspp:16"
GAME, CITY = World("game", n=8, size=SIZE).render(), World("city", n=8, size=SIZE).render()
JUDGES = dict(width=8, layers=3, bn_source=False)

def net(name=SMALL, seed=0):
    torch.manual_seed(seed)
    return segmenter(name)

def aux_of(n, seed=5):
    torch.manual_seed(seed)
    return AuxHead(n.backbone.channels, 19)

def teacher(seed=7):
    "A network that is sure of something: random weights, sharp logits."
    n = net(LARGE, seed)
    aux = aux_of(n)
    with torch.no_grad():
        for c in (n.head.classifier, aux.head): c.weight.mul_(150)
    return n.eval(), aux

def method(paradigm="both", student=None, seed=3, **switches):
    student = student or net()
    torch.manual_seed(seed)
    return DKD(student, *teacher(), paradigm, **{**JUDGES, **switches})

def streams(flip=False): return {"source": Stream(GAME, 2, flip=flip), "target": Stream(CITY, 2, role="target", labelled=False, flip=flip)}
def batch(seed=0): return SimpleNamespace(step=0, generator=torch.Generator().manual_seed(seed), **{k: to_device(next(s), "cpu") for k, s in streams().items()})
def train(m, steps=3, **more): return fit(m, streams(), steps, progress=False, say=lambda s: None, **{"optim": {"main": Optim(lr=3e-3)}, **more})

# the losses

def logits(seed=0, shape=(2, 7, 5, 6), dtype=torch.float32): return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)

def numpy_rows(z):
    z = z.numpy().astype(np.float64).transpose(0, 2, 3, 1).reshape(-1, z.shape[1])
    return z - z.max(1, keepdims=True) - np.log(np.exp(z - z.max(1, keepdims=True)).sum(1, keepdims=True))

@pytest.mark.parametrize("last", [False, True])
def test_losses_equal_numpy(last):
    s, t = logits(0), logits(1)
    if last: s, t = (x.contiguous(memory_format=torch.channels_last) for x in (s, t))
    q, p = numpy_rows(s), numpy_rows(t)
    np.testing.assert_allclose(log_rows(s).numpy(), q, atol=1e-5)
    assert teacher_kl(log_rows(s), log_rows(t)).item() == pytest.approx((np.exp(p) * (p - q)).sum(1).mean(), rel=1e-5)
    half = lambda x: x / 2 - np.log(np.exp(x / 2).sum(1, keepdims=True))
    assert teacher_kl(log_rows(s), log_rows(t), 2.0).item() == pytest.approx(4 * (np.exp(half(p)) * (half(p) - half(q))).sum(1).mean(), rel=1e-5)
    assert KL_FORMS["element"](log_rows(s), log_rows(t), 1.0).item() == pytest.approx((np.exp(p) * (p - q)).mean(), rel=1e-5)
    assert log_prob_mse(log_rows(s), log_rows(t)).item() == pytest.approx(((q - p) ** 2).mean(), rel=1e-5)
    for threshold in (0.0, 0.6):
        sure = np.exp(p.max(1)) >= threshold
        assert label_loss(log_rows(s), hard_label(log_rows(t), threshold)).item() == pytest.approx(-q[np.arange(len(q)), p.argmax(1)][sure].mean(), rel=1e-5)
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    assert unit_mse(s, t).item() == pytest.approx(((unit(s.numpy()) - unit(t.numpy())) ** 2).mean(), rel=1e-4)

def test_losses_equal_those_of_the_library():
    s, t = logits(0), logits(1)
    for T in (1.0, 3.0): torch.testing.assert_close(teacher_kl(log_rows(s), log_rows(t), T), kd_kl(s, t, T))
    torch.testing.assert_close(log_prob_mse(log_rows(s), log_rows(t)), feature_mse(s.log_softmax(1), t.log_softmax(1)))
    label = hard_label(log_rows(t), 0.6)
    torch.testing.assert_close(label_loss(log_rows(s), label), cross_entropy(s, label.view(2, 5, 6)))

def test_kl_is_zero_for_equals_positive_otherwise_and_finite_for_certain_ones():
    z = logits(2)
    assert teacher_kl(log_rows(z), log_rows(z)) == 0 and teacher_kl(log_rows(z), log_rows(logits(3))) > 0.1
    one_hot = 1e4 * F.one_hot(torch.arange(6) % 3, 3).float().view(1, 2, 3, 3).permute(0, 3, 1, 2)
    for s in (one_hot, one_hot.roll(1, 1), torch.zeros_like(one_hot)):
        s = s.clone().requires_grad_()
        loss = teacher_kl(log_rows(s), log_rows(one_hot)) + log_prob_mse(log_rows(s), log_rows(one_hot)) + label_loss(log_rows(s), hard_label(log_rows(one_hot)))
        loss.backward()
        assert loss.isfinite() and s.grad.isfinite().all()

@pytest.mark.parametrize("loss", [lambda s, t: teacher_kl(log_rows(s), log_rows(t)), lambda s, t: teacher_kl(log_rows(s), log_rows(t), 2.0), lambda s, t: log_prob_mse(log_rows(s), log_rows(t)),
                                  lambda s, t: label_loss(log_rows(s), hard_label(log_rows(t), 0.4)), lambda s, t: KL_FORMS["element"](log_rows(s), log_rows(t), 1.0), unit_mse], ids=range(6))
class TestLaws:
    def test_gradcheck(self, loss):
        s, t = logits(0, (1, 4, 3, 2), torch.double).requires_grad_(), logits(1, (1, 4, 3, 2), torch.double)
        assert torch.autograd.gradcheck(lambda s: loss(s, t), s)

    def test_tiling_and_repeating_change_nothing(self, loss):
        s, t = logits(0), logits(1)
        want = loss(s, t).item()
        for r in ((3, 1, 1, 1), (1, 1, 2, 2)): assert loss(s.repeat(r), t.repeat(r)).item() == pytest.approx(want, rel=1e-5)

def test_labels_below_the_threshold_are_ignored_and_none_is_not_nan():
    z = torch.tensor([[3.0, 0.0], [0.2, 0.0]]).view(2, 2, 1, 1).requires_grad_()
    label = hard_label(log_rows(z.detach()), 0.9)
    assert label.tolist() == [0, 255]
    label_loss(log_rows(z), label).backward()
    assert z.grad[0].any() and not z.grad[1].any()
    none = label_loss(log_rows(z), torch.full((2,), 255))
    assert none == 0 and torch.autograd.grad(none, z)[0].eq(0).all()

# the released code's term

def test_released_kl_is_dead():
    s = logits(0).requires_grad_()
    loss = released_kl(log_rows(s), log_rows(logits(1)))
    loss.backward()
    assert loss == 0 and not s.grad.any()
    assert F.kl_div(log_rows(s), log_rows(logits(1)), reduction="none").mean().isnan()   # the very call, today

# the method

def test_no_gradient_reaches_the_teacher_and_it_stays_as_it_is():
    m = method()
    before = copy.deepcopy(m)
    train(m, 4)
    for k in ("teacher", "teacher_aux"):
        same(before.nets[k], m.nets[k])
        assert not any(p.requires_grad or p.grad is not None for p in m.nets[k].parameters())
    assert not torch.equal(before.student.head.classifier.weight, m.student.head.classifier.weight) and not m.nets["teacher"].training

def test_the_judges_get_no_gradient_from_the_distilling_passes():
    m, seen = method().train(), {}
    def backward(loss, name): loss.backward(); seen[name] = {k for k, n in m.nets.items() if any(p.grad is not None for p in n.parameters())}
    terms = m.step(batch(), backward)
    first, second, *_ = seen
    assert first == "ce_source + ce_aux + kl_source + mse_source + pseudo_source" and second == "adv_main + adv_aux + kl_target + mse_target + pseudo_target"
    assert seen[first] == seen[second] == {"student", "aux"} and seen["judge_aux"] == {"student", "aux", "judge_main", "judge_aux"}
    assert all(v.isfinite() for v in terms.values())

def test_terms_equal_their_definition():
    m = method(student=net("resnet10_nano+lraspp"), kl=0.3, mse=0.2, pseudo=0.7, kl_aux=0.5, target=2.0, temperature=1.5, threshold=0.3).train()
    twin, b = copy.deepcopy(m), batch()
    got = m.step(b, lambda loss, name: None)
    for domain, weight in (("source", 1.0), ("target", 2.0)):
        x = getattr(b, domain).image
        s = two_levels(twin.student, twin.nets["aux"], x)
        with torch.no_grad(): t = two_levels(twin.nets["teacher"], twin.nets["teacher_aux"], x)
        p, y = t["main"].softmax(1).max(1)
        want = {"kl": 0.3 * (kd_kl(s["main"], t["main"], 1.5) + 0.5 * kd_kl(s["aux"], t["aux"], 1.5)), "mse": 0.2 * feature_mse(s["aux"].log_softmax(1), t["aux"].log_softmax(1)),
                "pseudo": 0.7 * cross_entropy(s["main"], torch.where(p >= 0.3, y, 255))}
        for k, v in want.items(): assert got[f"{k}_{domain}"].item() == pytest.approx(weight * v.item(), rel=1e-2), (k, domain)   # the teacher's answers are kept in half precision

def test_lambda_target_zero_is_paradigm_a_to_the_bit():
    a, b = method("source"), method("both", target=0.0)
    train(a), train(b)
    same(a, b)

def test_with_both_switches_off_it_is_plain_alignment_to_the_bit():
    student = net()
    torch.manual_seed(3)
    plain = Adversarial(copy.deepcopy(student), **JUDGES)
    judges = {k: copy.deepcopy(v) for k, v in plain.judges.items()}
    none = DKD(student, *teacher(), "none", aux=copy.deepcopy(plain.nets["aux"]), judges=judges, **JUDGES)
    zero = DKD(copy.deepcopy(student), *teacher(), "both", kl=0, mse=0, pseudo=0, aux=copy.deepcopy(plain.nets["aux"]), judges=copy.deepcopy(judges), **JUDGES)
    for m in (plain, none, zero): train(m)
    for m in (none, zero):
        for k in plain.nets: same(plain.nets[k], m.nets[k])

@pytest.mark.parametrize("paradigm,domains", [("source", {"source"}), ("target", {"target"}), ("both", {"source", "target"}), ("none", set())])
def test_paradigms_say_where_the_teacher_speaks(paradigm, domains):
    terms = method(paradigm).train().step(batch(), lambda loss, name: None)
    for k in ("kl", "mse", "pseudo"): assert {d for d in ("source", "target") if f"{k}_{d}" in terms} == domains
    assert {"ce_source", "ce_aux", "adv_main", "adv_aux"} <= set(terms)

@pytest.mark.parametrize("off", ["kl", "mse", "pseudo"])
def test_each_loss_has_its_switch(off):
    terms = method(**{off: 0}).train().step(batch(), lambda loss, name: None)
    assert not [k for k in terms if k.startswith(off)] and len([k for k in terms if k.startswith(("kl", "mse", "pseudo"))]) == 4
    alone = method("source", pseudo_on_source=False).train().step(batch(), lambda loss, name: None)
    assert "pseudo_source" not in alone and "kl_source" in alone

def test_features_through_an_adapter_that_is_trained_and_not_shipped():
    m = method(mse_on="feature")
    assert [tuple(p.shape) for p in m.nets["adapter"].parameters()][0] == (160, 64, 1, 1) and m.nets["adapter"] in m.groups()["main"]
    before = copy.deepcopy(m.nets["adapter"])
    train(m)
    assert not torch.equal(before.change[0].weight, m.nets["adapter"].change[0].weight)
    assert not [k for k in m.student.state_dict() if "adapter" in k]
    twins = DKD(net(), net(SMALL, 8).eval(), None, mse_on="feature", **JUDGES)
    assert isinstance(twins.nets["adapter"].change, nn.Identity)

def test_a_teacher_without_auxiliary_head():
    n, _ = teacher()
    with pytest.raises(ValueError, match="auxiliary head"): DKD(net(), n, None, **JUDGES)
    m = DKD(net(), n, None, mse_on="feature", **JUDGES)
    terms = m.train().step(b := batch(), lambda loss, name: None)
    with torch.no_grad(): t = n(b.target.image)
    assert m.wants == ["main", "feature"] and {"kl_target", "mse_target", "pseudo_target"} <= set(terms) and t.isfinite().all()

@pytest.mark.parametrize("wrong,match", [(dict(paradigm="all"), "paradigm"), (dict(kl_form="mean"), "kl_form"), (dict(mse_on="logits"), "mse_on"), (dict(teacher_bn="eval"), "teacher_bn"),
                                         (dict(order="gbr"), "order"), (dict(threshold=1.0), "threshold"), (dict(shows="edges"), "shows")])
def test_wrong_switches_are_refused(wrong, match):
    with pytest.raises(ValueError, match=match): method(**wrong)

@pytest.mark.parametrize("options, match", [(dict(threshold=1.0), "threshold of dkd_both"), (dict(of="dacs", mse_on="aux"), "leaves no auxiliary head"), (dict(of="dacs", compat="released"), "leaves no auxiliary head")])
def test_impossible_settings_are_refused_before_a_teacher_is_trained(options, match, tmp_path):
    with pytest.raises(ValueError, match=match): execute(Run("dkd_both", scale="smoke", out=tmp_path, options=options), progress=False)
    assert not list(tmp_path.rglob("*.safetensors"))
    assert dkd.aligns("adversarial") and dkd.aligns("dkd_sequential") and not dkd.aligns("daformer")

def test_the_last_part_goes_on_with_the_adapter_of_the_first(tmp_path):
    run = Run("dkd_sequential", scale="smoke", out=tmp_path, options=dict(of="dacs"))
    execute(run, progress=False)
    first, last = run.stage_state("adapt", "adapter"), run.stage_state("target", "adapter")
    stages = run.row.stages(run, **run.options)
    before = stages[0].method(None)
    before.load_state_dict(run.stage_state("adapt"))
    after = stages[1].method(before)
    assert set(first) == set(last) and all(torch.equal(v, first[k]) for k, v in after.nets["adapter"].state_dict().items()) and after.nets["adapter"] in after.groups()["main"]
    more = Run("dkd_sequential", scale="smoke", out=tmp_path, options=dict(of="dacs", extra=True))
    start = dkd.carried_on(more.finished_run("dkd_both", options=dict(of="dacs")))
    assert isinstance(start.nets["adapter"], Adapter)

def test_a_teacher_of_two_stages_keeps_the_head_of_its_last(tmp_path):
    run = Run("dkd_sequential", scale="smoke", out=tmp_path, student=Run("dkd_both", scale="smoke").teacher_name)
    execute(run, progress=False)
    task = Run("dkd_both", scale="smoke", out=tmp_path, options=dict(of="dkd_sequential"))
    net_, aux = dkd.adapted_teacher(task, "dkd_sequential")
    want = task.finished_run("dkd_sequential", student=task.teacher_name, weights=None).stage_state("target", "aux")
    assert all(torch.equal(v, want[k]) for k, v in aux.state_dict().items())

def test_teacher_labels_are_resized_in_float32():
    m, x = method(), batch().target.image
    m.answer = lambda x: tuple(8 * torch.randn(len(x), 19, 8, 16, generator=torch.Generator().manual_seed(k)).bfloat16() for k in range(len(m.wants)))
    m.teacher_bn, m.memory = "running", m.answer
    told = m.told(x)["main"]
    assert torch.equal(told, log_rows(F.interpolate(m.answer(x)[0].float(), x.shape[-2:], mode="bilinear", align_corners=False)))

def test_it_learns_one_batch():
    "Two images, again and again: the student ends up saying what the teacher says."
    m, b = method(kl=1.0, photo=None).train(), batch()
    optimiser = torch.optim.AdamW([p for g in m.groups().values() for n in g for p in n.parameters()], lr=1e-2)
    log = []
    for _ in range(60):
        optimiser.zero_grad()
        log.append({k: v.item() for k, v in m.step(b, lambda loss, name: loss.backward()).items()})
        optimiser.step()
    for k in ("pseudo_target", "kl_target", "mse_target"): assert log[-1][k] < 0.5 * log[0][k], (k, log[0][k], log[-1][k])

# the release's habits

def test_released_profile():
    m = method(**RELEASED).train()
    b, before = batch(), copy.deepcopy(m)
    shown = []
    m.student.register_forward_pre_hook(lambda n, args: shown.append(args[0]))
    terms = m.step(b, lambda loss, name: loss.backward() if loss.requires_grad else None)
    assert terms["kl_source"] == terms["kl_target"] == 0 and terms["pseudo_target"] > 0
    assert torch.equal(shown[0], b.source.image.flip(1)) and torch.equal(shown[1], b.target.image.flip(1))     # BGR for the student
    with torch.no_grad():
        alone = before.told(b.target.image[:1])["main"]
        company = before.told(b.target.image)["main"][:len(alone)]
    assert not torch.allclose(alone, company)                     # what it says of an image depends on the others
    for x, y in zip(before.nets["teacher"].parameters(), m.nets["teacher"].parameters()): assert torch.equal(x, y)
    ours = method().train()
    assert torch.equal(ours.told(b.target.image[:1])["main"], ours.told(b.target.image)["main"][:len(alone)])

# the memory

@pytest.mark.parametrize("remember", [0, 20_000])
def test_training_does_not_depend_on_what_is_remembered(remember):
    a, b = method(photo=dict(jitter=0.3)), method(photo=dict(jitter=0.3), remember=remember)
    train(a, 6), train(b, 6)
    same(a, b)
    assert len(a.memory.kept) == 16 > len(b.memory.kept)           # six steps of two, eight images of either domain: each asked once

# killed runs

@pytest.mark.parametrize("switches", [dict(), dict(paradigm="target", mse_on="feature", threshold=0.3), RELEASED], ids=["both", "target, features", "released"])
def test_resume_is_bitwise(switches, tmp_path):
    make = lambda: method(photo=dict(jitter=0.3), weights=(0.1, 0.02), **switches)
    def go(folder, kill):
        m = dying(make(), 4) if kill else make()
        return m, train(m, 7, folder=folder, checkpoint_every=2, log_every=1, optim={"main": Optim(lr=3e-3, warmup=2), "judge": Optim(lr=1e-3, betas=(0.9, 0.99))})
    resumes_to_the_bit(go, tmp_path)              # both judges, both optimisers too

@pytest.mark.parametrize("options, phase", [(dict(share=0.5), "adapt"), (dict(share=0.5), "target"), (dict(extra=True), "target")], ids=["both domains", "target alone", "extra steps"])
def test_a_killed_row_resumes_to_the_bit(options, phase, tmp_path):
    run = Run("dkd_sequential", scale="smoke", steps=8, out=tmp_path, options=options)
    def go(folder, kill):
        stages = run.row.stages(run, **run.options)
        return fit_stages(dying_in(stages, phase) if kill else stages, folder, seed=5, progress=False, say=lambda s: None, checkpoint_every=1, log_every=1)
    resumes_to_the_bit(go, tmp_path)              # both judges, every optimiser too

# rows

def finish(*args, **options):
    run = Run(*args, scale="smoke", **options)
    return run, execute(run, progress=False, say=lambda s: None)

@pytest.mark.parametrize("name", ["dkd_source", "dkd_target", "dkd_both", "dkd_sequential"])
def test_every_row_runs_with_a_teacher_of_its_own_run(name, tmp_path):
    run, m = finish(name, out=tmp_path)
    assert m["steps"] == run.steps and [(n["method"], n["student"]) for n in m["needs"]][0] == ("adversarial", run.teacher_name)
    assert m["student"]["params"] == sum(p.numel() for p in segmenter(run.student_name).parameters())
    large = Run("adversarial", scale="smoke", student=run.teacher_name, out=tmp_path)
    state = run.stage_state("adapt")
    for k, v in large.load_student().state_dict().items(): assert torch.equal(state[f"nets.teacher.{k}"], v), k
    assert torch.equal(state["nets.teacher_aux.head.weight"], large.stage_state("adapt", "aux")["head.weight"])

@pytest.mark.parametrize("options", [dict(kl=0.0), dict(mse=0.0), dict(pseudo=0.0), dict(compat="released"), dict(mse_on="feature"), dict(of="dacs"), dict(kl_form="element", temperature=2.0, threshold=0.5)])
def test_ablations_and_profiles_run(options, tmp_path):
    run, m = finish("dkd_both", options=options, out=tmp_path)
    assert math.isfinite(m["scores"]["pixel_accuracy"])

def test_a_row_with_all_losses_off_is_alignment_to_the_bit(tmp_path):
    a, _ = finish("adversarial", out=tmp_path)
    b, _ = finish("dkd_both", options=dict(kl=0.0, mse=0.0, pseudo=0.0), out=tmp_path)
    x, y = a.load_student().state_dict(), b.load_student().state_dict()
    assert all(torch.equal(x[k], y[k]) for k in x)

def test_a_row_is_the_same_whether_its_teacher_was_there_or_not(tmp_path):
    one, _ = finish("dkd_both", out=tmp_path / "one")
    finish("adversarial", student=one.teacher_name, out=tmp_path / "two")
    two, _ = finish("dkd_both", out=tmp_path / "two")
    a, b = one.stage_state("adapt"), two.stage_state("adapt")
    assert all(torch.equal(a[k], b[k]) for k in a)

def test_sequential_goes_on_where_both_ended(tmp_path):
    run, m = finish("dkd_sequential", out=tmp_path, options=dict(share=0.5))
    first, second = run.stage_state("adapt"), run.stage_state("target")
    assert not torch.equal(first["nets.student.head.classifier.weight"], second["nets.student.head.classifier.weight"])
    extra, m = finish("dkd_sequential", out=tmp_path, options=dict(extra=True))
    assert m["steps"] == run.steps // 2 and [n["method"] for n in m["needs"]] == ["adversarial", "dkd_both"] or [n["method"] for n in m["needs"]] == ["dkd_both", "adversarial"]
    both = Run("dkd_both", scale="smoke", out=tmp_path)
    start = dkd.carried_on(both)
    same(start.student, both.load_student())
    for level in LEVELS: assert torch.equal(start.judges[level].state_dict()["0.weight"], both.stage_state("adapt", f"judge_{level}")["0.weight"])
    with pytest.raises(ValueError, match="no step is left"): finish("dkd_sequential", steps=1, out=tmp_path)
    with pytest.raises(ValueError, match="compat"): finish("dkd_both", options=dict(compat="original"), out=tmp_path)

def test_judges_are_read_back_in_their_shape():
    for width, layers in ((8, 3), (16, 4), (64, 5)):
        d = discriminator(5, width, layers)
        assert [tuple(p.shape) for p in dkd.judge_like(d.state_dict()).parameters()] == [tuple(p.shape) for p in d.parameters()]

def test_the_target_stream_of_every_stage_has_no_labels():
    for name in ("dkd_both", "dkd_sequential"):
        for stage in Run(name, scale="smoke").row.stages(Run(name, scale="smoke")): assert "label" not in next(stage.streams["target"])

@pytest.mark.parametrize("source", ["gta5", "bdd100k"])
def test_the_recipe_runs_on_trees_the_world_writes(source, tmp_path):
    "GTA5 -> Cityscapes and BDD100K -> Cityscapes through the real loaders."
    World("game", n=4, size=(96, 176)).export(source, tmp_path / source, split="train")
    for split in ("train", "val"): World("city", n=2, size=(128, 256), split=split).export("cityscapes", tmp_path / "cityscapes", split=split)
    run, m = finish("dkd_both", scenario={"gta5": "gta2cityscapes", "bdd100k": "bdd2cityscapes"}[source], data_root=str(tmp_path), out=tmp_path / "runs")
    assert m["scored_on"]["images"] == 2

# DRN-D, the paper's pair

def official(depths):
    "A DRN-D under the names of its published files: the published layout, written independently of ours."
    class Block(nn.Module):
        def __init__(self, i, o, stride, dilation):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(i, o, 3, stride, dilation, dilation, bias=False), nn.BatchNorm2d(o)
            self.conv2, self.bn2 = nn.Conv2d(o, o, 3, 1, dilation, dilation, bias=False), nn.BatchNorm2d(o)
            if stride != 1 or i != o: self.downsample = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))
        def forward(self, x):
            y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
            return (y + (self.downsample(x) if hasattr(self, "downsample") else x)).relu()
    plain = lambda i, o, k, stride, dilation: nn.Sequential(nn.Conv2d(i, o, k, stride, dilation * (k // 2), dilation, bias=False), nn.BatchNorm2d(o), nn.ReLU())
    stack = lambda i, o, n, stride, dilation: nn.Sequential(Block(i, o, stride, dilation), *(Block(o, o, 1, dilation) for _ in range(n - 1)))
    return nn.ModuleDict({"layer0": plain(3, 16, 7, 1, 1), "layer1": plain(16, 16, 3, 1, 1), "layer2": plain(16, 32, 3, 2, 1), "layer3": stack(32, 64, depths[0], 2, 1),
                          "layer4": stack(64, 128, depths[1], 2, 1), "layer5": stack(128, 256, depths[2], 1, 2), "layer6": stack(256, 512, depths[3], 1, 4),
                          "layer7": plain(512, 512, 3, 1, 2), "layer8": plain(512, 512, 3, 1, 1), "fc": nn.Conv2d(512, 1000, 1)})

def test_drn_loads_its_published_names_and_computes_the_same(tmp_path):
    torch.manual_seed(0)
    theirs = official((2, 2, 2, 2)).eval()
    for m in theirs.modules():
        if isinstance(m, nn.BatchNorm2d):
            for t in (m.weight, m.running_var): t.data.uniform_(0.5, 1.5)
            for t in (m.bias, m.running_mean): t.data.normal_(0, 0.2)
    state = {k: v for k, v in theirs.state_dict().items() if not k.endswith("num_batches_tracked")}   # the published files are older than that counter
    torch.save(state, tmp_path / "drn_d_22.pth")
    ours = build_backbone("drn_d_22").eval()
    report = load_weights(ours, tmp_path / "drn_d_22.pth")
    assert report.ok and len(report.fits) == len(state) - 2         # all but the classifier
    x, want = torch.randn(1, 3, 40, 56), []
    with torch.no_grad():
        y = x
        for k in range(9):
            y = theirs[f"layer{k}"](y)
            if k in (3, 4, 6, 8): want.append(y)
        for a, b in zip(ours(x), want): torch.testing.assert_close(a, b, atol=1e-4 * float(b.abs().max()), rtol=1e-4)
    net = segmenter("drn_d_22+linear", weights=tmp_path / "drn_d_22.pth")
    assert torch.equal(net.backbone.stages[3][0][0].weight, theirs["layer7"][0].weight)

def test_drn_weights_are_refused_whole_if_they_do_not_fit(tmp_path):
    with torch.device("meta"): small, large = official((2, 2, 2, 2)).state_dict(), official((3, 4, 6, 3)).state_dict()
    with torch.device("meta"): d22, d38, resnet = (build_backbone(n) for n in ("drn_d_22", "drn_d_38", "resnet18"))
    assert load_weights(d38, large).ok
    for net, state in ((d22, large), (d38, small), (d22, {k: v for k, v in small.items() if k != "layer6.0.conv1.weight"}), (resnet, small)):
        with pytest.raises(WeightsError, match="does not fit"): load_weights(net, state)

# parameters without and with the ImageNet classifier; MACs of the segmenters with both heads at 512x1024
@pytest.mark.parametrize("name,depths,params,macs", [("drn_d_22", (2, 2, 2, 2), 15_880_752, 136.3), ("drn_d_38", (3, 4, 6, 3), 25_988_912, 220.9)])
def test_drn_costs_what_was_published(name, depths, params, macs):
    count = lambda n: sum(p.numel() for p in n.parameters())
    with torch.device("meta"): body, net, theirs = build_backbone(name), segmenter(f"{name}+linear"), official(depths)
    assert count(body) == params and count(theirs) == params + 513_000
    aux = AuxHead(body.channels, 19)
    both_heads = count(net) + count(aux)
    assert (both_heads + 2 * 19 * 16 * 16) / 1e6 == pytest.approx({"drn_d_22": 15.91, "drn_d_38": 26.02}[name], abs=0.005)   # with the release's unused up-convolutions
    assert (count_macs(net, (512, 1024)) + 512 * 19 * 64 * 128) / 1e9 == pytest.approx(macs, abs=0.05)

def test_levels_of_the_drn_pair_match_without_an_adapter():
    with torch.device("meta"):
        pair = segmenter("drn_d_22+linear"), segmenter("drn_d_38+linear")
        seen = [two_levels(n, AuxHead(n.backbone.channels, 19), torch.empty(1, 3, 64, 128)) for n in pair]
    for s in seen: assert s["main"].shape == s["aux"].shape == (1, 19, 64, 128) and s["feature"].shape == (1, 512, 8, 16)
    assert isinstance(Adapter(512, 512).change, nn.Identity)

@pytest.mark.parametrize("name", ["resnet18_d8+deeplabv2", "resnet50_d8+deeplabv2"])
def test_the_alternative_pair_has_stride_8_at_both_levels(name):
    with torch.device("meta"): n = segmenter(name)
    assert n.backbone.strides[2:] == (8, 8)
