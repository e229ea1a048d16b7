"Every described dataset: the paths that it is published with, the world written in it and read back, each encoding, two training steps; hostile label files; kept class counts."
import dataclasses
import json
import shutil
import threading
from base64 import b64encode
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from kdda.data.batches import RareClass, Stream, class_counts
from kdda.data.datasets import (ACDC, SYNTHIA, Bytes, Cityscapes, CocoPanoptic, Colors, DataError, Folder, InMemory, Mapped, Panoptic16, Polygons, Red16, Resized, Rle,
                                Subset, Tree, Unlabelled, check, find_layout, ids_of, layouts, rle_decode, rle_encode, translate, write_frames)
from kdda.data import labels
from kdda.data.labels import CAMVID_11, CITYSCAPES_19, CITYSCAPES_19_TO_16, CITYSCAPES_19_TO_CAMVID_11, CITYSCAPES_IDS, IGNORE, LabelMap, Taxonomy, label_map, label_maps, look_up, taxonomies, taxonomy
from kdda.data.world import World

LAYOUTS = layouts()
SIZE = (32, 64)
TABLES = Path(labels.__file__).parent/"taxonomies"


# ---- the descriptions, against paths as the datasets are published with, written down here by hand

PUBLISHED = [  # dataset, split, image, its label, encoding
    ("cityscapes", "val", "leftImg8bit/val/lindau/lindau_000000_000019_leftImg8bit.png", "gtFine/val/lindau/lindau_000000_000019_gtFine_labelIds.png", Bytes),
    ("cityscapes", "val", "leftImg8bit/val/lindau/lindau_000000_000019_leftImg8bit.png", "gtFine/val/lindau/lindau_000000_000019_gtFine_polygons.json", Polygons),
    ("cityscapes", "train_extra", "leftImg8bit/train_extra/bamberg/bamberg_000000_000019_leftImg8bit.png", "gtCoarse/train_extra/bamberg/bamberg_000000_000019_gtCoarse_labelIds.png", Bytes),
    ("gta5", "train", "images/00001.png", "labels/00001.png", Bytes),
    ("synthia", "train", "RGB/0000000.png", "GT/LABELS/0000000.png", Red16),
    ("acdc", "train", "rgb_anon/fog/train/GOPR0475/GOPR0475_frame_000041_rgb_anon.png", "gt/fog/train/GOPR0475/GOPR0475_frame_000041_gt_labelTrainIds.png", Bytes),
    ("darkzurich", "val", "rgb_anon/val/night/GOPR0356/GOPR0356_frame_000321_rgb_anon.png", "gt/val/night/GOPR0356/GOPR0356_frame_000321_gt_labelTrainIds.png", Bytes),
    ("darkzurich", "train_day", "rgb_anon/train/day/GOPR0345/GOPR0345_frame_000001_rgb_anon.png", None, None),
    ("kitti", "train", "training/image_2/000000_10.png", "training/semantic/000000_10.png", Bytes),
    ("kitti", "test", "testing/image_2/000000_10.png", None, None),
    ("bdd100k", "train", "images/10k/train/0004a4c0-d4dff0ad.jpg", "labels/sem_seg/masks/train/0004a4c0-d4dff0ad.png", Bytes),
    ("bdd100k", "val", "seg/images/val/7d06fefd-f7be05a6.jpg", "seg/labels/val/7d06fefd-f7be05a6_train_id.png", Bytes),
    ("idd", "train", "leftImg8bit/train/0/024541_leftImg8bit.png", "gtFine/train/0/024541_gtFine_polygons.json", Polygons),
    ("idd", "val", "leftImg8bit/val/119/903127_leftImg8bit.jpg", "gtFine/val/119/903127_gtFine_labellevel3Ids.png", Bytes),
    ("wilddash2", "val", "images/aa0001_10000.jpg", "panoptic/aa0001_10000.png", CocoPanoptic),
    ("mapillary", "train", "training/images/_1Gn_xkw7sa_i9GU4mkxxQ.jpg", "training/labels/_1Gn_xkw7sa_i9GU4mkxxQ.png", Bytes),
    ("mapillary", "val", "validation/images/a.jpg", "validation/v1.2/labels/a.png", Bytes),
    ("a2d2", "train", "camera_lidar_semantic/20180807_145028/camera/cam_front_center/20180807145028_camera_frontcenter_000000091.png",
     "camera_lidar_semantic/20180807_145028/label/cam_front_center/20180807145028_label_frontcenter_000000091.png", Colors),
    ("apolloscape", "all", "road02_seg/ColorImage/Record001/Camera 5/170927_063811892_Camera_5.jpg", "road02_seg/Label/Record001/Camera 5/170927_063811892_Camera_5_bin.png", Bytes),
    ("apolloscape", "all", "road01_ins/ColorImage/Record001/Camera 6/170908_061502408_Camera_6.jpg", "road01_ins/Label/Record001/Camera 6/170908_061502408_Camera_6.png", Bytes),
    ("camvid32", "train", "train/0001TP_006690.png", "train_labels/0001TP_006690_L.png", Colors),
    ("camvid32", "all", "701_StillsRaw_full/0001TP_006690.png", "LabeledApproved_full/0001TP_006690_L.png", Colors),
    ("waymo", "train", "train/images/seg_1_150.png", "train/segmentation/seg_1_150_seg.png", Panoptic16),
    ("coco", "val", "val2017/000000000139.jpg", "panoptic_val2017/000000000139.png", CocoPanoptic),
    ("coco", "train", "train2017/000000000009.jpg", "panoptic_semseg_train2017/000000000009.png", Bytes),
    ("goose", "train", "images/train/2022-07-22_flight/2022-07-22_flight__0071_1658494235_windshield_vis.png", "labels/train/2022-07-22_flight/2022-07-22_flight__0071_1658494235_labelids.png", Bytes),
    ("goose", "val", "images/val/a/a__0001_17_realsense.png", "labels/val/a/a__0001_17_labelids.png", Bytes),
    ("rugd", "train", "RUGD_frames-with-annotations/trail-11/trail-11_00001.png", "RUGD_annotations/trail-11/trail-11_00001.png", Colors),
    ("rugd", "test", "RUGD_frames-with-annotations/creek/creek_00001.png", "RUGD_annotations/creek/creek_00001.png", Colors),
    ("rugd", "val", "RUGD_frames-with-annotations/trail-5/trail-5_00001.png", "RUGD_annotations/trail-5/trail-5_00001.png", Colors),
    ("tas500", "train", "train/1537956397.png", "train_labels_ids/1537956397.png", Bytes),
    ("ycor", "val", "valid/iid000008/rgb.jpg", "valid/iid000008/labels.png", Colors),
    ("freiburg_forest", "train", "train/rgb/b1-09517_Clipped.jpg", "train/GT_color/b1-09517_Clipped.png", Colors),
    ("freiburg_forest", "test", "test/rgb/b1-99445_Clipped.jpg", "test/GT_color/b1-99445_mask.png", Colors)]


