"Streams: pure functions of (seed, role, position), the same for any workers and ranks, and honest about labels."
import collections
import numpy as np, pytest, torch
from kdda.data.batches import *
from kdda.data.batches import TRIES, place_crop
from kdda.data.datasets import DataError, Unlabelled
from kdda.data.labels import IGNORE, LabelSpace

SPACE = LabelSpace("four", ("road", "sky", "car", "pole"), [(i, i, i) for i in range(4)])

class Tiny:
    "`n` images whose pixels say which sample they are and where each pixel was."
    name, space = "tiny", SPACE
    def __init__(self, n=11, size=(12, 20), label=None):
        self.n, self.size, self.opened = n, size, []
        self.given = label or (lambda i: np.random.default_rng(i).integers(0, 4, size).astype(np.uint8))
    def __len__(self): return self.n
    def key(self, i): return f"tiny/{i:02d}.png"
    def label(self, i): self.opened.append(i); return self.given(i)
    def image(self, i):
        y, x = np.mgrid[:self.size[0], :self.size[1]]
        return np.stack([np.full_like(y, i), y, x], -1).astype(np.uint8)

def same(a, b): return a.keys() == b.keys() and all(torch.equal(v, b[k]) if torch.is_tensor(v) else v == b[k] for k, v in a.items())

def take(stream, n): return [next(stream) for _ in range(n)]

STREAMS = dict(uniform=dict(), crop=dict(crop=(6, 8)), criteria=dict(crop=(6, 8), max_class_share=.4),
               rare=dict(crop=(6, 8), sampler=RareClass(min_pixels=50, min_crop_pixels=12)), unlabelled=dict(labelled=False, crop=(6, 8)))

def stream(kind="crop", n=11, batch_size=4, **kw): return Stream(Tiny(n), batch_size, **STREAMS[kind] | kw)

# ---- a pure function of (seed, role, position)

@pytest.mark.parametrize("kind", STREAMS)
def test_resuming_anywhere_gives_the_same_batches(kind):
    whole = take(stream(kind), 20)
    assert not any(same(whole[i], whole[j]) for i in range(20) for j in range(i))
    for stop in range(20):
        first = stream(kind)
        take(first, stop)
        again = stream(kind)
        again.load_state_dict(first.state_dict())
        assert again.state_dict() == {"position": stop}
        for want in whole[stop:stop + 3]: assert same(next(again), want)

@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers_gives_the_same_batches(kind, workers):
    want, s = take(stream(kind), 12), stream(kind, workers=workers)
    assert all(map(same, take(s, 12), want))
    s.load_state_dict({"position": 5})          # what was read ahead is thrown away
    assert all(map(same, take(s, 7), want[5:]))
    assert s.state_dict() == {"position": 12}
    s.close()
    assert same(next(s), stream(kind).batch(12))
    s.close()

@pytest.mark.parametrize("kind", STREAMS)
def test_the_ranks_slices_make_the_global_batch(kind):
    for position in (0, 1, 5):
        whole = stream(kind).batch(position)
        parts = [stream(kind, rank=r, world=2).batch(position) for r in range(2)]
        assert [len(p["keys"]) for p in parts] == [2, 2]
        assert sum([p["keys"] for p in parts], []) == whole["keys"]
        for what in ("image", "label"):
            if what in whole: assert torch.equal(torch.cat([p[what] for p in parts]), whole[what])

def test_seed_and_role_decide():
    a = stream().batch(0)
    assert not same(a, stream(seed=1).batch(0)) and not same(a, stream(role="target").batch(0)) and same(a, stream(role="source").batch(0))

def test_the_global_generators_are_not_touched():
    n, t = np.random.get_state()[1].copy(), torch.get_rng_state()
    for kind in STREAMS: take(stream(kind), 3)
    assert (n == np.random.get_state()[1]).all() and torch.equal(t, torch.get_rng_state())

# ---- what a batch is

def test_batches_are_bytes_in_channels_last():
    b = stream(crop=None).batch(0)
    assert b["image"].dtype == b["label"].dtype == torch.uint8
    assert b["image"].shape == (4, 3, 12, 20) and b["label"].shape == (4, 12, 20) and b["image"].is_contiguous(memory_format=torch.channels_last)
    assert b["position"] == 0 and all(k.startswith("tiny/") for k in b["keys"])

