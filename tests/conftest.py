"Shared fixtures: a tiny world, a tiny network, and where real data are."
import os
from pathlib import Path
import pytest
import torch

os.environ.setdefault("MPLBACKEND", "Agg")
torch.set_num_threads(1)

@pytest.fixture
def camvid_root():
    "The folder with camvid/, or a skip that says how to give it."
    root = os.environ.get("KDDA_DATA")
    if not root or not (Path(root) / "camvid" / "train.txt").is_file(): pytest.skip("real frames: set KDDA_DATA to a folder that holds camvid/")
    return Path(root)
