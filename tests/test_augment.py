"Augmentation against independent oracles, and the promises every piece makes."
import colorsys
import numpy as np, pytest, torch, torch.nn.functional as F
from torchvision.transforms.v2 import functional as TF
from kdda.data.augment import *
from kdda.data.augment import MEAN, STD
from kdda.data.labels import IGNORE

def gen(seed=0, device="cpu"): return torch.Generator(device).manual_seed(seed)

def images(B=4, H=32, W=48, seed=0): return torch.randint(0, 256, (B, 3, H, W), dtype=torch.uint8, generator=gen(seed))

def labels(B=4, H=32, W=48, classes=19, seed=1): return torch.randint(0, classes, (B, H, W), dtype=torch.uint8, generator=gen(seed))

def twin(label):
    "An image that says its label: wherever the two part, they were moved differently."
    return label[:, None].expand(-1, 3, -1, -1).contiguous()

GEOMETRIC = dict(hflip=hflip, random_resized_crop=random_resized_crop, random_scale=random_scale,
                 random_crop=lambda x, y, g: random_crop(x, y, g, (16, 24)))
PIECES = GEOMETRIC | dict(photometric=lambda x, y, g: (photometric(normalize(x), g, p_jitter=1, p_blur=1), y),
                          own=lambda x, y, g: (photometric(normalize(x), g, shared=False, p_gray=.3), y),
                          class_mask=lambda x, y, g: (class_mask(y, g), y), block_mask=lambda x, y, g: (block_mask(x.shape, 8, .7, g), y))

# ---- what all pieces promise

@pytest.mark.parametrize("name", PIECES)
def test_the_generator_decides_everything(name):
    x, y, f = images(), labels(), PIECES[name]
    before = torch.get_rng_state()
    a, b, c = f(x, y, gen(3)), f(x, y, gen(3)), f(x, y, gen(4))
    assert torch.equal(before, torch.get_rng_state()), "the global generator was used"
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    assert not torch.equal(a[0], c[0])

@pytest.mark.parametrize("name", PIECES)
def test_inputs_are_left_alone(name):
    x, y = images(), labels()
    x0, y0 = x.clone(), y.clone()
    PIECES[name](x, y, gen())
    assert torch.equal(x, x0) and torch.equal(y, y0)
    x = normalize(x); x0 = x.clone()
    photometric(x, gen(), p_jitter=1, p_blur=1, p_gray=1)
    assert torch.equal(x, x0)

@pytest.mark.parametrize("name", [*GEOMETRIC, "photometric", "own"])
def test_memory_format_is_kept_and_changes_nothing(name):
    x, y = images(), labels()
    plain, last = PIECES[name](x, y, gen(5))[0], PIECES[name](x.contiguous(memory_format=torch.channels_last), y, gen(5))[0]
    assert plain.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last) and not last.is_contiguous()
    assert torch.equal(plain, last)

def test_a_missing_generator_is_refused():
    with pytest.raises(ValueError, match="generator"): photometric(normalize(images()), None)
    with pytest.raises(ValueError, match="generator"): class_mask(labels(), None)

# ---- bytes and floats

def test_normalize_is_torchvisions_and_goes_back():
    x = images()
    torch.testing.assert_close(normalize(x), TF.normalize(x.float() / 255, MEAN, STD))
    assert torch.equal(denormalize(normalize(x)), x)

def test_normalising_twice_is_refused():
    with pytest.raises(TypeError, match="uint8"): normalize(normalize(images()))

def test_constants_made_in_inference_mode_can_be_trained_with():
    from kdda.data import augment
    augment._mean_std.cache_clear()
    with torch.inference_mode(): normalize(images())
    x = torch.rand(1, 3, 4, 4, requires_grad=True)
    (x * augment._mean_std(x.device, 255.)[0]).sum().backward()
    assert x.grad is not None

# ---- geometric

