"DiGA: losses against NumPy, the laws of mixing, consensus and centroids, the label store, rows, kill and resume."
import copy, json, os
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from types import SimpleNamespace
from kdda.bench.runs import Run, execute
from kdda.data.augment import normalize
from kdda.data.batches import Stream
from kdda.data.labels import IGNORE
from kdda.data.world import World
from kdda.learn import pseudo_labels
from kdda.learn.losses import cross_entropy
from kdda.learn.selftrain import ema_update
from kdda.nets.segmenter import segmenter
from kdda.papers import diga
from kdda.learn.pseudo_labels import BINS, PseudoLabelled, class_thresholds, count_labels, multi_scale_logits, write_pseudo_labels
from kdda.papers.diga import (DiGA, Features, PatchDiscriminator, TranslatorGAN, WarmUp, boundary_mask, class_means, consensus, crdomix, domain_random, feature_labels,
                              half_of_the_values, initial_centroids, label_quality, labelled_by, move_centroids, symmetric_kd, threshold_counts, translate_fda, translate_stats)

SIZE, C = (32, 64), 19
rng = lambda s=0: torch.Generator().manual_seed(s)

@pytest.fixture(scope="module")
def game(): return World("game", n=8, size=SIZE).render()

@pytest.fixture(scope="module")
def city(): return World("city", n=6, size=SIZE).render()

def net(seed=0, name="resnet10_nano+segformer:48"):
    torch.manual_seed(seed)
    return segmenter(name)

def stored(folder): return {f.name: f.read_bytes() for f in folder.iterdir() if f.name != ".lock"}

def images(world, n=2): return normalize(torch.from_numpy(np.stack([world.image(i) for i in range(n)])).permute(0, 3, 1, 2))
def labels(world, n=2): return torch.from_numpy(np.stack([world.label(i) for i in range(n)]))

def batch(game, city, seed=0, target_label=None):
    target = SimpleNamespace(image=images(city), keys=[])
    if target_label is not None: target.label = target_label
    return SimpleNamespace(source=SimpleNamespace(image=images(game), label=labels(game), keys=[]), target=target, generator=rng(seed), step=0)

def centroids(n=C, d=48, seed=0): return torch.randn(n, d, generator=rng(seed)), torch.ones(n)

# the warm-up

def test_ema_ramp():
    def a(t):
        teacher, student = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.ones_(teacher.weight); torch.nn.init.zeros_(student.weight)
        ema_update(teacher, student, t, 0.999)
        return teacher.weight.item()
    assert [a(t) for t in (0, 1, 9, 999, 5000)] == pytest.approx([0, 0.5, 0.9, 0.999, 0.999])

def test_the_teacher_is_the_first_student_for_one_step_and_then_ramps():
    for m in (WarmUp(net()), DiGA(net(), *centroids())):
        student, teacher = (m.nets[n].head.classifier.weight for n in ("student", "teacher"))
        first = teacher.detach().clone()
        with torch.no_grad(): student.add_(1)
        m.after_step(0)
        assert torch.allclose(teacher, first + 1 / 2, atol=1e-6)       # one update has passed: the copy it began as
        m.after_step(1)
        assert torch.allclose(teacher, first + 2 / 3, atol=1e-6)

def numpy_skd(s1, s2, t1, t2, s):
    def softmax(x): e = np.exp(x - x.max(1, keepdims=True)); return e / e.sum(1, keepdims=True)
    total = 0
    for teacher, student, w in ((t1, s2, 1.0), (t2, s1, s)):
        p, q = softmax(teacher), softmax(student)
        total += w * -(p * np.log(q)).sum(1).mean()
    return total

def test_skd_equals_numpy_and_only_cross_view_pairs_count():
    l = [torch.randn(2, 5, 3, 4, generator=rng(i), dtype=torch.float64, requires_grad=True) for i in range(4)]
    for s in (0.0, 0.25, 1.0):
        loss = symmetric_kd(l[:2], l[2:], s)
        assert loss.item() == pytest.approx(numpy_skd(*[x.detach().numpy() for x in l], s), rel=1e-6)
        grads = torch.autograd.grad(loss, l, allow_unused=True)
        assert grads[2] is None and grads[3] is None                 # the teacher is a constant
        assert (grads[0] is None) == (s == 0) and grads[1] is not None
        # the student's second view is compared with the teacher's first alone, and the other way round
        p1, p2 = l[2].detach().softmax(1), l[3].detach().softmax(1)
        assert torch.allclose(grads[1], (l[1].softmax(1) - p1) / 24, atol=1e-6)
        if s: assert torch.allclose(grads[0], s * (l[0].softmax(1) - p2) / 24, atol=1e-6)
    tiled = [torch.cat([x, x]) for x in l]
    assert symmetric_kd(tiled[:2], tiled[2:], 0.5).item() == pytest.approx(symmetric_kd(l[:2], l[2:], 0.5).item())
    valid = torch.zeros(2, 3, 4, dtype=torch.bool); valid[:, 0] = True
    cut = [x[:, :, :1] for x in l]
    assert symmetric_kd(l[:2], l[2:], 0.5, valid).item() == pytest.approx(symmetric_kd(cut[:2], cut[2:], 0.5).item())

def test_step_gradient_is_ce_on_the_first_view_plus_weighted_skd(game, city):
    m, twin = (WarmUp(net(), skd=0.3, reverse=0.7, beta=0.6).train() for _ in range(2))
    for d in (*m.modules(), *twin.modules()):
        if isinstance(d, torch.nn.Dropout2d): d.p = 0.0
    terms = m.step(batch(game, city), lambda loss, name: loss.backward())
    b = batch(game, city)
    x = torch.cat([b.source.image, domain_random(b.source.image, b.generator, 0.6)])
    with torch.no_grad(): t = diga._teacher(twin.nets["teacher"], "batch")(x).chunk(2)
    s = twin.student(x).chunk(2)
    (cross_entropy(s[0], b.source.label, denominator="all") + 0.3 * symmetric_kd(s, t, 0.7)).backward()
    assert torch.allclose(m.student.head.classifier.weight.grad, twin.student.head.classifier.weight.grad, atol=1e-6)
    assert all(p.grad is None for p in m.nets["teacher"].parameters()) and set(terms) == {"ce_source", "skd"}

