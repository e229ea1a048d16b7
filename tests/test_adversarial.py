"Two-level alignment: the game's rules against NumPy, who gets which gradient, resuming, rows."
import copy, math
from types import SimpleNamespace
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from killing import dying, resumes_to_the_bit
from kdda.bench.runs import Run, execute
from kdda.data.batches import Stream
from kdda.data.world import World
from kdda.learn.adversarial import LEVELS, SOURCE, TARGET, Adversarial, discriminator, entropy_map, gan_loss, probability_map, share_right, show_judges, two_levels
from kdda.learn.fit import History, Optim, fit, to_device
from kdda.learn.losses import cross_entropy
from kdda.learn.selftrain import Supervised, batch_norms
from kdda.nets.heads import AuxHead
from kdda.nets.segmenter import segmenter

SIZE, SMALL = (32, 64), "resnet10_nano+segformer:16"
GAME, CITY = World("game", n=8, size=SIZE).render(), World("city", n=8, size=SIZE).render()

def net(name=SMALL, seed=0):
    torch.manual_seed(seed)
    return segmenter(name)

def method(seed=0, **switches):
    student = net(seed=seed)
    return Adversarial(student, **{**dict(width=8, layers=3, bn_source=False), **switches})

def streams(): return {"source": Stream(GAME, 2), "target": Stream(CITY, 2, role="target", labelled=False)}
def batch(seed=0): return SimpleNamespace(step=0, generator=torch.Generator().manual_seed(seed), **{k: to_device(next(s), "cpu") for k, s in streams().items()})
def train(m, steps=3, **more): return fit(m, streams(), steps, progress=False, say=lambda s: None, **{"optim": {"main": Optim(lr=3e-3)}, **more})

# losses and maps

@pytest.mark.parametrize("answer", [SOURCE, TARGET])
def test_gan_losses_equal_numpy(answer):
    x = torch.randn(2, 1, 3, 5, generator=torch.Generator().manual_seed(0)) * 3
    d = x.numpy().astype(np.float64)
    p = 1 / (1 + np.exp(-d))
    assert gan_loss(x, answer).item() == pytest.approx(-np.log(p if answer else 1 - p).mean(), rel=1e-5)
    assert gan_loss(x, answer, "ls").item() == pytest.approx(((d - answer) ** 2).mean(), rel=1e-5)
    assert share_right(x, answer).item() == pytest.approx(((d > 0) == bool(answer)).mean())
    assert share_right(x, answer, "ls").item() == pytest.approx(((d > 0.5) == bool(answer)).mean())

def test_gan_loss_survives_a_sure_judge_and_half_precision():
    sure = torch.tensor([1e4, -1e4], requires_grad=True)
    gan_loss(sure, SOURCE).backward()
    assert sure.grad.isfinite().all() and gan_loss(torch.tensor([300.0]).bfloat16(), SOURCE).dtype == torch.float32

@pytest.mark.parametrize("last", [False, True])
def test_maps_equal_numpy(last):
    z = torch.randn(2, 5, 4, 6, generator=torch.Generator().manual_seed(1)) * 4
    if last: z = z.contiguous(memory_format=torch.channels_last)
    e = np.exp(z.numpy().astype(np.float64)); p = e / e.sum(1, keepdims=True)
    np.testing.assert_allclose(probability_map(z).numpy(), p, atol=1e-6)
    np.testing.assert_allclose(entropy_map(z).numpy(), -p * np.log(p) / np.log(5), atol=1e-6)
    assert entropy_map(1e4 * z).isfinite().all()

@pytest.mark.parametrize("kind", ["bce", "ls"])
@pytest.mark.parametrize("shows", [probability_map, entropy_map])
def test_gradcheck(kind, shows):
    torch.manual_seed(0)
    judge = discriminator(3, 2, 2).double()
    z = torch.randn(2, 3, 4, 8, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: gan_loss(judge(shows(z)), SOURCE, kind), z)
    scores = torch.randn(2, 1, 3, 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: gan_loss(s, TARGET, kind), scores)