@pytest.mark.parametrize("name", GEOMETRIC)
def test_image_and_label_move_together(name):
    y = (torch.arange(4)[:, None, None] * 5 + (torch.arange(32)[:, None] // 8) * 8 + torch.arange(48) // 8).to(torch.uint8)
    x, z = GEOMETRIC[name](twin(y), y, gen(2))
    same = x[:, 0] == z
    seen = z != IGNORE
    # bilinear and nearest differ only where two tiles meet
    interior = seen & (F.max_pool2d(z.float()[:, None], 5, 1, 2) == -F.max_pool2d(-z.float()[:, None], 5, 1, 2))[:, 0]
    assert interior.float().mean() > .1 and same[interior].all()
    assert (x[:, 0][~seen] == 0).all()

def test_hflip_flips_each_image_by_itself_half_of_the_time():
    y = labels(400, 2, 3, 250)
    x, z = hflip(twin(y), y, gen(1))
    flipped = (z == y.flip(-1)).flatten(1).all(1)
    assert (flipped | (z == y).flatten(1).all(1)).all() and torch.equal(x[:, 0], z)
    assert 160 < flipped.sum() < 240
    assert torch.equal(hflip(twin(y), y, gen(), p=1)[1], y.flip(-1)) and torch.equal(hflip(twin(y), y, gen(), p=0)[1], y)
    assert hflip(twin(y), None, gen())[1] is None

def test_resized_crop_of_whole_pixels_copies_them():
    x, y = images(), labels()
    boxes = torch.tensor([[0, 0, 16, 24], [16, 24, 16, 24], [3, 5, 16, 24], [8, 1, 16, 24.]])
    u, v = resized_crop(x, y, boxes, (16, 24))
    for i, (t, l, h, w) in enumerate(boxes.int().tolist()):
        assert torch.equal(u[i], x[i, :, t:t + h, l:l + w]) and torch.equal(v[i], y[i, t:t + h, l:l + w])

def test_resized_crop_is_interpolate():
    x, whole = normalize(images()), torch.tensor([[0, 0, 32, 48.]] * 4)
    torch.testing.assert_close(resized_crop(x, None, whole, (64, 96))[0], F.interpolate(x, (64, 96), mode="bilinear", align_corners=False), atol=1e-4, rtol=0)
    y = labels()
    assert torch.equal(resized_crop(x, y, whole, (64, 96))[1], y.repeat_interleave(2, 1).repeat_interleave(2, 2))

def test_outside_is_zero_and_ignore():
    x, y = resized_crop(images() | 1, labels(), torch.tensor([[-16, -24, 64, 96.]] * 4), (64, 96))
    seen = torch.zeros(64, 96, dtype=torch.bool)
    seen[16:48, 24:72] = True
    assert ((y != IGNORE) == seen).all() and ((x[:, 0] > 0) == seen).all()

def test_random_crop_draws_every_place_and_refuses_a_larger_one():
    y = torch.arange(12, dtype=torch.uint8).view(1, 3, 4).expand(600, -1, -1)
    corner = random_crop(twin(y), y, gen(), (2, 3))[1][:, 0, 0]
    assert sorted(corner.unique().tolist()) == [0, 1, 4, 5] and torch.bincount(corner.int()).max() < 200
    with pytest.raises(ValueError, match="larger than the images"): random_crop(twin(y), y, gen(), (4, 4))

def test_random_resized_crop_draws_areas_within_bounds():
    ramp = torch.arange(64.).expand(500, 3, 64, 64).contiguous()
    width = random_resized_crop(ramp, None, gen(), area=(.25, .25), ratio=(1, 1))[0]
    torch.testing.assert_close(width[:, 0, 0, 48] - width[:, 0, 0, 16], torch.full((500,), 16.), atol=1e-3, rtol=0)

# ---- photometric: the four disturbances against colorsys, pixel by pixel

def pixels(n=2000):
    r = np.random.default_rng(0)
    p = np.concatenate([r.random((n, 3)), np.eye(3), 1 - np.eye(3), [[0] * 3, [1] * 3, [.5] * 3], r.integers(0, 3, (200, 3)) / 2]).astype(np.float32)
    return p, torch.from_numpy(p.T.copy()).view(1, 3, 1, -1)

def by_colorsys(p, f): return np.array([colorsys.hsv_to_rgb(*f(*colorsys.rgb_to_hsv(*map(float, c)))) for c in p]).T.reshape(1, 3, 1, -1)

@pytest.mark.parametrize("factor", [0, .5, .8, 1, 1.2, 5])
def test_saturation_is_hsv(factor):
    p, x = pixels()
    np.testing.assert_allclose(adjust_saturation(x, factor), by_colorsys(p, lambda h, s, v: (h, min(1, s * factor), v)), atol=1e-5)

@pytest.mark.parametrize("turn", [-.2, 0, .1, .2, 1])
def test_hue_is_hsv(turn):
    p, x = pixels()
    np.testing.assert_allclose(adjust_hue(x, turn), by_colorsys(p, lambda h, s, v: ((h + turn) % 1, s, v)), atol=1e-5)

def test_brightness_adds_and_contrast_multiplies_both_clamped():
    p, x = pixels()
    for d in (-.2, .2): np.testing.assert_allclose(adjust_brightness(x, d)[0, :, 0].T, np.clip(p + d, 0, 1), atol=1e-6)
    for f in (.8, 1.2): np.testing.assert_allclose(adjust_contrast(x, f)[0, :, 0].T, np.clip(p * f, 0, 1), atol=1e-6)

def test_factors_are_the_images_own():
    x = torch.rand(1, 3, 8, 8, generator=gen()).repeat(3, 1, 1, 1)
    for f in (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue):
        v = torch.tensor([.1, .4, .9])
        torch.testing.assert_close(f(x, v), torch.cat([f(x[:1], float(a)) for a in v]))

def test_jitter_strength_bounds_the_factors_and_order_varies():
    gray = torch.full((2000, 3, 1, 1), .5)       # no hue, no saturation: only brightness and contrast act
    lowest, highest = zip(*[v.aminmax() for v in (color_jitter(gray, gen(s), .2) for s in range(20))])
    assert min(lowest) >= .5 * .8 - .2 - 1e-6 and max(highest) <= (.5 + .2) * 1.2 + 1e-6
    multiplied_first = [v < (.5 - .2) * .8 - 1e-3 for v in lowest]              # out of reach for the other order
    assert multiplied_first == [v < .5 * 1.2 + .2 + 1e-3 for v in highest]      # and this reach is the other order's
    assert 0 < sum(multiplied_first) < 20
    assert torch.allclose(color_jitter(gray, gen(), 0.), gray)

def test_decisions_are_shared_or_the_images_own():
    x = normalize(images(8))
    def touched(s, **kw): return (photometric(x, gen(s), **kw) - x).abs().amax((1, 2, 3)) > 1e-3
    shared = torch.stack([touched(s, p_blur=0) for s in range(300)])
    assert (shared.all(1) | ~shared.any(1)).all()
    assert 210 <= shared.all(1).sum() <= 265            # p=.8 of 300: 240 +- 3.5 standard deviations
    own = torch.stack([touched(s, p_blur=0, shared=False) for s in range(60)])
    assert not (own.all(1) | ~own.any(1)).all() and .72 < own.float().mean() < .88
    blurred = torch.stack([touched(s, p_jitter=0, blur=(1., 1.15)) for s in range(300)])
    assert (blurred.all(1) | ~blurred.any(1)).all() and 120 <= blurred.all(1).sum() <= 180

def test_nothing_switched_on_is_nothing_done():
    x = normalize(images())
    torch.testing.assert_close(photometric(x, gen(), p_jitter=0, p_blur=0), x, atol=1e-5, rtol=0)

def test_images_of_one_batch_are_disturbed_differently():
    x = normalize(images(1)).repeat(4, 1, 1, 1)
    out = photometric(x, gen(), p_jitter=1, p_blur=0)
    assert all(not torch.allclose(out[i], out[j], atol=1e-2) for i in range(4) for j in range(i))

def test_gray_has_three_equal_channels_of_luma():
    x = torch.rand(2, 3, 8, 8, generator=gen())
    torch.testing.assert_close(grayscale(x), TF.rgb_to_grayscale(x, 3), atol=1e-3, rtol=0)
    out = denormalize(photometric(normalize(images()), gen(), p_jitter=0, p_blur=0, p_gray=1)).int()
    assert (out.amax(1) - out.amin(1)).max() <= 1

@pytest.mark.parametrize("sigma", [.15, .5, 1.15])
def test_nine_taps_are_enough_for_dafomers_blur(sigma):
    x = torch.rand(2, 3, 64, 64, generator=gen())
    torch.testing.assert_close(gaussian_blur(x, sigma), TF.gaussian_blur(x, [9, 9], [sigma, sigma]), atol=1e-5, rtol=0)
    torch.testing.assert_close(gaussian_blur(x, sigma), TF.gaussian_blur(x, [51, 51], [sigma, sigma]), atol=1e-3, rtol=0)

def test_blur_widths_are_the_images_own():
    x = torch.rand(3, 3, 16, 16, generator=gen())
    s = torch.tensor([.2, .7, 1.1])
    torch.testing.assert_close(gaussian_blur(x, s), torch.cat([gaussian_blur(x[i:i + 1], float(s[i])) for i in range(3)]))
    with pytest.raises(ValueError, match="too small"): gaussian_blur(x[..., :3], 1.)

# ---- ClassMix

def n_classes(y): return len(set(y.unique().tolist()) - {IGNORE})

def test_classmix_takes_half_of_the_classes_rounded_up():
    y = torch.stack([labels(1, classes=c, seed=c)[0] for c in range(1, 20)])
    m = class_mask(y, gen())
    for mask, label in zip(m, y):
        taken, left = set(label[mask].tolist()), set(label[~mask].tolist())
        assert not taken & left, "a class was torn"
        assert len(taken) == -(-n_classes(label) // 2)

def test_classmix_draws_every_class_alike():
    y = torch.arange(8, dtype=torch.uint8).view(1, 1, 8).repeat(4000, 1, 1)
    share = class_mask(y, gen())[:, 0].float().mean(0)
    assert (share - .5).abs().max() < .035      # 4.4 standard deviations

def test_void_is_not_a_class_unless_asked():
    y = labels(50, classes=3)
    y[:, :10] = IGNORE
    assert not class_mask(y, gen())[y == IGNORE].any()
    m = class_mask(y, gen(), void=True)
    taken = [len(set(label[mask].tolist())) for mask, label in zip(m, y)]
    assert set(taken) == {2} and m[:, 0, 0].any() and not m[:, 0, 0].all()
    assert not class_mask(torch.full((2, 4, 4), IGNORE, dtype=torch.uint8), gen()).any()

def test_classes_of_the_batch_are_drawn_as_dafomer_does():
    y = torch.stack([torch.full((4, 4), c, dtype=torch.uint8) for c in (0, 1, 2, 3)])   # one class an image, four in the batch
    assert class_mask(y, gen()).all()                                                   # its own: ceil(1/2) = 1
    shares = torch.stack([class_mask(y, gen(s), batch_classes=True)[:, 0, 0].float() for s in range(400)])
    assert (shares.mean(0) - .5).abs().max() < .1 and len(shares.sum(1).unique()) > 2

def test_mix_pastes_images_labels_and_numbers():
    x, y = images(), labels()
    m = class_mask(y, gen())
    out = mix(m, x, 255 - x)
    assert torch.equal(out, torch.from_numpy(np.where(m.numpy()[:, None], x.numpy(), 255 - x.numpy())))
    for a, b, dtype in ((y, IGNORE, torch.uint8), (1., torch.rand(4, 32, 48), torch.float32), (normalize(x), 0, torch.float32)):
        out = mix(m, a, b)
        assert out.dtype == dtype
    assert torch.equal(mix(m, y, IGNORE) == IGNORE, ~m)

@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_mix_takes_every_bit(dtype):
    a, b, m = torch.randn(2, 4, 3, 8, 9).to(dtype).unbind() + (torch.rand(4, 8, 9) > 0.5,)
    a[0, 0, 0, :3], b = torch.tensor([float("nan"), -0.0, float("inf")]), b.contiguous(memory_format=torch.channels_last)
    bits = lambda t: t.contiguous().view({8: torch.int64, 4: torch.int32, 2: torch.int16}[dtype.itemsize])
    for x, y in ((a, b), (b, a)):
        out = mix(m, x, y)
        assert torch.equal(bits(out), bits(torch.where(m[:, None], x, y)))
        assert out.stride() == x.stride()
    a = torch.randn(4, 3, 8, 9, requires_grad=True)
    mix(m, a, 0).sum().backward()
    assert torch.equal(a.grad, m[:, None].expand_as(a).float())

# ---- block masks

def test_block_masks_hide_whole_blocks_at_the_ratio():
    m = block_mask((200, 3, 64, 96), 16, .7, gen())
    tiles = m.view(200, 4, 16, 6, 16).permute(0, 1, 3, 2, 4).flatten(3)
    assert (tiles.all(-1) | ~tiles.any(-1)).all()
    assert abs(m.float().mean() - .3) < .03
    assert len({tuple(t.flatten().tolist()) for t in tiles[..., 0]}) > 190      # each image draws its own
    assert block_mask((2, 8, 8), 4, 0., gen()).all() and not block_mask((2, 8, 8), 4, 1., gen()).any()

def test_block_masks_fit_any_size():
    for H, W in ((1, 1), (7, 13), (64, 100)): assert block_mask((2, 3, H, W), 8, .5, gen()).shape == (2, H, W)

# ---- on a GPU

@pytest.mark.gpu
def test_a_cpu_generator_gives_a_gpu_the_same_augmentation():
    if not torch.cuda.is_available(): pytest.skip("no CUDA device")
    x, y = images(), labels()
    for name, f in PIECES.items():
        if name == "block_mask": continue
        a, b = f(x, y, gen(7)), f(x.cuda(), y.cuda(), gen(7))
        torch.testing.assert_close(b[0].float().cpu(), a[0].float(), atol=1 if a[0].dtype == torch.uint8 else 1e-3, rtol=0)
        assert (a[1] == b[1].cpu()).float().mean() > .99
        f(x.cuda(), y.cuda(), gen(7, "cuda"))
