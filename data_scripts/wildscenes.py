"""WildScenes 2D: 8467 labelled frames of Australian bush in the splits, 2016x1512.

    python data_scripts/wildscenes.py --root data/wildscenes
"""
from common import main

ARCHIVES = []   # nothing that could be unpacked here

if __name__ == "__main__":
    main("wildscenes", ARCHIVES,
         access="free; the links are at the address above",
         steps="""
            download WildScenes2d into {root}
            copy data/splits of the repository to {root}/splits
         """)
