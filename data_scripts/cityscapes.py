"""Cityscapes, fine annotations: 2975 training and 500 validation frames of 2048x1024 from 50 cities.

    python data_scripts/cityscapes.py --root data/cityscapes
"""
from common import main

from kdda.data.datasets import CITYSCAPES

STEPS = """
  access    an account, given to research institutions: register at the address above with your institution's email
  1. pip install cityscapesscripts
  2. mkdir -p {root} && csDownload -d {root} leftImg8bit_trainvaltest.zip gtFine_trainvaltest.zip
            (about 11 GB; asks for the login)
  3. cd {root} && unzip -n leftImg8bit_trainvaltest.zip && unzip -n gtFine_trainvaltest.zip
  then      {root} holds leftImg8bit/{{train,val,test}}/CITY/ and gtFine/{{train,val,test}}/CITY/
  note      nothing has to be prepared: label ids are mapped as they are read; labelTrainIds files serve as well
"""

main(CITYSCAPES, STEPS)
