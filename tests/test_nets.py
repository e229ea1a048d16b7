"""Networks against their oracles: transformers' SegFormer, torchvision's ResNet and MobileNetV2, and the published costs."""
import copy
import pickle
import re

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from kdda.nets.backbones import BACKBONES, build_backbone
from kdda.nets.heads import HEADS, SegFormerHead, build_head, resize
from kdda.nets.segmenter import Cut, WeightsError, count_macs, load_weights, read_weights, segmenter

transformers = pytest.importorskip("transformers")

SMALL = ["mobilenet_v2_050+lraspp", "resnet10_slim+aspp", "mit_nano+segformer", "mit_nano+daformer", "resnet18+deeplabv2"]
CONFIGS = {"mit_b0": {},  # transformers' defaults are B0
           "mit_b2": {"hidden_sizes": [64, 128, 320, 512], "depths": [3, 4, 6, 3], "decoder_hidden_size": 768}}


def randomise(net, seed=0):
    "Norm statistics and affine terms too: a net fresh from its init would hide a swapped norm."
    g = torch.Generator().manual_seed(seed)
    for name, t in net.state_dict().items():
        if name.endswith("running_var"): t.copy_(torch.rand(t.shape, generator=g) + .5)
        elif t.is_floating_point() and t.ndim <= 1: t.copy_(torch.randn(t.shape, generator=g) * .2 + (1 if t.mean() > .5 else 0))
    return net.eval()


def small(name, **kw):
    torch.manual_seed(0)
    return segmenter(name, n_classes=7, **({"width": 32} if not name.endswith("deeplabv2") else {}), **kw)


@pytest.fixture(scope="module")
def hugging():
    def build(name):
        torch.manual_seed(1)
        return randomise(transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(num_labels=19, **CONFIGS[name])))
    return {name: build(name) for name in CONFIGS}


