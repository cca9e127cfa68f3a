"""The models that the embedded TEI serves."""
