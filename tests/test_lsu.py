"LSU: sets against brute force and NumPy, void policies, the label store killed and resumed, mixtures, every row, the published recipes on trees that the world writes."
import json
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from kdda.bench.runs import Run, all_rows, execute, in_other_words, on_unseen
from kdda.bench.scenarios import SCENARIOS, URBAN, WORDS
from kdda.data.augment import normalize
from kdda.data.datasets import Joined, Mapped, Related
from kdda.data.labels import CITYSCAPES_19, CITYSCAPES_19_TO_CAMVID_11, IGNORE, LabelMap, LabelSpace, label_map, label_maps
from kdda.data.world import World
from kdda.learn import pseudo_labels
from kdda.learn.losses import cross_entropy
from kdda.learn.pseudo_labels import PseudoLabelled, mean_probabilities, stored_quality, two_best, write_pseudo_labels
from kdda.nets.segmenter import segmenter
from kdda.papers import lsu
from kdda.papers.lsu import (Constraint, Mixture, PerDataset, agreement, allowed_mass, by_class, constrained_argmax, dataset_shares, gain_table, labelled_once, partial_cross_entropy, space_of_sets,
                             window)

SIZE, NET = (32, 64), "resnet10_nano+segformer:48"
rng = lambda s=0: torch.Generator().manual_seed(s)

def net(seed=0, n=16):
    torch.manual_seed(seed)
    return segmenter(NET, n).eval()

def space(n, name="s"): return LabelSpace(f"{name}{n}", [f"c{i}" for i in range(n)], [(i, i, i) for i in range(n)])

@pytest.fixture(scope="module")
def night(): return SCENARIOS["urban_world"].data("night", "smoke")

@st.composite
def relations(draw):
    "A random map, and scores and labels to go with it."
    a, b = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    mask = np.array(draw(st.lists(st.lists(st.booleans(), min_size=b + 1, max_size=b + 1), min_size=a + 1, max_size=a + 1)))
    seed = draw(st.integers(0, 2**32 - 1))
    g = np.random.default_rng(seed)
    prob = torch.from_numpy(g.dirichlet(np.full(b, 0.3), (2, 5, 7)).astype(np.float32)).permute(0, 3, 1, 2).contiguous()
    label = torch.from_numpy(g.choice([*range(a), IGNORE, a + 3], (2, 5, 7)).astype(np.uint8))
    return LabelMap.from_mask(space(a, "own"), space(b), mask), prob, label

def brute(m, prob, label, void="never", least=0.0):
    "Pixel by pixel, with Python sets."
    out = np.full(label.shape, IGNORE, np.uint8)
    rows = {**{i: row for i, row in enumerate(m.allowed.values())}, IGNORE: m.void}
    for at in np.ndindex(*label.shape):
        row = rows.get(int(label[at]), ())
        p = {m.target.index(t): float(prob[at[0], m.target.index(t), at[1], at[2]]) for t in row if t}
        if not p: continue
        need = max(least, {"mass": 0.5, "never": 0.0, "always": 2.0}[void] if None in row else 0.0)
        if sum(p.values()) >= need: out[at] = max(p, key=lambda c: (p[c], -c))
    return out

# sets

@settings(max_examples=60, deadline=None)
@given(relations())
def test_constrained_argmax_is_brute_force(case):
    m, prob, label = case
    sets = torch.from_numpy(m.sets())
    got = constrained_argmax(prob, label, sets)
    assert got.dtype == torch.uint8 and (got.numpy() == brute(m, prob, label)).all()
    assert (constrained_argmax(prob.contiguous(memory_format=torch.channels_last), label, sets) == got).all()
    assert (constrained_argmax(4 * prob, label, sets) == got).all()                                       # no change under positive scaling
    want = torch.stack([prob.movedim(1, -1)[at][sets[int(label[at]), :-1]].sum() for at in np.ndindex(*label.shape)]).view(label.shape)
    assert torch.allclose(allowed_mass(prob, label, sets), want, atol=1e-6)
    known = got != IGNORE
    assert sets[label[known].long(), got[known].long()].all()                                             # what is said is allowed

