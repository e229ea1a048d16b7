"""COCO 2017 with panoptic labels: 118,287 and 5000 photographs.

    python data_scripts/coco.py --root data/coco
"""
from common import Archive, main

ARCHIVES = [
    Archive("train2017.zip", "http://images.cocodataset.org/zips/train2017.zip"),
    Archive("val2017.zip", "http://images.cocodataset.org/zips/val2017.zip"),
    Archive("panoptic_annotations_trainval2017.zip", "http://images.cocodataset.org/annotations/panoptic_annotations_trainval2017.zip"),
    Archive("panoptic_*2017.zip", within="annotations"),
]

if __name__ == "__main__":
    main("coco", ARCHIVES,
         access="free, no login",
         note="segments are looked up as they are read; panoptic_semseg_* are preferred if they were made")
