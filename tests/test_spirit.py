"Spirit Distillation. Networks and their cost, NumPy twins, frozen to the bit, pools and draws, metrics, resuming over phases, every row."
import copy, math
from types import SimpleNamespace
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from killing import dying_in, resumes_to_the_bit
from kdda.bench.runs import Run, execute
from kdda.bench.scenarios import SCENARIOS
from kdda.data.batches import Stream, Uniform
from kdda.data.world import World
from kdda.learn.fit import Optim, fit, fit_stages, to_device
from kdda.nets.segmenter import WeightsError, count_macs, segmenter
from kdda.papers import spirit
from kdda.papers.spirit import (Balanced, ExplainedShare, Imitation, Party, Pool, Transfer, drawn, extra_images, few_labels, hp_accuracy, hp_threshold,
                                image_scores, imitation, load_pretrained, precision_table, print_precision, renewed, segmentation_variance, spliced)

SIZE = (32, 64)
CITY, OTHER = World("city", n=8, size=SIZE).render(), World("country", n=12, size=SIZE, seed=1).render()
SMALL, LARGE, NANO = "resnet10_narrow+lraspp:16", "resnet10_slim+lraspp:16", "resnet10_nano+segformer:16"
PLACES = ("stage1", "stage2", "stage3", "stage4")

def net(name=SMALL, seed=0, n_classes=19):
    torch.manual_seed(seed)
    return segmenter(name, n_classes)

def pair(student=SMALL, **options):
    torch.manual_seed(0)
    return Imitation(net(student), net(LARGE, 1), **options)

def pool_stream(*parts, **options): return {"pool": Stream(Pool(*(parts or (CITY,))), 2, role="pool", labelled=False, flip=False, **options)}
def labelled(role="few"): return {"target": Stream(CITY, 2, role=role)}
def train(method, streams, steps=3, **more): return fit(method, streams, steps, progress=False, say=lambda s: None, **more)
def state(m): return {k: v.clone() for k, v in m.state_dict().items()}
def in_front(key, at): return key.startswith("backbone.stages.") and int(key.split(".")[2]) < int(at[5:])

# networks: cost, split, splice, weights

def macs(name, size=(512, 1024), n_classes=21):
    with torch.device("meta"): n = segmenter(name, n_classes)
    return count_macs(n, size), sum(p.numel() for p in n.parameters())

def test_the_compact_student_costs_what_the_notes_measured():
    teacher, params = macs("resnet50_d8+deeplabv3")
    assert teacher / 1e9 == pytest.approx(327.16, abs=.01) and params / 1e6 == pytest.approx(39.64, abs=.01)
    ratio = lambda name, size=(512, 1024): macs(name, size)[0] / macs("resnet50_d8+deeplabv3", size)[0]
    for size in ((512, 1024), (256, 512), (512, 512), (768, 768)): assert ratio("resnet50_g8_d8+deeplabv3_light", size) == pytest.approx(.418, abs=.001)
    assert macs("resnet50_g8_d8+deeplabv3_light")[1] / 1e6 == pytest.approx(16.7, abs=.05)
    for name, want in (("resnet50_d8+deeplabv3_light", .673), ("resnet50_g8_d8+deeplabv3", .745), ("resnet50_g8_to3_resnet50_d8+deeplabv3", .900), ("resnet50_g8_to4_resnet50_d8+deeplabv3", .745)):
        assert ratio(name) == pytest.approx(want, abs=.001), name
    assert macs(SMALL, (64, 128), 19)[0] < .45 * macs(LARGE, (64, 128), 19)[0]

def test_multiply_accumulates_by_stage_are_those_of_the_notes():
    with torch.device("meta"): n = segmenter("resnet50_g8_d8+deeplabv3_light", 21)
    for k, want in enumerate((5.0, 11.6, 44.2, 115.8), 1): assert count_macs(n.split(f"stage{k}")[0], (512, 1024)) / 1e9 == pytest.approx(want, abs=.06)

