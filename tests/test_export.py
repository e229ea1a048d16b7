"ONNX files: the same answers as the network, for several architectures; what they say of themselves; bad requests."
import numpy as np
import pytest
import torch
from kdda.data.labels import CAMVID_11, CITYSCAPES_19
from kdda.data.world import World
from kdda.deploy.export import Onnx, export_onnx, parity, quantize_onnx, score
from kdda.nets.segmenter import segmenter

FRAMES = World("city", n=4, size=(64, 96)).render()

def trained_looking(name, n_classes=19):
    "A network whose logits are far apart, as a trained one's are: near-ties would make class ids a lottery."
    torch.manual_seed(0)
    net = segmenter(name, n_classes)
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, torch.nn.Conv2d) and m.out_channels == n_classes: m.weight.normal_()
            if isinstance(m, torch.nn.BatchNorm2d): m.running_mean.normal_(0, .1); m.running_var.uniform_(.5, 2)
    return net

@pytest.mark.parametrize("name", ["mit_b0+daformer:32", "mobilenet_v2_050+lraspp", "resnet18_d8+deeplabv2"])
def test_the_file_answers_as_the_network_does(name, tmp_path):
    net = trained_looking(name)
    model = Onnx(export_onnx(net, tmp_path / "x.onnx", CITYSCAPES_19, (64, 96)))
    far, same = parity(net, model, FRAMES)
    scale = float(np.abs(model(FRAMES.image(0)[None], "logits")).max())
    assert far < 1e-4 * max(1, scale) and same > .999 and scale > .1
    assert model(FRAMES.image(0)[None]).dtype == np.uint8
    assert 0 <= score(model, FRAMES)["miou"] <= 1

def test_the_file_says_what_it_is_and_int8_keeps_that(tmp_path):
    net = trained_looking("resnet10_nano+segformer:16", 11)
    whole = export_onnx(net, tmp_path / "x.onnx", CAMVID_11, (64, 96), run="seed0-abc")
    small = quantize_onnx(whole, tmp_path / "x.int8.onnx", FRAMES, n=4)
    for file in (whole, small):
        about = Onnx(file).about
        assert about["classes"] == list(CAMVID_11.classes) and about["colors"] == [list(c) for c in CAMVID_11.colors] and about["run"] == "seed0-abc" and about["size"] == [64, 96]
    assert sorted(f.name for f in tmp_path.iterdir()) == ["x.int8.onnx", "x.onnx"]
    assert parity(net, Onnx(small), FRAMES, 4)[1] > .8

def test_a_wrong_label_space_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="19 classes.*11"): export_onnx(segmenter("resnet10_nano+linear", 19), tmp_path / "x.onnx", CAMVID_11, (64, 96))
    assert not list(tmp_path.iterdir())