def test_void_pixels_are_distilled_unless_masked(game, city, monkeypatch):
    b, seen = batch(game, city), []
    b.source.label[:, :3] = IGNORE
    monkeypatch.setattr(diga, "symmetric_kd", lambda *args: (seen.append(args[3]), symmetric_kd(*args))[1])
    for masked in (False, True): WarmUp(net(), mask_void=masked).train().step(b, lambda loss, name: None)
    assert seen[0] is None and torch.equal(seen[1], b.source.label != IGNORE) and not seen[1][:, :3].any()

def test_ce_denominators_differ_by_the_share_of_labelled_pixels(game):
    y = labels(game).clone(); y[:, :8] = IGNORE
    logits = torch.randn(2, C, *SIZE, generator=rng())
    a, v = (WarmUp(net(), denominator=d).ce(logits, y) for d in ("all", "valid"))
    assert (a / v).item() == pytest.approx((y != IGNORE).float().mean().item(), rel=1e-5)
    assert WarmUp(net(), ohem=True).ce(logits, y) >= v     # the hardest pixels lose more than the average one

def test_bn_leak_is_off_unless_asked_for(game, city):
    class Sealed:
        @property
        def image(self): raise AssertionError("a source-only warm-up looked at the target")
    off, on = WarmUp(net()).train(), WarmUp(net(), bn_target=True).train()
    b = batch(game, city); b.target = Sealed()
    off.step(b, lambda loss, name: None)
    on.step(batch(game, city), lambda loss, name: None)
    assert any(not torch.equal(x, y) for x, y in zip(off.student.buffers(), on.student.buffers()))
    b = batch(game, city); b.target = Sealed()
    with pytest.raises(AssertionError): on.step(b, lambda loss, name: None)

@pytest.mark.parametrize("options", [dict(), dict(skd=0.0)])
def test_source_passes_write_statistics_only_where_asked(options, game, city):
    for writes in (True, False):
        m = WarmUp(net(), bn_source=writes, **options).train()
        running = lambda: [v.clone() for k, v in m.student.named_buffers() if "running" in k]
        before = running()
        m.step(batch(game, city), lambda loss, name: None)
        assert all(map(torch.equal, running(), before)) != writes

@pytest.mark.parametrize("row", ["diga_photo_ce", "diga_one_way", "diga_skd", "diga_dg"])
def test_source_only_rows_open_no_target_file(row, tmp_path, monkeypatch):
    run = Run(row, scale="smoke", out=tmp_path)
    data = run.data
    def sealed(role):
        if role == "target": raise AssertionError("target data was asked for")
        return data(role)
    monkeypatch.setattr(run, "data", sealed)
    assert execute(run, progress=False)["method"] == row

def test_views():
    x = images(World("game", n=2, size=SIZE))
    for mode in ("clean", "official"):
        a, b = domain_random(x, rng(1), 0.4, mode), domain_random(x, rng(1), 0.4, mode)
        assert torch.equal(a, b) and a.shape == x.shape and not torch.equal(a, x) and torch.isfinite(a).all()
        first = domain_random(x, rng(1), 0.4, mode)
        assert not torch.equal(first, domain_random(x, rng(2), 0.4, mode))
    with pytest.raises(ValueError, match='"clean" or "official"'): domain_random(x, rng(), mode="kornia")

def test_official_jitter_collapses_what_is_darker_than_the_mean():
    x = normalize(torch.full((1, 3, 8, 8), 30, dtype=torch.uint8))
    only = dict(strength=(0, 0, 0, 0), p_jitter=1, p_gray=0, p_blur=0, p_sharpness=0)
    z = lambda x: (255 * diga.to_rgb(x).flip(1) - torch.tensor(diga._MEAN_BGR).view(1, 3, 1, 1)) / 128
    assert torch.allclose(z(domain_random(x, rng(), 1.0, "official", **only)), torch.tensor(-1.0), atol=1e-5)
    assert torch.allclose(domain_random(x, rng(), 1.0, "clean", **only), x, atol=1e-5)

# CrDoMix and translators

def test_half_of_the_values():
    g = rng()
    for K in (1, 2, 5, 6):
        y = torch.arange(K).repeat_interleave(4).view(1, 1, -1).to(torch.uint8)
        assert len(y[half_of_the_values(y, g)].unique()) == K // 2
    void = torch.tensor([[[0, 1, 2, 255]]], dtype=torch.uint8)
    sizes = set()
    for _ in range(40):
        m = half_of_the_values(void, g)
        assert m[0, 0, 3]
        sizes.add(int(m.sum()))
    assert sizes == {2, 3}       # floor(4/2) values, one more when 255 was not among them
    assert half_of_the_values(torch.full((1, 2, 2), 255, dtype=torch.uint8), g).all()

def test_crdomix_mixes_two_renderings(game):
    y = labels(game).clone(); y[:, :2] = IGNORE
    before, m = y.clone(), half_of_the_values(y, rng(3))
    a, b = torch.ones(2, 3, *SIZE), torch.zeros(2, 3, *SIZE)
    x = crdomix(a, b, y, rng(3))
    assert torch.equal(x[:, 0].bool(), m) and torch.equal(y, before)
    for i in range(2):
        for c in y[i].unique(): assert x[i, 0][y[i] == c].unique().numel() == 1      # whole classes
    assert x[:, :, :2].min() == 1