@settings(max_examples=60, deadline=None)
@given(relations(), st.sampled_from(lsu.VOIDS), st.sampled_from([0.0, 0.1, 0.7]))
def test_void_policies_are_brute_force(case, void, least):
    m, prob, label = case
    assert (Constraint(m, void, least)(prob, label).numpy() == brute(m, prob, label, void, least)).all()

def test_a_class_without_choice_comes_back_whatever_the_teacher_says():
    m, g = LabelMap.identity(space(7)), rng()
    label = torch.randint(0, 7, (2, 40, 9), generator=g).byte()
    assert (Constraint(m)(torch.rand(2, 7, 40, 9, generator=g), label) == label).all()
    free = LabelMap(space(2), space(7), {"c0": space(7).classes, "c1": space(7).classes})
    p = torch.rand(2, 7, 40, 9, generator=g)
    assert (Constraint(free)(p, label % 2) == p.argmax(1)).all()

def test_bad_constraints_are_refused():
    m = LabelMap.identity(space(2))
    with pytest.raises(ValueError, match="no void policy 'maybe'; choose from mass"): Constraint(m, "maybe")
    with pytest.raises(ValueError, match="least_mass = 1.5"): Constraint(m, least_mass=1.5)

def test_the_truth_of_the_world_is_never_ruled_out():
    for name in ("urban_world", "offroad_world"):
        for r in SCENARIOS[name].related:
            d = SCENARIOS[name].data(r, "smoke")
            for i in range(len(d)):
                own, truth = torch.from_numpy(d.label(i)), torch.from_numpy(d.truth.label(i))
                assert torch.from_numpy(d.map.sets())[own.long(), truth.long()].all(), (name, r)

# losses

def numpy_sets(logits, label, sets):
    "-log sum of p over the set; mean over pixels that are not void."
    x, out = logits.movedim(1, -1).double().numpy(), []
    for at in np.ndindex(*label.shape):
        if label[at] == IGNORE: continue
        p = np.exp(x[at] - x[at].max()); p /= p.sum()
        out.append(-np.log(p[sets[int(label[at])].numpy()].sum()))
    return np.mean(out)

def set_case(seed=0):
    g = rng(seed)
    into, meaning = space_of_sets(URBAN.target, [SCENARIOS["urban_world"].data(r, "smoke").map for r in ("country", "night")])
    sets = torch.from_numpy(meaning.sets()[:, :-1])
    label = torch.randint(0, len(meaning.source), (2, 4, 5), generator=g).byte()
    label[0, 0] = IGNORE
    return torch.randn(2, 16, 4, 5, generator=g, requires_grad=True), label, sets

def test_set_loss_equals_numpy():
    logits, label, sets = set_case()
    assert partial_cross_entropy(logits, label, sets).item() == pytest.approx(numpy_sets(logits.detach(), label, sets), rel=1e-5)
    share = (label != IGNORE).float().mean().item()
    assert partial_cross_entropy(logits, label, sets, "all").item() == pytest.approx(share * partial_cross_entropy(logits, label, sets).item(), rel=1e-5)
    assert partial_cross_entropy(torch.cat([logits, logits]), torch.cat([label, label]), sets).item() == pytest.approx(partial_cross_entropy(logits, label, sets).item(), rel=1e-5)

def test_gradient_of_the_set_loss():
    "NLL over a set pulls towards what the network itself prefers within it: p - p restricted to the set."
    logits, label, sets = set_case(1)
    partial_cross_entropy(logits, label, sets).backward()
    p, valid = logits.detach().softmax(1), (label != IGNORE)[:, None]
    inside = p * (sets[label.long()].movedim(-1, 1))
    assert torch.allclose(logits.grad, torch.where(valid, p - inside / inside.sum(1, keepdim=True), 0) / valid.sum(), atol=1e-6)
    assert torch.isfinite(logits.grad).all() and not logits.grad[0, :, 0].any()

def test_one_class_sets_are_cross_entropy_and_full_sets_are_free():
    logits, label, _ = set_case(2)
    label = torch.where(label == IGNORE, IGNORE, label % 16)
    one, every = torch.eye(16, dtype=torch.bool).repeat(16, 1), torch.ones(256, 16, dtype=torch.bool)
    for d in ("valid", "all"): assert partial_cross_entropy(logits, label, one, d).item() == pytest.approx(cross_entropy(logits, label, denominator=d).item(), rel=1e-5)
    assert partial_cross_entropy(logits, label, every).item() == pytest.approx(0, abs=1e-6)
    assert partial_cross_entropy(logits, torch.full_like(label, IGNORE), one).item() == 0

