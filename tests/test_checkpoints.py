"Checkpoints against flipped bits, truncation, pickles and a full disk."
import os, pickle, random, resource, subprocess
import pytest
import torch
from kdda.learn import checkpoints
from kdda.learn.checkpoints import CheckpointError

@pytest.fixture
def folder(tmp_path):
    g = torch.Generator().manual_seed(0)
    tree = lambda k: {"net": {"w": torch.randn(16, 8, generator=g), "n": torch.tensor(k)}, "optim": {0: (1e-3, None)}, "history": [{"step": k, "loss": 0.1 * k}]}
    for step in (10, 20): checkpoints.save(tmp_path, step, tree(step))
    return tmp_path

def newest(folder): return sorted((folder / "step_00000020").iterdir())

def test_every_flipped_bit_is_detected(folder):
    draw, files = random.Random(0), newest(folder)
    sizes = [f.stat().st_size for f in files]
    for _ in range(200):
        file = draw.choices(files, sizes)[0]
        raw = file.read_bytes()
        bit = draw.randrange(8 * len(raw))
        bad = bytearray(raw); bad[bit // 8] ^= 1 << bit % 8
        file.write_bytes(bad)
        with pytest.raises(CheckpointError, match=file.name): checkpoints.load(file.parent)
        said = []
        step, tree = checkpoints.load_latest(folder, said.append)
        assert step == 10 and tree["history"] == [{"step": 10, "loss": 1.0}] and file.name in said[0]
        file.write_bytes(raw)
    assert checkpoints.load_latest(folder)[0] == 20

@pytest.mark.parametrize("keep", [0, 1, 0.5, -1])
def test_truncated_files_are_detected(folder, keep):
    for file in newest(folder):
        raw = file.read_bytes()
        file.write_bytes(raw[:int(keep * len(raw)) if isinstance(keep, float) else keep])
        assert checkpoints.load_latest(folder, lambda _: None)[0] == 10
        file.write_bytes(raw)

@pytest.mark.parametrize("name", ["manifest.json", "state.json", "tensors.safetensors"])
def test_a_missing_file_is_detected(folder, name):
    (folder / "step_00000020" / name).unlink()
    assert checkpoints.load_latest(folder, lambda _: None)[0] == 10

@pytest.mark.parametrize("name", ["manifest.json", "state.json", "tensors.safetensors"])
def test_a_pickle_is_never_executed(folder, name, tmp_path):
    class Trap:
        def __reduce__(self): return (open, (str(tmp_path / "executed"), "w"))
    (folder / "step_00000020" / name).write_bytes(pickle.dumps(Trap()))
    assert checkpoints.load_latest(folder, lambda _: None)[0] == 10
    assert not (tmp_path / "executed").exists()

def test_a_new_checkpoint_is_kept_and_damaged_later_ones_go(folder):
    (folder / "step_00000020" / "state.json").write_text("{}")
    assert checkpoints.save(folder, 15, {"w": 1}, keep=1).is_dir()
    assert checkpoints.steps(folder) == [15] and checkpoints.load_latest(folder)[0] == 15

def test_none_intact_is_an_error_not_a_restart(folder):
    for step in ("step_00000010", "step_00000020"): (folder / step / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="none of the 2"): checkpoints.load_latest(folder, lambda _: None)

def test_leftovers_of_a_killed_writer_are_ignored_and_swept(folder):
    (folder / ".tmp-step_00000030").mkdir()
    assert checkpoints.load_latest(folder)[0] == 20
    checkpoints.save(folder, 30, {})
    assert checkpoints.steps(folder) == [20, 30] and not list(folder.glob(".tmp*"))

def test_what_cannot_be_stored_is_named(tmp_path):
    with pytest.raises(TypeError, match="not function"): checkpoints.save(tmp_path, 1, {"f": lambda: 0})
    assert not list(tmp_path.iterdir())

def test_layout_and_dtype_survive(tmp_path):
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    tree = {"x": x, "view": x[0], "half": x.bfloat16(), "int": torch.arange(3), "zero": torch.tensor(3.5), "nested": [({},), "ü", True, float("inf")]}
    back = checkpoints.load(checkpoints.save(tmp_path, 1, tree))
    for k in ("x", "view", "half", "int", "zero"): assert torch.equal(back[k], tree[k]) and back[k].dtype == tree[k].dtype
    assert back["nested"] == tree["nested"]

def test_full_disk(tmp_path):
    "On a small tmpfs the second checkpoint does not fit: a clear error, and the first is intact."
    disk = tmp_path / "disk"; disk.mkdir()
    if os.name != "posix" or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    try:
        checkpoints.save(disk, 1, {"w": torch.ones(150_000)})
        with pytest.raises(CheckpointError, match="step_00000001 is intact"): checkpoints.save(disk, 2, {"w": torch.ones(150_000)})
        assert torch.equal(checkpoints.load_latest(disk)[1]["w"], torch.ones(150_000))
        assert [p.name for p in disk.iterdir()] == ["step_00000001"]
    finally: subprocess.run(["umount", disk], check=True)

def test_a_write_that_fails_leaves_nothing_behind(tmp_path):
    "The same without a mount: the operating system refuses files beyond 200 kB."
    checkpoints.save(tmp_path, 1, {"w": torch.ones(10)})
    import signal
    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, old[1]))
    try:
        with pytest.raises(CheckpointError, match="could not be written"): checkpoints.save(tmp_path, 2, {"text": "x" * 300_000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old); signal.signal(signal.SIGXFSZ, handler)
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000001"]
