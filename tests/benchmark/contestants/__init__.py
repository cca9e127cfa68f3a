"""Ways to do the same work, each a program of its own: `--input FOLDER --output FOLDER --url URL`."""
