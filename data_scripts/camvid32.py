"""CamVid, 701 frames from behind a windscreen in Cambridge, at full size and with all 32 classes.

    python data_scripts/camvid32.py --root data/camvid32
"""
from common import Archive, main

ARCHIVES = [
    Archive("701_StillsRaw_full.zip", "http://web4.cs.ucl.ac.uk/staff/g.brostow/MotionSegRecData/files/701_StillsRaw_full.zip"),
    Archive("LabeledApproved_full.zip", "http://web4.cs.ucl.ac.uk/staff/g.brostow/MotionSegRecData/data/LabeledApproved_full.zip", into="LabeledApproved_full"),
]

if __name__ == "__main__":
    main("camvid32", ARCHIVES,
         access="free, no login",
         note="this is the official form, one split called all; the form with train, val and test folders is read too")