@pytest.mark.parametrize("target", ["cityscapes", "mapillary", "offroad"])
@pytest.mark.parametrize("void", ["always", "never"])
def test_published_sets_fit_into_one_byte_and_mean_what_they_say(target, void):
    maps = [label_map(n) for n in label_maps() if n.startswith(f"lsu_{target}_")]
    into, meaning = space_of_sets(maps[0].target, maps, void)
    assert meaning.source.classes[:len(meaning.target)] == meaning.target.classes and len(meaning.source) < 255
    for m, i in zip(maps, into):
        assert i.is_single_valued
        want = {s: () if None in row and void == "always" else tuple(t for t in row if t) for s, row in m.allowed.items()}
        assert i.then(meaning).allowed == want

# soft labels

@settings(max_examples=60, deadline=None)
@given(relations(), st.sampled_from(lsu.VOIDS))
def test_the_two_best_are_brute_force(case, void):
    m, prob, label = case
    constraint = Constraint(m, void)
    hard, got = constraint(prob, label), two_best(constraint(prob, label), constraint.within(prob, label)).numpy()
    assert got.dtype == np.uint8 and (got[..., 0] == hard.numpy()).all()
    for at in np.ndindex(*label.shape):
        first, second, share = got[at].tolist()
        if first == IGNORE: assert (second, share) == (IGNORE, IGNORE); continue
        row = dict(enumerate(m.allowed.values())).get(int(label[at]), m.void if label[at] == IGNORE else ())
        p = {m.target.index(t): float(prob[at[0], m.target.index(t), at[1], at[2]]) for t in row if t}
        other = {c: v for c, v in p.items() if c != first and v > 0}
        if not other: assert share == 255; continue
        assert p[second] == max(other.values()) and share == pytest.approx(255 * p[first] / (p[first] + p[second]), abs=0.51)

def test_soft_labels_are_stored_with_all_looks_and_drawn_by_position(night, tmp_path):
    soft, hard = (labelled_once(net(), night, tmp_path, soft=s) for s in (True, False))
    said = json.loads((soft.folder / "manifest.json").read_text())["identity"]
    assert said["soft"] and said["flip"] and said["scales"] == [1.0, 0.75, 1.25] and soft.folder != hard.folder
    assert all((soft.label(i) == hard.label(i)).all() for i in range(len(night)))
    with pytest.raises(ValueError, match="its mode is RGB"): PseudoLabelled(night, soft.folder, soft.space).label(0)
    drawn = [soft.draw(0, np.random.default_rng(k)) for k in range(60)]
    sets = night.map.sets()[night.label(0)]
    for d in drawn: assert sets[np.arange(SIZE[0])[:, None], np.arange(SIZE[1]), np.where(d == IGNORE, len(URBAN.target), d)].all()
    share = soft._read(0, "RGB")[..., 2] / 255
    known = (soft.label(0) != IGNORE) & (share < 1)
    assert known.mean() > 0.1 and np.mean([(d == soft.label(0))[known].mean() for d in drawn]) == pytest.approx(share[known].mean(), abs=0.01)
    make = lambda ds, **kw: Mixture([ds], 4, (16, 32), seed=3, role="mixture", **kw)
    a, b = make(soft), make(soft, workers=2)
    for _ in range(3): x, y = next(a), next(b)
    b.close()
    assert torch.equal(x["label"], y["label"]) and torch.equal(x["label"], make(soft).batch(2)["label"])
    assert torch.equal(x["image"], make(hard).batch(2)["image"]) and not torch.equal(x["label"], make(hard).batch(2)["label"])

def test_the_table_of_right_pixels(night, tmp_path):
    free, within = (stored_quality(labelled_once(net(), night, tmp_path, c), night.truth) for c in (False, True))
    lines = [line.split() for line in gain_table({"night": [by_class(q, URBAN.target) for q in (free, within)]}).splitlines()]
    assert len(lines) == 17 and lines[0][-1] == "night"
    truth, own = (np.stack([d.label(i) for i in range(len(night))]) for d in (night.truth, labelled_once(net(), night, tmp_path)))
    assert float(lines[1][-1]) == pytest.approx(100 * (own[truth == 0] == 0).mean(), abs=0.05)
    free.counts[4] = 0                          # a class that is not there
    assert gain_table({"night": [by_class(q, URBAN.target) for q in (free, within)]}).splitlines()[5].split() == ["fence", "-"]

