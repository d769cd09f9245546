"""What a file or folder is, from its headers alone: `photozhpc info`, `photozhpc config`."""
