"""Label spaces and maps: against the official Cityscapes tables, the laws of composition, hostile input."""
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import kdda.data.labels as labels_module
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
    label_map,
    label_maps,
    look_up,
    show_labels,
    show_map,
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
    def row(b): return draw(st.sets(st.sampled_from([None, *(f"c{j}" for j in range(b))]), max_size=1 if single else b + 1))
    return [LabelMap(space(a), space(b), {f"c{i}": row(b) for i in range(a)}, row(b)) for a, b in zip(sizes, sizes[1:])]


def as_sets(m):
    "{class, or None for void: its set, None for void}"
    return {s: set(row) or {None} for s, row in {**m.allowed, None: m.void}.items()}


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
    a, b = map(as_sets, maps)
    assert as_sets(maps[0].then(maps[1])) == {s: {u for t in row for u in b[t]} for s, row in a.items()}


@given(chains(1))
def test_the_pull_back_turns_every_pair_round(maps):
    (m,) = maps
    pairs = {(s, t) for s, row in as_sets(m).items() for t in row}
    back = as_sets(m.inverse())
    assert {(t, s) for t, row in back.items() for s in row} == {(t, s) for s, t in pairs} | {(t, None) for t in back if t not in {v for _, v in pairs}}
    if m.mask.any(0).all(): assert m.inverse().inverse() == m


@given(chains(2))
def test_pull_backs_of_chains(maps):
    a, b = maps
    if a.mask.any(0).all() and b.mask.any(0).all(): assert a.then(b).inverse() == b.inverse().then(a.inverse())


@given(chains(2), st.data())
def test_union_and_composition_distribute(maps, data):
    a, b = maps
    other = LabelMap.from_mask(a.source, a.target, np.array(data.draw(st.lists(st.lists(st.booleans(), min_size=len(a.target) + 1, max_size=len(a.target) + 1), min_size=len(a.source) + 1, max_size=len(a.source) + 1))))
    assert (a | other) == (other | a) and (a | a) == a and (a | other).then(b) == (a.then(b) | other.then(b))
    assert as_sets(a | other) == {s: row | as_sets(other)[s] for s, row in as_sets(a).items()}
    with pytest.raises(ValueError, match="no union"): a | LabelMap(space(7, "x"), a.target, {f"c{i}": () for i in range(7)})


@given(chains(1), st.data())
def test_restriction_drops_classes_and_nothing_else(maps, data):
    (m,) = maps
    pick = lambda s: s.only("part", data.draw(st.lists(st.sampled_from(s.classes), min_size=1, unique=True)))
    source, target = pick(m.source), pick(m.target)
    got = as_sets(m.restrict(source, target))
    assert got == {s: {t if t in target.classes else None for t in row} for s, row in as_sets(m).items() if s in source.classes or s is None}


@given(chains(1), st.integers(0, 2**32 - 1))
def test_what_is_certain_and_what_is_chosen(maps, seed):
    (m,) = maps
    weight = np.random.default_rng(seed).random(len(m.target))
    assert as_sets(m.certain()) == {s: row if len(row) == 1 else {None} for s, row in as_sets(m).items()}
    for s, (got,) in as_sets(m.choose(weight)).items():
        classes = [t for t in as_sets(m)[s] if t and s]
        assert got == (max(classes, key=lambda t: weight[m.target.index(t)]) if classes else None)


@given(chains(1, single=True))
def test_the_truth_is_never_ruled_out(maps):
    (m,) = maps
    truth = np.array([*range(len(m.source)), IGNORE], np.uint8)
    allowed = m.inverse().sets()[m.apply(truth)]
    assert allowed[np.arange(len(truth)), np.minimum(truth, len(m.source))].all()


def test_spaces_unite_by_name():
    both = CITYSCAPES_13 | CAMVID_11
    assert both.classes == (*CITYSCAPES_13.classes, "pole", "pavement", "tree", "sign_symbol", "fence", "pedestrian", "bicyclist")
    assert all(both.colors[both.index(c)] == s.colors[s.index(c)] for s in (CAMVID_11, CITYSCAPES_13) for c in s.classes if s is CITYSCAPES_13 or c not in CITYSCAPES_13.classes)
    assert both.things == (*CITYSCAPES_13.things, "sign_symbol", "pedestrian", "bicyclist")


