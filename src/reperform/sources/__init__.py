"""Sources of data at the command line: which there are, what a map of an unknown file could be, what a map makes of it.

`sample` reads the beginning of a file, `profile` says what its columns look like, `draft` writes the map, `trial` runs
the real ingest and the real rules over a sample.
"""