@pytest.mark.parametrize("kind", ["bce", "ls"])
def test_reductions_do_not_see_how_often_a_score_is_there(kind):
    x = torch.randn(2, 1, 3, 5, generator=torch.Generator().manual_seed(2))
    for other in (x.repeat(3, 1, 1, 1), x.repeat(1, 1, 2, 2)):
        for answer in (SOURCE, TARGET):
            assert gan_loss(other, answer, kind).item() == pytest.approx(gan_loss(x, answer, kind).item(), rel=1e-6)
            assert share_right(other, answer, kind) == pytest.approx(share_right(x, answer, kind).item())

# shapes

def test_published_judge():
    with torch.device("meta"): d = discriminator(19)
    assert d(torch.empty(1, 19, 512, 1024, device="meta")).shape == (1, 1, 16, 32)
    assert sum(p.numel() for p in d.parameters()) == 2_781_121
    assert [m.negative_slope for m in d if isinstance(m, torch.nn.LeakyReLU)] == [0.2] * 4

@pytest.mark.parametrize("name", [SMALL, "mit_nano+daformer:16", "mobilenet_v2_050+lraspp"])
def test_both_levels_come_at_image_size_out_of_one_forward(name):
    n = net(name).train()
    aux, x = AuxHead(n.backbone.channels, 19), torch.randn(2, 3, 48, 80)
    before = [int(m.num_batches_tracked) for m in batch_norms(n)]
    seen = two_levels(n, aux, x)
    assert all(seen[level].shape == (2, 19, 48, 80) for level in LEVELS) and seen["feature"].shape[1] == n.backbone.channels[2]
    assert [int(m.num_batches_tracked) for m in batch_norms(n)] == [b + 1 for b in before]
    seen["aux"].sum().backward()
    reached = [i for i, s in enumerate(n.backbone.stages) if any(p.grad is not None for p in s.parameters())]
    assert reached == [0, 1, 2]                     # the auxiliary level speaks to the first three stages

# who gets which gradient

def test_the_judge_gets_none_while_the_segmenter_plays_and_the_other_way_round():
    m, log = method().train(), []
    grads = lambda: ({k for k, n in m.nets.items() if any(p.grad is not None for p in n.parameters())}, m.student.head.linears[0].weight.grad)
    def backward(loss, name): loss.backward(); seen, g = grads(); log.append((name, seen, g.clone()))
    m.step(batch(), backward)
    assert [n for n, *_ in log] == ["ce_source + ce_aux", "adv_main + adv_aux", "judge_main", "judge_aux"]
    assert log[0][1] == log[1][1] == {"student", "aux"} and log[2][1] == {"student", "aux", "judge_main"} and log[3][1] == set(m.nets)
    assert not torch.equal(log[0][2], log[1][2]) and torch.equal(log[1][2], log[3][2])   # the adversarial term reaches the segmenter, the judges' turn does not
    assert all(p.requires_grad for p in m.parameters())

def test_adversarial_gradient_makes_target_look_like_source():
    "A step against the adversarial gradient alone lowers the judge's score of the target."
    m, b = Adversarial(net("resnet10_nano+lraspp"), weights=(1.0, 0.0), width=8, layers=3).train(), batch()   # a head without dropout
    scores = lambda: m.judges["main"](probability_map(two_levels(m.student, m.nets["aux"], b.target.image)["main"])).mean()
    before = scores()
    losses = {}
    m.step(b, lambda loss, name: losses.__setitem__(name, loss))
    losses["adv_main"].backward()
    with torch.no_grad():
        for p in m.student.parameters():
            if p.grad is not None: p -= 0.05 * p.grad
    assert scores() < before and set(m.judges) == {"main"}