def test_translators_take_the_targets_colours_and_leave_inputs_alone(game, city):
    s, t = images(game), images(city)[:1]
    keep = s.clone(), t.clone()
    for f in (translate_stats, translate_fda):
        out = f(s, t, rng())
        assert out.shape == s.shape and torch.isfinite(out).all() and torch.equal(out, f(s, t, rng()))
        assert (diga.to_rgb(out) > -1e-5).all() and (diga.to_rgb(out) < 1 + 1e-5).all()
        assert (out.mean((2, 3)) - t.mean((2, 3))).abs().mean() < 0.5 * (s.mean((2, 3)) - t.mean((2, 3))).abs().mean()
    assert torch.equal(s, keep[0]) and torch.equal(t, keep[1])
    assert torch.allclose(translate_stats(t, t, rng()), t, atol=1e-3) and torch.allclose(translate_fda(t, t, rng()), t, atol=1e-4)

# labels

def test_multi_scale_logits_are_the_larger_of_the_two(city):
    n, x = net().eval(), images(city)
    x = F.interpolate(x, (64, 128))
    with torch.no_grad():
        both = multi_scale_logits(n, x)
        full, half = n(x), F.interpolate(n(F.interpolate(x, (32, 64), mode="bilinear", align_corners=False)), (64, 128), mode="bilinear", align_corners=False)
    assert torch.allclose(both, torch.maximum(full, half), atol=1e-5)

def test_store_is_resumable_and_refuses_strangers(city, tmp_path):
    n, folder = net().eval(), tmp_path / "labels"
    write_pseudo_labels(n, city, folder, batch=4)
    first = stored(folder)
    assert len(first) == len(city) + 1
    manifest = json.loads(first["manifest.json"])
    assert manifest["keys"] == [city.key(i) for i in range(len(city))]
    seen = {f: os.stat(folder / f).st_mtime_ns for f in first}
    write_pseudo_labels(n, city, folder, batch=4)
    assert seen == {f: os.stat(folder / f).st_mtime_ns for f in first}          # finished: nothing is written again
    (folder / "manifest.json").write_text(json.dumps({"identity": manifest["identity"]})); (folder / "000002.png").unlink(); (folder / ".000003.png.tmp").write_bytes(b"half")
    write_pseudo_labels(n, city, folder, batch=4)
    assert all((folder / k).read_bytes() == v for k, v in first.items())
    with pytest.raises(ValueError, match="another network"): write_pseudo_labels(net(1), city, folder)
    with pytest.raises(ValueError, match="another select"): write_pseudo_labels(n, city, folder, select="fixed")

def test_store_dies_between_files_and_goes_on(city, tmp_path, monkeypatch):
    write, calls = pseudo_labels._save, []
    def dying(path, data):
        if len(calls) == 4: raise KeyboardInterrupt
        calls.append(path.name); write(path, data)
    monkeypatch.setattr(pseudo_labels, "_save", dying)
    with pytest.raises(KeyboardInterrupt): write_pseudo_labels(net().eval(), city, tmp_path / "a", batch=1)
    monkeypatch.setattr(pseudo_labels, "_save", write)
    write_pseudo_labels(net().eval(), city, tmp_path / "a", batch=1)
    write_pseudo_labels(net().eval(), city, tmp_path / "b", batch=1)
    assert stored(tmp_path / "a") == stored(tmp_path / "b")

def test_labels_are_argmax_and_never_the_truth(city, tmp_path):
    class NoTruth(World):
        def label(self, i): raise AssertionError("the truth was opened")
    sealed, n = NoTruth("city", n=6, size=SIZE), net().eval()
    write_pseudo_labels(n, sealed, tmp_path)
    stored = PseudoLabelled(sealed, tmp_path)
    with torch.no_grad(): expected = multi_scale_logits(n, images(city, 6)).argmax(1)
    for i in range(6): assert np.array_equal(stored.label(i), expected[i].numpy())
    plain = Stream(sealed, 2, seed=5, role="target", labelled=False)
    a, b = next(labelled_by(plain, sealed, tmp_path)), next(plain)
    assert torch.equal(a["image"], b["image"]) and a["keys"] == b["keys"] and "label" not in b     # the same draws, flips included
    (tmp_path / "000001.png").write_bytes(b"")
    with pytest.raises(ValueError, match="000001.png.*empty"): stored.label(1)

def test_thresholded_stores(city, tmp_path):
    n = net().eval()
    n.head.classifier.weight.data *= 600
    for select, t in (("fixed", 0.5), ("balanced", 0.9)): write_pseudo_labels(n, city, tmp_path / select, select=select, threshold=t)
    with torch.no_grad(): p, c = multi_scale_logits(n, images(city, 6)).softmax(1).max(1)
    fixed = torch.stack([torch.from_numpy(PseudoLabelled(city, tmp_path / "fixed").label(i)) for i in range(6)])
    assert torch.equal(fixed, torch.where(p >= 0.5, c, IGNORE).to(torch.uint8)) and 0 < (fixed == IGNORE).float().mean() < 1
    balanced = torch.stack([torch.from_numpy(PseudoLabelled(city, tmp_path / "balanced").label(i)) for i in range(6)])
    for k in c.unique():
        if p[c == k].median() < 0.9: assert 0.45 < (balanced[c == k] != IGNORE).float().mean() <= 1

def test_class_thresholds():
    h = torch.zeros(3, BINS, dtype=torch.long)
    h[0, [100, 300, 500, 700]] = 1; h[1, [950, 960]] = 1       # class 2 never predicted
    assert class_thresholds(h)[:2].tolist() == pytest.approx([0.5, 0.9])

# centroids and consensus

def numpy_centroids(features, labels, n, cap):
    c, count = np.zeros((n, features.shape[1])), np.zeros(n)
    for f, y in zip(features, labels):
        for k in range(n):
            if (y == k).sum() < 5: continue
            v = f[:, y == k].mean(1)
            c[k] = (count[k] * c[k] + v) / (count[k] + 1); count[k] = min(count[k] + 1, cap)
    return c, count

