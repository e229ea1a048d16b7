"Every dense distillation loss against NumPy, the laws they keep, the method that uses them, the row."
import math
from types import SimpleNamespace
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from killing import dying, resumes_to_the_bit
from kdda.bench.runs import Run, execute
from kdda.data.batches import Stream
from kdda.data.world import World
from kdda.learn.dense_kd import (DENSE, Adapter, DenseKD, Memory, attention_map, attention_transfer, cell_for, channel_kl, cross_image_relation, pairwise_similarity, same_size,
                                 tap_channels)
from kdda.learn.fit import Optim, fit, to_device
from kdda.learn.losses import cross_entropy, kd_kl
from kdda.nets.segmenter import segmenter

def maps(B=2, C=3, h=2, w=4, D=None, seed=0):
    "Student's map and teacher's, of D channels."
    g = torch.Generator().manual_seed(seed)
    return tuple(2 * torch.randn(B, c, h, w, generator=g, dtype=torch.float64) for c in (C, D or C))

# --- in plain NumPy ---------------------------------------------------------------------------------

def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()

def kl(p, q): return (p * (np.log(p) - np.log(q))).sum()

def np_kl(s, t, T=1.):
    return T * T * np.mean([kl(softmax(t[b, :, i, j] / T), softmax(s[b, :, i, j] / T)) for b in range(len(s)) for i in range(s.shape[2]) for j in range(s.shape[3])])

def np_cwd(s, t, T=4.): return T * T * np.mean([kl(softmax(t[b, c].ravel() / T), softmax(s[b, c].ravel() / T)) for b in range(len(s)) for c in range(s.shape[1])])

def np_at(s, t):
    def unit(x):
        e = (x ** 2).mean(0).ravel()
        return e / np.sqrt((e ** 2).sum())
    return np.mean([((unit(a) - unit(b)) ** 2).sum() for a, b in zip(s, t)])

def np_fitnets(s, t): return np.mean([(s[b, c, i, j] - t[b, c, i, j]) ** 2 for b, c, i, j in np.ndindex(*s.shape)])

def places(x, cell):
    "[C,h,w] -> unit vectors of its cells, [n,C]"
    h, w = x.shape[1] // cell, x.shape[2] // cell
    each = [x[:, i * cell:(i + 1) * cell, j * cell:(j + 1) * cell].mean((1, 2)) for i in range(h) for j in range(w)]
    return np.stack([v / np.linalg.norm(v) for v in each])

def np_pairwise(s, t, cell=1):
    out = []
    for a, b in zip(s, t):
        a, b = places(a, cell), places(b, cell)
        out += [(a[i] @ a[j] - b[i] @ b[j]) ** 2 for i in range(len(a)) for j in range(len(a))]
    return np.mean(out)

def np_cirkd(s, t, T=.1, cell=1):
    out = []
    for i in range(len(s)):
        for j in range(len(s)):
            a, b = (places(s[i], cell), places(s[j], cell)), (places(t[i], cell), places(t[j], cell))
            out += [kl(softmax(b[1] @ b[0][n] / T), softmax(a[1] @ a[0][n] / T)) for n in range(len(a[0]))]
    return np.mean(out)

LOSSES = {  # name: ours, NumPy, whether the teacher may have another number of channels
    "kl": (kd_kl, np_kl, False), "kl T=4": (lambda s, t: kd_kl(s, t, 4.), lambda s, t: np_kl(s, t, 4.), False),
    "cwd": (channel_kl, np_cwd, False), "cwd T=1": (lambda s, t: channel_kl(s, t, 1.), lambda s, t: np_cwd(s, t, 1.), False),
    "at": (attention_transfer, np_at, True),
    "fitnets": (DENSE["fitnets"].loss, np_fitnets, False),
    "pairwise": (pairwise_similarity, np_pairwise, True), "pairwise, cells": (lambda s, t: pairwise_similarity(s, t, 2), lambda s, t: np_pairwise(s, t, 2), True),
    "cirkd": (cross_image_relation, np_cirkd, True), "cirkd, cells": (lambda s, t: cross_image_relation(s, t, .5, 2), lambda s, t: np_cirkd(s, t, .5, 2), True),
}
every_loss = pytest.mark.parametrize("name", LOSSES)
shapes = st.tuples(st.integers(1, 3), st.integers(2, 4), st.sampled_from([2, 4]), st.sampled_from([2, 4, 6]), st.integers(2, 5), st.integers(0, 99))