@pytest.mark.parametrize("at", PLACES)
def test_front_and_rest_recompose_and_fronts_have_equal_maps(at):
    x, maps = torch.randn(2, 3, *SIZE), []
    for name in (SMALL, LARGE, f"resnet10_narrow_to{at[5:]}_resnet10_slim+lraspp:16", f"resnet10_nano_to{at[5:]}_resnet10_slim+lraspp:16"):
        n = net(name).eval()
        front, rest = n.split(at)
        with torch.no_grad():
            assert torch.equal(rest(front(x)), n(x))
            maps.append(front(x).map.shape)
    assert len(set(maps)) == 1
    with torch.device("meta"): a, b = segmenter("resnet50_d8+deeplabv3"), segmenter("resnet50_g8_d8+deeplabv3_light")
    assert a.split(at)[0](torch.empty(1, 3, 64, 64, device="meta")).map.shape == b.split(at)[0](torch.empty(1, 3, 64, 64, device="meta")).map.shape

def test_networks_that_do_not_meet_are_refused():
    with pytest.raises(ValueError, match="stride 8 after stage 3 and resnet50 16"): spliced("x", "resnet10_nano", "resnet50", 3)
    with pytest.raises(ValueError, match="resnet10_narrow.* cannot take stage 4"): renewed(net(LARGE), net(SMALL), 3)

def test_renewed_takes_everything_but_the_classifier():
    large = net(LARGE, 1)
    fresh = renewed(large, net(LARGE, 2, 11))
    untouched = net(LARGE, 2, 11).state_dict()
    for k, v in fresh.state_dict().items(): assert torch.equal(v, untouched[k] if k.startswith("head.classifier") else large.state_dict()[k]), k
    hybrid = renewed(large, net("resnet10_narrow_to2_resnet10_slim+lraspp:16", 3), 2)
    mine = net("resnet10_narrow_to2_resnet10_slim+lraspp:16", 3).state_dict()
    for k, v in hybrid.state_dict().items():
        own = k.startswith("head.classifier") or in_front(k, "stage2")
        assert torch.equal(v, mine[k] if own else large.state_dict()[k]), k

@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    from torchvision.models.segmentation import deeplabv3_resnet50
    torch.manual_seed(0)
    theirs = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=21, aux_loss=True).eval()
    for m in theirs.modules():
        if isinstance(m, torch.nn.BatchNorm2d): m.running_mean.uniform_(-.2, .2); m.running_var.uniform_(.8, 1.2)
    file = tmp_path_factory.mktemp("coco") / "deeplabv3_resnet50_coco.pth"
    torch.save(theirs.state_dict(), file)
    return theirs, file

def test_torchvision_weights_give_torchvision_logits(coco):
    theirs, file = coco
    ours, x = load_pretrained("resnet50_d8+deeplabv3", file, 19).eval(), torch.randn(1, 3, 65, 97)
    with torch.no_grad(): torch.testing.assert_close(ours(x), theirs(x)["out"], rtol=1e-3, atol=1e-4)
    assert ours.n_classes == 21

def test_a_file_that_does_not_fit_is_refused_whole(coco, tmp_path):
    theirs, file = coco
    good = theirs.state_dict()
    for name, broken in (("missing", {k: v for k, v in good.items() if k != "classifier.0.convs.4.1.weight"}), ("wrong shape", {**good, "classifier.1.weight": torch.zeros(3)}),
                         ("left over", {**good, "backbone.layer5.0.conv1.weight": torch.zeros(3)})):
        torch.save(broken, tmp_path / "x.pth")
        with pytest.raises((WeightsError, ValueError)): load_pretrained("resnet50_d8+deeplabv3", tmp_path / "x.pth", 19)
    with pytest.raises(WeightsError): load_pretrained("resnet10_slim+lraspp:16", file, 19)
    torch.save({k: v for k, v in good.items() if k != "classifier.1.weight"}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="x.pth does not fit") as e: load_pretrained("resnet50_d8+deeplabv3", tmp_path / "x.pth", 19)
    assert "incomplete" in str(e.value) and "backbone alone" not in str(e.value)
    fcn = {k: v for k, v in good.items() if k.startswith("backbone.")} | {"classifier.0.weight": torch.zeros(512, 2048, 3, 3), "classifier.4.weight": torch.zeros(21, 512, 1, 1)}
    torch.save(fcn, tmp_path / "x.pth")                                          # torchvision's other head
    with pytest.raises(WeightsError, match="x.pth does not fit"): load_pretrained("resnet50_d8+deeplabv3", tmp_path / "x.pth", 19)
    with pytest.raises(WeightsError, match="no weights file"): load_pretrained("resnet50_d8+deeplabv3", tmp_path / "none.pth", 19)

