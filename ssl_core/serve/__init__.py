"""The model behind HTTP: what `headwater predict` says of a file, for bytes that are sent in."""
