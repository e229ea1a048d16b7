"""ACDC: 4006 labelled frames in fog, at night, in rain and in snow, 1920x1080.

    python data_scripts/acdc.py --root data/acdc
"""
from common import Archive, main

ARCHIVES = [
    Archive("rgb_anon_trainvaltest.zip"),
    Archive("gt_trainval.zip"),
]

if __name__ == "__main__":
    main("acdc", ARCHIVES,
         access="an account",
         steps="""
            log in at the address above and download the two archives
         """,
         note="labels of the test split are on the server only")
