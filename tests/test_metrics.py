"The metrics against NumPy counts, the official Cityscapes script, torchmetrics, and brute force."
import json
import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings, strategies as st

from kdda.data.labels import CAMVID_11, CITYSCAPES_19, CITYSCAPES_IDS
from kdda.learn.metrics import BoundaryF1, Calibration, Confusion, ImageIoU, as_classes, boundary, count_pairs, image_iou


def maps(shape, n=19, void=.1, seed=0, dtype=np.uint8):
    "Labels with void, and predictions that are right three times out of four."
    rng = np.random.default_rng(seed)
    label = rng.integers(0, n, shape)
    pred = np.where(rng.random(shape) < .75, label, rng.integers(0, n, shape))
    label[rng.random(shape) < void] = 255
    return pred.astype(dtype), label.astype(dtype)


def np_count(pred, label, n):
    counts, keep = np.zeros((n, n), np.int64), label != 255
    np.add.at(counts, (label[keep].astype(np.int64), pred[keep].astype(np.int64)), 1)
    return counts


# --- counting -----------------------------------------------------------------------------------------------------------------------------

@settings(max_examples=60, deadline=None)
@given(shape=st.sampled_from([(1,), (7, 5), (3, 4, 6), (2, 0, 3)]), n=st.sampled_from([1, 2, 19, 128, 129, 254, 255]),
       void=st.sampled_from([0, .1, 1]), seed=st.integers(0, 999), dtype=st.sampled_from([np.uint8, np.int16, np.uint16, np.int32, np.int64]),
       as_tensor=st.booleans())
def test_counts_equal_numpy(shape, n, void, seed, dtype, as_tensor):
    pred, label = maps(shape, n, void, seed, dtype)
    wanted = np_count(pred, label, n)
    if as_tensor and dtype != np.uint16: pred, label = torch.from_numpy(pred), torch.from_numpy(label)
    counts = count_pairs(pred, label, n)
    assert counts.dtype == torch.int64 and (counts.numpy() == wanted).all()


def test_counts_a_whole_frame_and_every_memory_layout():
    pred, label = maps((1024, 2048))
    wanted = np_count(pred, label, 19)
    pred.setflags(write=False)                                                    # as PIL hands images out
    for p, l in ((pred, label), (pred.T, label.T), (np.asfortranarray(pred), label), (pred[::-1], label[::-1]), (pred.astype(np.int64), label)):
        assert (count_pairs(p, l, 19).numpy() == wanted).all()


def test_beyond_32_bits():
    "int64 sums: two thousand million pixels more do not wrap."
    c = Confusion(2)
    c.counts[0, 0] = 2**33
    c.update(np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8))
    assert c.counts[0, 0] == 2**33 + 4 and (c + c).counts[0, 0] == 2**34 + 8


@pytest.mark.parametrize("spoil, words", [
    (lambda p, l: (p, np.where(l == 3, 19, l)), r"val/7: label holds id 19 outside 0\.\.18; map the labels"),
    (lambda p, l: (p, np.where(l == 3, 254, l)), "label holds id 254"),
    (lambda p, l: (p, l.astype(int) - 1), "label holds -1"),
    (lambda p, l: (p, l.astype(int) + 1000), "label holds 1255"),
    (lambda p, l: (np.where(l == 255, 255, p), l), "prediction holds id 255"),
    (lambda p, l: (np.full_like(p, 19), l), "prediction holds id 19"),
    (lambda p, l: (p[:, :-1], l), "upsample the logits"),
])
def test_strays_are_refused_and_nothing_is_counted(spoil, words):
    c = Confusion(19).update(*maps((8, 8)))
    before = c.counts.clone()
    with pytest.raises(ValueError, match=words): c.update(*spoil(*maps((32, 32))), where="val/7")
    assert (c.counts == before).all()


@pytest.mark.parametrize("bad", [np.zeros((4, 4), np.float32), np.zeros((4, 4), bool), torch.zeros(4, 4, dtype=torch.bool)])
def test_only_integers_are_labels(bad):
    with pytest.raises(TypeError, match="label is"): count_pairs(np.zeros((4, 4), np.uint8), bad, 3)


def test_logits_and_ids_agree():
    logits = torch.randn(2, 19, 5, 6)
    _, label = maps((2, 5, 6))
    assert (Confusion(19).update(logits, label).counts == Confusion(19).update(logits.argmax(1), label).counts).all()
    assert (Confusion(19).update(logits[0].bfloat16(), label[0]).counts == Confusion(19).update(logits[0].bfloat16().argmax(0), label[0]).counts).all()
    assert as_classes(logits).dtype == torch.uint8