@pytest.mark.parametrize("kind", ["uniform", "crop", "criteria", "rare"])
def test_flips_and_crops_keep_image_and_label_together(kind):
    flips = 0
    for b in take(stream(kind), 15):
        for image, label, key in zip(b["image"].numpy(), b["label"].numpy(), b["keys"]):
            i, y, x = image
            assert {f"tiny/{j:02d}.png" for j in np.unique(i)} == {key}
            assert (np.random.default_rng(int(i[0, 0])).integers(0, 4, (12, 20))[y, x] == label).all()
            flips += x[0, 0] > x[0, -1]
    assert 18 <= flips <= 42    # of 60

def test_crops_reach_every_place_and_flip_can_be_switched_off():
    corners = collections.Counter((int(i[1, 0, 0]), int(i[2, 0, 0])) for b in take(stream(flip=False, crop=(11, 18)), 60) for i in b["image"])
    assert set(corners) == {(y, x) for y in range(2) for x in range(3)}

def test_resizing_comes_before_cropping_and_keeps_labels_labels():
    halves = Tiny(label=lambda i: np.repeat([[0, 3]], 10, 1).repeat(12, 0).astype(np.uint8))
    b = Stream(halves, 4, size=(24, 40), crop=(24, 40), flip=False).batch(0)
    assert (b["label"] == torch.tensor([0, 3]).repeat_interleave(20)).all()
    assert b["image"].shape == (4, 3, 24, 40) and (b["image"][:, 2, :, 1:] >= b["image"][:, 2, :, :-1]).all()
    with pytest.raises(DataError, match="is 6x10, smaller than the crop 8x8"): Stream(halves, 4, size=(6, 10), crop=(8, 8)).batch(0)

# ---- samplers

def test_uniform_draws_without_replacement_in_a_new_order_each_epoch():
    n, size = 11, 4
    keys = sum([b["keys"] for b in take(stream("uniform", n, size), 11 * 5)], [])
    epochs = [keys[i:i + n] for i in range(0, len(keys), n)]
    assert all(len(set(e)) == n for e in epochs) and len({tuple(e) for e in epochs}) == len(epochs)

def test_rare_class_probabilities_are_the_formula():
    pixels, T = np.array([700, 250, 0, 49, 1]), .1
    f = pixels / pixels.sum()
    want = np.array([np.exp((1 - f[c]) / T) if pixels[c] else 0 for c in range(5)])
    np.testing.assert_allclose(rare_class_probabilities(pixels, T), want / want.sum())
    np.testing.assert_allclose(rare_class_probabilities(pixels, 1e9), [.25, .25, 0, .25, .25], atol=1e-6)
    np.testing.assert_allclose(rare_class_probabilities(pixels, 1e-5), [0, 0, 0, 0, 1])
    assert np.isfinite(rare_class_probabilities([10**12, 1], .01)).all()
    with pytest.raises(DataError, match="no labelled pixel"): rare_class_probabilities([0, 0])

def rare_dataset(n=40):
    "Road everywhere; sky in 8 images, car in 4, pole in 2: 30 pixels each."
    def label(i):
        y = np.zeros((12, 20), np.uint8)
        for c, last in ((1, 8), (2, 4), (3, 2)):
            if i < last: y[c * 3:c * 3 + 3, :10] = c
        return y
    return Tiny(n, label=label)

def test_rare_class_draws_images_by_the_formula():
    d, T = rare_dataset(), .05
    p = rare_class_probabilities(class_counts(d).sum(0), T)
    want = np.zeros(40)
    for c, who in enumerate((40, 8, 4, 2)): want[:who] += p[c] / who
    s = Stream(d, 50, sampler=RareClass(T, min_pixels=29, min_crop_pixels=0))
    keys = collections.Counter(k for b in take(s, 200) for k in b["keys"])
    got = np.array([keys[d.key(i)] for i in range(40)])
    assert got.sum() == 10000 and (np.abs(got - 1e4 * want) <= 4.5 * np.sqrt(1e4 * want)).all()