@pytest.mark.parametrize("name, split, image, label, encoding", PUBLISHED, ids=lambda v: v if isinstance(v, str) and "/" not in v else "")
def test_published_paths_are_found(name, split, image, label, encoding, tmp_path):
    layout = find_layout(name)
    (tmp_path/image).parent.mkdir(parents=True)
    (tmp_path/image).touch()
    files = layout.find(tmp_path, split)
    if name == "a2d2": files = next(f for f in layout.packages)
    samples = files.samples(tmp_path, "val" if name == "a2d2" else split)     # the only scene there is one of the last three
    assert [s.image for s in samples] == [image]
    if label: assert isinstance(dict(zip(samples[0].labels, files.labels.values()))[label], encoding)
    else: assert split in layout.unlabelled


def test_lists_as_they_are_published(tmp_path):
    "RELLIS-3D: relative to two folders; WildScenes: CSV with a heading and a leading slash; ApolloScape: tabs, and blanks in paths."
    for file, line in (("Rellis_3D_image_split/val.lst", "00001/pylon_camera_node/frame000020-1581623792_349.jpg 00001/pylon_camera_node_label_id/frame000020-1581623792_349.png\n"),
                       ("splits/opt2d/val.csv", "id,im_path,label_path\n1624326169-277052847,/WildScenes2d/K-01/image/1624326169-277052847.png,/WildScenes2d/K-01/indexLabel/1624326169-277052847.png\n"),
                       ("road01_ins_val.lst", "road01_ins/ColorImage/Record008/Camera 5/a.jpg\troad01_ins/Label/Record008/Camera 5/a_bin.png\n"),
                       ("road02_ins_val.lst", "road02_ins/ColorImage/Record001/Camera 6/b.jpg\troad02_ins/Label/Record001/Camera 6/b_bin.png\n")):
        (tmp_path/file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/file).write_text(line)
    found = {n: LAYOUTS[n].samples(tmp_path, "val") for n in ("rellis3d", "wildscenes", "apolloscape")}
    assert found["rellis3d"] == [("Rellis_3D_pylon_camera_node/Rellis-3D/00001/pylon_camera_node/frame000020-1581623792_349.jpg",
                                  ("Rellis_3D_pylon_camera_node_label_id/Rellis-3D/00001/pylon_camera_node_label_id/frame000020-1581623792_349.png",))]
    assert found["wildscenes"] == [("WildScenes2d/K-01/image/1624326169-277052847.png", ("WildScenes2d/K-01/indexLabel/1624326169-277052847.png",))]
    assert [s.image[-5:] for s in found["apolloscape"]] == ["a.jpg", "b.jpg"] and "Camera 5" in found["apolloscape"][0].labels[0]


def test_a2d2_keeps_its_last_three_scenes(tmp_path):
    for scene in ("20180807_145028", "20180925_101535", "20181016_125231", "20181107_132300", "20181204_191844"):
        f = tmp_path/f"camera_lidar_semantic/{scene}/camera/cam_front_left/{scene}_camera_frontleft_000000001.png"
        f.parent.mkdir(parents=True)
        f.touch()
    count = {split: [s.image.split("/")[1] for s in LAYOUTS["a2d2"].samples(tmp_path, split)] for split in ("train", "val")}
    assert count == {"train": ["20180807_145028", "20180925_101535"], "val": ["20181016_125231", "20181107_132300", "20181204_191844"]}


def test_every_description_is_complete():
    assert len(LAYOUTS) >= 24
    for name, layout in LAYOUTS.items():
        assert layout.name == name and layout.licence and layout.address and layout.splits and "kdda" not in layout.address
        assert set(layout.recalled) <= {*layout.splits, "size"} and set(layout.unlabelled) <= set(layout.splits), name
        for view in layout.views.values():
            assert view.table.shape == (256,) and {int(v) for v in view.table} - {IGNORE} <= set(range(len(view.space))), name
            if view.space.name != "cityscapes_19": assert {int(v) for v in view.table} - {IGNORE} == set(range(len(view.space))), name
        assert all(any(layout.tells(e, layout.view()) for e in p.labels.values()) for p in layout.packages), name


# ---- the world in every layout, each package, each encoding

def kinds(layout):
    return [(k, kind) for k, p in enumerate(layout.packages) for kind in dict.fromkeys(type(e) for e in p.labels.values())]

def split_of(layout, package):
    files = layout.packages[package]
    return next(s for s in ("val", "train", "train_extra", "all") if s in layout.splits and s not in layout.unlabelled and (not files.only or s in files.only))

CASES = [(name, k, kind) for name, layout in LAYOUTS.items() for k, kind in kinds(layout)]


