"""TAS500: 440 training and 100 validation frames of a car off the road, 2026x620.

    python data_scripts/tas500.py --root data/tas500
"""
from common import Archive, main

ARCHIVES = [
    Archive("tas500v1.1.zip", below="tas500v1.1"),
    Archive("tas500v1.1.tar.gz", below="tas500v1.1"),
]

if __name__ == "__main__":
    main("tas500", ARCHIVES,
         access="see the address",
         steps="""
            download v1.1
         """)
