"""Files of the reference code `pita-z` (github.com/ashodkh/PITA): checkpoints and catalogues."""