def test_step_equals_its_definition():
    m = Adversarial(net("resnet10_nano+lraspp"), weights=(0.3, 0.2), width=8, layers=3).train()
    twin, b = copy.deepcopy(m), batch()
    got = {k: v.item() for k, v in m.step(b, lambda loss, name: None).items()}
    s = two_levels(twin.student, twin.nets["aux"], b.source.image)
    t = two_levels(twin.student, twin.nets["aux"], b.target.image)
    D = {k: (twin.judges[k](s[k].softmax(1)), twin.judges[k](t[k].softmax(1))) for k in LEVELS}
    bce = lambda x, y: torch.nn.functional.binary_cross_entropy(x.sigmoid(), torch.full_like(x, y)).item()
    want = {"ce_source": cross_entropy(s["main"], b.source.label).item(), "ce_aux": 0.1 * cross_entropy(s["aux"], b.source.label).item()}
    for k, w in zip(LEVELS, (0.3, 0.2)):
        want[f"adv_{k}"], want[f"judge_{k}"] = w * bce(D[k][1], 0.0), 0.5 * bce(D[k][0], 0.0) + 0.5 * bce(D[k][1], 1.0)
        want[f"right/{k}_source"], want[f"right/{k}_target"] = (D[k][0] <= 0).float().mean().item(), (D[k][1] > 0).float().mean().item()
    assert got.keys() == want.keys()
    for k in want: assert got[k] == pytest.approx(want[k], rel=1e-4), k

def test_void_leaves_the_loss_alone():
    m, b = method().train(), batch()
    b.source.label[:, :8] = 255
    seen = two_levels(m.student, m.nets["aux"], b.source.image)
    terms = m.source_terms(b, seen)
    other = {k: v.clone() for k, v in seen.items()}
    for k in LEVELS: other[k][:, :, :8] += torch.randn(19, 8, 64)
    for k, v in m.source_terms(b, other).items(): assert torch.equal(v, terms[k])

def test_without_weights_it_is_supervised_training():
    "No judges, no auxiliary weight: the same network as plain cross-entropy, but for the statistics that the target pass writes."
    m = method(weights=(0.0, 0.0), aux_weight=0.0)
    assert not m.judges and set(m.groups()) == {"main"}
    plain = Supervised(net(), augment=False, denominator="valid")
    train(m); fit(plain, {"source": streams()["source"]}, 3, progress=False, optim={"main": Optim(lr=3e-3)})
    for a, b in zip(m.student.parameters(), plain.student.parameters()): torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)

def test_source_statistics_are_written_only_on_request():
    for bn_source in (False, True):
        m, b = method(bn_source=bn_source, weights=(0.0, 0.0)).train(), batch()
        alone = copy.deepcopy(m.student).train()
        m.step(b, lambda loss, name: None)
        if bn_source: alone(b.source.image)
        alone(b.target.image)
        for a, c in zip(batch_norms(m.student), batch_norms(alone)): torch.testing.assert_close(a.running_mean, c.running_mean, atol=1e-6, rtol=1e-5)

def test_the_judges_learn_to_tell_maps_apart_and_the_plot_shows_it():
    torch.manual_seed(0)
    m, g = method(width=8, layers=3), torch.Generator().manual_seed(0)
    source, target = ({level: (torch.randn(4, 19, *SIZE, generator=g) + 2 * F.one_hot(torch.tensor(c), 19).view(1, 19, 1, 1)).softmax(1) for level in LEVELS} for c in (0, 1))
    optimiser, history = torch.optim.Adam(m.groups()["judge"][0].parameters(), 3e-3), History()
    optimiser.add_param_group({"params": m.groups()["judge"][1].parameters()})
    for t in range(30):
        optimiser.zero_grad()
        history.append({"step": t} | {k: v.item() for k, v in m.judge(source, target, lambda loss, name: loss.backward()).items()})
        optimiser.step()
    for level in LEVELS:
        assert history[-1][f"judge_{level}"] < 0.3 < 0.6 < history[0][f"judge_{level}"]
        for domain in ("source", "target"): assert history[-1][f"right/{level}_{domain}"] > 0.95
    left, right = show_judges(history).axes
    assert len(left.lines) == 5 and len(right.lines) == 3 and np.allclose(left.lines[0].get_ydata()[-1], history[-1]["right/main_source"])

