"""GTA5 (Playing for Data): 24,966 frames of a computer game with Cityscapes labels, 1914x1052.

    python data_scripts/gta5.py --root data/gta5
"""
from common import main

from kdda.data.datasets import GTA5_FRAMES

STEPS = """
  access    free, no login; for research
  1. from the address above, download 01_images.zip ... 10_images.zip and 01_labels.zip ... 10_labels.zip (about 57 GB)
  2. mkdir -p {root} && for f in *_images.zip *_labels.zip; do unzip -n $f -d {root}; done
  then      {root} holds images/00001.png ... and labels/00001.png ...
  note      label files are palette images whose index is the Cityscapes id; nothing has to be prepared
"""

main(GTA5_FRAMES, STEPS)