def some(name, B, C, h, w, D, seed): return maps(B, C, h, w, D if LOSSES[name][2] else C, seed)

@every_loss
@settings(max_examples=8, deadline=None)
@given(shape=shapes)
def test_equals_numpy(name, shape):
    ours, reference, _ = LOSSES[name]
    s, t = some(name, *shape)
    assert ours(s, t).item() == pytest.approx(float(reference(s.numpy(), t.numpy())), rel=1e-9, abs=1e-12)

@every_loss
@settings(max_examples=8, deadline=None)
@given(shape=shapes, n=st.integers(2, 3))
def test_same_when_repeated_or_tiled(name, shape, n):
    loss, (s, t) = LOSSES[name][0], some(name, *shape)
    value = loss(s, t).item()
    assert loss(torch.cat([s] * n), torch.cat([t] * n)).item() == pytest.approx(value, rel=1e-9, abs=1e-14)
    assert loss(s.repeat(1, 1, n, 2), t.repeat(1, 1, n, 2)).item() == pytest.approx(value, rel=1e-9, abs=1e-14)

@every_loss
def test_gradient_is_the_derivative_and_none_reaches_the_teacher(name):
    s, t = some(name, 2, 3, 2, 4, 4, 3)
    assert torch.autograd.gradcheck(lambda z: LOSSES[name][0](z, t), s.clone().requires_grad_())
    student, teacher = s.requires_grad_(), t.requires_grad_()
    LOSSES[name][0](student, teacher).backward()
    assert student.grad.norm() > 0 and teacher.grad is None

@every_loss
def test_zero_at_the_teacher_and_never_below(name):
    s, t = some(name, 2, 4, 2, 4, 4, 5)
    assert LOSSES[name][0](t, t).item() == pytest.approx(0, abs=1e-12)
    assert LOSSES[name][0](s, t).item() > 0

@every_loss
def test_half_precision_is_summed_in_float32(name):
    s, t = some(name, 2, 4, 4, 4, 4, 6)
    low = LOSSES[name][0](s.bfloat16(), t.bfloat16())
    assert low.dtype == torch.float32 and low.item() == pytest.approx(LOSSES[name][0](s, t).item(), rel=.1)
    within = LOSSES[name][0](s.float(), t.float())
    with torch.autocast("cpu", torch.bfloat16): assert torch.equal(LOSSES[name][0](s.float(), t.float()), within)

@pytest.mark.parametrize("loss", [attention_transfer, pairwise_similarity, cross_image_relation])
def test_losses_on_relations_do_not_see_channels_or_strength(loss):
    s, t = maps(C=4, D=4, seed=1)
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0]
    assert loss(3 * torch.einsum("dc,bchw->bdhw", turn, s), t).item() == pytest.approx(loss(s, t).item(), rel=1e-9)

def test_only_the_cross_image_loss_knows_which_image_is_which():
    s, t = maps(B=3, C=4, seed=2)
    swapped = lambda x: x[[1, 0, 2]]
    both = cross_image_relation(swapped(s), swapped(t)).item()
    assert both == pytest.approx(cross_image_relation(s, t).item(), rel=1e-9)
    turn = [torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(k), dtype=torch.float64))[0] for k in range(3)]
    turned = torch.stack([torch.einsum("dc,chw->dhw", q, x) for q, x in zip(turn, t)])     # each image in coordinates of its own
    assert pairwise_similarity(turned, t).item() == pytest.approx(0, abs=1e-12) and cross_image_relation(turned, t).item() > .01

