"""IDD: 6993 training and 981 validation frames of Indian roads, 26 classes.

    python data_scripts/idd.py --root data/idd
"""
from common import Archive, main

ARCHIVES = [
    Archive("idd-segmentation.tar.gz", below="IDD_Segmentation"),
    Archive("idd-20k-II.tar.gz", below="idd20kII"),
]

if __name__ == "__main__":
    main("idd", ARCHIVES,
         access="an account; research",
         steps="""
            log in at the address above; download IDD segmentation part I, and part II if you like
         """,
         note="polygons are painted as they are read, so createLabels.py need not be run; if it was, its files are preferred")
