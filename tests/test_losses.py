"Every loss against NumPy, the laws they all keep, and what a caller can get wrong."
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from kdda.learn.losses import (cross_entropy, feature_distance, feature_mse, kd_kl, ohem_cross_entropy, pixel_mean,
                               soft_cross_entropy, thing_mask)

THINGS = (1, 3)


def batch(B=2, C=5, H=6, W=8, void=.2, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    label = torch.randint(0, C, (B, H, W), generator=g).byte()
    label[torch.rand(B, H, W, generator=g) < void] = 255
    x, other = (2 * torch.randn(B, C, H, W, generator=g, dtype=dtype) for _ in "ab")
    return x, label, other, torch.rand(B, H, W, generator=g, dtype=dtype)


# --- the losses in plain NumPy, one pixel after the other ---------------------------------------------------------------------------------

def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()

def pixels(y): return [(b, i, j) for b, i, j in np.ndindex(*y.shape)]

def np_cross_entropy(x, y, w, cw, denominator):
    total = sum(-np.log(softmax(x[b, :, i, j])[y[b, i, j]]) * cw[y[b, i, j]] * w[b, i, j] for b, i, j in pixels(y) if y[b, i, j] != 255)
    count = y.size if denominator == "all" else (y != 255).sum()
    return total / max(count, 1)

def np_ohem(x, y, threshold, keep):
    nll = sorted((-np.log(softmax(x[b, :, i, j])[y[b, i, j]]) for b, i, j in pixels(y) if y[b, i, j] != 255), reverse=True)
    if not nll: return 0.
    hard = [v for v in nll if v >= -np.log(threshold)]
    least = int(np.ceil(keep * len(nll) - 1e-9))
    return np.mean(hard if len(hard) >= least else nll[:least])

def np_kl(x, t, T, y, w):
    total = 0.
    for b, i, j in pixels(y):
        if y[b, i, j] == 255: continue
        q, p = softmax(x[b, :, i, j] / T), softmax(t[b, :, i, j] / T)
        total += w[b, i, j] * (p * (np.log(p) - np.log(q))).sum()
    return T * T * total / max((y != 255).sum(), 1)

def np_soft(x, t, y, w):
    total = sum(-w[b, i, j] * (softmax(t[b, :, i, j]) * np.log(softmax(x[b, :, i, j]))).sum() for b, i, j in pixels(y) if y[b, i, j] != 255)
    return total / max((y != 255).sum(), 1)

def np_mse(x, t, y):
    each = [((x[b, :, i, j] - t[b, :, i, j])**2).mean() for b, i, j in pixels(y) if y[b, i, j] != 255]
    return np.mean(each) if each else 0.

def np_fd(x, t, y, things, share, cell=1):
    "DAFormer's words: area average of the one-hot label with void as a class of its own; arg-max class if its share is enough; a thing?"
    each = []
    for b in range(len(y)):
        for i in range(x.shape[2]):
            for j in range(x.shape[3]):
                histogram = np.bincount(y[b, i*cell:(i+1)*cell, j*cell:(j+1)*cell].ravel(), minlength=256) / cell**2
                if histogram.max() >= share and histogram.argmax() in things: each.append(np.sqrt(((x[b, :, i, j] - t[b, :, i, j])**2).sum()))
    return np.mean(each) if each else 0.


CW = [1., 2., .5, 3., 1.]
LOSSES = {  # name: (ours, NumPy), both of (logits, label, other logits, weight)
    "ce valid": (lambda x, y, o, w: cross_entropy(x, y, CW, w), lambda x, y, o, w: np_cross_entropy(x, y, w, CW, "valid")),
    "ce all": (lambda x, y, o, w: cross_entropy(x, y, CW, w, "all"), lambda x, y, o, w: np_cross_entropy(x, y, w, CW, "all")),
    "ohem threshold": (lambda x, y, o, w: ohem_cross_entropy(x, y, .5), lambda x, y, o, w: np_ohem(x, y, .5, 1/16)),
    "ohem share": (lambda x, y, o, w: ohem_cross_entropy(x, y, 1e-9, .3), lambda x, y, o, w: np_ohem(x, y, 1e-9, .3)),
    "kd": (lambda x, y, o, w: kd_kl(x, o, 1., y != 255, w), lambda x, y, o, w: np_kl(x, o, 1., y, w)),
    "kd T=3": (lambda x, y, o, w: kd_kl(x, o, 3., y != 255, w), lambda x, y, o, w: np_kl(x, o, 3., y, w)),
    "soft": (lambda x, y, o, w: soft_cross_entropy(x, o.softmax(1), y != 255, w), lambda x, y, o, w: np_soft(x, o, y, w)),
    "mse": (lambda x, y, o, w: feature_mse(x, o, y != 255), lambda x, y, o, w: np_mse(x, o, y)),
    "fd": (lambda x, y, o, w: feature_distance(x, o, y, THINGS), lambda x, y, o, w: np_fd(x, o, y, THINGS, .75)),
}
every_loss = pytest.mark.parametrize("name", LOSSES)
shapes = st.builds(batch, B=st.integers(1, 3), H=st.integers(1, 5), W=st.integers(1, 5), void=st.sampled_from([0, .3, .9]), seed=st.integers(0, 99))


@every_loss
@settings(max_examples=12, deadline=None)
@given(args=shapes)
def test_equals_numpy(name, args):
    ours, reference = LOSSES[name]
    assert ours(*args).item() == pytest.approx(float(reference(*(a.numpy() for a in args))), rel=1e-10, abs=1e-12)


@every_loss
@settings(max_examples=12, deadline=None)
@given(args=shapes, n=st.integers(2, 3))
def test_same_when_repeated_or_tiled(name, args, n):
    loss = LOSSES[name][0]
    value = loss(*args).item()
    assert loss(*(torch.cat([a] * n) for a in args)).item() == pytest.approx(value, rel=1e-12)
    assert loss(*(a.repeat(*[1] * (a.dim() - 2), n, 2) for a in args)).item() == pytest.approx(value, rel=1e-12)


@every_loss
def test_gradient_is_the_derivative(name):
    x, *rest = batch(B=1, H=3, W=3, seed=4)
    assert torch.autograd.gradcheck(lambda z: LOSSES[name][0](z, *rest), x.requires_grad_())


@every_loss
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_all_void_is_zero_with_zero_gradient(name, dtype):
    x, y, o, w = batch(dtype=dtype)
    x.requires_grad_()
    loss = LOSSES[name][0](x, torch.full_like(y, 255), o, w.to(dtype))
    loss.backward()
    assert loss.item() == 0 and (x.grad == 0).all()


@every_loss
def test_half_precision_logits_are_summed_in_float32(name):
    "A bf16 sum of 100 000 pixels would stop growing at 256 times its step; 1 % is far below that."
    half = [a.bfloat16() if a.is_floating_point() else a for a in batch(B=1, H=256, W=400)]
    exact = [a.double() if a.is_floating_point() else a for a in half]
    loss = LOSSES[name][0](*half)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(LOSSES[name][0](*exact).item(), rel=1e-4)


@every_loss
def test_gradients_reach_only_the_student(name):
    x, y, o, w = batch()
    x, o = x.requires_grad_(), o.requires_grad_()
    LOSSES[name][0](x, y, o, w).backward()
    assert x.grad.abs().sum() > 0 and o.grad is None


def test_label_dtypes_agree():
    x, y, _, _ = batch()
    for loss in (cross_entropy, ohem_cross_entropy):
        assert len({loss(x, y.to(d)).item() for d in (torch.uint8, torch.int32, torch.int64)}) == 1


def test_extreme_logits_stay_finite():
    x, y, o, w = batch(dtype=torch.float32)
    x, o = (1e4 * x).requires_grad_(), 1e4 * o
    for name in ("ce valid", "ohem threshold", "kd", "soft"):
        loss = LOSSES[name][0](x, y, o, w)
        assert loss.isfinite() and torch.autograd.grad(loss, x)[0].isfinite().all()


def test_a_nan_from_the_network_is_not_hidden():
    "Void cuts pixels out; it must not swallow a NaN at a labelled pixel, which is what the NaN guard of `fit` looks for."
    x, y, _, _ = batch(void=0)
    x[0, 0, 0, 0] = math.nan
    assert cross_entropy(x, y).isnan() and kd_kl(x, torch.zeros_like(x)).isnan()


def test_cross_entropy_is_torchs_where_torch_is_right():
    x, y, _, _ = batch()
    assert cross_entropy(x, y).item() == pytest.approx(F.cross_entropy(x, y.long(), ignore_index=255).item())
    assert cross_entropy(x, y, pixel_weight=.25).item() == pytest.approx(cross_entropy(x, y).item() / 4)


def test_ohem_keeps_ties():
    "Eight equal pixels, one asked for: all are as hard, so all are kept, and the gradient is shared."
    x = torch.zeros(1, 3, 2, 4, requires_grad=True)
    ohem_cross_entropy(x, torch.zeros(1, 2, 4, dtype=torch.uint8), threshold=1e-6, keep=1/8).backward()
    assert (x.grad[:, 0] != 0).all() and len(x.grad[:, 0].unique()) == 1


def test_ohem_class_weight_weighs_but_does_not_choose():
    x, y, _, _ = batch()
    assert ohem_cross_entropy(x, y, .5, class_weight=[2.] * 5).item() == pytest.approx(2 * ohem_cross_entropy(x, y, .5).item())


def test_teacher_may_rule_classes_out():
    x, y, o, _ = batch()
    o[:, 3:] = -math.inf
    x.requires_grad_()
    loss = kd_kl(x, o, 2.)
    p, log_q = (o / 2).softmax(1), (x / 2).log_softmax(1)
    by_hand = 4 * (p[:, :3] * (p[:, :3].log() - log_q[:, :3])).sum(1).mean()
    assert loss.item() == pytest.approx(by_hand.item())
    assert torch.autograd.grad(loss, x)[0].isfinite().all()


@pytest.mark.parametrize("share", [.51, .75, 1.])
def test_feature_distance_is_daformers_rule_on_real_cells(share):
    rng = np.random.default_rng(0)
    y = np.repeat(np.repeat(rng.choice([0, 1, 2, 3, 255], (2, 3, 5)), 4, 1), 4, 2).astype(np.uint8)
    spot = rng.random(y.shape) < .25
    y[spot] = rng.choice([0, 1, 2, 3, 255], spot.sum())
    x, o = rng.normal(size=(2, 2, 6, 3, 5))
    mask = thing_mask(torch.from_numpy(y), THINGS, (3, 5), share)
    assert share == 1 or 0 < mask.sum() < mask.numel()
    ours = feature_distance(torch.from_numpy(x), torch.from_numpy(o), torch.from_numpy(y), THINGS, share)
    assert ours.item() == pytest.approx(np_fd(x, o, y, THINGS, share, cell=4))


def test_no_thing_classes_at_all():
    x, y, o, _ = batch()
    assert feature_distance(x, o, y, ()) == 0


@pytest.mark.parametrize("call, words", [
    (lambda x, y, o, w: cross_entropy(x[..., ::2], y), "one size"),
    (lambda x, y, o, w: cross_entropy(x, y[:, None]), "one size"),
    (lambda x, y, o, w: cross_entropy(x[0], y[0]), "one size"),
    (lambda x, y, o, w: cross_entropy(x, y, pixel_weight=w[:, None]), "broadcasting would mix images"),
    (lambda x, y, o, w: cross_entropy(x, y, denominator="sum"), "denominator"),
    (lambda x, y, o, w: kd_kl(x, o[:, :4]), "one label space"),
    (lambda x, y, o, w: kd_kl(x, o, valid=(y != 255)[:, None]), "broadcasting would mix images"),
    (lambda x, y, o, w: soft_cross_entropy(x, o[..., ::2]), "one size"),
    (lambda x, y, o, w: feature_mse(x, o[:, :4]), "teacher"),
    (lambda x, y, o, w: feature_distance(x, o, y, THINGS, share=.5), "share"),
    (lambda x, y, o, w: ohem_cross_entropy(x, y, keep=0), "keep"),
    (lambda x, y, o, w: pixel_mean(w, y[:1] != 255), "valid"),
])
def test_what_a_caller_gets_wrong_is_said(call, words):
    with pytest.raises(ValueError, match=words): call(*batch())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@every_loss
def test_same_on_the_gpu(name):
    args = batch(H=32, W=64)
    here, there = LOSSES[name][0](*args), LOSSES[name][0](*(a.cuda() for a in args))
    assert there.is_cuda and there.item() == pytest.approx(here.item(), rel=1e-9)
    with torch.autocast("cuda", torch.bfloat16):
        half = LOSSES[name][0](*(a.cuda().bfloat16() if a.is_floating_point() else a.cuda() for a in args))
    assert half.dtype == torch.float32 and half.item() == pytest.approx(here.item(), rel=.02)