def test_weights_of_a_backbone_alone_will_do(tmp_path):
    torch.save(net(LARGE, 4).backbone.state_dict(), tmp_path / "b.pt")
    loaded = load_pretrained(LARGE, tmp_path / "b.pt", 11)
    assert loaded.n_classes == 11 and all(torch.equal(v, net(LARGE, 4).backbone.state_dict()[k]) for k, v in loaded.backbone.state_dict().items())

# the loss, the explained share

def np_imitation(s, t, kind):
    total = []
    for b, i, j in np.ndindex(len(s), *s.shape[2:]):
        a, c = s[b, :, i, j], t[b, :, i, j]
        if kind == "l2_channel": a, c = a / np.linalg.norm(a), c / np.linalg.norm(c)
        total.append(((a - c) ** 2).mean())
    return np.mean(total)

some_maps = st.builds(lambda B, C, h, w, seed: tuple(torch.randn(B, C, h, w, generator=torch.Generator().manual_seed(seed + k), dtype=torch.float64) for k in (0, 100)),
                      st.integers(1, 3), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(0, 99))

@pytest.mark.parametrize("kind", ["mse", "l2_channel"])
@settings(max_examples=12, deadline=None)
@given(maps=some_maps, n=st.integers(2, 3))
def test_imitation_equals_numpy_and_does_not_mind_repetition(kind, maps, n):
    s, t = maps
    value = imitation(s, t, kind).item()
    assert value == pytest.approx(np_imitation(s.numpy(), t.numpy(), kind), rel=1e-10)
    assert imitation(torch.cat([s] * n), torch.cat([t] * n), kind).item() == pytest.approx(value, rel=1e-10)
    assert imitation(s.repeat(1, 1, n, 2), t.repeat(1, 1, n, 2), kind).item() == pytest.approx(value, rel=1e-10)

@pytest.mark.parametrize("kind", ["mse", "l2_channel"])
def test_imitation_gradient(kind):
    g = torch.Generator().manual_seed(0)
    s, t = (torch.randn(2, 3, 2, 2, generator=g, dtype=torch.float64) for _ in "ab")
    assert torch.autograd.gradcheck(lambda z: imitation(z, t, kind), s.clone().requires_grad_())
    a, b = s.clone().requires_grad_(), t.clone().requires_grad_()
    imitation(a, b, kind).backward()
    assert b.grad is None
    assert imitation(t, t, kind).item() == 0
    if kind == "l2_channel": assert imitation(3 * t, t, kind).item() == pytest.approx(0, abs=1e-12)

def test_unknown_choices_are_refused():
    with pytest.raises(ValueError, match="cosine"): imitation(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1), "cosine")
    for scenario, role in (("fewshot_city", "nowhere"), ("game2city", "proximity")):
        run = Run("esd", scenario=scenario, scale="smoke", options={"proximity": role})
        with pytest.raises(ValueError, match=f"no role '{role}'"): run.row.stages(run, **run.options)

@settings(max_examples=20, deadline=None)
@given(maps=some_maps, cut=st.integers(0, 3))
def test_explained_share_equals_numpy_and_adds_up(maps, cut):
    s, t = maps
    C = t.shape[1]
    whole = ExplainedShare(C).update(s, t).share
    variance = np.mean([np.var(t[:, c].numpy()) for c in range(C)])
    if variance > 1e-9: assert whole == pytest.approx(1 - ((s - t) ** 2).mean().item() / variance, rel=1e-6, abs=1e-9)
    else: assert math.isnan(whole) or whole < 0
    parts = ExplainedShare(C).update(s[:cut], t[:cut]) + ExplainedShare(C).update(s[cut:], t[cut:])
    if not math.isnan(whole): assert parts.share == pytest.approx(whole, rel=1e-6)

def test_explained_share_rises_on_two_domains():
    m = pair(photo=dict(jitter=.1))
    before = m.explained(CITY), m.explained(OTHER)
    train(m, pool_stream(CITY, OTHER), 40, optim={"main": Optim(lr=1e-2)})
    after = m.explained(CITY), m.explained(OTHER)
    assert all(b < 0.2 and a > b + .2 for b, a in zip(before, after)), (before, after)

def test_explained_share_of_frames_that_differ_in_size():
    m, a, b = pair(), World("city", n=2, size=(32, 66)), World("city", n=2, size=(32, 64))
    assert math.isfinite(m.explained(Pool(a, b))) and m.explained(Pool(a, b)) == pytest.approx(m.explained(Pool(b, a)), rel=1e-5)

