"The four scenarios of the papers, end to end on datasets that the world writes in their layouts: real loaders, label encodings, resizing, crops, scoring at the labels' own size."
import numpy as np
import pytest
from kdda.bench.runs import Run, execute
from kdda.bench.scenarios import SCALES, SCENARIOS
from kdda.data.labels import CITYSCAPES_16, CITYSCAPES_19_TO_16
from kdda.data.world import World

SIZE = (96, 176)
WRITTEN = {  # layout: (domain, split, frames), ...; night frames have no labels to train on
    "gta5": [("game", "train", 4)], "synthia": [("game", "train", 4)],
    "cityscapes": [("city", "train", 4), ("city", "val", 3)],
    "acdc": [("fog", "train", 4), ("rain", "val", 4)],
    "darkzurich": [("night", "train", 3), ("night", "val", 2)]}
PAPERS = ("gta2cityscapes", "synthia2cityscapes", "cityscapes2acdc", "cityscapes2darkzurich")

@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    "Every layout, once; whoever opens a training label of a target finds no image in it."
    root = tmp_path_factory.mktemp("disk")
    for layout, parts in WRITTEN.items():
        for domain, split, n in parts: World(domain, n=n, size=SIZE, split=split).export(layout, root / layout, split=split)
    return root

@pytest.mark.parametrize("method", ["dacs", "diga", "duda"])
@pytest.mark.parametrize("scenario", PAPERS)
def test_paper_scenarios_run_on_the_world(scenario, method, disk, tmp_path):
    run = Run(method, scenario=scenario, scale="smoke", data_root=str(disk), out=tmp_path)
    metrics = execute(run, progress=False, say=lambda s: None)
    assert metrics["status"] == "finished" and len(metrics["scores"]["iou"]) == len(SCENARIOS[scenario].space)
    assert metrics["scored_on"]["images"] == {"gta2cityscapes": 3, "synthia2cityscapes": 3, "cityscapes2acdc": 4, "cityscapes2darkzurich": 2}[scenario]
    assert run.data("test").label(0).shape == SIZE and run.data("test").image(0).shape[0] <= 64

def test_margins_are_those_of_cityscapes_only():
    assert {s: SCENARIOS[s].margins for s in PAPERS} == {"gta2cityscapes": (15, 120), "synthia2cityscapes": (15, 120), "cityscapes2acdc": (0, 0), "cityscapes2darkzurich": (0, 0)}

def test_paper_scale_has_the_published_boxes():
    boxes = {s: (SCENARIOS[s].at("paper").source_box, SCENARIOS[s].at("paper").target_box, SCENARIOS[s].at("paper").crop) for s in PAPERS}
    assert boxes == {"gta2cityscapes": ((720, 1280), (512, 1024), (512, 512)), "synthia2cityscapes": ((760, 1280), (512, 1024), (512, 512)),
                     "cityscapes2acdc": ((512, 1024), (540, 960), (512, 512)), "cityscapes2darkzurich": ((512, 1024), (540, 960), (512, 512))}
    assert not {f for s in PAPERS for scale in SCALES for f in SCENARIOS[s].overrides.get(scale, {})} - {"source_box", "target_box", "crop"}

def test_sixteen_classes_are_mapped_on_both_sides(disk):
    s = SCENARIOS["synthia2cityscapes"]
    source, test = s.data("source", "smoke", disk), s.data("test", "smoke", disk)
    assert source.space == test.space == CITYSCAPES_16
    assert (source.label(1) == CITYSCAPES_19_TO_16.apply(World("game", n=4, size=SIZE).label(1))).all()
    assert (test.label(2) == CITYSCAPES_19_TO_16.apply(World("city", n=3, size=SIZE, split="val").label(2))).all()

def test_roles_take_the_splits_they_should(disk):
    for scenario in PAPERS:
        keys = {role: {SCENARIOS[scenario].data(role, "smoke", disk).key(i) for i in range(len(SCENARIOS[scenario].data(role, "smoke", disk)))} for role in ("source", "target", "val", "test")}
        assert not keys["target"] & keys["test"] and keys["val"] <= keys["test"] and not keys["source"] & keys["target"]
    assert {k.split("/")[1] for k in keys["target"]} == {"train"}

def test_night_targets_have_no_labels_and_need_none(disk):
    target = SCENARIOS["cityscapes2darkzurich"].data("target", "smoke", disk)
    assert not [p for p in (disk / "darkzurich").rglob("*labelTrainIds*") if "train" in p.parts]
    assert target.image(0).shape == (*SIZE, 3)
    with pytest.raises(ValueError, match="no label for 3 of 3"): target.label(0)

def test_what_is_missing_is_named_with_its_script(tmp_path):
    for scenario, first in zip(PAPERS, ("gta5", "synthia", "cityscapes", "cityscapes")):
        with pytest.raises(ValueError, match=f"data_scripts/{first}.py"): Run(scenario=scenario, scale="smoke", data_root=str(tmp_path))

def test_synthia_is_not_all_void(disk):
    "What becomes of 16-bit labels in a reader of 8 bits."
    from kdda.data.datasets import SYNTHIA
    from PIL import Image
    ds = SYNTHIA(disk / "synthia")
    assert len(np.unique(ds.label(0))) > 5 and not np.asarray(Image.open(ds.label_files[0][0])).any()
