"""A data set made of what people have: images and masks in folders of any kind, colours, arrays, polygons.

names      what the name of a file says: image or mask, which case, which channel
pairing    which masks belong to which image
reading    any of these files as voxels
meaning    what the values of masks mean: classes
polygons   annotations of COCO and Label Studio
folder     the data set, written whole or not at all
"""
