"""ApolloScape scene parsing: street scenes from China, 3384x2710.

    python data_scripts/apolloscape.py --root data/apolloscape
"""
from common import Archive, main

ARCHIVES = [
    Archive("road0*_ins.tar.gz"),
    Archive("road0*_seg.tar.gz"),
]

if __name__ == "__main__":
    main("apolloscape", ARCHIVES,
         access="see the address",
         steps="""
            download the parts you want (road01_ins ... road04_seg); the list files, for train and val, go straight into {root}
         """,
         note="without the list files everything is the split all. How the archives are called we have not seen: if yours differ, unpack them into {root} yourself")
