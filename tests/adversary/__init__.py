"""The attacks of one who reads the source, each played against the product and against what it did before."""