def test_the_explained_share_sees_what_the_distance_sees():
    "A map of the right direction and another length: all of it is explained where only directions are compared."
    for kind, whole in (("l2_channel", True), ("mse", False)):
        m = Imitation(net(LARGE, 1), net(LARGE, 1), kind=kind, disturb=False)
        m.nets["adapter"].forward = lambda x, like: 3 * like                      # three times what the teacher has
        terms = m.step(SimpleNamespace(pool=to_device(next(Stream(CITY, 2, role="pool", labelled=False)), "cpu"), generator=torch.Generator().manual_seed(0)), lambda loss, name: None)
        assert (terms["explained"] == pytest.approx(1)) == whole and (m.explained(CITY) == pytest.approx(1)) == whole

def test_a_teacher_that_sees_no_difference_does_not_end_the_training():
    m = pair()
    m.nets["teacher"].forward = lambda x: SimpleNamespace(map=torch.ones(len(x), 32, 4, 8))
    m.nets["adapter"].forward = lambda x, like: x.mean() * torch.ones_like(like)
    assert math.isnan(m.explained(CITY)) and "explained" not in train(m, {"pool": Stream(CITY, 2, role="pool", labelled=False)}, 2, log_every=1).names

def test_a_share_that_leaves_no_step_with_labels_is_refused(tmp_path):
    for method in ("sd", "esd"):
        with pytest.raises(ValueError, match="share = 0.99 leaves no step with labels out of 6"): (run := Run(method, scenario="fewshot_city", scale="smoke", steps=6, out=tmp_path, options=dict(share=.99))).row.stages(run, **run.options)
    with pytest.raises(ValueError, match="share of fewshot"): Run("fewshot", scenario="fewshot_city", scale="smoke", out=tmp_path, options=dict(share=1.0))
    with pytest.raises(ValueError, match="leaves no step with labels out of 6"): execute(Run("fewshot", scenario="fewshot_city", scale="smoke", steps=6, out=tmp_path, options=dict(share=0.99)), progress=False)

# what the teacher said

def test_imitation_asks_the_teacher_once_for_a_view():
    m, asked = pair(), []
    m.nets["teacher"].register_forward_pre_hook(lambda mod, a: asked.append(len(a[0])))
    train(m, {"pool": Stream(CITY, 2, role="pool", labelled=False)}, 40)              # ten epochs, mirrored at random
    assert asked == [1] * 16 == [1] * len(m.memory.kept)

def test_what_is_remembered_does_not_change_the_training():
    runs = [train(pair(remember=n), pool_stream(), 6, log_every=1) for n in (2**29, 30_000, 0)]
    assert runs[0] == runs[1] == runs[2]

def test_the_remembered_map_is_the_teachers():
    m, x = pair(), torch.randn(3, 3, *SIZE)
    with torch.no_grad(): torch.testing.assert_close(m.memory(x)[0], m.nets["teacher"](x).map, rtol=2e-3, atol=2e-3)   # kept in half precision

def test_zoomed_views_are_new_each_time_and_the_same_for_both():
    m, taught, imitated = pair(zoom=(.75, 2), disturb=False), [], []
    m.nets["teacher"].register_forward_pre_hook(lambda mod, a: taught.append(a[0].clone()))
    m.parts[0].register_forward_pre_hook(lambda mod, a: imitated.append(a[0].clone()))
    train(m, {"pool": Stream(CITY, 2, role="pool", labelled=False)}, 20)
    assert len(taught) == len(imitated) == 20 and all(torch.equal(t, s) for t, s in zip(taught, imitated)) and not m.memory.kept
    assert len({v.double().sum().item() for t in taught for v in t}) == 40   # five epochs of eight frames, no view twice

# what moves and what does not

@pytest.mark.parametrize("student", [SMALL, NANO])
@pytest.mark.parametrize("at", ["stage1", "stage3", "stage4"])
def test_step_1_changes_the_students_front_and_adapter_alone(student, at):
    m = pair(student, at=at)
    before = state(m)
    train(m, pool_stream(), 2)
    for k, v in m.state_dict().items():
        if k.startswith("nets.teacher."): assert torch.equal(v, before[k]), k
        elif k.startswith("nets.student."): assert torch.equal(v, before[k]) != in_front(k.removeprefix("nets.student."), at), k
        else: assert not torch.equal(v, before[k]), k
    assert any(k.startswith("nets.adapter.") for k in before) == (student == NANO)