# the store

class Sealed(World):
    def label(self, i): raise AssertionError("a label was opened")

def frames_of(seed=0, n=6): return Sealed("night", n=n, size=SIZE, seed=seed).render()

def test_a_killed_labelling_goes_on_and_leaves_the_same_bytes(night, tmp_path, monkeypatch):
    save, calls = pseudo_labels._save, []
    def dying(path, data):
        calls.append(path)
        if len(calls) == 5: raise KeyboardInterrupt
        save(path, data)
    args = dict(scales=(1.0, 0.75), batch=2, flip=True, average=True, constraint=Constraint(night.map))
    monkeypatch.setattr(pseudo_labels, "_save", dying)
    with pytest.raises(KeyboardInterrupt): write_pseudo_labels(net(), night, tmp_path / "a", **args)
    assert not (tmp_path / "a" / "000003.png").exists() and "keys" not in json.loads((tmp_path / "a" / "manifest.json").read_text())
    (tmp_path / "a" / ".1.part.000003.png").write_bytes(b"half")
    monkeypatch.setattr(pseudo_labels, "_save", save)
    stamp = (tmp_path / "a" / "000000.png").stat().st_mtime_ns
    write_pseudo_labels(net(), night, tmp_path / "a", **args)
    write_pseudo_labels(net(), night, tmp_path / "b", **args, workers=2)
    assert (tmp_path / "a" / "000000.png").stat().st_mtime_ns == stamp
    a, b = (json.loads((tmp_path / d / "manifest.json").read_text()) for d in "ab")
    files = sorted(f.name for f in (tmp_path / "b").glob("[0-9]*.png"))
    assert a == b and len(files) == len(night) and a["keys"][1] == night.key(1)
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    (tmp_path / "a" / files[2]).unlink()                     # as the error of a damaged one advises
    write_pseudo_labels(net(), night, tmp_path / "a", **args)
    assert (tmp_path / "a" / files[2]).read_bytes() == (tmp_path / "b" / files[2]).read_bytes()

def test_frames_of_one_name_and_number_share_no_labels(night, tmp_path):
    other = Related(Mapped(World("night", n=len(night), size=SIZE, split="val"), WORDS["motor"]), night.map)
    first, second = (labelled_once(net(), d, tmp_path, scales=(1.0,), batch=2) for d in (night, other))
    assert night.key(0) != other.key(0) and first.folder != second.folder
    assert agreement(second, other) == 1

def test_no_label_that_leaves_a_class_has_no_share(night):
    void = LabelMap(night.map.source, night.map.target, {c: () for c in night.map.source.classes})
    assert agreement(night.truth, Related(night, void)) is None

def test_the_store_refuses_what_was_made_otherwise(night, tmp_path):
    write_pseudo_labels(net(), night, tmp_path, (1.0,), constraint=Constraint(night.map))
    for other, what in ((dict(constraint=Constraint(night.map, "never")), "constraint"), (dict(), "constraint"), (dict(constraint=Constraint(night.map), flip=True), "flip")):
        with pytest.raises(ValueError, match=f"made with another {what}"): write_pseudo_labels(net(), night, tmp_path, (1.0,), **other)
    with pytest.raises(ValueError, match="another network"): write_pseudo_labels(net(1), night, tmp_path, (1.0,), constraint=Constraint(night.map))

def test_without_a_constraint_no_label_is_opened(tmp_path):
    frames = frames_of()
    write_pseudo_labels(net(0, 19), frames, tmp_path, (1.0,), flip=True, average=True)
    with torch.no_grad(): want = mean_probabilities(net(0, 19), normalize(torch.from_numpy(frames.image(3)).permute(2, 0, 1)[None])).argmax(1)[0]
    assert (PseudoLabelled(frames, tmp_path).label(3) == want.numpy()).mean() > 0.999
    with pytest.raises(ValueError, match="a label was opened"): write_pseudo_labels(net(0, 19), frames, tmp_path / "c", (1.0,), constraint=Constraint(LabelMap.identity(CITYSCAPES_19)))