@pytest.mark.parametrize("name, package, kind", CASES, ids=[f"{n}-{k}-{t.__name__}" for n, k, t in CASES])
def test_the_world_through_every_loader_to_two_training_steps(name, package, kind, tmp_path):
    from kdda.nets.segmenter import segmenter
    layout = LAYOUTS[name]
    split = split_of(layout, package)
    world = World("city", n=4, size=SIZE, split="val")
    frames = Mapped(world, CITYSCAPES_19_TO_CAMVID_11) if name == "camvid" else world
    written = write_frames(frames, layout, tmp_path, split, kind=kind, package=package, name="city", seed=3)
    to_id = ids_of(layout, frames.space)
    for view in layout.views:
        if not any(layout.tells(e, layout.view(view)) for e in layout.packages[package].labels.values() if type(e) is kind): continue
        ds = Folder(name, tmp_path, split, space=view)
        at = {ds.key(i): i for i in range(len(ds))}
        assert len(ds) == 4 and ds.space is layout.view(view).space
        for k, sample in enumerate(written):
            label = ds.label(at[sample.image])
            assert (label == look_up(ds.view.table, look_up(to_id, frames.label(k)))).all() and ds.space.check(label) is label
            if sample.image.endswith(".png"): assert (ds.image(at[sample.image]) == world.image(k)).all()
            else: assert np.abs(ds.image(at[sample.image]).astype(int) - world.image(k)).mean() < 6
    ds = Folder(name, tmp_path, split)
    assert len(np.unique(ds.label(0))) > 2 and check(name, tmp_path, splits=[split]).ok
    net = segmenter("resnet10_nano+segformer:16", len(ds.space))
    optimizer, stream = torch.optim.SGD(net.parameters(), .01), Stream(ds, 2, crop=(32, 32), seed=0)
    for _ in range(2):
        batch = next(stream)
        loss = torch.nn.functional.cross_entropy(net(batch["image"].float() / 255), batch["label"].long(), ignore_index=IGNORE)
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        assert torch.isfinite(loss)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_id_of_a_table_is_written_and_read(name, tmp_path):
    "All that files may hold, not only what the world draws, in each way of writing it; what two ids share says the first of them."
    layout = LAYOUTS[name]
    for k, e in enumerate(e for p in layout.packages for e in p.labels.values()):
        void = {IGNORE} if isinstance(e, (Panoptic16, Polygons, Rle)) else set()      # where nothing is written, there is no void to read
        ids = np.array([sorted(set((e.codes(layout.table) if hasattr(e, "codes") else layout.table.codes(e.column)).values()) - void)] * 3, np.uint8)
        file = tmp_path/f"{k}"/{"Rle": "object_ann.json", "Polygons": "a.json"}.get(type(e).__name__, "a.png")
        e.save(file, ids, layout.table, "a.jpg")
        assert (e.read(file, layout.table, ids.shape, "a.jpg") == ids).all() and ids.shape[1] > 3, e
    if not layout.table.source: return
    rows = json.loads((TABLES/f"{layout.classes}.json").read_text())["classes"]
    assert layout.table.codes("name") == {r["name"]: r["id"] % 256 for r in reversed(rows)} and len(layout.table.classes) == len(rows)


def test_classes_mean_the_same_in_cityscapes_words(tmp_path):
    "Roads stay roads: where a table says what its classes are in Cityscapes, the world's labels come back, or void where there is no such class."
    world = World("city", n=4, size=SIZE, split="val")
    for name in ("kitti", "bdd100k", "idd", "wilddash2", "mapillary", "a2d2", "apolloscape", "camvid32", "waymo", "synthia", "acdc"):
        split = split_of(LAYOUTS[name], 0)
        written = write_frames(world, name, tmp_path/name, split)
        ds = Folder(name, tmp_path/name, split, space="cityscapes_19")
        i = [ds.key(i) for i in range(4)].index(written[2].image)
        got, want = ds.label(i), world.label(2)
        lacks = set(range(19)) - set(LAYOUTS[name].view("cityscapes_19").table.tolist())
        assert (got == np.where(np.isin(want, list(lacks)), IGNORE, want)).all(), name
        assert not lacks & {0, 2, 8, 10, 11, 13}, (name, lacks)


def test_all_conditions_or_some(tmp_path):
    World("fog", n=8, size=SIZE).export("acdc", tmp_path)
    assert len(ACDC(tmp_path, "train")) == 8 and [len(ACDC(tmp_path, "train", c)) for c in ("fog", ("rain", "snow"))] == [2, 4]
    assert ACDC(tmp_path, "train", ("rain", "snow")).name == "acdc/train/rain+snow"
    with pytest.raises(DataError, match="no frame whose condition is hail; there are fog, night, rain, snow"): ACDC(tmp_path, "train", "hail")


def test_a_coarser_file_is_not_taken_for_a_finer_one(tmp_path):
    "IDD's level3Ids do not tell rail tracks from rough ground, which Cityscapes does; nor do train ids tell a dataset's own ids."
    write_frames(World("city", n=1, size=SIZE), "idd", tmp_path, "train")
    for f in tmp_path.rglob("*_labelids.png"): f.unlink()
    assert "level3Ids" in Folder("idd", tmp_path, "train").label_files[0][0].name
    assert "csTrainIds" in Folder("idd", tmp_path, "train", space="cityscapes_19").label_files[0][0].name
    with pytest.raises(DataError, match="no label for 1 of 1"): Folder("idd", tmp_path, "train").ids(0)
    with pytest.raises(ValueError, match="cannot be read as 'cityscapes_16'; choose from idd_26, cityscapes_19, idd"): Folder("idd", tmp_path, "train", space="cityscapes_16")


def test_ids_are_what_the_file_holds(tmp_path):
    World("city", n=1, size=SIZE).export("cityscapes", tmp_path)
    ds = Cityscapes(tmp_path, "train")
    assert (ds.ids(0) == np.array(Image.open(ds.label_files[0][0]))).all() and (CITYSCAPES_IDS[ds.ids(0)] == ds.label(0)).all()


def test_the_two_vistas_maps_differ_where_they_should():
    strict, loose = (LAYOUTS["mapillary"].view(v) for v in ("cityscapes_19", "cityscapes_19 loose"))
    names = {c["id"]: c["name"] for c in taxonomy("mapillary_vistas_v1.2").classes}
    assert strict.space is loose.space is CITYSCAPES_19
    assert {names[i] for i in np.flatnonzero(strict.table != loose.table)} == {"construction--flat--bike-lane", "construction--flat--crosswalk-plain", "construction--flat--curb-cut",
        "construction--flat--parking", "construction--flat--pedestrian-area", "construction--flat--service-lane", "marking--crosswalk-zebra", "object--manhole", "object--street-light",
        "object--support--traffic-sign-frame", "object--traffic-sign--back"}


# ---- encodings by themselves

TABLE = Taxonomy("t", tuple(dict(name=n, id=i, color=c, code=10 * i, nuscenes_name=n) for i, (n, c) in enumerate(
    {"unlabeled": [0, 0, 0], "road": [128, 64, 128], "sky": [70, 130, 180], "car": [0, 0, 142], "flat.x": [255, 255, 255]}.items())))
ENCODINGS = {"bytes": Bytes(), "palette": Bytes(palette=True), "column": Bytes("code"), "red16": Red16(), "colors": Colors(), "panoptic16": Panoptic16(), "coco": CocoPanoptic("../about_{folder}.json"),
             "polygons": Polygons(), "rle": Rle()}

