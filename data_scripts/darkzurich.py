"""Dark Zurich: streets of Zurich at night, in twilight and by day; 50 night frames have public labels.

    python data_scripts/darkzurich.py --root data/darkzurich
"""
from common import Archive, main

ARCHIVES = [
    Archive("Dark_Zurich_train_anon.zip", "https://data.vision.ee.ethz.ch/csakarid/shared/GCMA_UIoU/Dark_Zurich_train_anon.zip", below="Dark_Zurich_train_anon"),
    Archive("Dark_Zurich_val_anon.zip", "https://data.vision.ee.ethz.ch/csakarid/shared/GCMA_UIoU/Dark_Zurich_val_anon.zip", below="Dark_Zurich_val_anon"),
]

if __name__ == "__main__":
    main("darkzurich", ARCHIVES,
         access="free, no login; non-commercial",
         note="training frames have no labels, and nothing here asks for them")