@pytest.mark.parametrize("at", ["stage1", "stage3"])
def test_the_frozen_front_stays_to_the_bit_and_then_moves(at):
    student = net()
    before = state(student)
    train(Transfer(student, at, freeze=True, photo=dict(jitter=.3), zoom=(.75, 2)), labelled(), 3)
    for k, v in student.state_dict().items(): assert torch.equal(v, before[k]) == in_front(k, at), k
    before = state(student)
    train(Transfer(student, at), labelled(), 2, optim={"main": Optim(lr=1e-2), "front": Optim(lr=1e-3)})
    assert not any(torch.equal(v, before[k]) for k, v in student.state_dict().items())

def test_keep_mimic_pulls_at_the_front_and_leaves_the_teacher_alone():
    m = pair(NANO)
    free = Transfer(m.student, guide=m, mimic=2.0)
    before = state(free)
    history = train(free, labelled(), 2, log_every=1)
    assert {"ce", "mimic"} <= set(history.names)
    after = free.state_dict()
    assert all(torch.equal(after[k], before[k]) for k in before if k.startswith("nets.teacher."))
    assert not any(torch.equal(after[k], before[k]) for k in before if k.startswith("nets.adapter."))
    raw = to_device(next(labelled()["target"]), "cpu")
    def front_gradient(mimic):
        f = Transfer(copy.deepcopy(m.student), guide=m, mimic=mimic, photo=dict(p_jitter=0, p_blur=0)).train()
        torch.manual_seed(0)
        f.step(SimpleNamespace(target=raw, generator=torch.Generator().manual_seed(0)), lambda loss, name: loss.backward())
        return f.parts[0].stages[0][0][0].weight.grad
    a, b, c = (front_gradient(w) for w in (1e-9, 1.0, 2.0))
    assert (b - a).abs().max() > 1e-3
    torch.testing.assert_close(c - a, 2 * (b - a), rtol=1e-2, atol=1e-5)     # the weight of the term is the weight of its gradient

def test_joint_imitates_the_pool_and_names_the_labelled():
    m = pair()
    both = Transfer(m.student, guide=m, mimic=1.0)
    seen = []
    m.imitate = lambda data, g, old=m.imitate: (seen.append(data.keys), old(data, g))[1]
    train(both, {**labelled(), **pool_stream(CITY, OTHER)}, 2)
    assert len(seen) == 2 and all(":" in k for keys in seen for k in keys)

def test_the_teachers_statistics_stay_those_of_the_source():
    m = pair()
    m.train()
    assert not any(b.training for b in m.nets["teacher"].modules()) and all(b.training for b in m.parts[0].modules())

# pools, draws, samplers

class NoLabels:
    "A dataset that tells when somebody opens a label."
    def __init__(self, ds): self.ds, self.space, self.name = ds, ds.space, ds.name
    def __len__(self): return len(self.ds)
    def key(self, i): return self.ds.key(i)
    def image(self, i): return self.ds.image(i)
    def label(self, i): raise AssertionError("a label of a proximity frame was opened")

def test_a_pool_shows_every_frame_and_no_label():
    p = Pool(CITY, NoLabels(OTHER))
    assert len(p) == 20 and not hasattr(p, "label")
    for i in range(20):
        part, j = (CITY, i) if i < 8 else (OTHER, i - 8)
        assert np.array_equal(p.image(i), part.image(j)) and p.key(i).endswith(part.key(j))
    assert len({p.key(i) for i in range(20)}) == 20 and len({Pool(CITY, CITY).key(i) for i in range(16)}) == 16
    s = Stream(p, 4, labelled=False, flip=False)
    assert "label" not in next(s)

def test_the_ways_to_mix():
    p = Pool(CITY, OTHER)
    draw = lambda sampler: [[k for k in Stream(p, 4, labelled=False, sampler=sampler).batch(i)["keys"]] for i in range(40)]
    union, balanced, party = draw(Uniform()), draw(Balanced(8)), draw(Party())
    assert sorted(sum(union[:5], [])) == sorted(p.key(i) for i in range(20))                        # an epoch is every frame once
    assert all(sum(k.startswith("0:") for k in keys) == 2 for keys in balanced)
    assert sorted(k for keys in balanced[:4] for k in keys if k[0] == "0") == sorted(p.key(i) for i in range(8))
    assert len(set(sum(party[:5], []))) < 20 and .25 < np.mean([k.startswith("0:") for k in sum(party, [])]) < .55
    for sampler in (Balanced(8), Party()):                                                          # a pure function of seed, role, position
        a, b = (Stream(p, 4, labelled=False, sampler=sampler, seed=3) for _ in "ab")
        assert a.batch(7)["keys"] == b.batch(7)["keys"] and [next(a)["keys"] for _ in range(3)] == [b.batch(i)["keys"] for i in range(3)]

