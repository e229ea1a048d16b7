"""Label spaces and maps: against the official Cityscapes tables, the laws of composition, hostile input."""
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kdda.data.labels import (
    CAMVID_11,
    CITYSCAPES_13,
    CITYSCAPES_16,
    CITYSCAPES_16_TO_13,
    CITYSCAPES_19,
    CITYSCAPES_19_TO_16,
    CITYSCAPES_19_TO_CAMVID_11,
    CITYSCAPES_IDS,
    IGNORE,
    LabelMap,
    LabelSpace,
    look_up,
    show_labels,
    taxonomies,
    taxonomy,
)

MAPS = (CITYSCAPES_19_TO_16, CITYSCAPES_16_TO_13, CITYSCAPES_19_TO_CAMVID_11)


def space(n, name=None):
    return LabelSpace(name or f"space_{n}", [f"c{i}" for i in range(n)], [(i, i, i) for i in range(n)])


@st.composite
def chains(draw, length, single=False, most=6):
    "Maps that can follow each other, between spaces of random sizes."
    sizes = [draw(st.integers(1, most)) for _ in range(length + 1)]
    def allowed(a, b):
        row = st.sets(st.integers(0, b - 1), max_size=1 if single else b)
        return {f"c{i}": [f"c{j}" for j in draw(row)] for i in range(a)}
    return [LabelMap(space(a), space(b), allowed(a, b)) for a, b in zip(sizes, sizes[1:])]


labels = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9))


# ---- the published tables

def test_cityscapes_is_the_official_table():
    official = pytest.importorskip("cityscapesscripts.helpers.labels").labels
    scored = {c.trainId: c for c in official if 0 <= c.trainId < IGNORE}
    assert CITYSCAPES_19.classes == tuple(scored[i].name for i in range(19))
    assert CITYSCAPES_19.colors == tuple(scored[i].color for i in range(19))
    table = np.full(256, IGNORE)
    for c in official: table[c.id % 256] = c.trainId % 256   # -1, the license plate, is 255 in a byte
    assert (CITYSCAPES_IDS == table).all()


def test_protocol_subsets_are_the_published_train_ids():
    kept = lambda s: [CITYSCAPES_19.index(c) for c in s.classes]
    assert kept(CITYSCAPES_16) == [*range(9), *range(10, 14), 15, 17, 18]
    assert kept(CITYSCAPES_13) == [0, 1, 2, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18]
    for s in (CITYSCAPES_16, CITYSCAPES_13):
        assert all(s.colors[s.index(c)] == CITYSCAPES_19.colors[CITYSCAPES_19.index(c)] for c in s.classes)


def test_camvid_order_is_that_of_the_files():
    assert CAMVID_11.classes == ("sky", "building", "pole", "road", "pavement", "tree", "sign_symbol", "fence", "car",
                                 "pedestrian", "bicyclist")


def test_camvid_map_leaves_nothing_out_and_reaches_everything():
    assert CITYSCAPES_19_TO_CAMVID_11.is_total and CITYSCAPES_19_TO_CAMVID_11.is_single_valued
    assert CITYSCAPES_19_TO_CAMVID_11.mask.any(0).all()


def test_shared_tables_cannot_be_changed_by_accident():
    with pytest.raises(ValueError): CITYSCAPES_IDS[7] = 3


# ---- look-up tables

@given(labels, st.integers(0, 2**32 - 1))
def test_look_up_is_indexing(label, seed):
    table = np.random.default_rng(seed).integers(0, 256, 256, dtype=np.uint8)
    out = look_up(table, label)
    assert out.dtype == np.uint8 and out.shape == label.shape and (out == table[label]).all()
    assert out.flags.writeable and not np.shares_memory(out, label)


@given(hnp.arrays(np.uint8, (6, 8)), st.integers(1, 3), st.integers(-3, -1))
def test_look_up_of_views(label, a, b):
    view = label[::a, ::b].T
    assert (look_up(CITYSCAPES_IDS, view) == CITYSCAPES_IDS[view]).all()


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint16, bool, float])
def test_labels_of_another_type_are_refused(dtype):
    label = np.zeros((2, 2), dtype)
    for f in (lambda: look_up(CITYSCAPES_IDS, label), lambda: CITYSCAPES_19.check(label, "a.png")):
        with pytest.raises(ValueError, match="must be uint8"): f()


