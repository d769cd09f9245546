"""What tests of several files make: mosaics, stores, catalogues, checkpoints."""
