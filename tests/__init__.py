"""The tests, in the folders of the package, and a package so that no other `tests` is found."""