def file_of(folder, name): return folder/name/{"rle": "object_ann.json", "polygons": "a.json"}.get(name, "a.png")


@pytest.mark.parametrize("name", ENCODINGS)
@settings(max_examples=25, deadline=None)
@given(ids=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 4)))
def test_what_is_written_is_read(tmp_path_factory, name, ids):
    file, e = file_of(tmp_path_factory.mktemp("enc"), name), ENCODINGS[name]
    e.save(file, ids, TABLE, "x.jpg")
    got = e.read(file, TABLE, ids.shape, "x.jpg")
    assert got.dtype == np.uint8 and (got == ids).all()
    assert not [f for f in file.parent.iterdir() if ".part." in f.name]


@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40)))
@settings(max_examples=60, deadline=None)
def test_run_lengths_against_their_definition(mask):
    "COCO's compressed form, decoded digit by digit as it is described: columns first, five bits a character, sign in the last, differences from the third number on."
    coded, runs, k = rle_encode(mask), [], 0
    while k < len(coded):
        digits = []
        while True:
            digits.append(coded[k] - 48); k += 1
            if digits[-1] < 32: break
        value = sum((d % 32) * 32**n for n, d in enumerate(digits))
        if digits[-1] & 16: value -= 32**len(digits)
        runs.append(value + (runs[len(runs) - 2] if len(runs) > 2 else 0))
    flat, at = np.zeros(mask.size, bool), 0
    for n, r in enumerate(runs):
        flat[at:at + r] = n % 2
        at += r
    assert at == mask.size and (flat.reshape(mask.shape, order="F") == mask).all() and (rle_decode(coded, mask.shape) == mask).all()


def test_run_lengths_by_hand():
    assert rle_encode(np.ones((2, 2), bool)) == b"04" and rle_encode(np.zeros((2, 2), bool)) == b"4" and rle_encode(np.zeros((10, 100), bool)) == b"Xo0"
    for bad, why in ((b"0", "do not fill"), (b"5", "do not fill"), (b"T", "do not fill"), (b" ", "character"), (b"0N6", "do not fill")):
        with pytest.raises(ValueError, match=why): rle_decode(bad, (2, 2))


@given(hnp.arrays(np.int32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 6)), st.dictionaries(st.integers(0, 6), st.integers(0, 200), min_size=1))
@settings(max_examples=80, deadline=None)
def test_looking_up_by_runs_is_looking_up(packed, codes):
    ids, strange = translate(packed, codes)
    assert (ids == np.vectorize(lambda v: codes.get(v, IGNORE))(packed)).all() and strange == sorted(set(packed.ravel().tolist()) - set(codes))


def test_synthia_as_opencv_would_read_it(tmp_path):
    "The class is in the red channel of 16 bits; green has the instance; the file's high bytes are what 8-bit readers see."
    import struct, zlib
    label = np.random.default_rng(0).integers(0, 23, (5, 7)).astype(np.uint16)
    rows = np.stack([label, np.arange(35, dtype=np.uint16).reshape(5, 7) * 900, np.zeros_like(label)], -1).astype(">u2")
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 7, 5, 16, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + r.tobytes() for r in rows))) + chunk(b"IEND", b"")
    for part in ("RGB", "GT/LABELS"): (tmp_path/part).mkdir(parents=True)
    (tmp_path/"GT/LABELS/0000000.png").write_bytes(png)
    Image.fromarray(np.zeros((5, 7, 3), np.uint8)).save(tmp_path/"RGB/0000000.png")
    ds = SYNTHIA(tmp_path)
    assert (ds.ids(0) == label).all()
    known = {0: 255, 1: 10, 2: 2, 3: 0, 4: 1, 5: 4, 6: 8, 7: 5, 8: 13, 9: 7, 10: 11, 11: 18, 12: 17, 13: 255, 14: 255, 15: 6, 16: 9, 17: 12, 18: 14, 19: 15, 20: 16, 21: 3, 22: 255}
    assert (ds.label(0) == np.vectorize(known.get)(label)).all()


def test_polygons_as_cityscapes_paints_them(tmp_path):
    "Later over earlier; a group is its class; license plates and deleted objects are not painted; what nobody painted is unlabeled."
    pytest.importorskip("cityscapesscripts")
    from cityscapesscripts.helpers.annotation import Annotation
    from cityscapesscripts.preparation.json2labelImg import createLabelImage
    said = {"imgHeight": 20, "imgWidth": 40, "objects": [
        {"label": "sky", "polygon": [[0, 0], [39, 0], [39, 9], [0, 9]]}, {"label": "road", "polygon": [[0, 10], [39, 8], [45, 25], [-5, 22]]},
        {"label": "cargroup", "polygon": [[3, 5], [17, 6], [16, 14], [2, 13]]}, {"label": "license plate", "polygon": [[5, 8], [9, 8], [9, 10], [5, 10]]},
        {"label": "person", "polygon": [[20, 3], [24, 4], [22, 15]]}, {"label": "ego vehicle", "polygon": [[0, 18], [39, 18], [39, 19], [0, 19]]}]}
    (tmp_path/"a.json").write_text(json.dumps(said))
    theirs = Annotation()
    theirs.fromJsonFile(str(tmp_path/"a.json"))
    want = np.array(createLabelImage(theirs, "ids"))
    said["objects"].append({"label": "bus", "polygon": [[0, 0], [9, 0], [9, 9]], "deleted": 1})
    (tmp_path/"a.json").write_text(json.dumps(said))
    assert (Polygons().read(tmp_path/"a.json", taxonomy("cityscapes"), (20, 40)) == want).all()


def test_waymo_numbers_are_divided_by_a_thousand(tmp_path):
    Image.fromarray(np.array([[20000, 2007, 0, 28999]], np.uint16)).save(tmp_path/"a.png")
    assert Panoptic16().read(tmp_path/"a.png", taxonomy("waymo")).tolist() == [[20, 2, 0, 28]]
    Image.fromarray(np.array([[29000]], np.uint16)).save(tmp_path/"a.png")
    with pytest.raises(DataError, match="it has id 29, outside"): Panoptic16().read(tmp_path/"a.png", taxonomy("waymo"))