def test_labels_keep_the_size_of_the_frame_when_the_network_sees_less(night, tmp_path):
    stored = PseudoLabelled(night, write_pseudo_labels(net(), night, tmp_path, (1.0,), constraint=Constraint(night.map), box=(16, 40)), night.map.target)
    assert stored.label(0).shape == SIZE
    one = np.array([len(r) == 1 for r in night.map.allowed.values()])
    own, single = night.label(0), night.map.certain().lut()
    sure = (own != IGNORE) & one[np.minimum(own, len(one) - 1)]
    assert (stored.label(0)[sure] == single[own[sure]]).all() and sure.mean() > 0.3     # borders are the annotators'

def test_looks_are_undone():
    x = torch.randn(1, 3, *SIZE, generator=rng())
    class Even(torch.nn.Module):     # a network that mirrors with its image
        def forward(self, x): return torch.cat([x, 2 * x], 1)
    p = mean_probabilities(Even(), x, (1.0,), flip=True)
    assert torch.allclose(p, torch.cat([x, 2 * x], 1).softmax(1), atol=1e-6)

def test_labels_within_sets_are_better_than_free_ones(night, tmp_path):
    free, within = (labelled_once(net(), night, tmp_path, constrained) for constrained in (False, True))
    assert free.folder != within.folder and within.space == URBAN.target and not hasattr(free, "map")
    rows = {**dict(enumerate(night.map.allowed.values())), IGNORE: night.map.void}
    pairs = [(rows[int(own)], int(said)) for i in range(len(night)) for own, said in zip(night.label(i).ravel(), free.label(i).ravel())]
    possible = [URBAN.target.classes[said] in row for row, said in pairs if any(row)]
    assert agreement(within, night) == 1 and agreement(free, night) == pytest.approx(np.mean(possible)) and np.mean(possible) < 0.9
    assert stored_quality(within, night.truth).total["precision"] > stored_quality(free, night.truth).total["precision"] + 0.3

# mixtures

@settings(max_examples=80, deadline=None)
@given(st.tuples(*[st.floats(0, 0.999)] * 3), st.tuples(st.integers(8, 400), st.integers(8, 400)), st.tuples(st.integers(4, 64), st.integers(4, 64)), st.tuples(st.floats(0.3, 0.95), st.floats(0.3, 0.95)).map(sorted))
def test_windows_stay_inside_and_keep_their_shape(u, size, shape, share):
    t, l, h, w = window(u, size, shape, share)
    assert 0 <= t and 0 <= l and 1 <= h and 1 <= w and t + h <= size[0] and l + w <= size[1]
    fits = size[0] * shape[1] / shape[0]        # the width of a window as high as the frame
    assert min(share[0] * size[1], fits) - 1 <= w <= min(share[1] * size[1], fits) + 1
    assert abs(h - w * shape[0] / shape[1]) <= 0.5 + 0.5 * shape[0] / shape[1]

def test_mixture_is_a_function_of_its_position(night):
    source = SCENARIOS["urban_world"].data("source", "smoke")
    make = lambda **kw: Mixture([source, night.truth], 4, (16, 32), (0.5, 0.5), seed=7, role="mixture", **kw)
    a, b = make(), make(workers=2)
    for _ in range(3): x, y = next(a), next(b)
    b.close()
    assert torch.equal(x["image"], y["image"]) and torch.equal(x["label"], y["label"]) and x["keys"] == y["keys"]
    again = make(); again.load_state_dict({"position": 2})
    assert torch.equal(next(again)["label"], x["label"])
    halves = [make(rank=r, world=2).batch(2) for r in (0, 1)]
    assert torch.equal(torch.cat([h["image"] for h in halves]), x["image"])

def test_a_window_of_nothing_but_void_is_drawn_again():
    class Corner(World):
        def label(self, i):
            y = np.full(SIZE, IGNORE, np.uint8); y[:20, :40] = 3
            return y
    ds = Corner("city", n=4, size=SIZE)
    mixture = Mixture([ds], 4, (8, 16), crops={"": (0.3, 0.3)})
    empty = [float((mixture.batch(p)["label"] == IGNORE).flatten(1).all(1).float().mean()) for p in range(8)]
    place = window(np.array([0, 0.99, 0.99]), SIZE, (8, 16), (0.3, 0.3))
    assert np.mean(empty) < 0.05 and place[0] > 20      # one draw alone would often miss

