"""GTA5 (Playing for Data): 24,966 frames of a computer game with Cityscapes labels, 1914x1052.

    python data_scripts/gta5.py --root data/gta5
"""
from common import Archive, main

ARCHIVES = [Archive(f"{i:02}_{part}.zip", f"https://download.visinf.tu-darmstadt.de/data/from_games/data/{i:02}_{part}.zip") for i in range(1, 11) for part in ("images", "labels")]

if __name__ == "__main__":
    main("gta5", ARCHIVES,
         access="free, no login; for research",
         note="about 57 GB; label files are palette images whose index is the Cityscapes id, nothing has to be prepared")
