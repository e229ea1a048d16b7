"""Freiburg Forest: 230 training and 136 test frames of forest paths.

    python data_scripts/freiburg_forest.py --root data/freiburg_forest
"""
from common import Archive, main

ADDRESS = "http://deepscene.cs.uni-freiburg.de/static/datasets/freiburg_forest_annotated.tar.gz"
ARCHIVES = [
    Archive("freiburg_forest_annotated.tar.gz", tuple(f"{ADDRESS}.part-{p}" for p in ("aa", "ab", "ac")), below="freiburg_forest_annotated"),
]

if __name__ == "__main__":
    main("freiburg_forest", ARCHIVES,
         access="free, no login; the archive is in three parts")
