"""Mapillary Vistas, v1.2 labels: 18,000 training and 2000 validation photographs of all sizes.

    python data_scripts/mapillary.py --root data/mapillary
"""
from common import Archive, main

ARCHIVES = [
    Archive("mapillary-vistas-dataset_public_v*.zip"),
]

if __name__ == "__main__":
    main("mapillary", ARCHIVES,
         access="a form; research",
         steps="""
            ask for the dataset at the address above; you get a link by email
         """,
         note="the v2.0 package has v1.2 labels too; those are read")
