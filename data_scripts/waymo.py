"""Waymo Open, camera segmentation: frames of five cameras with panoptic labels of 16 bits.

    python data_scripts/waymo.py --root data/waymo
"""
from common import main

ARCHIVES = []   # nothing that could be unpacked here

if __name__ == "__main__":
    main("waymo", ARCHIVES,
         access="a Google account and a form; non-commercial",
         steps="""
            fetch camera_image and camera_segmentation (parquet, v2) from the address above
            export them with Waymo's tools to {root}/SPLIT/images/NAME.png and {root}/SPLIT/segmentation/NAME_seg.png (uint16, 1000 * class + instance)
         """,
         note="parquet files are not read here")
