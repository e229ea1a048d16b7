"""Datasets on disk: layouts, hostile files, unlabelled streams that cannot see a label, the layout doctor."""
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import weakref
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kdda.data.datasets import (
    CAMVID,
    CAMVID_DAY,
    CAMVID_DUSK,
    CITYSCAPES,
    CamVid,
    Cityscapes,
    DataError,
    Folder,
    InMemory,
    Mapped,
    Resized,
    Subset,
    Tree,
    Unlabelled,
    check,
    layouts,
    read_image,
    resize,
)
from kdda.data.labels import CITYSCAPES_19_TO_16, CITYSCAPES_IDS, IGNORE, LabelMap

REPO = Path(__file__).parent.parent
REAL = Path(os.environ["KDDA_DATA"])/"camvid" if "KDDA_DATA" in os.environ else None
real_frames = pytest.mark.skipif(REAL is None or not REAL.is_dir(),
                                 reason="real CamVid frames: set KDDA_DATA to the folder above camvid/")


# ---- trees made of random pixels, written here without a line of the code under test

def save(pixels, file, mode=None):
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(file)


def cityscapes_tree(root, splits=(("train", 4), ("val", 2)), size=(12, 24), kind="labelIds", seed=0):
    rng = np.random.default_rng(seed)
    for split, n in splits:
        for i in range(n):
            stem = f"{split}/{('ulm', 'bonn')[i % 2]}/{('ulm', 'bonn')[i % 2]}_{i:06}_000019"
            save(rng.integers(0, 256, (*size, 3), dtype=np.uint8), root/f"leftImg8bit/{stem}_leftImg8bit.png")
            ids = np.array([*range(34), 255] if kind == "labelIds" else [*range(19), 255], np.uint8)
            save(rng.choice(ids, size), root/f"gtFine/{stem}_gtFine_{kind}.png")
            save(rng.integers(0, 256, (*size, 3), dtype=np.uint8), root/f"gtFine/{stem}_gtFine_color.png")   # a decoy
    return root


def camvid_tree(root, names, split="train", prefix="", size=(9, 12), seed=0):
    rng = np.random.default_rng(seed)
    for name in names:
        save(rng.integers(0, 256, (*size, 3), dtype=np.uint8), root/split/name)
        save(rng.integers(0, 12, size, dtype=np.uint8), root/f"{split}annot"/name)
    with open(root/f"{split}.txt", "a") as f:
        f.writelines(f"{prefix}{split}/{n} {prefix}{split}annot/{n}\n" for n in names)
    return root


DUSK = [f"0001TP_{690 + 30 * i:06}.png" for i in range(7)]
DAY = [f"0006R0_f{690 + 30 * i:05}.png" for i in range(3)] + ["0016E5_00390.png"]


@pytest.fixture
def city(tmp_path): return cityscapes_tree(tmp_path/"cityscapes")


@pytest.fixture
def cam(tmp_path): return camvid_tree(tmp_path/"camvid", DAY + DUSK)


def pixels(file): return np.array(Image.open(file))


# ---- what is read is what is there

def test_cityscapes_maps_label_ids(city):
    ds = Cityscapes(city, "train")
    assert (len(ds), ds.name, ds.space.name) == (4, "cityscapes/train", "cityscapes_19")
    assert [ds.key(i) for i in range(4)] == sorted(ds.key(i) for i in range(4))
    for i in range(len(ds)):
        label = city/ds.key(i).replace("leftImg8bit/", "gtFine/").replace("_leftImg8bit", "_gtFine_labelIds")
        assert (ds.image(i) == pixels(city/ds.key(i))).all()
        assert (ds.label(i) == CITYSCAPES_IDS[pixels(label)]).all()
        assert ds.label(i).dtype == ds.image(i).dtype == np.uint8


def test_cityscapes_takes_train_ids_too(tmp_path):
    root = cityscapes_tree(tmp_path, kind="labelTrainIds")
    ds = Cityscapes(root, "val")
    raw = pixels(root/ds.key(0).replace("leftImg8bit/", "gtFine/").replace("_leftImg8bit", "_gtFine_labelTrainIds"))
    assert (ds.label(0) == raw).all()


def test_label_ids_are_preferred(city):
    for f in city.glob("gtFine/*/*/*_labelIds.png"):
        save(np.zeros((12, 24), np.uint8), f.with_name(f.name.replace("labelIds", "labelTrainIds")))
    assert Cityscapes(city, "val").label(0).max() > 0     # the decoys are all road


