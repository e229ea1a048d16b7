"""SYNTHIA-RAND-CITYSCAPES: 9400 frames from a simulator, 1280x760, labels of 16 bits.

    python data_scripts/synthia.py --root data/synthia
"""
from common import main

ARCHIVES = []   # nothing that could be unpacked here

if __name__ == "__main__":
    main("synthia", ARCHIVES,
         access="a form on the site; non-commercial",
         steps="""
            fetch SYNTHIA-RAND-CITYSCAPES from the address above; it is a RAR archive, which Python cannot unpack
            mkdir -p {root} && unrar x SYNTHIA_RAND_CITYSCAPES.rar
            move RGB/ and GT/ of what was unpacked into {root}
         """,
         note="labels are read from GT/LABELS (16 bits), not from GT/COLOR")