# --- the Cityscapes evaluation ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("present", [range(19), [0, 1, 2, 8, 10, 13]])
def test_equals_the_official_cityscapes_script(tmp_path, present, capsys):
    "Label files with every id of Cityscapes 0..33, through evalPixelLevelSemanticLabeling and through Confusion."
    from PIL import Image
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official
    rng = np.random.default_rng(1)
    train_to_id = {t: i for i, t in enumerate(CITYSCAPES_IDS) if t != 255}
    ids = [train_to_id[t] for t in present] + [i for i in range(34) if CITYSCAPES_IDS[i] == 255]      # void ids as well
    predicted = [train_to_id[t] for t in {*present, 15}]                                               # bus may be predicted and never labelled
    files, ours = ([], []), Confusion(19)
    for k in range(4):
        blocks = rng.choice(ids, (8, 16))
        truth = np.kron(blocks, np.ones((8, 8))).astype(np.uint8)
        guess = np.where((rng.random(truth.shape) < .7) & np.isin(truth, predicted), truth, rng.choice(predicted, truth.shape)).astype(np.uint8)
        for kind, image, names in (("pred", guess, files[0]), ("gt", truth, files[1])):
            names.append(str(tmp_path / f"{kind}_{k}.png"))
            Image.fromarray(image).save(names[-1])
        ours.update(CITYSCAPES_IDS[guess], CITYSCAPES_IDS[truth], where=names[-1])

    args = official.args
    args.evalInstLevelScore, args.evalPixelAccuracy, args.JSONOutput, args.quiet = False, False, False, True
    theirs = official.evaluateImgLists(*files, args)
    scores = ours.scores(CITYSCAPES_19)
    for name, value in scores["iou"].items():
        other = theirs["classScores"][name]
        assert (value is None and math.isnan(other)) or value == other, name                           # equal, not close
    assert scores["miou"] == pytest.approx(theirs["averageScoreClasses"], rel=1e-15)
    assert len(scores["absent"]) == (0 if len(present) == 19 else 12)
    if len(present) < 19: assert scores["iou"]["bus"] == 0 and ours.unlabelled == [15]

    id_of = [train_to_id[t] for t in range(19)]
    matrix = np.asarray(theirs["confMatrix"])[np.ix_(id_of, id_of)]
    assert (matrix == ours.counts.numpy()).all()


@pytest.mark.parametrize("void", [0, .1])
def test_equals_torchmetrics(void):
    from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex
    pred, label = (torch.from_numpy(x) for x in maps((2, 64, 64), void=void))
    c = Confusion(19).update(pred, label)
    theirs = MulticlassJaccardIndex(19, average="none", ignore_index=255)(pred.long(), label.long())
    assert torch.allclose(c.iou.float(), theirs)
    assert c.pixel_accuracy == pytest.approx(MulticlassAccuracy(19, average="micro", ignore_index=255)(pred.long(), label.long()).item())


# --- absence ------------------------------------------------------------------------------------------------------------------------------

def test_absent_classes_are_left_out_and_named():
    label = np.array([[0, 0, 1, 255]], np.uint8)
    c = Confusion(11).update(np.array([[0, 0, 2, 9]], np.uint8), label)           # 9 is predicted on void only: absent
    s = c.scores(CAMVID_11)
    assert s["miou"] == pytest.approx((1 + 0 + 0) / 3) and s["pixel_accuracy"] == pytest.approx(2 / 3)
    assert s["absent"] == list(CAMVID_11.classes[3:]) and c.unlabelled == [2]
    assert s["iou"]["sky"] == 1 and s["iou"]["building"] == 0 and s["iou"]["car"] is None
    report = c.report(CAMVID_11)
    assert "3 of 11" in report and "absent: road" in report and "never labelled, IoU 0: pole" in report


@pytest.mark.parametrize("update", [lambda c: c, lambda c: c.update(np.zeros((4, 4), np.uint8), np.full((4, 4), 255, np.uint8))])
def test_nothing_labelled(update):
    c = update(Confusion(11))
    s = c.scores(CAMVID_11)
    assert s["miou"] is None and s["pixel_accuracy"] is None and len(s["absent"]) == 11 and math.isnan(c.miou)
    assert "nothing counted" in c.report(CAMVID_11)
    json.dumps(s, allow_nan=False)