def test_a_palette_label_is_read_by_index(city):
    ds = Cityscapes(city, "val")
    file, before = ds.label_files[0][0], ds.label(0)
    image = Image.fromarray(pixels(file)).convert("P")
    image.putdata(pixels(file).ravel().tolist())
    image.putpalette(list(range(255, -1, -1)) * 3)
    image.save(file)
    assert Image.open(file).mode == "P" and (ds.label(0) == before).all()


@pytest.mark.parametrize("prefix", ["", "/SegNet/CamVid/"])
def test_camvid_with_and_without_its_prefix(tmp_path, prefix):
    ds = CamVid(camvid_tree(tmp_path, DAY, prefix=prefix), "train")
    assert [ds.key(i) for i in range(4)] == [f"train/{n}" for n in sorted(DAY)]
    raw = pixels(tmp_path/"trainannot"/DAY[0])
    assert (ds.label(0) == np.where(raw == 11, IGNORE, raw)).all() and (raw == 11).any()


def test_camvid_list_from_windows_with_blank_lines(cam):
    (cam/"train.txt").write_bytes((cam/"train.txt").read_bytes().replace(b"\n", b"\r\n\r\n"))
    assert len(CamVid(cam, "train")) == len(DAY + DUSK)


def test_dusk_is_shared_odd_for_adaptation_even_for_scoring(cam):
    names = lambda **kw: [Path(s.image).name for s in CamVid(cam, "train", CAMVID_DUSK, **kw).samples]
    assert names() == sorted(DUSK)
    assert names(parity="odd") == [DUSK[0], DUSK[2], DUSK[4], DUSK[6]]      # 1st, 3rd, 5th, 7th
    assert names(parity="even") == [DUSK[1], DUSK[3], DUSK[5]]
    assert CamVid(cam, "train", CAMVID_DUSK, "odd").name == "camvid/train/0001TP/odd"


def test_the_order_of_the_list_file_changes_nothing(cam):
    before = CamVid(cam, "train", CAMVID_DUSK, "odd").samples
    lines = (cam/"train.txt").read_text().splitlines()
    (cam/"train.txt").write_text("\n".join(lines[::-1]))
    assert CamVid(cam, "train", CAMVID_DUSK, "odd").samples == before


def test_sequences(cam):
    assert len(CamVid(cam, "train", CAMVID_DAY)) == 4 == len(CamVid(cam, "train", ("0006R0", "0016E5")))
    assert len(CamVid(cam, "train", "0016E5")) == 1
    with pytest.raises(DataError, match="no frame of sequence Seq05VD; choose from 0001TP, 0006R0, 0016E5"):
        CamVid(cam, "train", "Seq05VD")


def test_the_test_split_is_taken_where_a_user_has_it(cam):
    camvid_tree(cam, ["0001TP_008550.png", "Seq05VD_f00000.png"], split="test", prefix="/SegNet/CamVid/")
    assert len(CamVid(cam, "test")) == 2 and len(CamVid(cam, "test", CAMVID_DAY)) == 1


@given(st.lists(st.tuples(*[st.text("abc1_", min_size=1, max_size=4)] * 3), min_size=1, max_size=5, unique=True))
@settings(max_examples=40, deadline=None)
def test_tree_templates_find_what_they_would_write(tmp_path_factory, frames):
    root = tmp_path_factory.mktemp("tree")
    tree = Tree("img/{split}/{city}/{city}-{a}-{b}.png", {"gt/{split}/{city}/{city}-{a}-{b}_ids.png": None})
    wanted = set()
    for city, a, b in frames:
        wanted.add((image := f"img/val/{city}/{city}-{a}-{b}.png", (f"gt/val/{city}/{city}-{a}-{b}_ids.png",)))
        (root/image).parent.mkdir(parents=True, exist_ok=True)
        (root/image).touch()
        (root/f"img/val/{city}/other{city}-{a}.jpg").touch()
    assert set(tree.samples(root, "val")) == wanted and tree.samples(root, "train") == []


# ---- unlabelled frames

opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" and watching[0] else None)
watching = [False]