def test_class_counts_are_pixels_without_void_and_can_be_kept(tmp_path):
    d = Tiny(5, label=lambda i: np.full((12, 20), IGNORE if i >= 4 else i, np.uint8))
    want = np.eye(5, 4, dtype=int) * 240
    cache = tmp_path / "counts.npz"
    assert (class_counts(d, cache) == want).all() and (class_counts(d, cache) == want).all()
    assert d.opened == [0, 1, 2, 3, 4]
    assert len(class_counts(Tiny(6, label=d.given), cache)) == 6        # another dataset: counted anew
    assert [f.name for f in tmp_path.iterdir()] == ["counts.npz"]

def test_labels_are_counted_only_when_needed_and_once():
    d = rare_dataset()
    s = Stream(d, 2, sampler=RareClass(min_pixels=29))
    assert not d.opened
    take(s, 3)
    assert len(d.opened) == 40 + 6

def test_a_class_no_image_shows_enough_of_is_said_aloud_and_served():
    s = Stream(rare_dataset(), 20, sampler=RareClass(1e9, min_pixels=100))
    with pytest.warns(UserWarning, match=r"min_pixels=100 pixels of sky \(most 30\), car \(most 30\), pole"): b = next(s)
    assert {"tiny/00.png", "tiny/01.png"} & set(b["keys"])

# ---- criteria

def test_dominated():
    label = np.zeros((10, 10), np.uint8)
    assert dominated(label, .99)                            # a single class
    label[:3] = 1
    assert not dominated(label, .75) and dominated(label, .7) and dominated(label, .5)
    label[3:, :6] = IGNORE                                  # void does not count: 28 of 58 left
    assert not dominated(label, .55)
    assert dominated(np.full((4, 4), IGNORE, np.uint8), .75)

class Counting(np.ndarray):
    "A label that counts how often it is cropped."
    looks = 0
    def __getitem__(self, at): Counting.looks += 1; return np.asarray(self)[at]

@pytest.mark.parametrize("kw,looks", [(dict(wanted=3), TRIES), (dict(max_class_share=.75), TRIES), (dict(wanted=3, max_class_share=.75), TRIES**2), (dict(), 1)])
def test_redraws_stop_after_ten(kw, looks):
    Counting.looks, u = 0, np.random.default_rng(0).random((TRIES**2, 2))
    t, l = place_crop(u, (8, 8), (4, 4), np.zeros((12, 12), np.uint8).view(Counting), **kw)
    assert Counting.looks == looks
    assert (t, l) == tuple((u[looks - 1] * 9).astype(int))      # the last draw stands

def test_a_crop_that_meets_the_criteria_is_found():
    label = np.zeros((12, 20), np.uint8)
    label[:, 14:] = 1
    d = Tiny(6, label=lambda i: label)
    free = torch.cat([b["label"] for b in take(Stream(d, 6, crop=(6, 8)), 30)])
    kept = torch.cat([b["label"] for b in take(Stream(d, 6, crop=(6, 8), max_class_share=.75), 30)])
    bad = lambda ls: np.mean([dominated(l.numpy(), .75) for l in ls])
    assert bad(free) > .7 and bad(kept) < .2       # .8, and .8 to the power of ten

def test_rare_class_crops_show_the_class():
    d = Tiny(4, (24, 40), label=lambda i: np.pad(np.full((6, 6), 3, np.uint8), ((9, 9), (17, 17))))
    crops = dict(crop=(8, 8))
    shown = lambda s: np.mean([(l == 3).sum() > 8 for b in take(s, 40) for l in b["label"].numpy()])
    rare = RareClass(.001, min_pixels=30, min_crop_pixels=8)
    assert shown(Stream(d, 4, **crops, sampler=RareClass(.001, min_pixels=30, min_crop_pixels=-1))) < .4 and shown(Stream(d, 4, **crops, sampler=rare)) > .8

# ---- no labels

class Sealed(Tiny):
    def label(self, i): raise AssertionError("a label was opened")

def test_an_unlabelled_stream_opens_no_label():
    for workers in (0, 2):
        s = Stream(Sealed(), 4, crop=(6, 8), labelled=False, workers=workers)
        assert all("label" not in b for b in take(s, 10))
        assert not hasattr(s.dataset, "label")
        s.close()
    assert same(Stream(Unlabelled(Tiny()), 4, labelled=False).batch(3), Stream(Sealed(), 4, labelled=False).batch(3))