@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 300), a=st.integers(1, 300), b=st.integers(1, 300), draw=st.integers(0, 9))
def test_budgets_of_one_draw_are_nested(n, a, b, draw):
    small, large = sorted((a, b))
    assert set(drawn(n, small, draw, "r")) <= set(drawn(n, large, draw, "r")) and len(drawn(n, small, draw, "r")) == min(small, n)
    assert drawn(n, 0, draw, "r") == list(range(n))

def task(method="esd", **options): return Run(method, scenario="fewshot_city", scale="smoke", **options)

def test_labels_and_extra_images_are_disjoint_and_as_many_as_asked():
    t = task()
    few = few_labels(t, 3, 0)
    assert len(few) == 3
    for role, total in (("proximity", 8), ("rest", 5)):
        taken, left = extra_images(t, few, role, 1, 0)
        assert len(taken) == 3 and len(taken) + len(left) == total
        keys = [{d.key(i) for i in range(len(d))} for d in (few, taken, left)]
        assert not keys[0] & keys[1] and not keys[1] & keys[2] and not keys[0] & keys[2]
    taken, left = extra_images(t, few, "proximity", -1, 0)
    assert len(taken) == 8 and left is None
    assert [few_labels(t, 3, d).indices for d in (0, 1)] == [few_labels(t, 3, -1).indices, few_labels(task(seed=1), 3, -1).indices]   # by default the seed is the draw

def test_proximity_labels_are_never_opened(tmp_path, monkeypatch):
    run = task(out=tmp_path, options={"budget": 4, "r": 1})
    run._data["proximity"] = NoLabels(run.scenario.data("proximity", run.scale))
    run._data["source"] = run.data("source")
    assert execute(run, progress=False, say=lambda s: None)["status"] == "finished"

# metrics

def np_scores(pred, label, n):
    ious = []
    valid = label != 255
    if not valid.any(): return math.nan, math.nan
    for c in range(n):
        if not (label == c).any(): continue
        a, b = (pred == c) & valid, label == c
        ious.append((a & b).sum() / (a | b).sum())
    return np.mean(ious), (pred == label)[valid].mean()

@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), void=st.sampled_from([0, .3, 1]))
def test_image_scores_equal_numpy_and_void_images_are_skipped(seed, void):
    rng = np.random.default_rng(seed)
    labels = [np.where(rng.random((5, 6)) < v, 255, rng.integers(0, 7, (5, 6))).astype(np.uint8) for v in (void, .2)]
    preds = [rng.integers(0, 19, (5, 6)).astype(np.uint8) for _ in labels]
    ds = SimpleNamespace(space=CITY.space, label=lambda i: labels[i], key=str)
    m, a = image_scores(preds, ds)
    want = [np_scores(p, l, 19) for p, l in zip(preds, labels)]
    np.testing.assert_allclose(m, [w[0] for w in want]); np.testing.assert_allclose(a, [w[1] for w in want])
    if void == 1: assert np.isnan(m[0]) and hp_accuracy(m, 0) == 1 and segmentation_variance(m) == 0

@settings(max_examples=50, deadline=None)
@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=40), taus=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_high_precision_accuracy_falls_with_its_threshold(values, taus):
    m = np.array(values)
    low, high = sorted(taus)
    assert 0 <= hp_accuracy(m, high) <= hp_accuracy(m, low) <= 1 == hp_accuracy(m, 0)
    assert hp_accuracy(m, hp_threshold(m)) >= .25
    assert segmentation_variance(np.full(5, values[0])) == pytest.approx(0, abs=1e-15) and segmentation_variance(m) == pytest.approx(np.mean((m - m.mean()) ** 2))

