"""One line at a time: `decompress`, `lines`, `parse`, `splice`. No Beam import."""