# ---- laws

@given(chains(3))
def test_composition_is_associative(maps):
    a, b, c = maps
    assert a.then(b).then(c) == a.then(b.then(c))


@given(chains(1))
def test_identity_is_neutral(maps):
    (m,) = maps
    assert LabelMap.identity(m.source).then(m) == m == m.then(LabelMap.identity(m.target))


@given(chains(2))
def test_composition_is_that_of_sets(maps):
    a, b = maps
    naive = {s: {u for t in a.allowed[s] for u in b.allowed[t]} for s in a.source.classes}
    assert {s: set(t) for s, t in a.then(b).allowed.items()} == naive


@given(chains(2, single=True), labels)
def test_applying_a_composition_is_applying_twice(maps, label):
    a, b = maps
    assert a.then(b).is_single_valued
    assert (a.then(b).apply(label) == b.apply(a.apply(label))).all()


@given(chains(2))
def test_totality_survives_composition(maps):
    a, b = maps
    if a.is_total and b.is_total: assert a.then(b).is_total
    if a.then(b).is_total: assert a.is_total


@given(chains(1))
def test_mask_holds_all_of_a_map(maps):
    (m,) = maps
    assert m.mask.shape == (len(m.source), len(m.target)) and m.mask.dtype == bool
    assert LabelMap.from_mask(m.source, m.target, m.mask) == m
    assert m.is_total == m.mask.any(1).all() and m.is_single_valued == (m.mask.sum(1) <= 1).all()


@given(chains(1, single=True))
def test_table_agrees_with_the_sets(maps):
    (m,) = maps
    table = m.lut()
    for i, s in enumerate(m.source.classes):
        assert (table[i] == IGNORE) if not m.allowed[s] else (m.target.classes[table[i]],) == m.allowed[s]
    assert (table[len(m.source):] == IGNORE).all()
    assert (m.target.check(m.apply(np.arange(256, dtype=np.uint8))) == table).all()   # nothing outside the target


@given(chains(1))
def test_a_split_class_is_named(maps):
    (m,) = maps
    split = [s for s, t in m.allowed.items() if len(t) > 1]
    if split:
        with pytest.raises(ValueError) as e: m.lut()
        assert f" {', '.join(split)};" in str(e.value)
    else: assert m.is_single_valued and m.lut().shape == (256,)


def test_the_order_in_which_a_map_is_written_does_not_matter():
    a, b = space(2), space(3)
    assert LabelMap(a, b, {"c0": ("c2", "c0"), "c1": "c1"}) == LabelMap(a, b, {"c1": ["c1"], "c0": ["c0", "c2", "c2"]})


def test_chain_of_the_protocols():
    assert CITYSCAPES_19_TO_16.then(CITYSCAPES_16_TO_13) == LabelMap.by_name(CITYSCAPES_19, CITYSCAPES_13)


@pytest.mark.parametrize("m", MAPS, ids=str)
def test_maps_and_spaces_pickle_and_hash(m):
    again = pickle.loads(pickle.dumps(m))
    assert again == m and hash(again) == hash(m) and {m: 1}[again] == 1


# ---- checks, colours, reports

@settings(deadline=None)
@given(labels)
def test_check_finds_exactly_the_labels_outside(label):
    bad = sorted({int(v) for v in label.ravel()} - set(range(19)) - {IGNORE})
    if not bad:
        assert CITYSCAPES_19.check(label, "frame.png") is label
        return
    with pytest.raises(ValueError) as e: CITYSCAPES_19.check(label, "frame.png")
    assert str(e.value).startswith("frame.png: label id") and str(bad[0]) in str(e.value)


def test_colorize_keeps_shape_and_blackens_the_unknown():
    label = np.array([[[0, 18], [IGNORE, 77]]], np.uint8)
    rgb = CITYSCAPES_19.colorize(label)
    assert rgb.shape == (1, 2, 2, 3) and rgb.dtype == np.uint8
    assert rgb[0].tolist() == [[[128, 64, 128], [119, 11, 32]], [[0, 0, 0], [0, 0, 0]]]


