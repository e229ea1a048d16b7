"""WildDash 2, public part: 4256 difficult frames from all over the world, 1920x1080.

    python data_scripts/wilddash2.py --root data/wilddash2
"""
from common import Archive, main

ARCHIVES = [
    Archive("wd_public_v2p0.zip"),
]

if __name__ == "__main__":
    main("wilddash2", ARCHIVES,
         access="an account",
         steps="""
            log in at the address above; download wd_public_v2p0.zip
         """,
         note="panoptic.json and panoptic/ are read; semantic/*_labelIds.png are preferred if they were made")
