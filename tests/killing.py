"What several tests share: a training that dies on the way, goes on, and must end as if nothing had happened."
import pytest
import torch

class Killed(Exception): pass

def same(a, b):
    "Two modules hold the same bits."
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    for k in a: assert torch.equal(a[k], b[k]), k

def dying(method, at):
    "`method`, which dies once step `at` is done, before anything of it is saved."
    after = method.after_step
    def after_step(t):
        after(t)
        if t == at: raise Killed
    method.after_step = after_step
    return method

def dying_in(stages, phase):
    "`stages`, of which the one of that name dies just before its end."
    for s in stages:
        if s.name == phase: s.method = lambda before, build=s.method, at=s.steps - 2: dying(build(before), at)
    return stages

def resumes_to_the_bit(go,        # (folder, kill) -> method, history; dies on the way where `kill` is true
                       folder):
    "The method, its history and every file of its checkpoints, whether it was killed or not."
    whole, expected = go(folder / "whole", False)
    with pytest.raises(Killed): go(folder / "cut", True)
    assert any((folder / "cut").rglob("step_*/*"))                    # it has something to go on from
    resumed, history = go(folder / "cut", False)
    assert history == expected
    same(whole, resumed)
    left = lambda name: {f.relative_to(folder / name): f.read_bytes() for f in (folder / name).rglob("step_*/*")}
    assert left("whole") == left("cut")