@pytest.fixture
def opens():
    "The files opened by Python while the test runs (an audit hook sees every `open`, whoever calls it)."
    opened.clear()
    watching[0] = True
    yield opened
    watching[0] = False


@pytest.mark.parametrize("make", [
    lambda root: Unlabelled(Cityscapes(root, "train")),
    lambda root: Unlabelled(InMemory(Unlabelled(Cityscapes(root, "train")))),
    lambda root: InMemory(Unlabelled(Cityscapes(root, "train")), size=(6, 12)),
    lambda root: Subset(Unlabelled(Mapped(Cityscapes(root, "train"), CITYSCAPES_19_TO_16)), [0, 1, 2, 3]),
    lambda root: Mapped(Unlabelled(Cityscapes(root, "train")), CITYSCAPES_19_TO_16),
], ids=["plain", "both", "in memory", "subset", "mapped"])
def test_unlabelled_frames_never_open_a_label(city, opens, make):
    ds = make(city)
    for i in range(len(ds)): ds.image(i), ds.key(i)
    assert sum("leftImg8bit" in f for f in opens) == 4
    assert not [f for f in opens if "gtFine" in f]
    assert not [a for a in dir(ds) if a in ("label", "labels", "label_files")]
    with pytest.raises(AttributeError): ds.label(0)


def test_the_watch_would_see_a_label(city, opens):
    Cityscapes(city, "train").label(0)
    assert [f for f in opens if "gtFine" in f]


@pytest.mark.parametrize("harm", ["gone", "garbage", "folders"])
def test_unlabelled_frames_do_not_care_about_labels(city, cam, harm):
    for root, part in ((city, "gtFine"), (cam, "trainannot")):
        files = list((root/part).rglob("*.png"))
        if harm == "gone": shutil.rmtree(root/part)
        for f in files if harm != "gone" else []:
            f.unlink()
            f.write_bytes(b"garbage") if harm == "garbage" else f.mkdir()
    for ds in (Cityscapes(city, "train"), CamVid(cam, "train", CAMVID_DUSK, "odd")):
        assert InMemory(Unlabelled(ds)).images.shape[0] == 4
        with pytest.raises(DataError): ds.label(0)


# ---- wrappers

def test_wrappers_agree_with_what_they_wrap(city):
    ds = Cityscapes(city, "train")
    same = LabelMap.identity(ds.space)
    for wrapped in (Subset(ds, range(4)), Mapped(ds, same), InMemory(ds), InMemory(Mapped(Subset(ds, range(4)), same))):
        assert (len(wrapped), wrapped.space, wrapped.name) == (4, ds.space, ds.name)
        for i in range(4):
            assert wrapped.key(i) == ds.key(i)
            assert (wrapped.image(i) == ds.image(i)).all() and (wrapped.label(i) == ds.label(i)).all()


@pytest.mark.parametrize("make", [
    lambda ds: ds, InMemory, Unlabelled, lambda ds: Subset(InMemory(ds), [2]),
    lambda ds: Mapped(ds, CITYSCAPES_19_TO_16)])
def test_datasets_travel_to_worker_processes(city, make):
    ds = make(Cityscapes(city, "train"))
    again = pickle.loads(pickle.dumps(ds))
    assert again.key(0) == ds.key(0) and (again.image(0) == ds.image(0)).all()
    assert hasattr(again, "label") == hasattr(ds, "label")
    if hasattr(ds, "label"): assert (again.label(0) == ds.label(0)).all()


def test_memory_is_not_changed_by_its_readers(city):
    ds = InMemory(Cityscapes(city, "val"))
    before = ds.image(0).copy(), ds.label(0).copy()
    ds.image(0)[:] = 0
    ds.label(0)[:] = 0
    assert (ds.image(0) == before[0]).all() and (ds.label(0) == before[1]).all()


def test_memory_reads_each_file_once(city, opens):
    ds = InMemory(Cityscapes(city, "train"))
    for _ in range(3): ds.image(1), ds.label(1)
    counts = Counter(f for f in opens if f.endswith(".png"))
    assert max(v for f, v in counts.items() if "gtFine" in f) == 1
    assert max(v for f, v in counts.items() if "leftImg8bit" in f) <= 2    # for its pixels, and for the size of the label