@pytest.mark.parametrize("kw, said", [
    (dict(classes=["a", "a"], colors=[(0, 0, 0)] * 2), "class a named more than once"),
    (dict(classes=["a"], colors=[]), "1 classes but 0 colors"),
    (dict(classes=[], colors=[]), "0 classes"),
    (dict(classes=[f"c{i}" for i in range(256)], colors=[(0, 0, 0)] * 256), "256 classes"),
    (dict(classes=["a"], colors=[(0, 0, 0)], things=["b"]), "no class 'b'"),
])
def test_spaces_that_make_no_sense(kw, said):
    with pytest.raises(ValueError, match=f"mine.*{said}"): LabelSpace("mine", **kw)


@pytest.mark.parametrize("allowed, said", [
    ({"c0": "c0"}, "class c1; name target classes, or \\(\\) for void"),
    ({"c0": "c0", "c1": "zebra"}, "no class 'zebra'"),
    ({"c0": "c0", "c1": (), "zebra": "c0"}, "no class 'zebra'"),
])
def test_maps_that_forget_or_invent(allowed, said):
    with pytest.raises(ValueError, match=said): LabelMap(space(2), space(3), allowed)


def test_maps_that_do_not_meet():
    with pytest.raises(ValueError, match="camvid_11 is not cityscapes_16"):
        CITYSCAPES_19_TO_CAMVID_11.then(CITYSCAPES_16_TO_13)


def test_report_names_every_loss_and_merge():
    m = LabelMap(space(3), space(4), {"c0": ("c0", "c1"), "c1": ("c1",), "c2": ()})
    lines = [line.split() for line in m.report().splitlines()[1:]]
    assert lines == ["split c0 -> c0 | c1".split(), "merged c0 + c1 -> c1".split(), ["lost", "c2"], "unreached c2; c3".split()]


def test_show_labels_names_what_is_there():
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    ax = show_labels(np.array([[0, 13, IGNORE]], np.uint8), CITYSCAPES_19, image=np.zeros((1, 3, 3), np.uint8),
                     ax=plt.figure().gca())
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["road", "car", "void"]
    plt.close("all")


# ---- published tables

def test_rows_of_one_value_are_one_class():
    view = taxonomy("idd").view("idd_26", "level3Id")
    assert len(view.space) == 26 and view.space.classes[:2] == ("road", "parking+drivable fallback") and view.space.colors[0] == (128, 64, 128)
    assert view.table[[0, 1, 2, 35]].tolist() == [0, 1, 1, IGNORE]
    assert taxonomy("a2d2").view(void=("Car 1",)).space.classes[0] == "Bicycle"


def test_void_classes_leave_no_gap():
    whole, without = taxonomy("goose").view(), taxonomy("goose").view(void=("undefined", "snow"))
    assert len(whole.space) == 64 and len(without.space) == 62 and without.table[[0, 1, 2, 3]].tolist() == [IGNORE, 0, IGNORE, 1]
    for i in range(3, 64): assert without.space.classes[without.table[i]] == whole.space.classes[i]


def test_of_several_targets_the_first_class_counts():
    rows = {r["name"]: r for r in taxonomy("goose").classes}
    view = taxonomy("goose").view(taxonomy("lsu_offroad34").view().space, "lsu_offroad")
    assert view.space.classes[view.table[rows["caravan"]["id"]]] == "caravan" and 255 in rows["caravan"]["lsu_offroad"]
    assert view.table[rows["wire"]["id"]] == IGNORE and len(view.space) == 34


def test_classes_without_a_colour_get_one_each():
    space = taxonomy("apolloscape").view("a", "apollo_trainId").space
    assert len(set(space.colors)) == len(space) == 22


def test_tables_by_name():
    assert {"cityscapes", "goose", "coco_panoptic133"} <= set(taxonomies())
    with pytest.raises(ValueError, match="no table called 'citiscapes'; there are a2d2, acdc"): taxonomy("citiscapes")
    assert taxonomy("cityscapes") is taxonomy("cityscapes") and "cityscapesScripts" in taxonomy("cityscapes").source