@pytest.mark.parametrize("name, size", [("mit_b0", (64, 128)), ("mit_b0", (96, 72)), ("mit_b2", (64, 64))])
def test_mit_segformer_equals_transformers(hugging, name, size):
    theirs, ours = hugging[name], segmenter(f"{name}+segformer", width=CONFIGS[name].get("decoder_hidden_size", 256)).eval()
    report = load_weights(ours, theirs.state_dict())
    assert report.ok and len(report.fits) == len(ours.state_dict())
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        want = theirs(pixel_values=x, output_hidden_states=True)
        logits, maps = ours(x, taps=ours.tap_names)
    assert want.logits.std() > .1
    torch.testing.assert_close(maps["logits_low"], want.logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(logits, resize(want.logits, x), atol=1e-4, rtol=0)
    for i, h in enumerate(want.hidden_states): torch.testing.assert_close(maps[f"stage{i + 1}"], h, atol=1e-3, rtol=1e-3)


def test_gradients_equal_transformers(hugging):
    theirs, ours = copy.deepcopy(hugging["mit_b0"]), segmenter("mit_b0+segformer").eval()
    load_weights(ours, theirs.state_dict())
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    resize(theirs(pixel_values=x).logits, x).square().mean().backward()
    ours(x).square().mean().backward()
    grads = {n: p.grad for n, p in theirs.named_parameters()}
    pairs = [(ours.backbone.stages[0].embed.weight, grads["segformer.stages.0.patch_embeddings.proj.weight"]),
             (ours.head.fusion.weight, grads["decode_head.linear_fuse.weight"]),
             (ours.head.linears[3].weight, grads["decode_head.linear_projections.3.proj.weight"])]
    for p, g in pairs: torch.testing.assert_close(p.grad, g, atol=1e-4 * float(g.abs().max()), rtol=1e-3)


def test_files_of_the_hub_are_understood(hugging, tmp_path):
    "save_pretrained writes the spelling of the published files, which is not the one in memory."
    theirs, ours = hugging["mit_b0"], segmenter("mit_b0+segformer").eval()
    theirs.save_pretrained(tmp_path)
    assert any("encoder.block.0.1." in k for k in read_weights(tmp_path / "model.safetensors"))
    load_weights(ours, tmp_path / "model.safetensors")
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad(): torch.testing.assert_close(ours(x), resize(theirs(pixel_values=x).logits, x), atol=1e-4, rtol=0)


def test_imagenet_mit_loads_into_a_backbone():
    torch.manual_seed(0)
    theirs = transformers.SegformerForImageClassification(transformers.SegformerConfig()).eval()
    ours = build_backbone("mit_b0").eval()
    assert load_weights(ours, theirs.state_dict()).ok
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad(): torch.testing.assert_close(ours(x)[-1], theirs.segformer(x).last_hidden_state, atol=1e-4, rtol=0)


OFFICIAL = (  # the Hub's spelling -> that of SegFormer's own files, whose stages count from 1
    (r"^segformer\.encoder\.(patch_embeddings|block|layer_norm)\.(\d)",
     lambda m: {"patch_embeddings": "patch_embed", "block": "block", "layer_norm": "norm"}[m[1]] + str(int(m[2]) + 1)),
    (r"attention\.self\.query", "attn.q"), (r"attention\.self\.(sr|layer_norm)", r"attn.\1"), (r"attention\.output\.dense", "attn.proj"),
    (r"mlp\.dense(\d)", r"mlp.fc\1"), (r"layer_norm(_(\d))?", r"norm\2"), ("^classifier", "head"))


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    "A classifier of transformers, and its weights as mit_b0.pth spells them."
    torch.manual_seed(4)
    theirs = randomise(transformers.SegformerForImageClassification(transformers.SegformerConfig()))
    theirs.save_pretrained(folder := tmp_path_factory.mktemp("hub"))
    hub, state = read_weights(folder / "model.safetensors"), {}
    for key, value in hub.items():
        if ".self.value." in key: continue
        if ".self.key." in key: key, value = key.replace("attention.self.key", "attn.kv"), torch.cat((value, hub[key.replace(".key.", ".value.")]))
        for old, new in OFFICIAL: key = re.sub(old, new, key)
        state[key] = value
    return theirs, state


def test_official_names_are_those_of_the_file(official):
    _, state = official
    assert {k for k in state if k.startswith("block1.0.")} == {f"block1.0.{n}.{p}" for n in (
        "norm1", "attn.q", "attn.kv", "attn.proj", "attn.sr", "attn.norm", "norm2", "mlp.fc1", "mlp.dwconv.dwconv", "mlp.fc2") for p in ("weight", "bias")}
    assert {k for k in state if "4." in k and "block" not in k} == {f"{n}.{p}" for n in ("patch_embed4.proj", "patch_embed4.norm", "norm4") for p in ("weight", "bias")}
    assert {"head.weight", "head.bias"} < set(state) and not any(k.startswith("block4") and ("attn.sr" in k or "attn.norm" in k) for k in state)


@pytest.mark.parametrize("wrap", [dict, lambda s: {"state_dict": {f"backbone.{k}": v for k, v in s.items() if not k.startswith("head.")}}], ids=["bare", "wrapped"])
def test_official_mit_file_gives_the_same_features(official, tmp_path, wrap):
    theirs, state = official
    torch.save(wrap(state), tmp_path / "mit_b0.pth")
    ours = segmenter("mit_b0+segformer", weights=tmp_path / "mit_b0.pth").backbone.eval()
    assert len(load_weights(ours, tmp_path / "mit_b0.pth").fits) == len(ours.state_dict())
    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(5))
    with torch.no_grad(): want, maps = theirs.segformer(x, output_hidden_states=True).hidden_states, ours(x)
    for m, w in zip(maps, want, strict=True): torch.testing.assert_close(m, w, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name, change, message", [
    ("mit_b1", {}, "another size of network"), ("mit_b0+segformer", {}, "net.backbone"), ("mit_b0", {"block2.1.attn.kv.bias": None}, "stages.1.blocks.1.attn.kv.bias"),
    ("mit_b0", {"decode_head.linear_pred.weight": torch.zeros(19, 256, 1, 1)}, "decode_head.linear_pred.weight")])
