"""What this machine gives: `photozhpc bench`."""