def test_scores_fit_json_and_the_space():
    c = Confusion(19).update(*maps((32, 32)))
    assert json.loads(json.dumps(c.scores(CITYSCAPES_19), allow_nan=False)) == c.scores(CITYSCAPES_19)
    with pytest.raises(ValueError, match="19 classes were counted but camvid_11 has 11"): c.scores(CAMVID_11)


# --- adding up ----------------------------------------------------------------------------------------------------------------------------

def metrics(): return {"confusion": Confusion(5), "boundary": BoundaryF1(5), "calibration": Calibration(), "image": ImageIoU(5)}

def feed(ms, part):
    for k in part:
        g = torch.Generator().manual_seed(k)
        logits, label = torch.randn(2, 5, 12, 16, generator=g), torch.from_numpy(maps((2, 12, 16), 5, seed=k)[1])
        for m in ms.values(): m.update(logits, label)
    return ms

def same(a, b, rel=0.):
    return a.settings == b.settings and all(torch.allclose(a.sums[k].double(), b.sums[k].double(), rtol=rel, atol=0) for k in a.sums)


@pytest.mark.parametrize("name", metrics())
def test_parts_add_up(name):
    whole, a, b = (feed(metrics(), p)[name] for p in (range(6), range(4), range(4, 6)))
    assert any(v.sum() > 0 for v in whole.sums.values())
    assert same(a + b, whole, 1e-14) and same(b + a, whole, 1e-14) and not same(a, whole, 1e-14)
    if name in ("confusion", "boundary"): assert same(a + b, whole)               # integers: to the last bit
    assert same(sum([b], a), a + b)


@pytest.mark.parametrize("name", metrics())
def test_state_dict_continues_bitwise(name):
    whole, half = feed(metrics(), range(4)), feed(metrics(), range(2))
    state = half[name].state_dict()
    feed(half, range(2, 4))                                                       # the state is a copy, not a view
    restored = metrics()
    restored[name].load_state_dict(state)
    feed({name: restored[name]}, range(2, 4))
    assert same(restored[name], whole[name])
    restored[name].reset()
    assert same(restored[name], metrics()[name])


def test_strangers_do_not_add():
    with pytest.raises(ValueError, match="cannot add"): Confusion(5) + Confusion(6)
    with pytest.raises(ValueError, match="cannot add"): Confusion(5) + ImageIoU(5)
    with pytest.raises(ValueError, match="cannot add"): BoundaryF1(5, .01) + BoundaryF1(5, .02)
    with pytest.raises(ValueError, match="does not fit"): Confusion(5).load_state_dict(Confusion(6).state_dict())


def _process(rank, world, rendezvous):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    mine = feed(metrics(), range(rank, 6, world))
    whole = feed(metrics(), range(6))
    for name, m in mine.items():
        assert same(m.all_reduce(), whole[name], 1e-14), name
        assert same(m.all_reduce(), whole[name], 1e-14), f"{name}: reducing twice counted twice"
    dist.destroy_process_group()


def test_all_reduce_over_two_processes(tmp_path):
    mp.spawn(_process, (2, str(tmp_path / "rendezvous")), nprocs=2)


def test_all_reduce_alone_is_a_copy():
    c = Confusion(5).update(*maps((4, 4), 5))
    total = c.all_reduce()
    c.reset()
    assert total.counts.sum() > 0


# --- boundary F1 --------------------------------------------------------------------------------------------------------------------------

def brute_boundary_f1(pred, label, n, radius):
    "Definition, pixel by pixel."
    pred = np.where(label == 255, 255, pred)
    def edge(x):
        H, W = x.shape
        return np.array([[any(0 <= i+a < H and 0 <= j+b < W and x[i+a, j+b] != x[i, j] and x[i, j] != 255 and x[i+a, j+b] != 255
                              for a, b in ((0, 1), (1, 0), (0, -1), (-1, 0))) for j in range(W)] for i in range(H)])
    near = lambda m, i, j: m[max(0, i - radius):i + radius + 1, max(0, j - radius):j + radius + 1].any()
    ep, et = edge(pred), edge(label)
    scores = []
    for c in range(n):
        p, t = ep & (pred == c), et & (label == c)
        if not p.any() and not t.any(): scores.append(math.nan); continue
        precision = np.mean([near(t, i, j) for i, j in np.argwhere(p)]) if p.any() else 0
        recall = np.mean([near(p, i, j) for i, j in np.argwhere(t)]) if t.any() else 0
        scores.append(2 * precision * recall / (precision + recall) if precision + recall else 0)
    return scores


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tolerance, radius", [(.0075, 1), (.1, 2)])
def test_boundary_f1_is_its_definition(seed, tolerance, radius):
    rng = np.random.default_rng(seed)
    blocks = lambda: np.kron(rng.integers(0, 4, (4, 5)), np.ones((3, 4))).astype(np.uint8)
    label, pred = blocks(), blocks()
    pred = np.where(rng.random(label.shape) < .8, label, pred)
    label[rng.random(label.shape) < .1] = 255
    wanted = brute_boundary_f1(pred, label, 6, radius)                            # classes 4 and 5 are nowhere: nan
    assert BoundaryF1(6, tolerance).update(pred, label).f1.tolist() == pytest.approx(wanted, nan_ok=True)
    both = BoundaryF1(6, tolerance).update(np.stack([pred, pred]), np.stack([label, label]))
    assert both.f1.tolist() == pytest.approx(wanted, nan_ok=True)                 # a repeated image changes nothing