def test_official_mit_file_is_refused_where_it_does_not_fit(official, tmp_path, name, change, message):
    net = (segmenter if "+" in name else build_backbone)(name)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    torch.save({k: v for k, v in {**official[1], **change}.items() if v is not None}, tmp_path / "mit_b0.pth")
    with pytest.raises(WeightsError, match=message) as e: load_weights(net, tmp_path / "mit_b0.pth")
    assert f"mit_b0.pth does not fit {name}" in str(e.value)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def torchvision_maps(net, x, resnet):
    "The four maps of a torchvision network, by walking its children."
    maps = []
    if resnet:
        x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
        for layer in (net.layer1, net.layer2, net.layer3, net.layer4): maps.append(x := layer(x))
    else:
        for i, layer in enumerate(net.features):
            x = layer(x)
            if i in (3, 6, 13, 17): maps.append(x)
    return maps


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2"])
def test_torchvision_features(name):
    theirs, ours = randomise(getattr(torchvision.models, name)()), build_backbone(name).eval()
    report = load_weights(ours, theirs.state_dict())
    assert report.ok and len(report.fits) == len(ours.state_dict())
    x = torch.randn(1, 3, 32, 64)
    with torch.no_grad(): pairs = list(zip(ours(x), torchvision_maps(theirs, x, name.startswith("resnet"))))
    for a, b in pairs: torch.testing.assert_close(a, b, atol=1e-4 * float(b.abs().max()), rtol=1e-4)


@pytest.mark.parametrize("name", ["resnet34", "resnet101"])
def test_torchvision_keys_and_shapes_of_the_deeper_ones(name):
    with torch.device("meta"): theirs, ours = getattr(torchvision.models, name)(), build_backbone(name)
    report = load_weights(ours, theirs.state_dict())
    assert report.ok and len(report.fits) == len(ours.state_dict()) == len(theirs.state_dict()) - 2


@pytest.mark.parametrize("output_stride, dilate", [(16, (False, False, True)), (8, (False, True, True))])
def test_dilated_resnet_equals_torchvision(output_stride, dilate):
    theirs = randomise(torchvision.models.resnet50(replace_stride_with_dilation=dilate))
    ours = build_backbone("resnet50", output_stride=output_stride).eval()
    load_weights(ours, theirs.state_dict())
    x = torch.randn(1, 3, 48, 64)
    with torch.no_grad(): a, b = ours(x)[-1], torchvision_maps(theirs, x, True)[-1]
    assert a.shape[-1] == 64 // output_stride == 64 // ours.strides[-1]
    torch.testing.assert_close(a, b, atol=1e-4 * float(b.abs().max()), rtol=1e-4)


def test_caffe_resnet_has_its_stride_on_the_first_convolution_and_rounds_up():
    theirs = randomise(torchvision.models.resnet101())
    for layer in (theirs.layer2, theirs.layer3, theirs.layer4): layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)
    theirs.maxpool.ceil_mode = True
    ours = build_backbone("resnet101_caffe").eval()
    load_weights(ours, theirs.state_dict())
    x = torch.randn(1, 3, 48, 64)
    with torch.no_grad(): a, b = ours(x)[-1], torchvision_maps(theirs, x, True)[-1]
    torch.testing.assert_close(a, b, atol=1e-4 * float(b.abs().max()), rtol=1e-4)


