"""A2D2 (Audi): 41,277 frames of 23 drives, labels in 55 colours.

    python data_scripts/a2d2.py --root data/a2d2
"""
from common import Archive, main

ARCHIVES = [
    Archive("camera_lidar_semantic.tar", "https://aev-autonomous-driving-dataset.s3.eu-central-1.amazonaws.com/camera_lidar_semantic.tar"),
]

if __name__ == "__main__":
    main("a2d2", ARCHIVES,
         access="free, no login",
         note="no split is published: the last three drives are for validation here")