def test_resizing_invents_no_class_and_keeps_colours():
    label = np.random.default_rng(0).choice(np.array([3, 7, IGNORE], np.uint8), (36, 48))
    for size in ((9, 12), (72, 96), (10, 31)):
        assert resize(label, size).shape == size and set(np.unique(resize(label, size))) <= {3, 7, IGNORE}
    image = np.zeros((40, 80, 3), np.uint8) + np.array([10, 100, 200], np.uint8)
    assert (resize(image, (10, 20)) == [10, 100, 200]).all()
    checker = (np.indices((40, 80)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, 2)
    assert abs(resize(checker, (5, 10)).astype(int) - 127).max() < 20       # shrinking averages
    quadrants = np.kron(np.array([[1, 2], [3, 4]], np.uint8), np.ones((8, 16), np.uint8))
    assert (resize(quadrants, (2, 2)) == [[1, 2], [3, 4]]).all()


def test_sizes_that_differ_need_a_size(city):
    file = city/Cityscapes(city, "train").key(2)
    save(np.zeros((6, 24, 3), np.uint8), file)
    with pytest.raises(DataError, match=f"{Path(file).name}: its size is 6x24, .* is 12x24; ask for one `size`"):
        InMemory(Unlabelled(Cityscapes(city, "train")))
    assert InMemory(Unlabelled(Cityscapes(city, "train")), size=(6, 12)).images.shape == (4, 6, 12, 3)


def test_wrappers_refuse_what_does_not_fit(city, cam):
    ds = Cityscapes(city, "train")
    with pytest.raises(ValueError, match="frames 0..3, not numbers -1, 4"): Subset(ds, [-1, 0, 4])
    with pytest.raises(ValueError, match="labelled in camvid_11"): Mapped(CamVid(cam, "train"), CITYSCAPES_19_TO_16)
    with pytest.raises(ValueError, match=r"size=64 is not \(height, width\).*size=\(64, 128\)"): InMemory(ds, size=64)
    with pytest.raises(ValueError, match=r"box=64 is not \(height, width\)"): Resized(ds, 64)


# ---- hostile files

def harm(file, how):
    "Damage an image or label file."
    data, image = file.read_bytes(), Image.open(file)
    image.load()
    size = image.size
    match how:
        case "zero bytes": file.write_bytes(b"")
        case "truncated": file.write_bytes(data[:len(data) // 2])
        case "not an image": file.write_text("<html>please log in</html>")
        case "wrong mode": image.convert("RGB" if image.mode == "L" else "LA").save(file)
        case "wrong size": image.resize((size[0] // 2, size[1]), Image.Resampling.NEAREST).save(file)
        case "ids outside": Image.new("L", size, 200).save(file)
        case "missing": file.unlink()


IMAGE_FAULTS = {"zero bytes": ("zero bytes", "it is empty"), "truncated": ("truncated or damaged", "truncated"),
                "not an image": ("not an image", "not an image"),
                "wrong mode": ("wrong mode", "its mode is LA, it must be RGB")}
LABEL_FAULTS = IMAGE_FAULTS | {"wrong mode": ("wrong mode", "its mode is RGB, it must be L or P"),
                               "wrong size": ("wrong size", "its size is 12x12, its image is 12x24"),
                               "ids outside": ("ids outside the space", "it has id 200, outside the label space (ids 0..33, 255)")}


@pytest.mark.parametrize("how", IMAGE_FAULTS)
def test_a_harmed_image_is_named(city, how):
    ds = Cityscapes(city, "train")
    harm(city/ds.key(1), how)
    kind, said = IMAGE_FAULTS[how]
    with pytest.raises(DataError) as e: ds.image(1)
    assert ds.key(1) in str(e.value) and said in str(e.value) and e.value.kind == kind and e.value.fix
    assert ds.image(0).shape == (12, 24, 3)


@pytest.mark.parametrize("how", LABEL_FAULTS)
def test_a_harmed_label_is_named(city, how):
    ds = Cityscapes(city, "train")
    file = ds.label_files[1][0]
    harm(file, how)
    kind, said = LABEL_FAULTS[how]
    with pytest.raises(DataError) as e: ds.label(1)
    assert str(file) in str(e.value) and said in str(e.value) and e.value.kind == kind and e.value.fix


def test_a_missing_label_is_found_at_the_first_label(city):
    ds = Cityscapes(city, "train")
    (city/"gtFine/train/ulm/ulm_000002_000019_gtFine_labelIds.png").unlink()
    with pytest.raises(DataError, match="no label for 1 of 4 images of cityscapes/train.*ulm_000002_000019_leftImg8bit"):
        ds.label(0)


def test_a_missing_image_is_found_at_once(cam):
    (cam/"train"/DUSK[3]).unlink()
    with pytest.raises(DataError, match=f"1 of 11 images of camvid/train are not there.*{DUSK[3]}"): CamVid(cam, "train")


def test_no_prefix_of_a_png_is_taken_for_the_whole(tmp_path):
    file, whole = tmp_path/"a.png", np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    save(whole, file)
    data = file.read_bytes()
    refused = 0
    for n in range(len(data)):
        file.write_bytes(data[:n])
        try: assert (read_image(file) == whole).all()     # only the closing marks are missing
        except DataError: refused += 1
    assert refused > len(data) - 30


@settings(max_examples=150, deadline=None)
@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_flipped_bit_changes_the_pixels(tmp_path_factory, at, bit):
    file = tmp_path_factory.mktemp("flip")/"a.png"
    whole = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    save(whole, file)
    data = bytearray(file.read_bytes())
    data[int(at * len(data))] ^= 1 << bit
    file.write_bytes(data)
    try: assert (read_image(file) == whole).all()
    except DataError: pass


def _raise_in_worker(file): return read_image(file)


def test_errors_survive_the_way_back_from_a_worker(tmp_path):
    (tmp_path/"a.png").write_bytes(b"")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        with pytest.raises(DataError, match="a.png: it is empty") as e:
            pool.submit(_raise_in_worker, tmp_path/"a.png").result()
    assert e.value.kind == "zero bytes"


@pytest.mark.parametrize("line", [
    "train/a.png", "train/a.png x y", "../a.png b.png", "a.png /etc/passwd", "a/../../b.png c.png"])
def test_hostile_list_lines(cam, line):
    with open(cam/"train.txt", "a") as f: f.write(line + "\n")
    with pytest.raises(DataError, match="train.txt, line 12"): CamVid(cam, "train")
    assert not check("camvid", cam).ok


def test_a_folder_in_place_of_a_list(cam):
    camvid_tree(cam, DAY, split="val")
    (cam/"train.txt").unlink()
    (cam/"train.txt").mkdir()
    with pytest.raises(DataError, match="train.txt: it cannot be read") as e: CamVid(cam, "train")
    assert e.value.fix
    report = check("camvid", cam)
    assert [p.where for p in report.problems] == [str(cam/"train.txt")] and report.frames == {"val": 4} and len(report.clean) == 4


@pytest.mark.parametrize("cls, split, script", [(CamVid, "train", "camvid"), (Cityscapes, "val", "cityscapes")])
def test_missing_data_names_the_command(tmp_path, cls, split, script):
    for root in (tmp_path/"nowhere", tmp_path):
        with pytest.raises(DataError, match=f"python data_scripts/{script}.py --root {root}"): cls(root, split)
    with pytest.raises(ValueError, match="no split 'dusk'; it has train, val, test"): cls(tmp_path, "dusk")


def test_a_list_of_what_to_keep_that_is_not_there(city):
    for keep in (city/"god.txt", city):
        with pytest.raises(DataError, match=f"{keep}: no such file; it should hold the paths of the images to keep, one a line"): Folder("cityscapes", city, "val", keep=keep)


def test_home_in_paths(city, monkeypatch):
    monkeypatch.setenv("HOME", str(city.parent))
    report = check("cityscapes", "~/cityscapes")
    report.write_list("~/good.txt")
    assert report.root == city and (city.parent/"good.txt").is_file()
    ds = Folder("cityscapes", "~/cityscapes", "val", keep="~/good.txt")
    assert ds.root == city and len(ds) == 2 and ds.label(0).shape == (12, 24)
    with pytest.raises(DataError, match="~nobody-here/c: no such folder"): Cityscapes("~nobody-here/c", "val")


def test_an_empty_split_is_named(city, cam):
    (city/"leftImg8bit/test").mkdir()
    with pytest.raises(DataError, match="leftImg8bit/test: the test split of cityscapes is empty"): Cityscapes(city, "test")
    (cam/"val.txt").write_text("\n")
    with pytest.raises(DataError, match="val.txt: the val split of camvid is empty"): CamVid(cam, "val")


# ---- the doctor

def test_a_partial_copy_is_no_problem(city):
    report = check("cityscapes", city)
    assert report.ok and report.frames == {"train": 4, "val": 2}
    assert "train: 4 of 2975 published images" in str(report) and any(n.startswith("test: not here") for n in report.notes)
    truth = sum(np.bincount(Cityscapes(city, split).label(i).ravel(), minlength=256)
                for split, n in report.frames.items() for i in range(n))
    assert (report.pixels == truth).all()
    assert sum(report.shares.values()) == pytest.approx(1)


def test_every_fault_is_listed_in_one_pass(tmp_path):
    root = cityscapes_tree(tmp_path/"city", splits=(("train", 14), ("val", 2)))
    images, labels = (sorted(root.glob(g)) for g in ("leftImg8bit/train/*/*.png", "gtFine/train/*/*labelIds.png"))
    wanted = Counter()
    for file, how in [*zip(images, IMAGE_FAULTS), *zip(labels[6:], LABEL_FAULTS), (labels[12], "missing")]:
        harm(file, how)
        wanted[LABEL_FAULTS[how][0] if how != "missing" else "image without label"] += 1
    save(np.zeros((12, 20, 3), np.uint8), images[13])
    wanted["odd size"] += 1                     # not like the other images ...
    wanted["wrong size"] += 1                   # ... nor like its label
    (root/"leftImg8bit/test").mkdir()
    wanted["empty split"] += 1
    report = check(CITYSCAPES, root)
    assert Counter(p.kind for p in report.problems) == wanted and not report.ok
    for p in report.problems: assert str(p).replace(f"{root}/", "") in str(report) and p.fix
    assert check(CITYSCAPES, root, workers=1).problems.__repr__() == report.problems.__repr__()


def test_a_long_list_is_cut_in_print_only(city):
    for f in city.glob("gtFine/*/*/*labelIds.png"): f.unlink()
    report = check("cityscapes", city)
    assert len(report.problems) == 6 and "and 4 more" in report.text(most=2)


@pytest.mark.parametrize("root", ["t", "mg8bit", "."])
def test_a_report_names_paths_that_exist(tmp_path, monkeypatch, root):
    "Only the root at the beginning of a path is left out, not what looks like it further on (`leftImg8bit/` ends in `t/`)."
    monkeypatch.chdir(tmp_path)
    file = next(cityscapes_tree(Path(root)).glob("leftImg8bit/train/*/*.png"))
    file.write_bytes(b"")
    assert f"\n  {file.relative_to(root)}: it is empty" in str(check("cityscapes", root))


@pytest.mark.parametrize("spoil", [None, "wrong size", "ids outside"])
def test_the_doctor_forgets_a_frame_that_it_has_seen(tmp_path, monkeypatch, spoil):
    "What is alive does not grow with the number of frames: neither calls in flight, nor counts, nor the pixels of a bad label."
    import kdda.data.datasets as datasets
    calls, arrays, most = weakref.WeakSet(), [], Counter()
    class Pool(datasets.ThreadPoolExecutor):
        def submit(self, *args):
            calls.add(call := super().submit(*args))
            most["calls"] = max(most["calls"], len(calls))
            return call
    def watched(f):
        def call(*args, **kw):
            out = f(*args, **kw)
            if isinstance(out, np.ndarray): arrays.append(weakref.ref(out))
            return out
        return call
    root = cityscapes_tree(tmp_path, splits=[("train", 200)])
    for f in sorted(root.rglob("*labelIds.png")) if spoil else []: harm(f, spoil)
    monkeypatch.setattr(datasets, "ThreadPoolExecutor", Pool)
    for name in ("decode", "count_bytes"): monkeypatch.setattr(datasets, name, watched(getattr(datasets, name)))
    report = check("cityscapes", root, workers=2)
    alive = sum(a() is not None for a in arrays)
    assert report.frames == {"train": 200} and len(report.problems) == (200 if spoil else 0)
    assert len(arrays) >= 200 and alive < 20 and most["calls"] < 40


def test_labels_of_a_test_split_may_be_absent(tmp_path):
    root = cityscapes_tree(tmp_path, splits=(("val", 2), ("test", 2)))
    shutil.rmtree(root/"gtFine/test")
    assert check("cityscapes", root).ok
    with pytest.raises(DataError, match="no label for 2 of 2"): Cityscapes(root, "test").label(0)


def test_labels_that_are_only_void_are_noted(city):
    file = Cityscapes(city, "val").label_files[0][0]
    save(np.zeros((12, 24), np.uint8), file)
    report = check("cityscapes", city)
    assert report.ok and any("nothing but void" in n for n in report.notes)


def test_nothing_there_at_all(tmp_path):
    for root in (tmp_path/"nowhere", tmp_path):
        for name in layouts():
            report = check(name, root)
            assert len(report.problems) == 1 and f"data_scripts/{name}.py --root {root}" in str(report)


def test_doctor_and_readers_agree(cam):
    "A file is a problem to the doctor exactly if reading it fails."
    for name, how in zip(DUSK, ("zero bytes", "truncated", "wrong mode", "not an image")): harm(cam/"train"/name, how)
    for name, how in zip(DAY, ("ids outside", "wrong size", "zero bytes")): harm(cam/"trainannot"/name, how)
    ds, failing = CamVid(cam, "train"), set()
    for i in range(len(ds)):
        for read in (ds.image, ds.label):
            try: read(i)
            except DataError as e: failing.add(e.where)
    assert {p.where for p in check(CAMVID, cam).problems} == failing and len(failing) == 7


def test_the_histogram_is_drawn(city):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    ax = check("cityscapes", city).show(plt.figure().gca())
    assert len(ax.patches) == 19
    plt.close("all")


# ---- the scripts that tell how to get the data

def script(name, *args):
    done = subprocess.run([sys.executable, REPO/"data_scripts"/f"{name}.py", *map(str, args)], capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(REPO)})
    return done.returncode, done.stdout + done.stderr


def test_scripts_tell_and_check(tmp_path, city, cam):
    code, said = script("cityscapes", "--root", tmp_path/"nowhere")
    assert code == 1 and "gtFine_trainvaltest.zip" in said and "no such folder" in said and str(tmp_path/"nowhere") in said
    code, said = script("cityscapes", "--root", city)
    assert code == 0 and "no problems" in said
    (cam/"train"/DUSK[0]).write_bytes(b"")
    code, said = script("camvid", "--root", cam)
    assert code == 1 and "zero bytes: 1" in said and DUSK[0] in said


# ---- the world, through the real reader

@pytest.mark.parametrize("size", [(32, 64), (64, 128)])
def test_the_world_reads_back_as_it_was_drawn(tmp_path, size):
    from kdda.data.world import World
    world = World("city", n=3, size=size, split="val")
    world.export("cityscapes", tmp_path, split="val")
    ds = Cityscapes(tmp_path, "val")
    assert len(ds) == 3 and check("cityscapes", tmp_path).ok
    for frames in (ds, InMemory(world)):       # the latter is drawn by several threads
        for i in range(3):
            assert (frames.image(i) == world.image(i)).all() and (frames.label(i) == world.label(i)).all()


# ---- real frames

@real_frames
def test_real_camvid():
    train, dusk = CamVid(REAL, "train"), CamVid(REAL, "train", CAMVID_DUSK)
    adapt, score = CamVid(REAL, "train", CAMVID_DUSK, "odd"), CamVid(REAL, "train", CAMVID_DUSK, "even")
    day = CamVid(REAL, "train", CAMVID_DAY)
    assert [len(d) for d in (train, dusk, adapt, score, day, CamVid(REAL, "val"))] == [367, 62, 31, 31, 305, 101]
    assert sorted(adapt.samples + score.samples) == dusk.samples and adapt.key(0) == dusk.key(0) == "train/0001TP_006690.png"
    assert dusk.image(0).shape == (360, 480, 3) and score.key(0) == "train/0001TP_006720.png"
    label = dusk.label(0)
    assert set(np.unique(label)) <= {*range(11), IGNORE}
    assert (label[:60] == dusk.space.index("sky")).mean() < 1 and (label[300:] == dusk.space.index("road")).mean() > .3


@real_frames
def test_real_camvid_is_healthy(tmp_path):
    for part in ("val", "valannot", "val.txt"): (tmp_path/part).symlink_to(REAL/part)     # a partial copy, to save time
    report = check("camvid", tmp_path)
    assert report.ok and report.frames == {"val": 101}, str(report)
    assert .25 < report.shares["road"] < .4 and all(s > .001 for s in report.shares.values())
