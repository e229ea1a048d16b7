"""YCOR (Yamaha-CMU): 931 training and 145 validation frames of trails, 1024x544.

    python data_scripts/ycor.py --root data/ycor
"""
from common import Archive, main

ARCHIVES = [
    Archive("yamaha_v0.zip", below="yamaha_v0"),
]

if __name__ == "__main__":
    main("ycor", ARCHIVES,
         access="see the address",
         steps="""
            download the dataset
         """,
         note="labels in colours are read as they are; the archive's name we recall, and did not see")