def test_datasets_have_crops_of_their_own(night):
    ds = Mapped(World("city", n=2, size=SIZE), URBAN); ds.name = "tas500/train"
    assert Mixture([ds, night.truth], 2, (8, 16)).shares == [lsu.CROPS["tas500"], lsu.CROPS[""]]

@given(st.lists(st.integers(1, 10**6), min_size=2, max_size=6), st.sampled_from(["size", "sqrt", "equal"]), st.sampled_from([0.0, 0.1, 0.5]))
def test_shares(sizes, weights, floor):
    s = np.array(dataset_shares(sizes, weights, floor))
    assert s.sum() == pytest.approx(1) and s[0] >= floor - 1e-9
    raw = np.array(sizes, float) ** {"size": 1, "sqrt": 0.5, "equal": 0}[weights]
    assert np.allclose(s[1:] / s[1:].sum(), raw[1:] / raw[1:].sum())
    if raw[0] / raw.sum() >= floor: assert np.allclose(s, raw / raw.sum())

def test_samplers_draw_by_share():
    parts = Joined([World("city", n=n, size=SIZE) for n in (3, 50, 7)])
    u = np.random.default_rng(0).random((4000, 2))
    drawn = np.array([parts.at(i)[0] for i in PerDataset((0.2, 0.5, 0.3)).bind(parts, 0, "")(range(len(u)), u)[0]])
    assert np.allclose(np.bincount(drawn) / len(u), (0.2, 0.5, 0.3), atol=0.03)
    assert parts.key(3) == parts.parts[1].key(0) and [parts.at(i) for i in (2, 3, 52, 53)] == [(0, 2), (1, 0), (1, 49), (2, 0)]

# rows

ROWS = ("lsu_source", "lsu_naive", "lsu_unconstrained", "lsu", "lsu_weighted", "lsu_rounds", "lsu_soft", "lsu_partial", "lsu_oracle")

@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "Every row, once; they share the teacher."
    out = tmp_path_factory.mktemp("runs")
    made = {r: Run(r, scenario="urban_world", scale="smoke", out=out) for r in ROWS}
    for r in made.values(): execute(r, progress=False)
    return made

def test_every_row_runs(runs):
    for name, r in runs.items():
        m = r.metrics
        assert m["steps"] == 6 and set(m["related"]) == {"country", "rain", "night"} and len(m["scores"]["iou"]) == 16
        assert on_unseen(m, "related")["scores"]["miou"] == pytest.approx(np.mean(list(m["related"].values())))
        assert all_rows()[name].against in all_rows()
    assert {r for r in ROWS if all_rows()[r].teacher} == {"lsu_unconstrained", "lsu", "lsu_weighted", "lsu_rounds", "lsu_soft"}

def test_the_teacher_is_trained_on_the_source_once_and_its_labels_are_shared(runs):
    needs = {r: [n["method"] for n in runs[r].metrics["needs"]] for r in ROWS}
    assert needs["lsu"] == needs["lsu_unconstrained"] == needs["lsu_soft"] == ["lsu_source"] and needs["lsu_rounds"] == ["lsu"] and not needs["lsu_partial"]
    teacher = runs["lsu"].finished_run("lsu_source", student=runs["lsu"].teacher_name)
    assert len(list((teacher.folder / "labels").glob("*/manifest.json"))) == 9     # three domains: free, constrained and soft; lsu and lsu_weighted use the same
    assert teacher.id != runs["lsu_source"].id

def test_all_rounds_have_the_same_options(runs, monkeypatch):
    asked = []
    monkeypatch.setattr(Run, "finished_run", lambda self, method, **how: (asked.append((method, how["options"])), runs["lsu_source"])[1])
    monkeypatch.setattr(lsu, "labelled_once", lambda *args, **options: asked.append(options) or runs["lsu"].data("source"))
    monkeypatch.setattr(lsu, "_student", lambda *args: None)
    monkeypatch.setattr(lsu, "quality_note", lambda *args: {})
    same = {"weights": "sqrt", "void": "never", "least_mass": 0.2}
    for rounds, before in ((2, ("lsu", same)), (3, ("lsu_rounds", {"rounds": 2, **same}))):
        asked.clear()
        lsu.lsu_rounds(runs["lsu_rounds"], rounds, **same)
        assert asked[0] == before and all(o["void"] == "never" and o["least_mass"] == 0.2 for o in asked[1:]) and len(asked) == 4
    with pytest.raises(ValueError, match="rounds of lsu_rounds = 1; it must be at least 2"): Run("lsu_rounds", scenario="urban_world", scale="smoke", options={"rounds": 1})