def test_the_precision_table_pairs_by_seed():
    rng = np.random.default_rng(0)
    base = {s: rng.random(400) for s in (0, 1)}
    rows = {"base": base, "better": {0: np.clip(base[0] * .5 + .5, 0, 1)}}
    a, b = precision_table(rows, "base")
    assert a["hp"] == pytest.approx(.25, abs=.01) and a["hp_gain"] == 0 and a["ratio"] == 1
    assert b["seeds"] == 1 and b["ratio"] == pytest.approx(.25) and b["hp_gain"] == pytest.approx(hp_accuracy(rows["better"][0], a["tau"]) - hp_accuracy(base[0], a["tau"]))
    text = print_precision(rows, "base")
    assert "better" in text and "a quarter of base" in text
    assert spirit.show_precision(rows).axes[0].get_xlabel().startswith("threshold")

# kill and resume, over the phases

@pytest.mark.parametrize("phase", ["imitate", "rest", "all", "joint"])
def test_resume_is_bitwise_over_phases(phase, tmp_path):
    options = {"budget": 4, "r": 1, "share": .4, "joint": 1.0} if phase == "joint" else {"budget": 4, "r": 1, "share": .4, "hold": .3, "keep_mimic": .5}
    large = net(LARGE, 1)
    def go(folder, kill):
        t = task(options=options, steps=12, student=NANO, teacher=LARGE)
        t.finished = lambda *a, **k: copy.deepcopy(large)
        stages = t.row.stages(t, **t.options)
        for s in stages: s.options.pop("evaluate", None)
        return fit_stages(dying_in(stages, phase) if kill else stages, folder, seed=5, progress=False, say=lambda s: None, checkpoint_every=1, log_every=1, optim={"main": Optim(lr=3e-3)})
    resumes_to_the_bit(go, tmp_path)

# rows

@pytest.fixture(scope="module")
def out(tmp_path_factory): return tmp_path_factory.mktemp("runs")   # the teacher is trained once

def go(method, out, **more):
    run = Run(method, scenario="fewshot_city", scale="smoke", out=out, **{"options": {"budget": 4}, **more})
    return run, execute(run, progress=False, say=lambda s: None)

@pytest.mark.parametrize("method,options", [("fewshot", {}), ("ftt", {"split": "stage2"}), ("fewshot_kd", {}), ("fitnets", {}), ("sd", {}), ("sd", {"keep_mimic": .5, "split": "stage4"}), ("esd", {"r": 1}),
                                            ("esd", {"r": 1, "mix": "balanced"}), ("esd", {"proximity": "rest", "r": 1}), ("esd", {"joint": 1.0}), ("esd", {"hold": 1.0}), ("esd", {"hold": 0.0, "kind": "l2_channel"}),
                                            ("esd_unrelated", {}), ("image_party", {}), ("esd", {"budget": 0, "disturb": False})])
def test_every_row_runs_and_spends_its_steps(method, options, out):
    run, m = go(method, out, options={"budget": 4, **options})
    assert m["steps"] == run.steps and m["student"]["name"] == run.student_name
    needs = [(n["method"], n["student"]) for n in m["needs"]]
    large = run.scale.teacher
    assert needs == {"fewshot": [], "ftt": [("source_only", run.student_name)], "fewshot_kd": [("ftt", large)]}.get(method, [("source_only", large)])

def test_the_teacher_of_fewshot_kd_may_be_any_row_s(out):
    run, m = go("fewshot_kd", out, options={"budget": 4, "of": "source_only"})
    assert [(n["method"], n["student"], n["seed"]) for n in m["needs"]] == [("source_only", run.teacher_name, 0)]

@pytest.mark.parametrize("method,options,front,steps", [("fewshot", {}, 1.0, [20]), ("fewshot", {"share": 0.25}, 1.0, [15]), ("ftt", {}, 0.5, [2, 18]), ("ftt", {"front_lr": 0.1, "hold": 0.5}, 0.1, [10, 10]),
                                                        ("sd", {"hold": 0.3}, 0.5, [10, 3, 7]), ("esd", {"share": 0.25, "hold": 0.0, "front_lr": 1.0}, 1.0, [5, 15])])
def test_stages_and_how_fast_the_front_learns_once_it_is_free(method, options, front, steps):
    run = task(method, steps=20, options=options)
    stages = run.row.stages(run, **run.options)
    main, slow = (stages[-1].options["optim"][k] for k in ("main", "front"))
    assert [s.steps for s in stages] == steps and slow.lr == pytest.approx(front * main.lr) and main.lr == run.scale.optim.lr

def test_the_large_network_is_a_row_by_its_name(out):
    run, m = go("ftt", out, student="resnet10_slim+lraspp:64")
    assert m["student"]["name"] == run.scale.teacher and [(n["method"], n["seed"]) for n in m["needs"]] == [("source_only", 0)]