def test_a_map_of_zeros_gives_finite_losses_and_gradients():
    for loss in (attention_transfer, pairwise_similarity, cross_image_relation):
        z = torch.zeros(2, 3, 2, 2, requires_grad=True)
        value = loss(z, torch.randn(2, 5, 2, 2)); value.backward()
        assert value.isfinite() and z.grad.isfinite().all()
    assert attention_map(torch.zeros(1, 2, 2, 2)).abs().max() == 0

def test_sizes_meet_at_the_smaller_and_strangers_are_refused():
    a, b = same_size(torch.randn(2, 3, 8, 16), torch.randn(2, 5, 4, 16), 2)
    assert a.shape == (2, 3, 2, 8) and b.shape == (2, 5, 2, 8)
    with pytest.raises(ValueError, match="3 and 2 images"): same_size(torch.randn(3, 1, 2, 2), torch.randn(2, 1, 2, 2))
    with pytest.raises(ValueError, match="3 channels and teacher 4"): channel_kl(torch.randn(1, 3, 2, 2), torch.randn(1, 4, 2, 2))
    with pytest.raises(ValueError, match="no dense loss 'dkd'"): DenseKD(net(), net(), "dkd")

def test_cells_keep_relations_affordable():
    big, small = torch.empty(1, 1, 128, 256), torch.empty(1, 1, 64, 64)
    for places_ in (1, 64, 256, 5000):
        c = cell_for(big, small, places_)
        assert (64 // c) ** 2 <= places_ and (c == 1 or (64 // (c - 1)) ** 2 > places_)     # the smaller map decides

# --- the method -------------------------------------------------------------------------------------

CITY = World("city", n=8, size=(32, 64)).render()
STUDENT, TEACHER = "resnet10_nano+segformer:16", "resnet10_slim+lraspp:32"

def net(name=STUDENT, seed=0):
    torch.manual_seed(seed)
    return segmenter(name)

def streams(): return {"target": Stream(CITY, 2, role="target")}
def train(method, steps=4, **more): return fit(method, streams(), steps, progress=False, say=lambda s: None, **more)

@pytest.mark.parametrize("loss", DENSE)
def test_training_changes_the_student_and_its_adapters_alone(loss):
    torch.manual_seed(0)
    m = DenseKD(net(), net(TEACHER, 1), loss, zoom=(.75, 2.))
    before = {k: v.clone() for k, v in m.state_dict().items()}
    history = train(m, 2, log_every=1)
    assert all(math.isfinite(v) for r in history for v in r.values()) and loss in history.names
    after = m.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before if k.startswith("nets.teacher"))
    assert (len(m.nets["adapters"]) > 0) == DENSE[loss].adapt
    for k in before:
        if k.endswith("weight") and not k.startswith("nets.teacher"): assert not torch.equal(before[k], after[k]), k