def test_initial_centroids_equal_numpy(city):
    n = net().eval()
    n.head.classifier.weight.data *= 60
    with torch.no_grad(): taps = n(images(city, 6), taps=("fused", "logits_low"))[1]
    for cap, size in ((3000, 4), (2, 1)):
        got, count = initial_centroids(n, city, size, cap)
        want, expected = numpy_centroids(taps["fused"].numpy(), taps["logits_low"].argmax(1).numpy(), C, cap)
        assert np.allclose(got, want, atol=1e-4) and np.array_equal(count, expected)
        assert 1 < (count > 0).sum() < C and (got[count == 0] == 0).all()

def test_small_classes_and_void_are_skipped():
    f, y = torch.ones(1, 2, 3, 4), torch.tensor([[[0] * 4, [1] * 4, [255, 255, 255, 0]]])
    means, counted = class_means(f, y, 3)
    assert counted.tolist() == [[True, False, False]] and torch.equal(means[0, 0], torch.ones(2)) and torch.isfinite(means).all()

def test_centroids_move_by_exactly_the_momentum():
    c, seen = torch.randn(3, 4, generator=rng(), dtype=torch.float64), torch.tensor([True, True, False])
    before, v = c.clone(), torch.randn(2, 3, 4, generator=rng(1), dtype=torch.float64)
    move_centroids(c, seen, v, torch.tensor([[True, False, True], [True, False, False]]), 1e-4)
    first = before[0] + 1e-4 * (v[0, 0] - before[0])
    assert torch.allclose(c[0], first + 1e-4 * (v[1, 0] - first), atol=1e-12)
    assert torch.equal(c[1], before[1]) and torch.equal(c[2], before[2])      # not shown; never seen

def test_feature_labels_are_the_nearest_centroid_before_upsampling():
    f, (c, _) = torch.randn(2, 6, 4, 5, generator=rng()), centroids(7, 6)
    distance = (f[:, None] - c[None, :, :, None, None]).norm(dim=2)
    assert torch.equal(feature_labels(f, c, torch.ones(7, dtype=torch.bool), (4, 5)), distance.argmin(1).to(torch.uint8))
    weight = F.interpolate((-distance).softmax(1), (8, 10), mode="bilinear", align_corners=False)
    assert torch.equal(feature_labels(f, c, torch.ones(7, dtype=torch.bool), (8, 10)), weight.argmax(1).to(torch.uint8))
    seen = torch.tensor([True] * 3 + [False] * 4)
    assert feature_labels(f, c, seen, (8, 10)).max() < 3

def test_labels_and_colours_keep_their_digits_under_bf16(game, city):
    f, (c, n) = 20 * torch.randn(2, 6, 8, 10, generator=rng()), centroids(7, 6)
    with torch.autocast("cpu", torch.bfloat16):
        labels = feature_labels(f, c, n > 0, (16, 20))
        x = translate_stats(images(game), images(city), rng())
    assert torch.equal(labels, feature_labels(f, c, n > 0, (16, 20))) and torch.equal(x, translate_stats(images(game), images(city), rng()))

def test_consensus_keeps_or_ignores():
    a, b = (torch.randint(0, C, (2, 8, 8), generator=rng(i), dtype=torch.uint8) for i in range(2))
    out = consensus(a, b)
    assert torch.equal(out == IGNORE, a != b) and torch.equal(out[a == b], a[a == b]) and torch.equal(consensus(a, a), a) and out.dtype == torch.uint8

def test_no_centroid_at_all_is_refused():
    with pytest.raises(ValueError, match="no class has a centroid"): DiGA(net(), torch.zeros(C, 48), torch.zeros(C))

# self-training

def test_mixed_batch_is_source_on_the_mask_and_consensus_elsewhere(game, city, monkeypatch):
    seen = {}
    m = DiGA(net(), *centroids(), skd=0.25).train()
    ce = m.ce
    def spy(logits, label): seen.setdefault("labels", []).append(label); return ce(logits, label)
    monkeypatch.setattr(m, "ce", spy)
    half = diga.half_of_the_values
    monkeypatch.setattr(diga, "half_of_the_values", lambda y, g: seen.setdefault("mask", half(y, g)))
    student = m.student.forward
    monkeypatch.setattr(m.student, "forward", lambda x, *a, **k: (seen.setdefault("x", []).append(x), student(x, *a, **k))[1])
    stored = torch.randint(0, C, (2, *SIZE), generator=rng(4), dtype=torch.uint8)
    b = batch(game, city, target_label=stored)
    b.source.label = b.source.label.clone(); b.source.label[:, :3] = IGNORE
    terms = m.step(b, lambda loss, name: loss.backward())
    label, mask, x = seen["labels"][1], seen["mask"], seen["x"][1]
    assert torch.equal(label[mask], b.source.label[mask]) and (label[:, :3] == IGNORE).all()
    off = label[~mask]
    assert ((off == IGNORE) | (off == stored[~mask])).all() and 0 < (off == IGNORE).float().mean() < 1
    pixels = mask[:, None].expand_as(x)
    assert torch.equal(x[pixels], b.source.image[pixels]) and not torch.equal(x[~pixels], b.target.image[~pixels])
    assert set(terms) == {"ce_source", "skd", "ce_mixed", "labelled", "drift"} and len(seen["x"]) == 2     # views jointly, the mix by itself

def test_each_domain_has_a_view_of_its_own_strength(game, city, monkeypatch):
    seen = []
    monkeypatch.setattr(diga, "domain_random", lambda x, g, beta, **view: (seen.append((x, beta, view)), domain_random(x, g, beta, **view))[1])
    m = DiGA(net(), *centroids(), beta=0.35, target_beta=0.25, view=dict(p_gray=0.1)).train()
    b = batch(game, city, target_label=torch.zeros(2, *SIZE, dtype=torch.uint8))
    m.step(b, lambda loss, name: None)
    assert [(x is b.source.image, x is b.target.image, beta, view) for x, beta, view in seen] == [(True, False, 0.35, dict(p_gray=0.1)), (False, True, 0.25, dict(p_gray=0.1))]

