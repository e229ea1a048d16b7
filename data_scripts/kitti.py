"""KITTI semantics 2015: 200 labelled frames of about 1242x375 from Karlsruhe.

    python data_scripts/kitti.py --root data/kitti
"""
from common import Archive, main

ARCHIVES = [
    Archive("data_semantics.zip"),
]

if __name__ == "__main__":
    main("kitti", ARCHIVES,
         access="free; the site asks for an email address",
         steps="""
            download the label archive of semantic and instance segmentation at the address above
         """)