@pytest.mark.parametrize("loss", DENSE)
def test_the_step_is_cross_entropy_plus_weight_times_the_loss(loss):
    raw = to_device(next(streams()["target"]), "cpu")
    quiet = dict(p_jitter=0, p_blur=0)
    batch = lambda: SimpleNamespace(target=raw, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    m = DenseKD(net(), net(TEACHER, 1), loss, weight=.5, photo=quiet).train()
    m.student.head.dropout.p = 0.
    got = m.step(batch(), lambda loss, name: None)
    from kdda.data.augment import photometric
    x = photometric(raw.image, torch.Generator().manual_seed(0), **quiet)
    taps = [t for t in DENSE[loss].taps if t != "logits"]
    s, t = (n(x, taps) if taps else (n(x), {}) for n in (m.student, m.nets["teacher"]))
    pairs = [(s[1][k], t[1][k]) for k in taps] or [(s[0], t[0])]
    if loss == "fitnets": pairs = [(m.nets["adapters"][0](a), b) for a, b in pairs]
    want = sum(DENSE[loss].loss(a, b) for a, b in pairs) / len(pairs)
    assert got[loss].item() == pytest.approx(.5 * want.item(), rel=1e-4) and got["ce"].item() == pytest.approx(cross_entropy(s[0], raw.label, denominator="all").item(), rel=1e-4)

def test_options_of_the_loss_reach_it():
    values = []
    raw = to_device(next(streams()["target"]), "cpu")
    for T in (1., 4.):
        m = DenseKD(net(), net(TEACHER, 1), "kl", temperature=T).train()
        values.append(m.step(SimpleNamespace(target=raw, generator=torch.Generator().manual_seed(0)), lambda *a: None)["kl"].item())
    assert values[0] != values[1]

def test_channels_of_taps_are_what_the_network_gives():
    for name in (STUDENT, TEACHER, "mobilenet_v2_050+lraspp", "mit_nano+daformer:16"):
        n = net(name).eval()
        taps = ("stage1", "stage4", "fused")
        logits, out = n(torch.randn(1, 3, 32, 64), taps)
        for t in taps: assert out[t].shape[1] == tap_channels(n, t)
        assert logits.shape[1] == tap_channels(n, "logits")

def test_memory_answers_the_same_bits_and_asks_once():
    n, asked = net(TEACHER).eval(), []
    def ask(x): asked.append(len(x)); return n.head(n.backbone(x)), x[:, :1]
    memory, x = Memory(ask), torch.randn(5, 3, 32, 64).contiguous(memory_format=torch.channels_last)
    a = memory(x)
    order = torch.tensor([4, 1, 1, 0])
    b = memory(x[order])
    assert len(asked) == 5 and all(torch.equal(p[order], q) for p, q in zip(a, b))
    assert torch.equal(memory(x[:1])[0], Memory(ask)(x[:1])[0])
    memory(x.flip(-1)); assert len(asked) == 11                    # a mirrored view is another view
    poor = Memory(ask, limit=memory.bytes // 4)
    assert all(torch.equal(p, q) for p, q in zip(poor(x), a)) and poor.bytes <= memory.bytes // 4 and 0 < len(poor.kept) < 5
    assert all(torch.equal(p, q) for p, q in zip(poor(x), a))

def test_an_adapter_is_there_only_where_it_is_needed():
    f = torch.randn(2, 16, 4, 8)
    assert Adapter(16, 24)(f, torch.empty(2, 24, 8, 16)).shape == (2, 24, 8, 16)
    assert Adapter(16, 16)(f, f) is f and not list(Adapter(16, 16).parameters())

@pytest.mark.parametrize("loss", ["fitnets", "cirkd"])
def test_resume_is_bitwise(loss, tmp_path):
    def make():
        torch.manual_seed(0)
        return DenseKD(net(), net(TEACHER, 1), loss, zoom=(.75, 2.))
    def go(folder, kill):
        m = dying(make(), 4) if kill else make()
        return m, train(m, 6, folder=folder, checkpoint_every=2, log_every=1, optim={"main": Optim(lr=3e-3)})
    resumes_to_the_bit(go, tmp_path)

def test_every_loss_is_a_row(tmp_path):
    for loss in DENSE:
        m = execute(Run("dense_kd", scale="smoke", options={"loss": loss}, out=tmp_path), progress=False, say=lambda s: None)
        assert [(n["method"], n["student"]) for n in m["needs"]] == [("oracle", "resnet10_slim+lraspp:64")] and m["student"]["name"] == "resnet10_nano+segformer:48"

def test_a_row_is_the_same_whatever_was_drawn_before(tmp_path):
    states = []
    for k in range(2):
        torch.manual_seed(k)
        run = Run("dense_kd", scale="smoke", options={"loss": "fitnets"}, out=tmp_path / str(k))
        execute(run, progress=False, say=lambda s: None)
        states.append(run.stage_state("distil"))
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
