"""Encoded images and what is derived from them: codec, blob stores, windows, geometry, DICOM at the border."""