def test_the_teacher_is_one_for_all_seeds_and_budgets(out):
    used = {go("sd", out, seed=s, options={"budget": b}, steps=n)[1]["needs"][0]["run_id"] for s, b, n in ((0, 4, 6), (1, 2, 6), (0, 4, 9))}
    assert len(used) == 1

@pytest.mark.parametrize("name", ["resnet10_nano+segformer:48", "resnet10_nano_to3_resnet10_slim+lraspp:64", "mobilenet_v2_050+lraspp"])
def test_other_students_through_adapters(name, out): assert go("esd", out, student=name)[1]["student"]["name"] == name

def test_the_teachers_back(out):
    name = "resnet10_narrow_to3_resnet10_slim+lraspp:64"
    run, m = go("sd", out, student=name, options={"budget": 4, "back": "teacher", "hold": 0.0, "share": 1.0})     # imitation alone: the back is still the teacher's
    teacher = run.finished("source_only", student="resnet10_slim+lraspp:64", seed=0, steps=run.scale.steps)
    mine, given = run.load_student().state_dict(), teacher.state_dict()
    for k in mine:
        if not in_front(k, "stage3") and not k.startswith("head.classifier"): assert torch.equal(mine[k], given[k]), k
    with pytest.raises(ValueError, match="cannot take stage 4"): go("sd", out, options={"budget": 4, "back": "teacher"})

def test_esd_without_proximity_images_is_sd_to_the_bit(out):
    a, b = (go(m, out, options=o)[0].load_student().state_dict() for m, o in (("sd", {"budget": 4}), ("esd", {"budget": 4, "r": 0})))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

def test_a_row_with_an_adapter_is_the_same_whatever_was_drawn_before(out, tmp_path):
    a, b = (go("sd", o, student=NANO)[0] for o in (out, tmp_path))
    assert all(torch.equal(a.stage_state("imitate")[k], v) for k, v in b.stage_state("imitate").items())

def test_the_teacher_from_a_file(out, tmp_path):
    torch.save(net("resnet10_slim+lraspp:64", 7).backbone.state_dict(), tmp_path / "t.pt")
    run, m = go("sd", out, teacher_weights=str(tmp_path / "t.pt"))
    assert m["needs"] == []
    state_ = run.stage_state("imitate", "teacher")
    assert all(torch.equal(v, net("resnet10_slim+lraspp:64", 7).backbone.state_dict()[k]) for k, v in state_.items())

def test_held_out_explained_shares_are_in_the_history(out):
    from kdda.learn.fit import History
    run, _ = go("esd", out, options={"budget": 2, "r": 1})
    names = History.from_csv(run.folder / "history.csv").names
    assert {"mimic", "explained", "explained/target", "explained/proximity", "ce"} <= set(names)

def test_camvid_scenarios(camvid_root):
    for name in ("fewshot_camvid", "fewshot_camvid_dusk"):
        run = Run("esd", scenario=name, scale="smoke", data_root=str(camvid_root))
        few = few_labels(run, 64, 0)
        taken, left = extra_images(run, few, "proximity", 4, 0)
        assert len(few) == 64 and len(taken) == (256 if name == "fewshot_camvid" else 62)
        assert not {few.key(i) for i in range(64)} & {taken.key(i) for i in range(len(taken))}

def test_cityscapes_with_kitti_on_trees_the_world_writes(tmp_path):
    "64 labelled frames of Cityscapes, KITTI for proximity, through the real loaders, sizes and crops."
    from kdda.data.catalogue import KITTI
    for split, n in (("train", 4), ("val", 2)): World("city", n=n, size=(128, 256), split=split).export("cityscapes", tmp_path / "cityscapes", split=split)
    World("country", n=4, size=(96, 320)).export(KITTI.name, tmp_path / "kitti", split="train")
    for label in (tmp_path / "kitti").rglob("semantic/*"): label.unlink()                       # they are not needed
    run = Run("esd", scenario="fewshot_cityscapes", scale="smoke", data_root=str(tmp_path), options={"budget": 2, "r": 1}, out=tmp_path / "runs")
    m = execute(run, progress=False, say=lambda s: None)
    assert m["scored_on"]["images"] == 2 and m["steps"] == 6
    assert SCENARIOS["fewshot_cityscapes"].at("paper").teacher == "resnet50_d8+deeplabv3"
