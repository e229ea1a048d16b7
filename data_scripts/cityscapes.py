"""Cityscapes, fine annotations: 2975 training and 500 validation frames of 2048x1024 from 50 cities.

    python data_scripts/cityscapes.py --root data/cityscapes
"""
from common import Archive, main

ARCHIVES = [
    Archive("leftImg8bit_trainvaltest.zip"),
    Archive("gtFine_trainvaltest.zip"),
    Archive("leftImg8bit_trainextra.zip"),
    Archive("gtCoarse.zip"),
]

if __name__ == "__main__":
    main("cityscapes", ARCHIVES,
         access="an account, given to research institutions: register at the address above with your institution's email",
         steps="""
            pip install cityscapesscripts
            mkdir -p {root}/archives && csDownload -d {root}/archives leftImg8bit_trainvaltest.zip gtFine_trainvaltest.zip   (about 11 GB; asks for the login)
         """,
         note="nothing has to be prepared: label ids are mapped as they are read; labelTrainIds and polygons serve as well. The last two archives are for the coarse labels of train_extra")
