"""RELLIS-3D: 6235 labelled frames of an off-road drive in Texas, 1920x1200.

    python data_scripts/rellis3d.py --root data/rellis3d
"""
from common import Archive, main

ARCHIVES = [
    Archive("Rellis_3D_pylon_camera_node.zip"),
    Archive("Rellis_3D_pylon_camera_node_label_id.zip"),
    Archive("Rellis_3D_image_split.zip"),
]

if __name__ == "__main__":
    main("rellis3d", ARCHIVES,
         access="free; links to Google Drive at the address above",
         steps="""
            download images, label ids and the split lists with a browser
         """)