@pytest.mark.parametrize("wrong,match", [(dict(shows="edges"), "shows"), (dict(gan="hinge"), "gan"), (dict(judges={"main": None}), "aux"), (dict(weights=(1,)), None)])
def test_wrong_switches_are_refused(wrong, match):
    with pytest.raises(ValueError, match=match): method(**wrong)

@pytest.mark.parametrize("switches", [dict(gan="ls"), dict(shows="entropy"), dict(shows="entropy", gan="ls"), dict(weights=(0.01, 0.0)), dict(photo=dict(jitter=0.3)), dict(bn_source=True, denominator="all")])
def test_every_switch_trains_in_bf16_too(switches):
    for precision in ("fp32", "bf16"):
        h = train(method(**switches), 2, log_every=1, precision=precision)
        assert all(math.isfinite(v) for r in h for v in r.values())

# a stage hands on what it has; killed runs

def test_networks_of_an_earlier_stage_are_taken_over():
    first = method()
    train(first)
    second = Adversarial(first.student, aux=first.nets["aux"], judges=first.judges, bn_source=False)
    assert all(second.nets[k] is first.nets[k] for k in first.nets)

@pytest.mark.parametrize("switches", [{}, dict(shows="entropy", gan="ls")])
def test_resume_is_bitwise(switches, tmp_path):
    make = lambda: method(weights=(0.1, 0.02), photo=dict(jitter=0.3), **switches)
    def go(folder, kill):
        m = dying(make(), 4) if kill else make()
        return m, train(m, 7, folder=folder, checkpoint_every=2, log_every=1, optim={"main": Optim(lr=3e-3, warmup=2), "judge": Optim(lr=1e-3, betas=(0.9, 0.99))})
    resumes_to_the_bit(go, tmp_path)              # judges and both optimisers too

# rows

@pytest.mark.parametrize("name,options", [("adversarial", {}), ("adversarial", {"gan": "ls", "strength": 2.0}), ("advent", {})])
def test_rows_run(name, options, tmp_path):
    run = Run(name, scale="smoke", options=options, out=tmp_path)
    m = execute(run, progress=False, say=lambda s: None)
    assert m["steps"] == run.steps and m["student"]["params"] == sum(p.numel() for p in segmenter(run.student_name).parameters())   # the auxiliary head is not shipped
    assert run.stage_state("adapt", "aux")["head.weight"].shape == (19, 64, 1, 1)
    assert {k.split(".")[1] for k in run.stage_state("adapt") if k.startswith("nets.")} == {"student", "aux", "judge_main", "judge_aux"}

def test_a_row_is_the_same_whatever_was_drawn_before(tmp_path):
    states = []
    for k in range(2):
        torch.manual_seed(k); torch.randn(k + 1)
        run = Run("adversarial", scale="smoke", out=tmp_path / str(k))
        execute(run, progress=False, say=lambda s: None)
        states.append(run.stage_state("adapt"))
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])

def test_the_target_has_no_labels_and_paper_scale_is_the_published_recipe():
    stage, = Run("adversarial", scale="smoke").row.stages(Run("adversarial", scale="smoke"))
    assert "label" not in next(stage.streams["target"]) and "label" in next(stage.streams["source"])
    with pytest.warns(UserWarning, match="random weights"): run = Run("adversarial", scale="paper", student="drn_d_22+linear")
    run._data = {"source": GAME, "target": CITY}     # a thousand frames of 512x1024 take long to paint
    stage, = run.row.stages(run)
    assert stage.options["optim"]["main"] == Optim("sgd", lr=2.5e-4, weight_decay=5e-4, power=0.9)
    assert stage.options["optim"]["judge"] == Optim(lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0, power=0.9)
    assert stage.method(None).weights == {"main": 1e-3, "aux": 2e-4}

def test_strength_is_a_factor_on_both_levels():
    run = Run("adversarial", scale="smoke", options=dict(strength=2.0))
    once, twice = (r.row.stages(r, **r.options)[0].method(None).weights for r in (Run("adversarial", scale="smoke"), run))
    assert set(once) == {"main", "aux"} and twice == {level: 2 * w for level, w in once.items()}
