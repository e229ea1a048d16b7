"""nuImages: 93,000 frames with masks of objects and of the road, 1600x900.

    python data_scripts/nuimages.py --root data/nuimages
"""
from common import Archive, main

ARCHIVES = [
    Archive("nuimages-v1.0-all-metadata.tgz"),
    Archive("nuimages-v1.0-all-samples.tgz"),
]

if __name__ == "__main__":
    main("nuimages", ARCHIVES,
         access="an account; non-commercial",
         steps="""
            log in at the address above; download the metadata and the samples
         """,
         note="masks are decoded as they are read, nothing has to be prepared; most of each frame is unlabelled")