def test_boundary_tolerance():
    "An edge moved by one pixel is forgiven at radius 1, by three is not."
    label, one, three = (np.zeros((40, 40), np.uint8) for _ in range(3))
    label[:, 20:], one[:, 21:], three[:, 24:] = 1, 1, 1
    assert BoundaryF1(2).update(label, label).mean == 1 and BoundaryF1(2).update(one, label).mean == 1
    assert BoundaryF1(2).update(three, label).mean == 0
    assert not boundary(torch.tensor([[[0, 255, 1]]])).any()


def test_boundary_of_nothing():
    flat, void = np.zeros((8, 8), np.uint8), np.full((8, 8), 255, np.uint8)
    assert math.isnan(BoundaryF1(3).update(flat, flat).mean) and math.isnan(BoundaryF1(3).update(flat, void).mean)


# --- calibration --------------------------------------------------------------------------------------------------------------------------

def test_calibration_equals_torchmetrics():
    from torchmetrics.classification import MulticlassCalibrationError
    logits, label = 2 * torch.randn(2, 5, 32, 48), torch.from_numpy(maps((2, 32, 48), 5)[1])
    theirs = MulticlassCalibrationError(5, n_bins=15, norm="l1", ignore_index=255)(logits.softmax(1), label.long())
    assert Calibration(15).update(logits, label).ece == pytest.approx(theirs.item(), abs=1e-6)


def test_calibration_corners():
    certain = torch.zeros(1, 3, 4, 4); certain[:, 0] = 1000.
    zeros, void = torch.zeros(1, 4, 4, dtype=torch.uint8), torch.full((1, 4, 4), 255, dtype=torch.uint8)
    assert Calibration().update(certain, zeros).ece == 0                          # confidence exactly 1 belongs to the last bin
    assert Calibration().update(certain, zeros + 1).ece == 1
    assert math.isnan(Calibration().update(certain, void).ece)
    with pytest.raises(ValueError, match="label holds id 7"): Calibration().update(certain, zeros + 7)
    with pytest.raises(ValueError, match="logits are"): Calibration().update(certain[:, 0], zeros)


# --- per-image IoU ------------------------------------------------------------------------------------------------------------------------

def test_image_iou_is_each_images_own():
    pred, label = maps((3, 16, 16), 5, seed=3)
    label[1] = 255
    each = image_iou(pred, label, 5)
    assert each[1].isnan() and each[0].item() == Confusion(5).update(pred[0], label[0]).miou
    m = ImageIoU(5).update(pred, label)
    assert m.mean == pytest.approx((each[0] + each[2]).item() / 2) and m.sums["void"] == 1 and m.sums["images"] == 2
    assert math.isnan(ImageIoU(5).mean)
    one = torch.zeros(1, 2, 4, dtype=torch.uint8)
    wrong = one.clone(); wrong[0, 0, 0] = 3                                    # one pixel of eight, of a class the truth has not
    assert image_iou(wrong, one, 5).item() == pytest.approx((7 / 8 + 0) / 2) and image_iou(wrong, one, 5, of="truth").item() == pytest.approx(7 / 8)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_same_on_the_gpu():
    here, there = metrics(), metrics()
    logits, label = torch.randn(2, 5, 32, 64), torch.from_numpy(maps((2, 32, 64), 5)[1])
    for k in here:
        here[k].update(logits, label), there[k].update(logits.cuda(), label.cuda())
        assert same(here[k], there[k], 1e-5), k
    assert same(Confusion(5).update(logits.cuda(), label), here["confusion"])     # label still on the host