@given(chains(2, single=True), labels)
def test_applying_a_composition_is_applying_twice(maps, label):
    a, b = maps
    assert a.then(b).is_single_valued
    label = np.where(label < len(a.source), label, IGNORE).astype(np.uint8)
    assert (a.then(b).apply(label) == b.apply(a.apply(label))).all()


@given(chains(2))
def test_totality_survives_composition(maps):
    a, b = maps
    if a.is_total and b.is_total: assert a.then(b).is_total
    if a.then(b).is_total and not b.void: assert a.is_total


@given(chains(1))
def test_mask_holds_all_of_a_map(maps):
    (m,) = maps
    assert m.mask.shape == (len(m.source) + 1, len(m.target) + 1) and m.mask.dtype == bool and m.mask.any(1).all()
    assert LabelMap.from_mask(m.source, m.target, m.mask) == m
    assert m.is_total == (not m.mask[:-1, -1].any()) and m.is_single_valued == (m.mask.sum(1) == 1).all()
    assert (m.sets()[:len(m.source)] == m.mask[:-1]).all() and (m.sets()[IGNORE] == m.mask[-1]).all()
    assert m.sets()[len(m.source):IGNORE, -1].all() and not m.sets()[len(m.source):IGNORE, :-1].any()


@given(chains(1, single=True))
def test_table_agrees_with_the_sets(maps):
    (m,) = maps
    table = m.lut()
    for i, row in zip([*range(len(m.source)), IGNORE], [*m.allowed.values(), m.void]): assert ((m.target.classes[table[i]],) if table[i] != IGNORE else ()) == row
    assert (table[len(m.source):IGNORE] == IGNORE).all()
    assert (m.target.check(m.apply(np.arange(256, dtype=np.uint8))) == table).all()   # nothing outside the target


@given(chains(1))
def test_a_split_class_is_named(maps):
    (m,) = maps
    split = [s or "void" for s, t in as_sets(m).items() if len(t) > 1]
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
    m = LabelMap(space(1), space(2), {"c0": ("c0", None)}, void=("c1", None))
    assert [line.split() for line in m.report().splitlines()[1:]] == ["split c0 -> c0 | void".split(), "filled void -> c1 | void".split()]


def test_show_labels_names_what_is_there():
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    ax = show_labels(np.array([[0, 13, IGNORE]], np.uint8), CITYSCAPES_19, image=np.zeros((1, 3, 3), np.uint8),
                     ax=plt.figure().gca())
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["road", "car", "void"]
    plt.close("all")


# ---- published maps

SHAPES = """a2d2 39  17/12/10  11/22/6  -
apolloscape 36  18/13/5  22/13/1  -
bdd 20  19/0/1  8/12/0  -
camvid 32  19/8/5  14/16/2  -
cityscapes 35  19/0/16  21/11/3  22/7/6
coco 134  21/17/96  31/26/77  37/15/82
freiburg_forest 6  -  -  2/4/0
god 18  -  -  9/6/3
goose2d 64  35/9/20  34/21/9  44/2/18
idd 42  18/9/15  21/17/4  -
kitti 35  19/0/16  21/11/3  -
mapillary_vistas 66  27/8/31  63/0/3  39/10/17
nuimages 26  11/7/8  14/10/2  -
rellis_3d 20  -  -  13/3/4
road_lane_segmentation 4  3/1/0  3/1/0  -
tas500 24  -  -  19/4/1
waymo 29  17/6/6  15/13/1  -
wilddash 81  40/0/41  74/0/7  -
wildscenes 18  -  -  11/6/1
yamaha 9  -  -  3/5/1"""   # labels; exactly one class / several candidates / void alone, for the three targets: counted by hand in the authors' tables


def published(name):
    with open(Path(labels_module.__file__).parent / "taxonomies" / "mappings" / f"{name}.json") as f: return json.load(f)["classes"]


