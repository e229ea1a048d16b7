"""BDD100K, semantic segmentation: 7000 training and 1000 validation frames of 1280x720 from American cities.

    python data_scripts/bdd100k.py --root data/bdd100k
"""
from common import Archive, main

ARCHIVES = [
    Archive("bdd100k_images_10k*.zip", below="bdd100k"),
    Archive("10k_images_*.zip", below="bdd100k"),
    Archive("bdd100k_sem_seg_labels*.zip", below="bdd100k"),
]

if __name__ == "__main__":
    main("bdd100k", ARCHIVES,
         access="an account",
         steps="""
            log in at the address above; download the 10K images and the semantic segmentation labels
         """,
         note="the older package (seg/images, seg/labels) is read as well. We have not seen how the archives are called today; they unpack below bdd100k/")