def test_what_needs_labels_is_refused_without_them():
    for kw in (dict(sampler=RareClass()), dict(crop=(4, 4), max_class_share=.75)):
        with pytest.raises(ValueError, match="unlabelled.*use Uniform"): Stream(Sealed(), 4, labelled=False, **kw)
    with pytest.raises(ValueError, match="labelled=False"): Stream(Unlabelled(Tiny()), 4)

# ---- bad samples and bad settings

class Broken(Tiny):
    def image(self, i):
        if i == 7: raise OSError("image file is truncated (3 bytes not processed)")
        return super().image(i)

@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_that_cannot_be_read_is_named_and_not_skipped(workers):
    s = Stream(Broken(), 11, workers=workers)
    for _ in range(2):
        with pytest.raises(DataError, match=r"tiny, image of tiny/07.png \(sample 7\): cannot be read.*truncated"): next(s)
    assert s.position == 0
    s.close()

@pytest.mark.parametrize("label,match", [
    (lambda i: np.full((12, 20), 9 if i == 3 else 0, np.uint8), r"tiny/03.png.*9"),
    (lambda i: np.zeros((12, 19 if i == 3 else 20), np.uint8), r"tiny/03.png.*12x20.*12x19"),
    (lambda i: np.zeros((12, 20), np.int64 if i == 3 else np.uint8), r"tiny/03.png.*int64"),
    (lambda i: np.zeros((12, 20, 3) if i == 3 else (12, 20), np.uint8), r"tiny/03.png.*\[12, 20, 3\]")])
def test_bad_labels_are_named(label, match):
    with pytest.raises(ValueError, match=match): Stream(Tiny(label=label), 11).batch(0)
    with pytest.raises(ValueError, match=match): take(Stream(Tiny(label=label), 11, sampler=RareClass(min_pixels=9)), 10)

def test_an_error_that_names_file_and_fix_is_passed_on():
    def bare(i): raise DataError("tiny.png", "it is torn")
    def whole(i): raise DataError("tiny", "no label for 1 of 11 images", "`python data_scripts/tiny.py` says how to get it", "image without label")
    for kw in (dict(), dict(workers=2), dict(sampler=RareClass())):
        with pytest.raises(DataError) as e: next(Stream(Tiny(label=whole), 11, **kw))
        assert str(e.value) == "tiny: no label for 1 of 11 images; `python data_scripts/tiny.py` says how to get it" and e.value.kind == "image without label"
    with pytest.raises(DataError, match=r"label of tiny/.*cannot be read: DataError: tiny.png: it is torn; repair it or drop it"): next(Stream(Tiny(label=bare), 11))

class Mixed(Tiny):
    def image(self, i): return super().image(i)[:, :10] if i == 2 else super().image(i)

def test_sizes_that_do_not_fit_are_named():
    with pytest.raises(DataError, match=r"different sizes.*tiny/02.png 12x10.*crop="): Stream(Mixed(), 11, labelled=False).batch(0)
    with pytest.raises(DataError, match=r"tiny/02.png: is 12x10, smaller than the crop 8x16"): Stream(Mixed(), 11, crop=(8, 16), labelled=False).batch(0)

def test_settings_that_cannot_work_are_refused_at_once():
    with pytest.raises(ValueError, match="no samples"): Stream(Tiny(0), 4)
    with pytest.raises(ValueError, match="multiple of 3"): Stream(Tiny(), 4, world=3)
    with pytest.raises(ValueError, match="give crop"): Stream(Tiny(), 4, max_class_share=.75)
    for n in (0, -4):
        with pytest.raises(ValueError, match=f"batch_size={n}: .*use 1 or more"): Stream(Tiny(), n)
    for kw in (dict(crop=8), dict(size=(8,)), dict(crop="64x128")):
        with pytest.raises(ValueError, match=r"(crop|size)=.* is not \(height, width\)"): Stream(Tiny(), 4, **kw)

# ---- evaluation

@pytest.mark.parametrize("workers", [0, 2])
def test_in_order_gives_each_sample_once(workers):
    batches = list(in_order(Tiny(), 4, workers=workers))
    assert [len(b["keys"]) for b in batches] == [4, 4, 3]
    assert sum([b["keys"] for b in batches], []) == [f"tiny/{i:02d}.png" for i in range(11)]
    assert torch.equal(batches[2]["label"][2], torch.from_numpy(Tiny().label(10)))