def test_target_moves_the_centroids_before_the_source(game, city, monkeypatch):
    order = []
    monkeypatch.setattr(diga, "class_means", lambda f, y, n: (order.append(y), class_means(f, y, n))[1])
    m = DiGA(net(), *centroids(), momentum=0.1).train()
    b = batch(game, city, target_label=torch.full((2, *SIZE), 3, dtype=torch.uint8))
    b.source.label = torch.full((2, *SIZE), 4, dtype=torch.uint8)
    m.step(b, lambda loss, name: None)
    assert set(order[0].unique().tolist()) <= {3, IGNORE} and set(order[1].unique().tolist()) <= {4, IGNORE} and len(order) == 2
    assert not m.centroids.requires_grad

def test_labels_modes(game, city):
    stored = torch.randint(0, C, (2, *SIZE), generator=rng(4), dtype=torch.uint8)
    for mode in ("prob", "feat", "consensus"):
        m = DiGA(net(), *centroids(), labels=mode, skd=0.0, momentum=0.1).train()
        before = m.centroids.clone()
        terms = m.step(batch(game, city, target_label=stored), lambda loss, name: loss.backward())
        assert (terms["labelled"] == 1) == (mode != "consensus")
        assert torch.equal(before, m.centroids) == (mode == "prob")
        assert "skd" not in terms and all(p.grad is None for p in m.nets["teacher"].parameters())
    with pytest.raises(ValueError, match='"consensus", "prob" or "feat"'): DiGA(net(), *centroids(), labels="both")

def test_teacher_modes(game, city):
    for mode in ("batch", "running", "official"):
        m = WarmUp(net(), teacher=mode).train()
        m.step(batch(game, city), lambda loss, name: loss.backward())
        dropout = [d.training for d in m.nets["teacher"].modules() if isinstance(d, torch.nn.Dropout2d)]
        assert all(d == (mode == "official") for d in dropout) and dropout
        m.after_step(0)
        if mode == "running": assert all(torch.equal(a, b) for a, b in zip(m.nets["teacher"].buffers(), m.student.buffers()))

# diagnostics

def test_label_quality_counts(city):
    truth, given = torch.tensor([[[0, 0, 1, 1, 255]]], dtype=torch.uint8), torch.tensor([[[0, 255, 1, 0, 0]]], dtype=torch.uint8)
    q = pseudo_labels.LabelQuality(count_labels(given, truth, 2))
    assert q.precision.tolist() == [0.5, 1.0] and q.coverage.tolist() == [0.5, 1.0]
    assert q.total == pytest.approx({"coverage": 3 / 4, "precision": 2 / 3}) and q.class_mean == pytest.approx({"class_precision": 3 / 4, "class_recall": 1 / 2})
    joint = torch.zeros(2, 2, BINS, dtype=torch.long); joint[0, 0, 950] = 3; joint[0, 1, 100] = 2; joint[1, 1, 899] = 1
    assert threshold_counts(joint, 0.9).tolist() == [[3, 0, 2], [0, 0, 1]]
    assert threshold_counts(joint, [0.0, 0.5]).tolist() == [[3, 0, 2], [0, 1, 0]]

def test_label_quality_rules(city):
    n = net()
    n.head.classifier.weight.data *= 60
    c, count = initial_centroids(n, city)
    n.train()
    rules = label_quality(n, city, c, count > 0)
    assert n.training and list(rules) == ["prob", "feat", "consensus", "threshold", "balanced", "equal coverage", "balanced, equal coverage"]
    totals = {k: q.total for k, q in rules.items()}
    assert totals["prob"]["coverage"] == totals["feat"]["coverage"] == 1 and 0 < totals["consensus"]["coverage"] < 1
    for rule in ("equal coverage", "balanced, equal coverage"): assert abs(totals[rule]["coverage"] - totals["consensus"]["coverage"]) < 0.02, rule
    for q in rules.values(): assert torch.equal(q.counts.sum(1), rules["prob"].counts.sum(1))      # every known pixel is counted once

def test_probe_looks_and_changes_nothing(city):
    m = DiGA(net(), *centroids()).train()
    before, modes = {k: v.clone() for k, v in m.state_dict().items()}, [x.training for x in m.modules()]
    scores = diga.LabelProbe(city)(m)
    assert [x.training for x in m.modules()] == modes and not m.nets["teacher"].training and any(x.training for x in m.nets["teacher"].modules())
    assert {"precision/consensus", "coverage/equal coverage"} <= set(scores) and m.student.training
    for k, v in m.state_dict().items():
        if not k.endswith("num_batches_tracked"): assert torch.equal(v, before[k]), k

def test_probe_keeps_every_look_by_class(city):
    import matplotlib.pyplot as plt
    probe, m = diga.LabelProbe(city), DiGA(net(), *centroids()).train()
    scores = [probe(m), probe(m)]
    assert len(probe.looks) == 2 and probe.looks[1]["consensus"].total["precision"] == scores[1]["precision/consensus"]
    shown = diga.show_label_steps(probe.looks, city.space, ("prob", "consensus"), steps=[1, 2])
    assert np.allclose(shown.axes[1].images[0].get_array()[:, 0], 100 * probe.looks[0]["consensus"].precision.numpy(), equal_nan=True) and [t.get_text() for t in shown.axes[2].get_xticklabels()] == ["1", "2"]
    plt.close(shown)

# the translator

def test_gan_generator_and_judges_do_not_train_each_other(game, city):
    torch.manual_seed(0)
    m = TranslatorGAN(width=4, blocks=1, scales=1, features="random").train()
    grads = []
    def backward(loss, name):
        m.zero_grad(); loss.backward()
        grads.append({k.split(".")[1] for k, p in m.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0})
    terms = m.step(batch(game, city), backward)
    assert grads[0] == {"encoder_source", "encoder_target", "decoder_source", "decoder_target"} and grads[1] == {"judge_source", "judge_target"}
    assert set(terms) == {"gan", "cycle", "edge", "perceptual", "identity", "judge"}
    assert set(TranslatorGAN(width=4, blocks=1, scales=1).step(batch(game, city), lambda loss, name: None)) == set(terms) - {"perceptual"}

