"""RUGD: some 7400 frames from a small robot off the road, 688x550.

    python data_scripts/rugd.py --root data/rugd
"""
from common import Archive, main

ARCHIVES = [
    Archive("RUGD_frames-with-annotations.zip", "http://rugd.vision/data/RUGD_frames-with-annotations.zip"),
    Archive("RUGD_annotations.zip", "http://rugd.vision/data/RUGD_annotations.zip"),
]

if __name__ == "__main__":
    main("rugd", ARCHIVES,
         access="free, no login",
         note="the split is by sequence")