@pytest.mark.parametrize("name", label_maps())
def test_published_sets_are_reproduced(name):
    "What a pixel of every id may be, through the whole chain that a dataset goes through: file id, label of the table's space, set."
    _, target, dataset = name.split("_", 2)
    m, as_it_is = label_map(name), label_map(name, corrected=False)
    table = taxonomy(labels_module._TABLE_OF.get(dataset, dataset))
    view, rows = table.view(), published(name)
    assert as_it_is.source == view.space == m.source and len(as_it_is.target) == {"cityscapes": 19, "mapillary": 63, "offroad": 34}[target]
    known = table.codes("name")
    said = {known[r["name"]] if dataset == "idd" else r["id"] % 256: r["allowed"] for r in rows if dataset != "idd" or r["name"] in known}
    for i, allowed in said.items():
        if view.table[i] == IGNORE != i: continue      # a label that no file has
        assert (as_it_is.sets()[view.table[i]] == np.isin([*range(len(m.target)), IGNORE], allowed)).all(), i
    silent = [v for i, v in enumerate(view.table) if v != IGNORE and i not in said]
    assert as_it_is.sets()[silent, -1].all() and as_it_is.sets()[silent].sum() == len(silent)
    n, *shapes = next(line.split()[1:] for line in SHAPES.splitlines() if line.split()[0] == dataset)
    sizes = [[v for v in r["allowed"] if v != IGNORE] for r in rows]
    counts = [sum(len(a) == 1 and IGNORE not in r["allowed"] for a, r in zip(sizes, rows)), sum(bool(a) and (len(a) > 1 or IGNORE in r["allowed"]) for a, r in zip(sizes, rows)), sum(not a for a in sizes)]
    assert len(rows) == int(n) and "/".join(map(str, counts)) == shapes[("cityscapes", "mapillary", "offroad").index(target)]


def test_corrections_are_few_and_change_what_they_name():
    from kdda.data.labels import CORRECTIONS
    for (name, i), (allowed, why) in CORRECTIONS.items():
        row = next(r for r in published(name) if r["id"] == i)
        assert sorted(row["allowed"]) != sorted(allowed) and len(why) > 20
        assert (label_map(name).mask != label_map(name, corrected=False).mask).any()
    assert all(label_map(n) == label_map(n, corrected=False) for n in set(label_maps()) - {n for n, _ in CORRECTIONS})


HARMLESS = {"lsu_mapillary_a2d2": "n", "lsu_offroad_god": "rubble", "lsu_offroad_goose2d": "road"}   # a stray letter, and labels that no file has


@pytest.mark.parametrize("name", label_maps())
def test_every_cell_that_matches_no_label_is_accounted_for(name):
    "Where the authors' reader finds no label of that name, the label that was meant may be what the cell's row says; the rest is known to be harmless."
    with open(Path(labels_module.__file__).parent / "taxonomies" / "mappings" / f"{name}.json") as f: lost = json.load(f).get("csv_cells_that_match_no_label", [])
    allowed = {s.strip(): row for s, row in label_map(name).allowed.items()}
    for target, cell, meant in lost:
        if HARMLESS.get(name) == cell: assert cell not in allowed
        elif meant: assert target in allowed[meant.strip()] and target not in label_map(name, corrected=False).allowed[meant.strip()]
        else: assert name in {n for n, _ in labels_module.CORRECTIONS}


def test_maps_onto_themselves():
    "Cityscapes under its own target is its train ids; Mapillary under its own is the identity."
    m = label_map("lsu_cityscapes_cityscapes")
    assert (look_up(m.lut(), taxonomy("cityscapes").view().table)[:34] == CITYSCAPES_IDS[:34]).all()
    m = label_map("lsu_mapillary_mapillary_vistas")
    assert all(row in ((s,), ()) for s, row in m.allowed.items()) and sum(not row for row in m.allowed.values()) == 3


def test_show_map_draws_a_band_for_every_pair():
    import matplotlib.pyplot as plt
    ax = show_map(CITYSCAPES_19_TO_CAMVID_11.inverse(), plt.figure().gca())
    assert len(ax.lines) == 19 and {t.get_text() for t in ax.texts} == {*CITYSCAPES_19.classes, *CAMVID_11.classes, "void"}
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