def test_gan_terms_equal_their_definition(game, city):
    torch.manual_seed(0)
    m = TranslatorGAN(width=4, blocks=1, scales=2, cycle=7.0, edge=11.0, perception=0.3, identity=0.5, gan=0.9, features="random").train()
    b, l1 = batch(game, city), F.l1_loss
    s, t = (2 * diga.to_rgb(x.image) - 1 for x in (b.source, b.target))
    enc_s, enc_t, dec_s, dec_t, judge_s, judge_t = (m.nets[k] for k in ("encoder_source", "encoder_target", "decoder_source", "decoder_target", "judge_source", "judge_target"))
    def squares(scores, real): return torch.stack([(x - real).square().mean() for x in scores]).mean()
    with torch.no_grad():
        fake_t, fake_s, edges = dec_t(enc_s(s)), dec_s(enc_t(t)), boundary_mask(b.source.label)
        seen = lambda a, b: sum(w * l1(x, y) for w, x, y in zip((1/32, 1/16, 1/8, 1/4, 1), m.nets["features"](a), m.nets["features"](b)))
        want = {"gan": 0.9 * (squares(judge_t(fake_t), 1) + squares(judge_s(fake_s), 1)), "cycle": 7 * (l1(dec_s(enc_t(fake_t)), s) + l1(dec_t(enc_s(fake_s)), t)),
                "identity": 0.5 * (l1(dec_s(enc_s(s)), s) + l1(dec_t(enc_t(t)), t)), "edge": 11 * l1(fake_t * edges, s * edges),
                "perceptual": 0.3 * (seen(fake_t, s) + seen(fake_s, t)),
                "judge": sum((squares(j(real), 1) + squares(j(fake), 0)) / 2 for j, real, fake in ((judge_s, s, fake_s), (judge_t, t, fake_t)))}
        told = diga.to_rgb(m.translator(b.source.image))
    got = m.step(b, lambda loss, name: None)
    assert set(got) == set(want)
    for k in want: assert got[k].item() == pytest.approx(want[k].item(), rel=1e-4), k
    assert torch.allclose(2 * told - 1, fake_t, atol=1e-5)         # what a warm-up gets: source in, target's look out

def test_gan_shapes_masks_and_files(tmp_path, game):
    t = TranslatorGAN(width=4, blocks=1).translator
    x = images(game)
    assert t(x).shape == x.shape and (diga.to_rgb(t(x)) >= -1e-4).all()
    with pytest.raises(ValueError, match="fewer scales"): PatchDiscriminator(4, 3)(x)
    y = torch.zeros(1, 9, 9, dtype=torch.uint8); y[:, :, 5:] = 3
    m = boundary_mask(y)[0, 0]
    assert m[:, 3:7].all() and not m[:, :3].any() and not m[:, 7:].any()
    assert [tuple(f.shape[1:]) for f in Features()(torch.zeros(1, 3, 32, 64))][-1] == (64, 2, 4)
    a, b = Features(seed=1), Features(seed=1)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))

def test_vgg_features_from_a_file(tmp_path):
    from torchvision.models import vgg19
    net = vgg19()
    torch.save(net.state_dict(), tmp_path / "vgg19.pth")
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    maps = Features(tmp_path / "vgg19.pth")(x)
    assert [m.shape[1] for m in maps] == [64, 128, 256, 512, 512]
    with torch.no_grad(): assert torch.allclose(maps[0], net.features[:2](diga.from_rgb((x + 1) / 2)), atol=1e-5)

# the network

def test_the_released_head():
    n = net(name="resnet10_slim+gnaspp:64").eval()
    logits, taps = n(torch.randn(1, 3, *SIZE), taps=("fused", "logits_low"))
    assert torch.allclose(taps["logits_low"], F.conv2d(taps["fused"], n.head.classifier.weight), atol=1e-5)     # logits = W f, no bias
    with torch.device("meta"):
        n = segmenter("resnet101_caffe_d8+gnaspp")
        assert n.head.fused_channels == 256
        for size, places in (((512, 896), (65, 113)), ((1024, 2048), (129, 257))): assert n(torch.empty(1, 3, *size), ("fused",))[1]["fused"].shape == (1, 256, *places)

# rows

ROWS = [("diga_skd", dict(bn_target=True)), ("diga_skd_crdomix", {}), ("diga_skd_crdomix", dict(translator="fda")), ("diga_prob", {}), ("diga_feat", {}), ("diga_threshold", {}),
        ("diga_threshold", dict(select="balanced")), ("diga_consensus", {}), ("diga_consensus_skd", {}), ("diga", {}), ("diga", dict(translator="gan", ohem=True, mode="official", teacher="official")),
        ("diga", dict(translator="none", recompute_centroids=True))]

@pytest.mark.parametrize("row,options", ROWS, ids=lambda v: v if isinstance(v, str) else "-".join(map(str, v.values())))
def test_every_row_runs(row, options, tmp_path):
    m = execute(Run(row, scale="smoke", out=tmp_path, options=options, steps=6), progress=False)
    assert m["status"] == "finished"
    folder = Run(row, scale="smoke", out=tmp_path, options=options, steps=6).folder
    if row in ("diga", "diga_consensus"):
        assert m["needs"][0]["method"] == "diga_skd_crdomix" and m["steps"] + m["needs"][0]["steps"] == 6      # the warm-up is named, and paid for
        for r in ((1, 2) if row == "diga" else (1,)): assert len(list((folder / f"round_{r}" / "pseudo_labels").glob("*.png"))) == 8