def test_a_run_writes_down_what_its_labels_are_worth(runs):
    free, within = (runs[r].metrics["notes"]["labels"] for r in ("lsu_unconstrained", "lsu"))
    assert set(free) == set(within) == {"country", "rain", "night"} and not runs["lsu_partial"].metrics["notes"]
    for d in free:
        assert within[d]["possible"] == 1 > free[d]["possible"] and within[d]["precision"] > free[d]["precision"] and set(within[d]["recall"]) == set(runs["lsu"].space.classes)

def test_three_rounds(tmp_path):
    execute(run := Run("lsu_rounds", scenario="urban_world", scale="smoke", steps=2, options={"rounds": 3}, out=tmp_path), progress=False)
    chain = [run.metrics]
    while chain[-1]["needs"]: chain.append(json.loads(next(tmp_path.glob(f"*/*/{chain[-1]['needs'][0]['method']}/{chain[-1]['needs'][0]['run_id']}/metrics.json")).read_text()))
    assert [(m["method"], m["params"]["options"].get("rounds")) for m in chain] == [("lsu_rounds", 3), ("lsu_rounds", 2), ("lsu", None), ("lsu_source", None)]
    assert [m["student"]["name"] for m in chain] == [run.student_name] + 3 * [run.teacher_name]

def test_labels_of_the_source_are_never_touched(runs):
    source = runs["lsu"].data("source")
    for row in ("lsu", "lsu_partial", "lsu_naive"):
        (stage,) = all_rows()[row].stages(runs[row])
        part = stage.streams["mixture"].dataset.parts[0]
        assert all((part.label(i) == source.label(i)).all() for i in range(len(source)))

def test_naive_labels_are_the_commonest_class_or_void(runs):
    run = runs["lsu_naive"]
    counts = np.bincount(np.concatenate([run.data("source").label(i).ravel() for i in range(2)]), minlength=256)[:16]
    for ambiguous in ("commonest", "void"):
        (stage,) = lsu.lsu_naive(run, ambiguous)
        got, country = stage.streams["mixture"].dataset.parts[1].label(0), run.data("country")
        flat = country.label(0) == country.space.index("flat")
        want = IGNORE if ambiguous == "void" else max((0, 1), key=lambda c: counts[c])
        assert (got[flat] == want).all()
    with pytest.raises(ValueError, match="commonest"): Run("lsu_naive", scenario="urban_world", scale="smoke", options={"ambiguous": "first"})

def test_what_lsu_needs_is_said(tmp_path):
    with pytest.raises(ValueError, match="'game2city' has no datasets of other taxonomies.*urban_world"): execute(Run("lsu_partial", scale="smoke", out=tmp_path), progress=False)
    with pytest.raises(ValueError, match="give one number"): execute(Run("lsu_weighted", scenario="urban_world", scale="smoke", options={"weights": [1, 2]}, out=tmp_path), progress=False)

def test_a_run_killed_while_labelling_ends_as_if_nothing_had_happened(runs, tmp_path, monkeypatch):
    "Over the border between the teacher's labels and the student's training, and again inside the training."
    save, calls = pseudo_labels._save, []
    def dying(path, data):
        calls.append(path)
        if len(calls) == 7: raise KeyboardInterrupt
        save(path, data)
    run = lambda: Run("lsu", scenario="urban_world", scale="smoke", out=tmp_path)
    with monkeypatch.context() as m:
        m.setattr(pseudo_labels, "_save", dying)
        with pytest.raises(KeyboardInterrupt): execute(run(), progress=False)
    with monkeypatch.context() as m:
        step, seen = lsu.Supervised.step, []
        def tired(self, batch, backward):
            seen.append(batch.step)
            if batch.step == 4: raise KeyboardInterrupt
            return step(self, batch, backward)
        m.setattr(lsu.Supervised, "step", tired)
        with pytest.raises(KeyboardInterrupt): execute(run(), progress=False)
    done = execute(run(), progress=False, say=lambda s: None)
    assert done["resumed"] and {k: done[k] for k in ("scores", "related")} == {k: runs["lsu"].metrics[k] for k in ("scores", "related")}
    a, b = run().load_student().state_dict(), runs["lsu"].load_student().state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)