def test_small_mobilenet_is_a_prefix_of_the_published_one():
    theirs, ours = randomise(torchvision.models.mobilenet_v2(width_mult=.5)), build_backbone("mobilenet_v2_050").eval()
    assert load_weights(ours, theirs.state_dict()).ok
    x = torch.randn(1, 3, 32, 64)
    with torch.no_grad(): torch.testing.assert_close(ours(x)[-1], theirs.features[:14](x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("body", ["resnet18", "resnet18_d8"])   # dilation has no weights
def test_torchvision_weights_are_fetched_safely(body, monkeypatch):
    asked = {}
    def fetch(url, **kw):
        asked.update(kw, url=url)
        return resnet18()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    net = segmenter(f"{body}+deeplabv2", weights="torchvision")
    assert asked["weights_only"] and asked["check_hash"] and "resnet18" in asked["url"]
    assert net.backbone.stages[0][0][1].num_batches_tracked == 0
    with pytest.raises(WeightsError, match="torchvision has no weights for 'mit_b0'"): segmenter("mit_b0+segformer", weights="torchvision")


@pytest.mark.parametrize("name", [n for n in BACKBONES if n not in ("mit_b3", "mit_b4", "mit_b5")])  # B2, but deeper
def test_channels_and_strides_are_as_declared(name):
    with torch.device("meta"):
        net = build_backbone(name)
        maps = net(torch.empty(1, 3, 64, 128))
    more = name.endswith("caffe")   # pooling rounds up
    assert [tuple(m.shape[1:]) for m in maps] == [(c, 64 // s + more, 128 // s + more) for c, s in zip(net.channels, net.strides)]


# Encoder parameters in millions and multiply-accumulates in 10^9 at 512x512, as published for SegFormer.
@pytest.mark.parametrize("name, params, macs", [("mit_b0", 3.32, 3.2), ("mit_b1", 13.15, 10.4), ("mit_b2", 24.20, 20.2),
                                                ("mit_b3", 44.07, None), ("mit_b4", 60.84, None), ("mit_b5", 81.44, 69.4)])
def test_published_cost_of_encoders(name, params, macs):
    with torch.device("meta"): net = build_backbone(name)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(params, abs=.005)
    if macs: assert count_macs(net, (512, 512)) / 1e9 == pytest.approx(macs, abs=.05)


@pytest.mark.parametrize("body, width, params, macs", [("mit_b0", 256, 3.58, 56.6), ("mit_b1", 256, 3.71, 56.9),
                                                       ("mit_b0", 128, .94, 14.4), ("mit_b0", 64, .26, 3.7)])
def test_published_cost_of_daformer_head(body, width, params, macs):
    with torch.device("meta"): net = segmenter(f"{body}+daformer", width=width)
    assert sum(p.numel() for p in net.head.parameters()) / 1e6 == pytest.approx(params, abs=.005)
    assert (count_macs(net, (512, 512)) - count_macs(net.backbone, (512, 512))) / 1e9 == pytest.approx(macs, abs=.05)


def test_cost_of_segmenter():
    net = small("mobilenet_v2_050+lraspp").train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    cost = net.cost((32, 64), runs=2)
    assert cost.params == sum(p.numel() for p in net.parameters()) and cost.latency_ms > 0
    assert net.training and all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert net.cost((64, 128), runs=0).macs == pytest.approx(4 * cost.macs, rel=.02)


def test_macs_of_a_convolution_by_hand():
    assert count_macs(torch.nn.Conv2d(3, 5, 3, padding=1), (8, 10)) == 8 * 10 * 5 * 3 * 9


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("training", [False, True])
def test_split_is_exact(name, training):
    x, net = torch.randn(2, 3, 48, 80), small(name).train(training)
    for at in ("stage1", "stage2", "stage3", "stage4"):
        front, rest = net.split(at)
        torch.manual_seed(5)  # dropout
        want = net(x)
        torch.manual_seed(5)
        cut = front(x)
        assert isinstance(cut, Cut) and torch.equal(rest(cut), want)
        owned = [{id(p) for p in m.parameters()} for m in (front, rest)]
        assert not owned[0] & owned[1] and owned[0] | owned[1] == {id(p) for p in net.parameters()}
    with pytest.raises(ValueError, match="places are: stage1"): net.split("fused")


def test_taps_come_from_the_same_forward():
    net, x = small("resnet10_slim+aspp").train(), torch.randn(2, 3, 32, 64)
    logits, maps = net(x, taps=("fused", "stage4", "logits_low"))
    assert list(maps) == ["fused", "stage4", "logits_low"]
    assert torch.equal(logits, resize(maps["logits_low"], x))
    tracked = int(net.backbone.stages[0][0][1].num_batches_tracked)
    assert tracked == 1
    logits.mean().backward()
    with pytest.raises(ValueError, match="'stage9'.*logits_low"): net(x, taps=("stage9",))


@pytest.mark.parametrize("name", SMALL)
def test_channels_last_is_kept_and_changes_nothing(name):
    net, x = small(name).eval(), torch.randn(2, 3, 64, 128)
    last = copy.deepcopy(net).to(memory_format=torch.channels_last)
    with torch.no_grad():
        a = net(x)
        b, maps = last(x.contiguous(memory_format=torch.channels_last), taps=net.tap_names)
    for tap, m in {**maps, "logits": b}.items(): assert m.is_contiguous(memory_format=torch.channels_last), tap
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_learns(name):
    net = small(name)
    for m in net.modules():
        if type(m).__name__ == "DropPath": m.p = 0.
    net(torch.randn(2, 3, 64, 128)).square().mean().backward()
    assert not [n for n, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    silent = [n for n, p in net.named_parameters() if not p.grad.any()]
    assert all(n.endswith(("kv.bias",)) for n in silent), silent


@pytest.mark.parametrize("head", HEADS)
def test_odd_sizes_and_single_images(head):
    "Any size works, and a batch of one trains: no batch norm may sit on a 1x1 map."
    body = build_backbone("mit_nano")
    net = build_head(head, body.channels, 5, **({} if head in ("deeplabv2", "linear") else {"width": 16}))
    features = body(torch.randn(1, 3, 37, 51))
    assert net.train()(features).shape[:2] == (1, 5)
    assert net.fuse(features).shape[1] == net.fused_channels


def test_segformer_head_equals_its_naive_form():
    "Linear, upsample, concatenate, 1x1: the order of the paper, in double precision."
    torch.manual_seed(0)
    head = randomise(SegFormerHead((8, 12, 16, 20), 5, width=24)).double()
    maps = [torch.randn(2, c, s, s + 3, dtype=torch.double) for c, s in zip((8, 12, 16, 20), (32, 16, 8, 4))]
    ups = [resize(l(m.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), maps[0]) for l, m in zip(head.linears, maps)]
    want = torch.relu(head.norm(head.fusion(torch.cat(ups[::-1], 1))))
    torch.testing.assert_close(head.fuse(maps), want, atol=1e-10, rtol=0)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("name", ["mobilenet_v2_050+lraspp", "mit_nano+daformer"])
def test_state_dict_round_trip(tmp_path, name, suffix):
    a, path = small(name).eval(), tmp_path / f"net.{suffix}"
    b = small(name).eval()
    for p in b.parameters(): p.data.add_(1)
    save_file(a.state_dict(), path) if suffix == "safetensors" else torch.save({"state_dict": a.state_dict()}, path)
    assert load_weights(b, path).ok
    x = torch.randn(1, 3, 32, 64)
    assert torch.equal(a(x), b(x))
    assert load_weights(b.backbone, a.backbone.state_dict()).ok


def resnet18(): return torchvision.models.resnet18().state_dict()
def mit_b0(**kw): return segmenter("mit_b0+segformer", **kw)


WRONG = {  # the network, a state dict that is not its own, what the report must say
    "other size": ("resnet18", lambda: torchvision.models.resnet50().state_dict(), "another size"),
    "other family": ("resnet18", lambda: build_backbone("mit_b0").state_dict(), "another kind"),
    "whole for backbone": ("mit_b0", lambda: mit_b0().state_dict(), "whole segmentation network"),
    "backbone for whole": ("resnet18+aspp", resnet18, "net.backbone"),
    "other classes": ("mit_b0+segformer", lambda: mit_b0(n_classes=3).state_dict(), "number of classes"),
    "one key gone": ("resnet18", lambda: {k: v for k, v in resnet18().items() if k != "layer2.0.bn1.weight"}, "stages.1.0.bn1.weight"),
    "one key more": ("resnet18", lambda: {**resnet18(), "layer2.0.extra": torch.zeros(1)}, "stages.1.0.extra")}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_weights_are_refused_whole(case):
    name, make, message = WRONG[case]
    net, state = (segmenter if "+" in name else build_backbone)(name), make()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(WeightsError, match=message) as e: load_weights(net, state)
    assert "fits:" in str(e.value)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert not load_weights(net, state, strict=False).ok


class Trap:
    def __init__(self, path): self.path = path
    def __reduce__(self): return open, (str(self.path), "w")


def test_files_that_are_no_weights(tmp_path):
    net = build_backbone("mobilenet_v2_050")
    whole = tmp_path / "whole.pt"
    torch.save(net.state_dict(), whole)
    (tmp_path / "cut.pt").write_bytes(whole.read_bytes()[:5000])
    save_file(net.state_dict(), tmp_path / "ok.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "ok.safetensors").read_bytes()[:5000])
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "trap.pt").write_bytes(pickle.dumps(Trap(tmp_path / "sprung"), protocol=2))
    torch.save({"epoch": 3}, tmp_path / "other.pt")
    for name in ("cut.pt", "cut.safetensors", "empty.pt", "trap.pt", "other.pt", "nowhere.pt"):
        with pytest.raises(WeightsError, match=name.replace(".", "[.]")): load_weights(net, tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def test_names_that_do_not_exist():
    for bad, there in (("resnet19+aspp", "resnet18"), ("resnet18+psp", "daformer"), ("resnet18", "backbone\\+head")):
        with pytest.raises(ValueError, match=there): segmenter(bad)


@pytest.mark.parametrize("name", ["mobilenet_v2_050+lraspp", "mit_nano+segformer", "resnet10_slim+aspp"])
def test_exports(name):
    "torch.export traces every family without a graph break, so torch.compile and ONNX can follow."
    net, x = small(name).eval(), torch.randn(1, 3, 64, 128)
    with torch.no_grad(): torch.testing.assert_close(torch.export.export(net, (x,)).module()(x), net(x), atol=1e-5, rtol=1e-5)


def test_drop_path_keeps_the_mean_and_sleeps_in_eval():
    from kdda.nets.backbones import DropPath
    torch.manual_seed(0)
    drop, x = DropPath(.25), torch.ones(4000, 2, 3)
    y = drop(x)
    assert ((y == 0) | (y == 1 / .75)).all() and y.mean() == pytest.approx(1, abs=.05)
    assert (y == y[:, :1, :1]).all() and drop.eval()(x) is x
    net = build_backbone("mit_b0")
    rates = [m.p for m in net.modules() if isinstance(m, DropPath)]
    assert rates[0] == 0 and rates[-1] == pytest.approx(.1) and rates == sorted(rates)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", SMALL)
def test_cuda_agrees_and_runs_in_bf16(name):
    net, x = small(name).eval(), torch.randn(2, 3, 64, 128)
    with torch.no_grad():
        want = net(x)
        net, x = net.cuda().to(memory_format=torch.channels_last), x.cuda().contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(net(x).cpu(), want, atol=2e-3, rtol=2e-2)
        with torch.autocast("cuda", dtype=torch.bfloat16): assert net(x).isfinite().all()