@pytest.mark.parametrize("recompute", [False, True])
def test_rounds_share_the_budget_and_begin_from_the_same_centroids(recompute, tmp_path, monkeypatch):
    made, stored = [], []
    monkeypatch.setattr(diga, "DiGA", lambda net, c, count, **o: (made.append((c.clone(), o)), DiGA(net, c, count, **o))[1])
    monkeypatch.setattr(diga, "write_pseudo_labels", lambda *args: (stored.append(args[4:6]), write_pseudo_labels(*args))[1])
    run = Run("diga", scale="smoke", out=tmp_path, steps=60, options=dict(warm_share=0.4, recompute_centroids=recompute))
    m = execute(run, progress=False)
    (first, one), (second, two) = made
    assert [s.steps for s in run.row.stages(run, **run.options)] == [18, 18] and m["needs"][0]["steps"] == 24
    assert one["momentum"] == two["momentum"] == pytest.approx(1e-4 * 80_000 * 2 / 36)
    assert torch.equal(first, second) != recompute      # the released second round reads the warm-up's file again
    execute(Run("diga_threshold", scale="smoke", out=tmp_path, steps=60, options=dict(warm_share=0.4, select="balanced", threshold=0.7)), progress=False)
    assert stored == [("all", 0.9)] * 2 + [("balanced", 0.7)]

def test_unknown_translator_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no translator of diga called 'gann'; did you mean 'gan'"): execute(Run("diga", scale="smoke", out=tmp_path, options=dict(translator="gann")), progress=False)

def test_the_warm_up_is_trained_once_and_shared(tmp_path):
    rows = [execute(Run(r, scale="smoke", out=tmp_path), progress=False) for r in ("diga_prob", "diga_consensus", "diga")]
    assert len({r["needs"][0]["run_id"] for r in rows}) == 1
    assert len(list((tmp_path / "smoke" / "game2city" / "diga_skd_crdomix").iterdir())) == 1

def test_the_official_teacher_reaches_the_warm_up(tmp_path):
    run = Run("diga", scale="smoke", out=tmp_path, options={"teacher": "official"})
    needs = execute(run, progress=False)["needs"]
    warm = tmp_path / "smoke" / "game2city" / "diga_skd_crdomix" / needs[0]["run_id"]
    assert json.loads((warm / "metrics.json").read_text())["params"]["options"]["teacher"] == "official"

def test_finished_round_gives_back_what_made_the_labels(tmp_path):
    run = Run("diga", scale="smoke", out=tmp_path); execute(run, progress=False)
    found = diga.finished_round(run)
    assert list(found) == ["start of round 1", "end of round 2"] and all(student is not teacher for student, teacher, *_ in found.values())
    student, teacher, c, seen = found["end of round 2"]
    for (k, a), b in zip(student.state_dict().items(), run.load_student().state_dict().values()): assert torch.equal(a, b), k
    manifest = json.loads((run.folder / "round_1" / "pseudo_labels" / "manifest.json").read_text())
    assert manifest["identity"]["network"] == pseudo_labels.digest(found["start of round 1"][0])     # the warm-up's student wrote the first labels
    assert seen.any() and c.shape == found["start of round 1"][2].shape and not torch.equal(c, found["start of round 1"][2])
    warm, _, first, has = found["start of round 1"]
    rules = label_quality(warm, run.data("val"), first, has, copy.deepcopy(warm), "batch", (1.0,), batch=run.scale.batch)
    noted = run.metrics["notes"]["labels"]
    assert list(noted) == ["round 1", "round 2"] and noted["round 1"]["consensus"] == pytest.approx(rules["consensus"].total | rules["consensus"].class_mean, nan_ok=True) and noted["round 1"] != noted["round 2"]

def test_disk_scenario_with_resizing_and_crops(tmp_path):
    from PIL import Image
    World("game", n=4, size=(96, 176)).export("gta5", tmp_path / "gta5")
    for split, n in (("train", 4), ("val", 2)): World("city", n=n, size=(128, 256), split=split).export("cityscapes", tmp_path / "cityscapes", split=split)
    for f in (tmp_path / "cityscapes" / "gtFine" / "train").rglob("*.png"): f.write_bytes(b"not a label")     # whoever opens the target's labels fails
    run = Run("diga", scenario="gta2cityscapes", scale="smoke", data_root=str(tmp_path), out=tmp_path / "runs", options=dict(translator="fda"))
    assert (m := execute(run, progress=False))["status"] == "finished" and m["notes"]["labels"]["round 1"]["prob"]["coverage"] == 1
    assert Image.open(run.folder / "round_1" / "pseudo_labels" / "000000.png").size == (128, 64)

# kill and resume

@pytest.mark.parametrize("at, translator", [(1, "stats"), (3, "stats"), (5, "stats"), (5, "gan")])   # in round 1, at its end, in round 2
def test_killed_and_resumed_is_the_same_to_the_bit(at, translator, tmp_path, monkeypatch):
    kw = dict(scale="smoke", steps=26, options=dict(translator=translator, recompute_centroids=translator == "gan"))   # 18 of them warm-up
    whole = Run("diga", out=tmp_path / "whole", **kw); execute(whole, progress=False)
    cut, calls, after = Run("diga", out=tmp_path / "cut", **kw), [], DiGA.after_step
    def dying(self, t):
        after(self, t); calls.append(t)
        if len(calls) == at + 1: raise KeyboardInterrupt
    monkeypatch.setattr(DiGA, "after_step", dying, raising=False)
    with pytest.raises(KeyboardInterrupt): execute(cut, progress=False)
    monkeypatch.undo()
    execute(Run("diga", out=tmp_path / "cut", **kw), progress=False, say=lambda s: None)
    for part in ("student.safetensors", "history.csv"): assert (whole.folder / part).read_bytes() == (cut.folder / part).read_bytes()
    assert whole.metrics["notes"] == cut.metrics["notes"]
    for r in (1, 2):
        for f in sorted((whole.folder / f"round_{r}").rglob("*")):
            if f.is_file() and f.suffix != "" : assert f.read_bytes() == (cut.folder / f.relative_to(whole.folder)).read_bytes(), f