def test_rellis_numbers_that_its_table_lacks(tmp_path):
    Image.fromarray(np.array([[29, 30, 32, 3]], np.uint8)).save(tmp_path/"a.png")
    assert LAYOUTS["rellis3d"].files.labels.copy().popitem()[1].read(tmp_path/"a.png", taxonomy("rellis3d")).tolist() == [[3, 3, 6, 3]]


def test_unknown_colours(tmp_path):
    "An error as a rule; void in A2D2, whose prepare scripts do the same."
    Image.fromarray(np.array([[[1, 2, 3], [255, 0, 0]]], np.uint8)).save(tmp_path/"a.png")
    with pytest.raises(DataError, match="it has colour 1/2/3, outside the label space") as e: Colors().read(tmp_path/"a.png", taxonomy("a2d2"))
    assert e.value.kind == "ids outside the space"
    assert Colors(tolerant=True).read(tmp_path/"a.png", taxonomy("a2d2")).tolist() == [[IGNORE, 1]]


# ---- hostile label files

HARM = {"empty": b"", "html": b"<html>please log in</html>", "json": b'{"objects": 3}', "list": b"[]", "deep": b"[" * 100_000, "half": None}

@pytest.mark.parametrize("how", HARM)
@pytest.mark.parametrize("name", ENCODINGS)
def test_no_label_file_brings_anything_but_a_data_error(name, how, tmp_path):
    file, e = file_of(tmp_path, name), ENCODINGS[name]
    e.save(file, np.ones((6, 8), np.uint8), TABLE, "x.jpg")
    for f in ([file.parent/f"{n}.json" for n in ("object_ann", "surface_ann", "sample_data", "category")] if name == "rle" else [file, tmp_path/"about_coco.json"] if name == "coco" else [file]):
        good = f.read_bytes()
        f.write_bytes(good[:len(good) // 2] if how == "half" else HARM[how])
        try: ids = e.read(file, TABLE, (6, 8), "x.jpg")
        except DataError as error: assert (f.name in str(error) or name == "rle" and how == "list") and error.fix and len(str(error)) < 1000
        else: assert how == "list" and set(np.unique(ids)) <= {1, IGNORE}       # an empty nuImages table: nothing of it is painted
        f.write_bytes(good)
    assert (e.read(file, TABLE, (6, 8), "x.jpg") == 1).all()       # mended files are read again, whatever was cached


@pytest.mark.parametrize("change, message", [
    (dict(imgHeight=7), "it is for 7x8, its image is 6x8"), (dict(imgHeight=10**9, imgWidth=10**9), "it is for"),
    (dict(objects=[{"label": "unicorn", "polygon": [[0, 0], [1, 1], [0, 1]]}]), "the class 'unicorn'"),
    (dict(objects=[{"label": "road", "polygon": [[0, 0], [1e300, 1], [0, 1]]}]), "out of every picture"),
    (dict(imgHeight=float("inf")), "a.json: it is not the JSON it should be .OverflowError"), (dict(objects=[{"label": "road", "polygon": [[10**400, 0], [1, 1]]}]), "a.json: it is not the JSON it should be"),
    (dict(objects=[{"label": ["road"], "polygon": [[0, 0], [1, 1]]}]), r"a.json: it has the class .\['road'\]"), (dict(objects=[{"label": 5, "polygon": [[0, 0], [1, 1]]}]), "a.json: it has the class '5'"),
    (dict(objects=[{"label": "road", "polygon": [["a", 0]]}]), "not the JSON it should be"), (dict(objects=[{"label": "road", "polygon": [[0, float("nan")], [1, 1]]}]), "out of every picture")])
def test_polygons_that_are_wrong(tmp_path, change, message):
    (tmp_path/"a.json").write_text(json.dumps({"imgHeight": 6, "imgWidth": 8, "objects": []} | change))
    with pytest.raises(DataError, match=message): Polygons().read(tmp_path/"a.json", TABLE, (6, 8))


def test_a_polygon_file_cannot_ask_for_a_huge_canvas(tmp_path):
    (tmp_path/"a.json").write_text(json.dumps({"imgHeight": 10**6, "imgWidth": 10**6, "objects": []}))
    with pytest.raises(DataError, match="1000000x1000000"): Polygons().read(tmp_path/"a.json", TABLE)
    (tmp_path/"a.json").write_text(json.dumps({"imgHeight": -6, "imgWidth": -8, "objects": []}))
    with pytest.raises(DataError, match="-6x-8"): Polygons().read(tmp_path/"a.json", TABLE)


GOOD_MASK = {"size": [6, 8], "counts": b64encode(rle_encode(np.ones((6, 8), bool))).decode()}

@pytest.mark.parametrize("mask, message", [
    ({"counts": GOOD_MASK["counts"]}, "KeyError: 'size'"), ({"size": [6, 8]}, "KeyError: 'counts'"), ([1], "TypeError"), (GOOD_MASK | {"size": 6}, "TypeError"), (GOOD_MASK | {"size": [6]}, "ValueError"),
    (GOOD_MASK | {"counts": 5}, "TypeError"), (GOOD_MASK | {"counts": "é"}, "ValueError"), (GOOD_MASK | {"size": [6, 9]}, "a mask of x.jpg is 6x9, the image is 6x8")])
@pytest.mark.parametrize("part, category", [("object_ann", "road"), ("surface_ann", "flat.x")])
def test_masks_that_are_wrong(tmp_path, mask, message, part, category):
    "The error names the table that the mask is in, of the two that there are."
    Rle().save(tmp_path/"object_ann.json", np.zeros((6, 8), np.uint8), TABLE, "x.jpg")
    row = {"token": "t", "sample_data_token": "x.jpg", "category_token": category, "mask": mask}
    (tmp_path/f"{part}.json").write_text(json.dumps([row]))
    with pytest.raises(DataError, match=f"{part}.json: a mask of x.jpg .*{message}|{part}.json: {message}") as e: Rle().read(tmp_path/"object_ann.json", TABLE, (6, 8), "x.jpg")
    assert e.value.fix


def test_names_in_tables_that_are_no_names(tmp_path):
    for table, key in (("category", "name"), ("sample_data", "filename")):
        for bad in (5, ["x.jpg"], None):
            Rle().save(tmp_path/table/"object_ann.json", np.ones((6, 8), np.uint8), TABLE, "x.jpg")
            f = tmp_path/table/f"{table}.json"
            f.write_text(json.dumps([row | {key: bad} for row in json.loads(f.read_text())]))
            try: ids = Rle().read(tmp_path/table/"object_ann.json", TABLE, (6, 8), "x.jpg")
            except DataError as e: assert f"the category {str(bad)!r}" in str(e) and table == "category"
            else: assert table == "sample_data" and (ids == IGNORE).all()
            shutil.rmtree(tmp_path/table)


def test_a_linked_folder_of_labels_has_its_json_where_the_link_is(tmp_path):
    "`..` is the folder that the link lies in, not the one that it leads to."
    write_frames(World("city", n=1, size=SIZE), "coco", tmp_path/"coco", "val", kind=CocoPanoptic)
    (tmp_path/"big/disk").mkdir(parents=True)
    link = tmp_path/"coco/panoptic_val2017"
    shutil.move(link, tmp_path/"big/disk/labels")
    link.symlink_to(tmp_path/"big/disk/labels")
    assert check("coco", tmp_path/"coco", splits=["val"]).ok and Folder("coco", tmp_path/"coco", "val").label(0).shape == SIZE


def test_segments_and_their_file_must_agree(tmp_path):
    e, file = ENCODINGS["coco"], tmp_path/"coco"/"a.png"
    e.save(file, np.ones((4, 4), np.uint8), TABLE)
    about = json.loads((tmp_path/"about_coco.json").read_text())
    def tell(annotations): (tmp_path/"about_coco.json").write_text(json.dumps({"annotations": annotations}))
    tell([])
    with pytest.raises(DataError, match="about_coco.json says nothing about it"): e.read(file, TABLE)
    tell([about["annotations"][0] | {"segments_info": []}])
    with pytest.raises(DataError, match="a.png: it has segment"): e.read(file, TABLE)
    tell([about["annotations"][0] | {"segments_info": [about["annotations"][0]["segments_info"][0] | {"category_id": 77}]}])
    with pytest.raises(DataError, match="category_id 77 in a.png"): e.read(file, TABLE)


def test_tables_that_lead_out_of_the_root(tmp_path):
    write_frames(World("city", n=1, size=SIZE), "nuimages", tmp_path, "val")
    f = tmp_path/"v1.0-val/sample_data.json"
    f.write_text(f.read_text().replace("samples/", "../samples/"))
    with pytest.raises(DataError, match="leads out of the root"): Folder("nuimages", tmp_path, "val")
    for bad in (5, None, ["a.jpg"]):
        f.write_text(json.dumps([{"token": "t", "filename": bad, "is_key_frame": True}]))
        with pytest.raises(DataError) as e: Folder("nuimages", tmp_path, "val")
        assert f"{f}: the filename {bad!r} is no path" in str(e.value)


# ---- tables of classes

def test_tables_are_package_data_with_sources():
    assert {l.classes for l in LAYOUTS.values() if isinstance(l.classes, str)} <= set(taxonomies())
    for name in taxonomies():
        t = taxonomy(name)
        assert t.source and all(-1 <= r["id"] <= 255 for r in t.classes) and len(t.view().space) > 2
        for row in t.classes: assert t.codes("name")[row["name"]] == row["id"] % 256, (name, row)


@pytest.mark.parametrize("name", taxonomies())
def test_tables_round_trip(name):
    "Label to id and back, name to id and back, and the whole table through a file."
    t = taxonomy(name)
    view, names = t.view(), t.codes("name")
    first = {int(label): i for i, label in reversed(list(enumerate(view.table))) if label != IGNORE}
    assert sorted(first) == list(range(len(view.space)))
    assert (look_up(view.table, np.array([first[k] for k in range(len(view.space))], np.uint8)) == np.arange(len(view.space))).all()
    for label, i in first.items():
        row = next(r for r in t.classes if r["id"] % 256 == i)
        assert row.get("merged_class", row["name"]) in view.space.classes[label] and names[row["name"]] == i
        if row.get("color"): assert view.space.colors[label] == tuple(row["color"])
    d = json.loads(json.dumps(dataclasses.asdict(t)))
    again = Taxonomy(**{**d, "classes": tuple(d["classes"])})
    assert again.classes == t.classes and again.view().space == view.space and (again.view().table == view.table).all() and again.codes("color") == t.codes("color")

@pytest.mark.parametrize("name", label_maps())
def test_maps_round_trip(name):
    m = label_map(name)
    allowed = json.loads(json.dumps(m.allowed))
    assert LabelMap(m.source, m.target, {k: tuple(v) for k, v in allowed.items()}, m.void) == m == LabelMap.from_mask(m.source, m.target, m.mask)


def test_universal_tables_say_nothing_about_classes_that_are_not_in_them():
    "The two taxonomies that others made for all datasets at once."
    table = json.loads((TABLES/"mappings/bevandic_universal.json").read_text())
    for name, d in table["datasets"].items():
        assert set(d["mapping"]) == set(d["class_to_index"]) and all(d["mapping"].values()) and {u for us in d["mapping"].values() for u in us} <= set(table["universal"]), name
    rows = json.loads((TABLES/"mappings/mseg_universal.json").read_text())["classes"]
    assert [r["id"] for r in rows] == list(range(195))
    for column, ours in (("coco-panoptic-133", "coco_panoptic133"), ("idd-39", "idd"), ("cityscapes-34", "cityscapes"), ("cityscapes-19", "cityscapes"), ("bdd", "bdd100k_semseg19"), ("camvid-11", "camvid32")):
        assert {n for r in rows for n in r[column]} <= set(taxonomy(ours).codes("name")), column


def test_spaces_read_from_tables_are_ours():
    assert taxonomy("cityscapes19").view().space.classes == CITYSCAPES_19.classes and taxonomy("cityscapes19").view().space.colors == CITYSCAPES_19.colors
    for name in ("cityscapes", "gta5", "acdc", "dark_zurich", "kitti_semantics"): assert (taxonomy(name).view(CITYSCAPES_19, "trainId").table == CITYSCAPES_IDS).all()
    assert Taxonomy.of(CAMVID_11).view().space.classes == CAMVID_11.classes


# ---- class counts: threads, kept, counted again where files changed

def test_class_counts_are_kept_and_only_changed_labels_are_opened_again(tmp_path):
    World("city", n=6, size=SIZE).export("cityscapes", tmp_path)
    class Watched(Cityscapes):
        def __init__(self, *args):
            super().__init__(*args)
            self.opened, self.lock = [], threading.Lock()
        def label(self, i):
            with self.lock: self.opened.append(i)
            return super().label(i)
    def counted(make=lambda d: d):
        ds = Watched(tmp_path, "train")
        return class_counts(make(ds), tmp_path/"counts.npz", workers=3), sorted(ds.opened)
    first, opened = counted()
    assert opened == list(range(6)) and (first == [np.bincount(World("city", n=6, size=SIZE).label(i).ravel(), minlength=256)[:19] for i in range(6)]).all()
    again, opened = counted()
    assert opened == [] and (again == first).all()
    file = Cityscapes(tmp_path, "train").label_files[4][0]
    Image.fromarray(np.full(SIZE, 7, np.uint8)).save(file)
    changed, opened = counted()
    assert opened == [4] and changed[4].tolist() == [32 * 64] + [0] * 18 and (np.delete(changed, 4, 0) == np.delete(first, 4, 0)).all()
    assert counted(lambda d: Subset(d, [5, 2]))[1] == []
    mapped, opened = counted(lambda d: Mapped(d, CITYSCAPES_19_TO_16))
    assert opened == list(range(6)) and mapped.shape == (6, 16)
    for garbage in (b"", b"PK garbage", b"x" * 1000):
        (tmp_path/"counts.npz").write_bytes(garbage)
        assert counted()[1] == list(range(6))


def test_stamps_go_through_wrappers_but_not_to_unlabelled_frames(tmp_path):
    World("city", n=2, size=SIZE).export("cityscapes", tmp_path)
    ds = Cityscapes(tmp_path, "train")
    assert Subset(ds, [1]).stamp(0) == Resized(ds, (16, 16)).stamp(1) == ds.stamp(1) != Mapped(ds, CITYSCAPES_19_TO_16).stamp(1)
    assert not hasattr(Unlabelled(ds), "stamp") and not hasattr(InMemory(ds), "stamp")


@pytest.mark.parametrize("name, kind, other", [("coco", CocoPanoptic, "*.json"), ("wilddash2", CocoPanoptic, "*.json"), ("nuimages", Rle, "surface_ann.json")])
def test_stamps_change_with_the_file_beside_the_label(name, kind, other, tmp_path):
    split = next(iter(layouts()[name].splits))
    write_frames(World("city", n=2, size=SIZE), name, tmp_path, split, kind=kind)
    before = Folder(name, tmp_path, split).stamp(0)
    assert Folder(name, tmp_path, split).stamp(0) == before
    for f in tmp_path.rglob(other): f.write_text(f.read_text() + " ")
    assert Folder(name, tmp_path, split).stamp(0) != before

def test_rare_classes_on_disk_use_the_kept_counts(tmp_path):
    World("city", n=6, size=SIZE).export("cityscapes", tmp_path)
    sampler = RareClass(.1, 4, 1, cache=str(tmp_path/"counts.npz"))
    a, b = (next(Stream(Cityscapes(tmp_path, "train"), 4, crop=(16, 16), sampler=sampler)) for _ in range(2))
    assert a["keys"] == b["keys"] and (a["label"] == b["label"]).all() and (tmp_path/"counts.npz").exists()


# ---- the doctor

def edit(file, change): file.write_text(json.dumps(change(json.loads(file.read_text()))))

def with_first(rows, **changes): return [rows[0] | changes, *rows[1:]]

BAD_LABELS = {   # layout, encoding, the file to change, the change, how many of three frames it spoils
    "huge image": ("cityscapes", Polygons, "*_polygons.json", lambda d: d | {"imgHeight": float("inf")}, 1),
    "huge coordinate": ("cityscapes", Polygons, "*_polygons.json", lambda d: d | {"objects": [{"label": "road", "polygon": [[10**400, 0], [1, 1]]}]}, 1),
    "list as label": ("cityscapes", Polygons, "*_polygons.json", lambda d: d | {"objects": [{"label": ["road"], "polygon": []}]}, 1),
    "number as label": ("cityscapes", Polygons, "*_polygons.json", lambda d: d | {"objects": [{"label": 5, "polygon": []}]}, 1),
    "huge segment": ("coco", CocoPanoptic, "panoptic_val2017.json", lambda d: {"annotations": with_first(d["annotations"], segments_info=[{"id": float("inf"), "category_id": 1}])}, 3),
    "folder as json": ("coco", CocoPanoptic, "panoptic_val2017.json", None, 3),
    "mask without size": ("nuimages", Rle, "object_ann.json", lambda d: with_first(d, mask={"counts": ""}), 1),
    "mask without counts": ("nuimages", Rle, "surface_ann.json", lambda d: with_first(d, mask={"size": list(SIZE)}), 1),
    "list as mask": ("nuimages", Rle, "object_ann.json", lambda d: with_first(d, mask=[1]), 1),
    "number as size": ("nuimages", Rle, "object_ann.json", lambda d: with_first(d, mask={"size": 6, "counts": ""}), 1)}

@pytest.mark.parametrize("how", BAD_LABELS)
def test_the_doctor_goes_on_after_a_bad_label(how, tmp_path):
    name, kind, wanted, change, spoilt = BAD_LABELS[how]
    write_frames(World("city", n=3, size=SIZE, split="val"), name, tmp_path, "val", kind=kind)
    file = sorted(tmp_path.rglob(wanted))[0]
    if change: edit(file, change)
    else:
        file.unlink()
        file.mkdir()
    report = check(name, tmp_path, splits=["val"])
    assert [p.where for p in report.problems] == [str(file)] * spoilt and len(report.clean) == 3 - spoilt
    assert all(p.what and p.fix for p in report.problems)


def test_the_doctor_goes_on_after_a_bad_table_of_images(tmp_path):
    for split in ("train", "val"): write_frames(World("city", n=2, size=SIZE, split=split), "nuimages", tmp_path, split)
    edit(tmp_path/"v1.0-train/sample_data.json", lambda rows: with_first(rows, filename=5))
    report = check("nuimages", tmp_path, splits=["train", "val"])
    assert [p.where for p in report.problems] == [str(tmp_path/"v1.0-train/sample_data.json")] and "the filename 5" in str(report) and len(report.clean) == 2


class Broken(Bytes):
    "An encoding of somebody else's, with a bug."
    def read(self, file, *_): raise ZeroDivisionError(f"in {Path(file).name}")

class Unreadable(Tree):
    "A description of somebody else's, of a split on a disk that fails."
    def samples(self, root, split, where=None): raise OSError(5, "Input/output error", str(root/self.place(split)))

def test_whatever_a_reader_raises_the_doctor_goes_on(tmp_path):
    World("city", n=2, size=SIZE).export("gta5", tmp_path)
    frames = LAYOUTS["gta5"].files
    broken = dataclasses.replace(LAYOUTS["gta5"], files=Tree(frames.image, {t: Broken() for t in frames.labels}))
    report = check(broken, tmp_path)
    assert [Path(p.where).parent.name for p in report.problems] == ["labels", "labels"] and "it cannot be read (ZeroDivisionError: in " in str(report)
    report = check(dataclasses.replace(broken, files=(Unreadable(frames.image, {}, only=("train",)), frames), splits={"train": 2, "val": 2}), tmp_path)
    assert [p.kind for p in report.problems] == ["unreadable"] and "Input/output error" in str(report) and report.frames == {"val": 2} and len(report.clean) == 2


def test_clean_frames_are_written_and_read(tmp_path):
    World("city", n=4, size=SIZE).export("gta5", tmp_path/"gta5")
    files = sorted((tmp_path/"gta5").rglob("*.png"))
    files[0].write_bytes(b"")                                                                     # an image
    Image.open(files[6]).crop((0, 0, 60, 32)).save(files[6])                                      # a label of another size
    report = check("gta5", tmp_path/"gta5")
    assert not report.ok and len(report.clean) == 2
    report.write_list(tmp_path/"good.txt")
    ds = Folder("gta5", tmp_path/"gta5", "train", keep=tmp_path/"good.txt")
    assert [s.image for s in ds.samples] == report.clean and all(ds.label(i).shape == SIZE for i in range(2))
    (tmp_path/"good.txt").write_text("nothing\n")
    with pytest.raises(DataError, match="names no frame of gta5/train"): Folder("gta5", tmp_path/"gta5", "train", keep=tmp_path/"good.txt")


def test_sizes_may_vary_where_they_do(tmp_path):
    for name, ok in (("mapillary", True), ("bdd100k", False)):
        for k, size in enumerate(((32, 64), (40, 64), (32, 64))): write_frames(World("city", n=1, size=size, seed=k), name, tmp_path/name, "train", seed=k)
        assert check(name, tmp_path/name).ok == ok


def test_check_from_the_command_line(tmp_path, capsys):
    from kdda.cli import main
    World("city", n=3, size=SIZE, split="val").export("cityscapes", tmp_path/"c", split="val")
    assert main(["check", "cityscapes", str(tmp_path/"c"), "--picture", str(tmp_path/"bars.png"), "--fix-list", str(tmp_path/"good.txt"), "--split", "val"]) == 0
    assert Image.open(tmp_path/"bars.png").size[0] > 300 and len((tmp_path/"good.txt").read_text().splitlines()) == 3
    next((tmp_path/"c").rglob("*leftImg8bit.png")).write_bytes(b"x")
    assert main(["check", "cityscapes", str(tmp_path/"c")]) == 1
    said = capsys.readouterr().out
    assert "not an image: 1" in said and "3 of 3 frames have no problem" in said and "3 of 500 published images" in said
    assert main(["check", "citiscapes", str(tmp_path)]) == 2 and main(["check", "cityscapes", str(tmp_path/"c"), "--split", "dusk"]) == 2
    said = capsys.readouterr().err
    assert "no dataset called 'citiscapes'" in said and "no split 'dusk'" in said
    assert main(["check", "kitti", str(tmp_path/"nowhere")]) == 1


def test_recalled_numbers_are_said_to_be(tmp_path):
    World("game", n=1, size=SIZE).export("gta5", tmp_path)
    assert "1 of 24966 published images (as we recall)" in str(check("gta5", tmp_path))
    shutil.rmtree(tmp_path/"images")
    assert "no split of gta5 is in it; looked for images" in str(check("gta5", tmp_path))


def test_writing_needs_a_split_that_the_layout_has(tmp_path):
    with pytest.raises(ValueError, match="gta5 has no split 'val' to write; it has train"): World("city", n=1, size=SIZE, split="val").export("gta5", tmp_path)
    with pytest.raises(ValueError, match="no split 'all'"): write_frames(World("city", n=1, size=SIZE), "camvid32", tmp_path, "all", package=0)
    World("city", n=1, size=SIZE).export("camvid32", tmp_path, split="all")
    assert (tmp_path/"701_StillsRaw_full").is_dir() and len(Folder("camvid32", tmp_path, "all")) == 1


def test_frames_of_a_list_cannot_be_chosen_by_a_field(tmp_path):
    World("city", n=1, size=SIZE).export("rellis3d", tmp_path)
    with pytest.raises(ValueError, match="names its frames in Rellis_3D_image_split/train.lst: there is no sequence"): Folder("rellis3d", tmp_path, "train", sequence="00000")


def test_the_bar_counts_to_the_end(tmp_path, capsys):
    World("city", n=3, size=SIZE).export("bdd100k", tmp_path)
    assert check("bdd100k", tmp_path, progress=True).ok and "100.00% [3/3" in capsys.readouterr().out


def test_what_a_killed_process_left_is_not_a_frame(tmp_path):
    World("city", n=2, size=SIZE).export("cityscapes", tmp_path)
    for f in list(tmp_path.rglob("*.png")): f.with_name(f".4711.part.{f.name}").write_bytes(f.read_bytes()[:100])
    (tmp_path/"leftImg8bit/train/._city").mkdir()
    (tmp_path/"leftImg8bit/train/._city/._x_leftImg8bit.png").write_bytes(b"\0\5\x16\7")
    assert len(Cityscapes(tmp_path, "train")) == 2 and check("cityscapes", tmp_path).ok


def test_large_tables_are_parsed_by_one_thread(tmp_path, monkeypatch):
    import kdda.data.datasets as datasets
    write_frames(World("city", n=8, size=SIZE), "coco", tmp_path, "train", kind=CocoPanoptic)
    real, parsed = datasets.read_json, []
    monkeypatch.setattr(datasets, "read_json", lambda *a: (parsed.append(a[0].name), real(*a))[1])
    assert check("coco", tmp_path, workers=8).ok and parsed == ["panoptic_train2017.json"]