# scenarios

def test_words_of_the_world():
    finer, coarser, crossing = WORDS["fine"].inverse().then(URBAN), WORDS["categories"].inverse().then(URBAN), WORDS["motor"].inverse().then(URBAN)
    assert finer.is_single_valued and not coarser.is_single_valued and coarser.inverse().certain().is_total        # each source class is in one category
    assert crossing.allowed["motor vehicle"] == ("car", "large vehicle", "two-wheeler") and crossing.inverse().allowed["two-wheeler"] == ("cyclist", "motor vehicle")
    assert crossing.void == ("sky", None)
    assert URBAN.is_total and (CITYSCAPES_19_TO_CAMVID_11.inverse().then(URBAN)).inverse().is_single_valued    # scores on CamVid are in its own words

def test_streets_of_the_domains_differ():
    s = SCENARIOS["urban_world"]
    seen = [s.data(r, "smoke").truth.label(0) for r in s.related] + [s.data("source", "smoke").label(0)]
    assert all((a != b).any() for i, a in enumerate(seen) for b in seen[:i])
    for r in s.related: assert (s.data(r, "smoke").truth.label(0) != s.data(f"{r} test", "smoke").label(0)).any() and s.data(f"{r} test", "smoke").space == s.space

UNITED = {name: SCENARIOS[name] for name in ("urban_cityscapes", "urban_mapillary", "offroad_goose")}

@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    "Every dataset of the published recipes, written by the world."
    root = tmp_path_factory.mktemp("disk")
    for k, layout in enumerate(sorted({n for s in UNITED.values() for n in s.needs})):
        for split, n in (("train", 3), ("val", 3)):
            split = {"freiburg_forest": {"val": "test"}}.get(layout, {}).get(split, split)
            if (layout, split) == ("wilddash2", "train"): continue
            World("city", n=n, size=(48, 96), split="train" if split == "train" else "val", seed=k).export(layout, root / layout, split=split)
    return root

@pytest.mark.parametrize("scenario", UNITED)
def test_published_recipes_run_on_the_world(scenario, disk, tmp_path):
    run = Run("lsu", scenario=scenario, scale="smoke", steps=2, data_root=str(disk), out=tmp_path)
    m = execute(run, progress=False, say=lambda s: None)
    assert set(m["related"]) == set(UNITED[scenario].related) and set(m["unseen"]) == set(UNITED[scenario].unseen)
    assert len(run.space) == {"urban_cityscapes": 19, "urban_mapillary": 63, "offroad_goose": 34}[scenario]
    assert run.data("source").space == run.data("test").space == run.space

def test_scores_in_other_words(tmp_path):
    "CamVid has words of its own: the prediction is translated, and a right one scores 1."
    (tmp_path / "data").mkdir()
    for split in ("train", "val"): World("city", n=2, size=(48, 64), split=split, seed=5).export("camvid", tmp_path / "data" / "camvid", split=split)
    run = Run("lsu_source", scenario="urban_camvid", scale="smoke", data_root=str(tmp_path / "data"), out=tmp_path)
    assert run.data("camvid").label(0).shape == (48, 64) and run.data("camvid").map.allowed["bicyclist"] == ("rider", "two-wheeler")
    truth = World("city", n=2, size=(48, 64), split="val", seed=5)
    class Right(torch.nn.Module):
        def __init__(self): super().__init__(); self.p, self.at = torch.nn.Parameter(torch.zeros(1)), 0
        def forward(self, x):
            y = torch.from_numpy(np.stack([URBAN.apply(truth.label(i)) for i in range(len(x))]))
            return torch.nn.functional.one_hot(y.long(), 16).movedim(-1, 1).float()
    run.scenario = type(run.scenario)(**{**vars(run.scenario), "related": ("camvid",)})
    assert in_other_words(run, Right())["camvid"] == pytest.approx(1.0)