def test_recipes_name_scenarios_and_options_that_exist():
    from kdda.bench.scenarios import SCENARIOS
    from kdda.learn.rows import ROWS
    for scenario, r in diga.RECIPES.items(): assert scenario in SCENARIOS and set(r["options"]) <= set(ROWS["diga"].options)
    share = diga.RECIPES["synthia2cityscapes"]["options"]["warm_share"]
    assert round(share * diga.RECIPES["synthia2cityscapes"]["steps"]) == 60_000

def test_the_gan_is_resumed_to_the_bit(tmp_path, monkeypatch):
    kw = dict(scale="smoke", options=dict(translator="gan"))
    whole = Run("diga_skd_crdomix", out=tmp_path / "whole", **kw); execute(whole, progress=False)
    cut, calls, after = Run("diga_skd_crdomix", out=tmp_path / "cut", **kw), [], TranslatorGAN.after_step
    def dying(self, t):
        after(self, t); calls.append(t)
        if len(calls) == 2: raise KeyboardInterrupt
    monkeypatch.setattr(TranslatorGAN, "after_step", dying)
    with pytest.raises(KeyboardInterrupt): execute(cut, progress=False)
    monkeypatch.undo()
    execute(Run("diga_skd_crdomix", out=tmp_path / "cut", **kw), progress=False, say=lambda s: None)
    for f in ("student.safetensors", "history.csv"): assert (whole.folder / f).read_bytes() == (cut.folder / f).read_bytes()
    assert all(torch.equal(a, b) for a, b in zip(whole.stage_state("translator").values(), cut.stage_state("translator").values()))

def test_a_recipe_means_the_same_to_every_row_of_the_ladder():
    for recipe, r in diga.RECIPES.items():
        whole = diga.recipe_options(recipe, "diga")
        assert whole == r["options"]
        for name in ("diga_prob", "diga_feat", "diga_threshold", "diga_consensus"): assert diga.recipe_options(recipe, name) == {k: v for k, v in whole.items() if k != "skd"}
        assert diga.recipe_options(recipe, "diga_consensus_skd") == whole
        warm = diga.recipe_options(recipe, "diga_skd_crdomix")
        assert warm["skd"] == whole["warm_skd"] and all(warm[k] == v for k, v in whole.items() if k in warm and k != "skd")
        assert diga.recipe_options(recipe, "diga_skd")["skd"] == whole["warm_skd"] and diga.recipe_options(recipe, "diga_skd")["teacher"] == "official"
    synthia = Run("diga_skd_crdomix", scale="smoke", options=diga.recipe_options("synthia2cityscapes", "diga_skd_crdomix"))
    gan, warm = synthia.row.stages(synthia, **synthia.options)
    gan = gan.method(None)
    assert gan.identity == 0.025
    warm = warm.method(gan)
    assert (warm.skd, warm.reverse, warm.ohem, warm.teacher) == (0.25, 0.25, True, "official") and warm.view == dict(mode="official", p_jitter=0.7, p_gray=0.1)

def test_the_colours_of_a_recipe_are_those_of_the_warm_up_alone(monkeypatch):
    run = Run("diga", scale="smoke", options=diga.recipe_options("synthia2cityscapes", "diga") | dict(translator="stats"))
    asked = {}
    def finished_run(method, **kw):
        asked.update(kw)
        return SimpleNamespace(load_student=run.net)
    monkeypatch.setattr(run, "finished_run", finished_run)
    for f in ("write_pseudo_labels", "label_quality"): monkeypatch.setattr(diga, f, lambda *a: {})
    monkeypatch.setattr(diga, "initial_centroids", lambda net, *a: (torch.ones(19, 4), torch.ones(19)))
    m = run.row.stages(run, **run.options)[0].method(None)
    assert asked["options"]["colours"] == "synthia" and m.view == dict(mode="official")

def test_a_beta_is_that_of_both_stages(monkeypatch):
    run, asked = Run("diga", scale="smoke", options=dict(beta=0.5)), {}
    monkeypatch.setattr(run, "finished_run", lambda method, **kw: asked.update(kw) or 1 / 0)
    with pytest.raises(ZeroDivisionError): run.row.stages(run, **run.options)[0].method(None)
    assert asked["options"]["beta"] == 0.5

@pytest.mark.parametrize("options, steps", [(dict(warm_share=1.0), 20), (dict(), 1), (dict(rounds=50), 20)])
def test_rounds_without_steps_are_refused(options, steps):
    run = Run("diga", scale="smoke", steps=steps, options=options)
    with pytest.raises(ValueError, match="need at least one each: give more steps, or a smaller warm_share"): run.row.stages(run, **run.options)

def test_the_gan_says_which_sizes_it_takes():
    gan, b = TranslatorGAN(width=4, blocks=1, scales=1), torch.zeros(1, 3, 50, 66)
    batch = SimpleNamespace(source=SimpleNamespace(image=b, label=torch.zeros(1, 50, 66, dtype=torch.uint8)), target=SimpleNamespace(image=b))
    with pytest.raises(ValueError, match="images of 50x66: .*multiples of 4"): gan.step(batch, None)

def test_statistics_of_the_target_arrive():
    "Each translated image has mean and deviation of its partner along the three colour axes."
    g = torch.Generator().manual_seed(0)
    x, t = torch.rand(2, 3, 16, 16) * 0.4 + 0.3, torch.rand(1, 3, 16, 16) * 0.2 + 0.4
    out = diga.to_rgb(diga.translate_stats(diga.from_rgb(x), diga.from_rgb(t), g))
    along = lambda v: torch.einsum("kc,bchw->bkhw", diga._AXES, v)
    for stat in (lambda v: along(v).mean((2, 3)), lambda v: along(v).std((2, 3))): assert torch.allclose(stat(out), stat(t).expand(2, 3), atol=1e-4)
