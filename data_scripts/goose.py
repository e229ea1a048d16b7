"""GOOSE 2D: 7845 training and 962 validation frames off the road, 64 classes.

    python data_scripts/goose.py --root data/goose
"""
from common import Archive, main

ARCHIVES = [
    Archive("goose_2d_train.zip", "https://goose-dataset.de/storage/goose_2d_train.zip"),
    Archive("goose_2d_val.zip", "https://goose-dataset.de/storage/goose_2d_val.zip"),
]

if __name__ == "__main__":
    main("goose", ARCHIVES,
         access="free, no login",
         note="if the archives hold a folder above images/ and labels/, point --root at it")
